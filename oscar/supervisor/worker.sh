# The loop of a warm worker, run by the /bin/sh of the user's image: builtins only, as dash, busybox and bash have them.
# Arguments: the worker's folder (requests, replies and log are FIFOs in it, env a file) and the folder of script.sh.
# Protocol, kept by oscar/supervisor/warm.py: a line "<id>" in, a line "<id> <exit code> <0|1>" out, the last
# field 1 when processes were left over; an id that starts with "check" runs nothing and only looks again.
# It ends by itself when the server is gone, because then nobody holds the FIFOs' other ends.

# In a pod: the sidecar may be later than we, and the service's variables lie in a file, because values may be any bytes.
# A first process does not end by SIGTERM unless it asks for it; from then on it ends with the sidecar.
until [ -p "$1/requests" ]; do trap 'exit 143' TERM; sleep 0.05 2>/dev/null || :; done
trap - TERM
if [ -f "$2/environment" ]; then . "$2/environment"; fi

# Tells a server that hears nothing by FIFO that this shell did start.
echo started >"$1/ready"
exec 3<"$1/requests" 4>"$1/replies" 5>"$1/log"

# Signal 0 to -1 reaches every process of this PID namespace but its first and this one, zombies included. Where
# others answer already now, there is no namespace of our own and left-overs can't be told.
if kill -0 -1 2>/dev/null; then echo "ready shared" >&4; else echo "ready alone" >&4; fi

# Positional parameters instead of variables: a variable of the same name in the user's environment would be exported
# with our value.
while read -r _oscar_request <&3; do
	case $_oscar_request in
	# A child to wait for: the shell reaps orphans only while it waits.
	check*) (:) ;;
	# No subshell, though it would keep the variables to itself (env undoes those of the request before): dash starts a
	# plain command by vfork, for a quarter less than fork and exec.
	*)
		. "$1/env"
		/bin/sh "$2/script.sh" </dev/null >&5 2>&1 3<&- 4>&- 5>&-
		;;
	esac
	set -- "$1" "$2" $?
	if kill -0 -1 2>/dev/null; then echo "$_oscar_request $3 1" >&4; else echo "$_oscar_request $3 0" >&4; fi
done
