#!/bin/sh
# The guest's first process: mounts what programs expect, runs a shell on the console, powers off when it ends.
# Runs under busybox of any kind; a program or a mount that is missing must not keep the shell from starting.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root USER=root LOGNAME=root SHELL=/bin/sh
# The kernel hands over TERM=linux, which a serial line is not; TERM=... on its command line comes through.
[ "$TERM" = linux ] && TERM=vt220
export TERM

# A root that is only a busybox has no names for its applets yet.
[ -e /bin/mount ] || /bin/busybox --install -s

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
# devtmpfs has only devices; scripts expect these names too.
ln -s /proc/self/fd /dev/fd
for name in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${name%:*}" "/dev/${name#*:}"
done
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp

name=localhost
[ -r /etc/hostname ] && read -r name </etc/hostname
echo "$name" >/proc/sys/kernel/hostname
ip link set lo up 2>/dev/null || ifconfig lo 127.0.0.1 up 2>/dev/null

# Read by the interactive shell after the profile, whose prompt differs from root to root.
ENV=/run/shrc
echo "PS1='\\w # '" >$ENV
export ENV

# The last of the active consoles is what /dev/console stands for; that itself cannot control a session.
read -r consoles </sys/class/tty/console/active
tty=/dev/${consoles##* }
cd /root || cd /
setsid -c sh -l <"$tty" >"$tty" 2>&1

sync
exec poweroff -f
