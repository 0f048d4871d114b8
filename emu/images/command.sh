# Sourced by a shell that the agent has started ahead: waits for a request, and leaves what the shell is to run in
# $_emu_text. What can be done before a request comes is done before, so that little is left after a restore or a fork;
# what is done after it is in functions, which busybox' shell runs without asking the kernel for memory.

_emu_longest=100000     # bytes of a command that can be an argument

_emu_read_lines() {
    IFS= read -r _emu_text || exit
    while [ "$_emu_size" -gt 1 ]; do
        IFS= read -r _emu_line || exit
        _emu_text="$_emu_text
$_emu_line"
        _emu_size=$((_emu_size - 1))
    done
}

_emu_read_bytes() {
    if [ "$_emu_size" -gt $_emu_longest ]; then
        dd bs="$_emu_size" count=1 iflag=fullblock of=text 2>/dev/null
        _emu_text="exec sh '$PWD/text'"
    else
        _emu_text=$(dd bs="$_emu_size" count=1 iflag=fullblock 2>/dev/null; echo .)
        _emu_text=${_emu_text%.}
    fi
}

# Each dd takes a whole frame before it writes; one whose reader has gone ends, and the next takes the next frame.
_emu_feed() {
    while read -r size && [ "$size" -gt 0 ]; do
        dd bs="$size" count=1 iflag=fullblock 2>/dev/null
    done
}

_emu_run_with_input() {
    exec <&4 3>&- 4>&- 7>&-
    _emu_feed | sh -c "$_emu_text"
    exit
}

echo 0 >/proc/self/oom_score_adj
_emu_configured=
[ -d /run/emu/config ] && _emu_configured=yes
exec 7</dev/null <&3 >&5 2>&6 5>&- 6>&-
# Not ignored, which the command would inherit.
trap : HUP INT QUIT TERM USR1 USR2 ALRM
read -r _emu_how _emu_size _emu_input
case $_emu_how in
l) _emu_read_lines;;
b) _emu_read_bytes;;
*) exit;;
esac
trap - HUP INT QUIT TERM USR1 USR2 ALRM
cd "$HOME" || cd /
[ -z "$_emu_configured" ] || ! [ -e /run/emu/config/environment ] || . "$_emu_files/environment"
[ "$_emu_input" != 1 ] || _emu_run_with_input
exec <&7 3>&- 4>&- 7>&-
