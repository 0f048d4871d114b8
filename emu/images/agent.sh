#!/bin/sh
# The guest's end of the channel (emu/channel.py has the host's): runs commands for the host, many at a time.
# Needs a POSIX shell and cat, dd, mkdir, mkfifo, mount, rm, setsid, sleep. Started without arguments, by root.
#
# On the control port, a line each:     from the host                   to the host
#                                       slot NUMBER OUT ERR TOKEN       hello VERSION
#                                       kill NUMBER
#                                       resume                          resumed
# After a restore the host asks to resume: mounts and configuration are set right, and commands wait for it. The clock,
# and what makes a guest that was restored or forked another one, are the program renew's, which has a port of its own.
# A slot runs one command at a time. The port OUT carries requests to it and the command's output from it, ERR the
# command's input and its errors. Requests:     n                       start a shell for the next command, then
#                                               l LINES INPUT           the command in so many lines
#                                               b BYTES INPUT           or in so many bytes
# followed by it; with INPUT 1, frames come on ERR: a line with a number of bytes, and they, up to one of 0 bytes. The
# shell is asked for ahead, so that after a restore or a fork no process has to be made first.
# What a slot sends is the command's own but for marks, \036 TOKEN and four characters, on both ports:
# "rdy\n" once, a command's status "000\n" to "255\n" after all that itself has written, and "eof\n" when nothing that
# it left behind can write any more; only then may the next request come. A slot that is killed closes both ports.
#
# A command's output goes through a FIFO and a cat: unlike a port, programs can open /dev/stdout when that is a pipe.
# Nothing is started with `&` that leads to a command, since that would make it ignore SIGINT and SIGQUIT; a setsid
# that has to fork does not wait for what it starts. A slot is a session, and survives what its commands send to their
# process group, but for SIGKILL; a session for each command would cost one more program started.

emu=${0%/*}             # this package's files
directory=/run/emu-channel
cgroup=$directory/cgroup/emu

find_port() {
    name=$1
    for tries in 0 1 2 3 4 5 6 7 8 9; do
        for port in /sys/class/virtio-ports/*; do
            [ -r "$port/name" ] && read -r found <"$port/name" && [ "$found" = $name ] && return
        done
        sleep 0.$tries
    done
    exit 1
}

serve() {
    mkdir -m 700 $directory
    mkdir $directory/cgroup
    mount -t cgroup2 cgroup $directory/cgroup && mkdir $cgroup $cgroup/left
    # What a login shell has, from a shell of its own: a profile may exit.
    eval "$(sh -lc 'export -p; echo umask $(umask)' </dev/null)"
    # What the host configures goes before the profile, as in the console's shell.
    [ -r "$ENV" ] && . "$ENV"
    # When memory runs out, commands end.
    echo -1000 >/proc/self/oom_score_adj
    [ -c /dev/cpu/0/msr ] || modprobe msr
    find_port emu.renew
    "$emu/bin/renew" "/dev/${port##*/}"
    find_port emu.agent
    device=${port##*/}
    # Writes wait until the host has opened its side, while reads would end at once.
    exec 9<>"/dev/$device"
    echo hello 1 >&9
    while :; do
        while read -r word number out err token <&9; do
            case $word in
            slot) setsid setsid sh "$0" "$number" "${device%p*}p$out" "${device%p*}p$err" "$token" 9>&-;;
            kill) end "$number";;
            resume) (. "$emu/resume"); echo resumed >&9;;      # apart: it has variables of its own
            esac
        done
        sleep 1
    done
}

# End a slot's worker, its command, and all that this has started. Without cgroups, that is the slot's session.
end() {
    if [ -e "$cgroup/$1/cgroup.kill" ]; then
        echo 1 >"$cgroup/$1/cgroup.kill"
    else
        read -r session <"$directory/$1/session" && kill -9 -"$session"
    fi
}

slot() {
    number=$1 token=$4
    mkdir "$directory/$number"
    cd "$directory/$number" || exit
    rm -f out err
    echo $$ >session
    # Not ignored, which commands would inherit.
    trap : HUP INT QUIT TERM USR1 USR2 ALRM
    mkfifo -m 622 out err
    printf '\036%seof\n' "$token" >mark
    mkdir "$cgroup/$number"
    for port in "/dev/$2" "/dev/$3"; do
        tries=0
        until [ -c "$port" ]; do
            [ $((tries += 1)) -lt 500 ] || exit
            sleep 0.01
        done
    done
    exec 3<>"/dev/$2" 4<>"/dev/$3"
    copy out >&3 &
    copy_out=$!
    copy err >&4 &
    copy_err=$!
    printf '\036%srdy\n' "$token" >&3
    printf '\036%srdy\n' "$token" >&4
    (work)
    [ -e "$cgroup/$number/cgroup.kill" ] && end "$number"
    while read -r process <"$cgroup/$number/cgroup.procs"; do sleep 0.02; done
    # Each cat is let out of its round, all output passed on, and finds no other.
    [ -e /proc/$copy_out/exe ] && exec 5>out
    [ -e /proc/$copy_err/exe ] && exec 6>err
    rm -f out err mark
    exec 5>&- 6>&-
    wait
}

# Passes on what comes through the FIFO $1, command after command; a cat serves several.
copy() {
    trap '' HUP INT QUIT TERM USR1 USR2 ALRM
    fifo=$1
    set -- "$1" mark "$1" mark "$1" mark "$1" mark
    while [ -p "$fifo" ]; do
        cat "$@" "$@" "$@" "$@" || sleep 0.1
    done
}

work() {
    trap : HUP INT QUIT TERM USR1 USR2 ALRM
    read -r self rest </proc/self/stat
    [ -e "$cgroup/$number/cgroup.kill" ] && echo 0 >"$cgroup/$number/cgroup.procs"
    while read -r word <&3 && [ "$word" = n ]; do
        [ -e /proc/$copy_out/exe ] && [ -e /proc/$copy_err/exe ] || exit
        # What the last command left behind is not to end with the next one.
        while read -r process; do
            [ "$process" = "$self" ] || echo "$process" >$cgroup/left/cgroup.procs
        done <"$cgroup/$number/cgroup.procs"
        exec 5>out 6>err
        (exec sh -c "_emu_files=$emu; . $emu/command; eval \"\$_emu_text\"")
        status=$?
        printf '\036%s%03d\n' "$token" $status >&5
        printf '\036%s%03d\n' "$token" $status >&6
        exec 5>&- 6>&-
    done
}

exec 2>/dev/null
if [ $# = 0 ]; then serve; else slot "$@"; fi
