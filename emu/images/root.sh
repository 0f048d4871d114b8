#!/bin/sh
# The first process when the root is neither unpacked nor read by the kernel itself: mounts it, and hands over to
# init.sh in there. Runs under the busybox beside it, which stays in memory, for nothing is written into the root.
#
# On the kernel's command line: root=TAG of a 9p share (emu-root if there is none) or root=/dev/..., rootfstype=,
# rootflags=, ro.

export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

fail() {
    read -r consoles </sys/class/tty/console/active
    echo "emu: $*" >"/dev/${consoles##* }"
    exec poweroff -f
}

. /run/emu/drivers

root=emu-root type= flags= mode=rw
read -r line </proc/cmdline
for word in $line; do
    case $word in
    root=*) root=${word#root=} ;;
    rootfstype=*) type=${word#rootfstype=} ;;
    rootflags=*) flags=${word#rootflags=} ;;
    ro | rw) mode=$word ;;
    esac
done
case $root in
/dev/*)
    type=${type:-ext4}
    load_drivers crc32c_generic crc32c_intel "$type"
    ;;
*)
    type=9p flags=$share_options${flags:+,$flags}
    load_drivers
    ;;
esac

mount -t "$type" -o "$mode${flags:+,$flags}" "$root" /newroot || fail "the root $root cannot be mounted"
mount -t tmpfs -o mode=755 tmpfs /newroot/run || fail "the root $root has no directory /run"
cp -a /run/emu /newroot/run
if [ -d /lib/modules ]; then
    cp -a /lib/modules /newroot/run/emu/lib
    echo /run/emu/bin/modprobe >/proc/sys/kernel/modprobe
fi
for directory in proc sys dev; do
    mount -o move /$directory /newroot/$directory || fail "the root $root has no directory /$directory"
done
exec switch_root /newroot /run/emu/busybox sh /run/emu/init
