# What a guest that was restored has to set right. Sourced by the agent, which goes on after it whatever happens here.

# The clock and the random numbers: by a program, since date(1) knows whole seconds only.
[ -c /dev/cpu/0/msr ] || modprobe msr
"$emu/bin/resume"

# Tries, and tries before the driver is bound anew. A mount whose files are gone can be made again at once; the driver
# is in the way while something of the old one is still open, or when it lost its device.
most=50 patience=10

bind_again() {
    for device in /sys/bus/virtio/drivers/9pnet_virtio/virtio*; do
        [ -r "$device/mount_tag" ] && read -r found <"$device/mount_tag" || continue
        # It waits for who uses the device, maybe for ever.
        [ "$found" = "$1" ] && { echo "${device##*/}" >"${device%/*}/unbind" & sleep 0.02; }
    done
    for device in /sys/bus/virtio/devices/virtio*; do
        read -r alias <"$device/modalias"
        case $alias in
        virtio:d00000009*) [ -e "$device/driver" ] || echo "${device##*/}" >/sys/bus/virtio/drivers/9pnet_virtio/bind ;;
        esac
    done
}

mount_again() {
    umount -l "$2"
    tries=0
    until mount -t 9p -o "$3" "$1" "$2"; do
        tries=$((tries + 1))
        [ $tries = $patience ] && bind_again "$1"
        [ $tries -lt $most ] || return
        [ $tries -lt $patience ] || sleep 0.1
    done
}

# A shell reads byte by byte, each a system call, and the kernel makes the list anew for each.
if [ -d /sys/bus/virtio/drivers/9pnet_virtio ]; then
    grep " 9p " /proc/mounts >/run/emu-mounts
    while read -r tag place type options rest; do
        [ "$type" = 9p ] && [ "$place" != / ] && ! [ -e "$place/." ] && mount_again "$tag" "$place" "$options"
    done </run/emu-mounts
fi

config=/run/emu/config
[ -f $config/hostname ] && read -r name <$config/hostname && echo "${name:-localhost}" >/proc/sys/kernel/hostname
if [ -f $config/resume ]; then
    (
        . "$emu/environment"
        [ -x $config/resume ] && exec $config/resume
        exec /bin/sh $config/resume
    ) </dev/null >/dev/null 2>&1 9>&-
fi
