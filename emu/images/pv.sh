#!/bin/sh
# Installed as pv: the machine's hypercalls from a shell (docs/hypercalls.md), over the kernel's module msr. A read or
# write of 8 * N bytes at an offset of its device is N RDMSRs or WRMSRs of that number.
# Besides a POSIX shell and modprobe, it needs date, dd, flock, head, mktemp, od, rm, sync, wc.

device=/dev/cpu/0/msr
first=$((0x4b564d00))
information=$((first + 0x09)) end=$((first + 0x0a)) mark=$((first + 0x0b)) wall_clock=$((first + 0x0c))
random=$((first + 0x0d)) read=$((first + 0x10)) write=$((first + 0x11)) mailbox=$((first + 0x12))
console=$((first + 0x14))

in_mailbox=2 create=1 truncate=2
chunk=1048576           # bytes that one request reads or writes at most

usage='pv: the hypercalls of this machine
  pv info                 what it offers
  pv get NUMBER           read an MSR
  pv set NUMBER VALUE     write one
  pv cat PATH             a file of the directory that the host gave with --files
  pv put PATH             standard input to such a file, which is made or replaced
  pv print TEXT...        a line on the console
  pv mark VALUE           a mark for the host, with the time
  pv date                 the time
  pv random N             random bytes
  pv exit STATUS          end the machine with that exit status
Numbers and values are decimal, or 0x and hexadecimal, of 64 bits without a sign.'

fail() {
    echo "pv: $*" >&2
    exit 1
}

misused() {
    echo "pv: $* (see pv --help)" >&2
    exit 2
}

# ---- numbers: a shell's have a sign

# Sets hex to the 16 digits of a number.
parse() {
    case $1 in
    0[xX]*) digits=${1#0?} allowed=0-9a-fA-F most=16 ;;
    *) digits=$1 allowed=0-9 most=20 ;;
    esac
    case $digits in
    '' | *[!$allowed]*) misused "'$1' is no number" ;;
    esac
    digits=${digits#"${digits%%[!0]*}"}
    [ ${#digits} -le $most ] || misused "'$1' has more than 64 bits"
    digits=00000000000000000000$digits
    if [ $most = 16 ]; then
        hex=${digits#"${digits%????????????????}"}
        return
    fi
    # Ten digits and ten, with a 1 in front: 0 would make them octal. Then 48 bits and 16.
    digits=${digits#"${digits%????????????????????}"}
    high=$((1${digits%??????????} - 10000000000)) low=$((1${digits#??????????} - 10000000000))
    low=$((high % 65536 * 10000000000 + low))
    high=$((high / 65536 * 10000000000 + (low >> 16)))
    [ $((high >> 48)) = 0 ] || misused "'$1' has more than 64 bits"
    hex=$(printf %012x%04x $high $((low & 65535)))
}

# Sets number to that of an MSR.
parse_number() {
    parse "$1"
    case $hex in
    00000000*) number=$((0x$hex)) ;;
    *) misused "'$1' is no MSR's number" ;;
    esac
}

# Prints words of 16 hexadecimal digits as they lie in memory.
words() {
    digits=$1 octets=
    while [ -n "$digits" ]; do
        rest=${digits#????????????????} octet=
        digits=${digits%"$rest"}
        while [ -n "$digits" ]; do
            octet="0x${digits%"${digits#??}"} $octet"
            digits=${digits#??}
        done
        octets="$octets $octet" digits=$rest
    done
    printf "$(printf '\\%03o' $octets)"
}

# ---- the device

open_device() {
    [ -c $device ] || PATH=${0%/*}:$PATH modprobe msr 2>/dev/null
    [ -c $device ] || fail "there is no $device, and no module msr"
    [ -w $device ] || fail "only root may use $device"
    # Else the kernel's messages have a complaint of each program that writes.
    { echo on >/sys/module/msr/parameters/allow_writes; } 2>/dev/null
}

# Reads $2 bytes from MSR $1.
read_msr() {
    $busybox dd if=$device iflag=skip_bytes skip="$1" bs="$2" count=1 2>/dev/null
}

# Writes standard input to MSR $1.
write_msr() {
    $busybox dd of=$device oflag=seek_bytes seek="$1" bs=2M iflag=fullblock conv=notrunc 2>/dev/null
}

# Sets value to what MSR $1 has, in the form that od calls $2.
get() {
    value=$(read_msr "$1" 8 | $busybox od -A n -t "$2")
    value=${value##* }
    [ -n "$value" ] || fail "$(printf 'reading MSR 0x%x: I/O error' "$1")"
}

# Writes to MSR $1 what parse has found.
set_msr() {
    words "$hex" | write_msr "$1" || fail "$(printf 'writing MSR 0x%x: I/O error' "$1")"
}

# ---- files, by the mailbox, of which there is one for all programs

# Locks the mailbox, makes request $1 for $path with flags $2, offset $3, size $4, data from file $5, and sets result.
ask() {
    exec 9<$device
    $busybox flock 9
    size=$((48 + ${#path}${5:+ + $4}))
    padding=$((-size & 7))
    {
        words "$(printf %016x 0 $(($2 << 32 | ${#path})) "$3" 0 "$4" 0)"
        printf %s "$path"
        [ -z "$5" ] || $busybox dd if="$5" bs=$chunk 2>/dev/null
        $busybox head -c $padding /dev/zero
    } | write_msr $mailbox && words "$(printf %016x $((size + padding | in_mailbox)))" | write_msr "$1" ||
        fail "$path: I/O error: the machine has no directory for this (--files)"
    get $mailbox d8
    result=$value
    case $result in
    -1 | -13) fail "$path: the host does not permit that" ;;
    -2) fail "$path: no such file" ;;
    -20) fail "$path: a part of it is no directory" ;;
    -21) fail "$path: a directory" ;;
    -22) fail "$path: not the path of a file below the host's directory" ;;
    -27) fail "$path: too large" ;;
    -28) fail "$path: the host's disk is full" ;;
    -30) fail "$path: the host's directory is read-only" ;;
    -36) fail "$path: a name too long" ;;
    -40) fail "$path: a symbolic link" ;;
    -95) fail "$path: no regular file" ;;
    -*) fail "$path: error ${result#-} on the host" ;;
    esac
}

unlock() {
    exec 9<&-
}

# Sets file to a new one, which goes when this script ends.
make_file() {
    file=$($busybox mktemp) || fail "there is no room in /tmp"
    trap '$busybox rm -f "$file"' EXIT
    trap 'exit 1' HUP INT TERM
}

print_file() {
    make_file
    offset=0
    while
        ask $read 0 $offset $chunk
        # Not straight on: whoever reads our output may take time.
        [ "$result" = 0 ] || read_msr $mailbox $((result + 7 & ~7)) >"$file" || fail "there is no room in /tmp"
        unlock
        $busybox head -c "$result" "$file" || exit 1
        [ "$result" = $chunk ]
    do
        offset=$((offset + result))
    done
}

put_file() {
    make_file
    offset=0 flags=$((create | truncate))
    while
        $busybox dd of="$file" bs=$chunk count=1 iflag=fullblock 2>/dev/null || fail "there is no room in /tmp"
        length=$(($($busybox wc -c <"$file")))
        ask $write $flags $offset $length "$file"
        unlock
        [ "$result" = $length ] || fail "$path: the host's disk is full"
        [ $length = $chunk ]
    do
        offset=$((offset + length)) flags=0
    done
}

# ---- the other commands

print_information() {
    get $information u8
    [ $((value >> 48)) = $((0x5056)) ] || fail "this machine has no hypercalls"
    echo "version: $((value >> 32 & 65535))"
    features=
    for feature in console idle files mailbox exit mark wall-clock random; do
        [ $((value & 1)) = 0 ] || features="$features $feature"
        value=$((value >> 1))
    done
    echo "features:$features"
}

print_text() {
    octets=$(printf '%s\n' "$*" | $busybox od -A n -v -t o1)
    printf "$(printf '\\%s\\000\\000\\000\\000\\000\\000\\000' $octets)" | write_msr $console ||
        fail "$(printf 'writing MSR 0x%x: I/O error' $console)"
}

print_date() {
    get $wall_clock u8
    nanoseconds=$(printf %09d $((value % 1000000000)))
    $busybox date -u -d @$((value / 1000000000)) "+%Y-%m-%d %H:%M:%S.$nanoseconds UTC"
}

print_random() {
    case $hex in
    0*) count=$((0x$hex)) ;;
    *) misused "those are too many" ;;
    esac
    get $random u8
    $busybox dd if=$device iflag=skip_bytes skip=$random bs=4096 count=$((count / 4096 + 1)) 2>/dev/null |
        $busybox head -c $count
}

end_machine() {
    [ $((0x$hex >> 8)) = 0 ] || misused "a status is 0 to 255"
    $busybox sync
    set_msr $end
}

export LC_ALL=C         # lengths are in bytes
busybox=
[ -x /run/emu/busybox ] && busybox=/run/emu/busybox

case $1:$# in
--help:*) echo "$usage" && exit ;;
info:1 | date:1 | print:*) ;;
get:2) parse_number "$2" ;;
set:3) parse_number "$2" && parse "$3" ;;
mark:2 | random:2 | exit:2) parse "$2" ;;
cat:2 | put:2) path=$2 ;;
*) misused "this is no command: pv $*" ;;
esac
open_device
case $1 in
info) print_information ;;
get) get $number u8 && echo "$value" ;;
set) set_msr $number ;;
cat) print_file ;;
put) put_file ;;
print) shift && print_text "$@" ;;
mark) set_msr $mark ;;
date) print_date ;;
random) print_random ;;
exit) end_machine ;;
esac
