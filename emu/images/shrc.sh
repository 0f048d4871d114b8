# Read by the interactive shell, after the profile, which may have set the same variables.

. "${ENV%/shrc}/environment"
case :$PATH: in
*":${ENV%/shrc}/bin:"*) ;;
*) PATH=${ENV%/shrc}/bin:$PATH ;;
esac
# The host looks for it, and profiles' differ from root to root.
PS1='\w # '
