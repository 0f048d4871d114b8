# Drivers for the virtio devices that are there. Sourced by init.sh and root.sh.

# msize: the most that Linux takes, which is 125 pages.
# cache=mmap: what the host changes is seen at once, and programs may map files for writing.
share_options=trans=virtio,version=9p2000.L,msize=512000,cache=mmap

# Loads the drivers, and the modules $@, in one process. What the kernel has built in is in no list of modules; whatever
# fails shows later, where a device is missed. Sets shares_expected if there is a 9p device.
load_drivers() {
    shares_expected=
    for file in /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias; do
        [ -r "$file" ] && read -r alias <"$file" || continue
        # virtio-pci numbers devices from 0x1040, older ones from 0x1000 in an order of its own.
        case $alias in
        pci:v00001AF4d00001042* | pci:v00001AF4d00001001* | virtio:d00000002*) set -- "$@" virtio_blk ;;
        pci:v00001AF4d00001043* | pci:v00001AF4d00001003* | virtio:d00000003*) set -- "$@" virtio_console ;;
        pci:v00001AF4d00001044* | pci:v00001AF4d00001005* | virtio:d00000004*) set -- "$@" virtio_rng ;;
        pci:v00001AF4d00001049* | pci:v00001AF4d00001009* | virtio:d00000009*)
            set -- "$@" 9pnet_virtio 9p
            shares_expected=yes
            ;;
        pci:v00001AF4d00001053* | pci:v00001AF4d00001012* | virtio:d00000013*) set -- "$@" vmw_vsock_virtio_transport ;;
        esac
    done
    # msr: hypercalls, which a guest that is restored needs at once.
    [ $# -gt 0 ] && set -- "$@" msr
    [ $# -gt 0 ] && [ -d /lib/modules ] && modprobe -a virtio_pci "$@" 2>/dev/null
}
