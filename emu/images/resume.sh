# What a restored guest has to set right of what the host shares. Sourced by the agent, which goes on after it whatever
# happens here.

# Tries, and those after which the driver is bound anew. A mount whose files are gone can be made again at once; the
# driver is in the way while something of the old one is still open, or when it lost its device.
most=50 patience=10
limit=150               # waits of 20 ms each, for which commands are kept from running
drivers=/sys/bus/virtio/drivers/9pnet_virtio

# In the background: unbinding waits for who uses the device, maybe for ever.
bind_again() {
    for device in $drivers/virtio*; do
        found=              # which ends without a newline: read fails
        [ -r "$device/mount_tag" ] && read -r found <"$device/mount_tag"
        [ "$found" = "$1" ] && echo "${device##*/}" >$drivers/unbind
    done
    for device in /sys/bus/virtio/devices/virtio*; do
        read -r alias <"$device/modalias"
        case $alias in
        virtio:d00000009*) [ -e "$device/driver" ] || echo "${device##*/}" >$drivers/bind;;
        esac
    done
}

mount_again() {
    umount -l "$2"
    tries=0
    until mount -t 9p -o "$3" "$1" "$2"; do
        tries=$((tries + 1))
        [ $tries -lt $most ] || return
        [ $tries = $patience ] && { bind_again "$1" & }
        [ $tries -lt $patience ] || sleep 0.1
    done
}

# What no file system caches; a mount can be dead though its directory is known.
is_alive() {
    { :; } <"$1"
}

# Mounts come after those that they lie below, with which they are detached.
mount_stale() {
    above=//
    while read -r tag place type options rest; do
        case $tag$place in
        *\\*) tag=$(printf %b. "$tag") place=$(printf %b. "$place") tag=${tag%.} place=${place%.};;
        esac
        case $place in
        /) continue;;
        "$above"/*) ;;
        *) is_alive "$place" && continue; above=$place;;
        esac
        mount_again "$tag" "$place" "$options"
    done
}

if [ -d $drivers ]; then
    stale=
    # A device that needs a reset answers with nothing but errors.
    for device in $drivers/virtio*; do
        read -r status <"$device/status" && [ "$status" != 0x0000000f ] && stale=yes
    done
    while [ -z "$stale" ] && read -r tag place type options rest; do
        [ "$type" != 9p ] || [ "$place" = / ] || is_alive "$place" || stale=yes
    done </proc/mounts
    if [ -n "$stale" ]; then
        grep " 9p " /proc/mounts >/run/emu-mounts       # which mounting does not change
        mount_stale </run/emu-mounts 9>&- &
        while [ -e /proc/$!/exe ] && [ $((limit -= 1)) -gt 0 ]; do sleep 0.02; done
    fi
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
