# What makes a guest that is a copy of another one differ from that. Sourced by the agent, and by resume.

# The random numbers and the clock: by a program, since nothing of Alpine's re-seeds and date(1) knows whole seconds only.
[ -c /dev/cpu/0/msr ] || modprobe msr
"$emu/bin/resume"
# Where the root is in memory, init has made /etc/machine-id a link to this.
[ -f /run/machine-id ] && IFS=- read -r a b c d e </proc/sys/kernel/random/uuid && echo $a$b$c$d$e >/run/machine-id
