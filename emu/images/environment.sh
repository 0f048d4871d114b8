# Exports what the configuration's file `environment` sets, a line KEY=VALUE each. Sourced.

if [ -f /run/emu/config/environment ]; then
    while IFS= read -r emu_line || [ -n "$emu_line" ]; do
        case ${emu_line%%=*} in
        "$emu_line" | '' | IFS | [0-9]* | *[!A-Za-z0-9_]*) ;;
        # `command`: a name that the shell keeps for itself is an error, which would end a script.
        *) command export "$emu_line" 2>/dev/null ;;
        esac
    done </run/emu/config/environment
    unset emu_line
fi
