#!/bin/sh
# Rounds of work whose answers must always be the same. Argument: for how many seconds.
# Round 0 tells its answers; a later one that differs ends the run. Everything printed is read by bench/soak.py,
# which takes a line that it does not know for a failure: what a shell says of a program that crashed, for one.

REPORT=10                       # rounds between two reports

end=$(($(date +%s) + $1))
rm -rf /tmp/soak
mkdir -p /tmp/soak/tree && cd /tmp/soak || exit 1

check() {
    eval "want=\$want_$1"
    if [ -z "$want" ]; then
        eval "want_$1=\$2"
        echo "answer $1 $2"
    elif [ "$want" != "$2" ]; then
        echo "WRONG round $round: $1 is '$2', was '$want'"
        exit 1
    fi
}

digest() {
    sha256sum | cut -c 1-64
}

report() {
    dmesg -c | sed 's/^/message /'
    read -r load </proc/loadavg
    while read -r name count; do
        [ "$name" = processes ] && echo "round $round processes $count load $load"
    done </proc/stat
}

spawning() {
    i=0
    while [ $i -lt 8 ]; do
        cat numbers
        /bin/busybox true || echo "true is false"
        i=$((i + 1))
    done | digest
}

pipes() {
    seq 1 300 | cat | tr 0-9 a-j | rev | cat | tail -n 40 | digest
}

programs() {
    program=./busybox-$round            # called anything else, it would look for an applet of that name
    cp /bin/busybox $program
    echo $($program sha256sum $program | $program cut -c 1-64) $(cmp $program /bin/busybox && $program echo same)
    rm $program
}

sorting() {
    awk 'BEGIN { for (x = i = 1; i <= 400; i++) { x = x * 16807 % 2147483647; print x } }' | sort -n | digest
}

adding() {
    awk 'BEGIN { for (i = 1; i <= 2000; i++) { h += 1 / i; q = q * 0.999 + h / (i * i) } printf "%.12f %.12f\n", h, q }'
}

archives() {
    mkdir out
    tar cf - tree | gzip | gunzip | tar xf - -C out
    gzip -c tree/8 >8.gz && gunzip -c 8.gz >8
    cat out/tree/* 8 | digest
    rm -r out 8.gz 8
}

signals() {
    sh -c 'kill -9 $$' 2>/dev/null
    killed=$?
    sh -c 'exit 37'
    ended=$?
    sleep 1000 &
    kill $!
    wait $! 2>/dev/null
    echo $killed $ended $?
}

background() {
    for i in 1 2 3 4; do
        { usleep $((i * 700)); echo $i >turn$i; } &
    done
    wait
    cat turn1 turn2 turn3 turn4 | tr '\n' ' '
    rm turn?
}

seq 1 50 >numbers
for i in 1 2 3 4 5 6 7 8; do
    seq $i $((i * 300)) >tree/$i
done

# The timer load: sleepers at two rates, each sleep a process
while :; do usleep 3700; done &
fast=$!
while :; do usleep 17000; done &
slow=$!
trap 'kill $fast $slow' EXIT

round=0
while :; do
    for job in spawning pipes programs sorting adding archives signals background; do
        check $job "$($job)"
    done
    round=$((round + 1))
    [ $((round % REPORT)) = 0 ] && report
    [ $(date +%s) -ge $end ] && break
done
report
echo "end"
