#!/bin/sh
# The guest's first process: mounts what programs expect and what the host shares, runs a shell on the console, powers
# off when it ends. Runs under any POSIX shell; a program, a mount or a driver that is missing, and whatever is in the
# host's configuration, must not keep the shell from starting. docs/guest.md says what a host can configure.

# This package's files in the guest. Beside a root that was mounted (root.sh) they lie in memory, with a busybox.
emu=/usr/lib/emu busybox=
[ "$0" = /run/emu/init ] && emu=/run/emu busybox=/run/emu/busybox
config=/run/emu/config

export PATH=$emu/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root USER=root LOGNAME=root SHELL=/bin/sh
# The kernel hands over TERM=linux, which a serial line is not; TERM=... on its command line comes through.
[ "$TERM" = linux ] && TERM=vt220
export TERM
# Read by the interactive shell after the profile.
export ENV=$emu/shrc

. $emu/drivers

if [ -z "$busybox" ]; then
    # A root that is only a busybox has no names for its applets yet.
    [ -e /bin/mount ] || /bin/busybox --install -s
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev 2>/dev/null
    mount -t tmpfs -o mode=755 tmpfs /run
    load_drivers
    # Who this machine is, as programs ask (machine-id(5)); the agent writes another one after a restore or a fork.
    if [ ! -e /etc/machine-id ]; then
        IFS=- read -r a b c d e </proc/sys/kernel/random/uuid
        echo $a$b$c$d$e >/run/machine-id && ln -s /run/machine-id /etc/machine-id
    fi
fi
# devtmpfs has only devices; programs expect some links and directories too.
$busybox cp -a $emu/dev /
$busybox mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$busybox mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$busybox mount -t tmpfs -o mode=1777 tmpfs /tmp

# The last of the active consoles is what /dev/console stands for; that itself cannot control a session.
read -r consoles </sys/class/tty/console/active
tty=/dev/${consoles##* }

say() {
    echo "emu: $*" >"$tty"
}

# Finds the directory and the mount options of share $1: the usual ones, or what the configuration says.
place_share() {
    directory=/mnt/$1 options=$share_options
    [ -f $config/mounts ] || return
    while read -r tag place more || [ -n "$tag" ]; do
        [ "$tag" = "$1" ] && directory=${place:-$directory} options=$share_options${more:+,$more}
    done <$config/mounts
}

mount_share() {
    if ! [ -d "$directory" ]; then
        # A root that the host shares does not get directories that are of no use to the host.
        [ -n "$busybox" ] && [ "${directory#/mnt/}" != "$directory" ] && [ -z "$private_mnt" ] &&
            $busybox mount -t tmpfs -o mode=755 tmpfs /mnt && private_mnt=yes
        $busybox mkdir -p "$directory"
    fi
    $busybox mount -t 9p -o "$options" "$1" "$directory" || say "the share $1 is not mounted at $directory"
}

[ -n "$shares_expected" ] && ! [ -d /sys/bus/virtio/drivers/9pnet_virtio ] &&
    say "this kernel has no 9p: what the host shares is not mounted"
shares=
for file in /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag; do
    [ -r "$file" ] || continue
    read -r tag <"$file"
    case $tag in
    emu-root) ;;
    emu-config)
        directory=$config options=$share_options
        mount_share emu-config
        ;;
    '' | .* | *[!A-Za-z0-9._+-]*) say "the share $tag is not mounted: its name is not one of a directory" ;;
    *) shares="$shares $tag" ;;
    esac
done
for share in $shares; do
    place_share "$share"
    mount_share "$share"
done

name=localhost
[ -f /etc/hostname ] && read -r name </etc/hostname
[ -f $config/hostname ] && read -r name <$config/hostname
echo "${name:-localhost}" >/proc/sys/kernel/hostname
$busybox ip link set lo up 2>/dev/null || ifconfig lo 127.0.0.1 up 2>/dev/null

cd /root || cd /
if [ -f $config/start ]; then
    (
        . $emu/environment
        [ -x $config/start ] && exec $config/start
        exec /bin/sh $config/start
    ) </dev/null >"$tty" 2>&1 || say "the configuration's start script failed with status $?"
fi
set -- /sys/bus/virtio/drivers/virtio_console/virtio*
if [ -e "$1" ]; then
    # Not by `&`, which would make it, and all that it runs, ignore SIGINT: a setsid in a session of its own forks.
    (
        . $emu/environment
        exec $busybox setsid $busybox setsid /bin/sh $emu/agent
    ) </dev/null >/dev/null 2>&1
fi
$busybox setsid -c /bin/sh -l <"$tty" >"$tty" 2>&1

exec /bin/sh $emu/bin/poweroff
