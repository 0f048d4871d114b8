#!/bin/sh
# Installed as modprobe beside a root that was mounted, and called by the kernel too: the modules that came with the
# kernel lie in memory, where the root's own modprobe does not look.

/run/emu/busybox chroot /run/emu /busybox modprobe "$@" 2>/dev/null && exit
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec modprobe "$@"
