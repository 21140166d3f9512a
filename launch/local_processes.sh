#!/usr/bin/env bash
# Trains in N real processes on this machine, joined over loopback: what
# several hosts do, without the hosts. On CPU devices.
#
#   launch/local_processes.sh N [flags of esrgan_jax.main...]
#   launch/local_processes.sh 2 --config=configs/quickstart.py --workdir=runs/2
#
# Each line of output begins with the process's number. When a process fails,
# the others are stopped and its exit status is the script's. SIGINT and SIGTERM
# go to every process once; a second one kills them.
#
#   DEVICES_PER_PROCESS  virtual CPU devices of each process (1)
#   PYTHON               interpreter (python)
#   MODULE               what is run instead of esrgan_jax.main
#   NPROC                threads of each process (cores, or all devices if more)
#   PORT                 of process 0's coordinator (a free one)
#   GRACE_SECONDS        given to the others when one has failed (10)

set -euo pipefail

DEVICES_PER_PROCESS=${DEVICES_PER_PROCESS:-1}
PYTHON=${PYTHON:-python}
MODULE=${MODULE:-esrgan_jax.main}
PORT=${PORT:-}
GRACE_SECONDS=${GRACE_SECONDS:-10}

say() { printf 'local_processes: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 2
}

usage="usage: launch/local_processes.sh N [flags of $MODULE...]"
case ${1:-} in
  -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] ||
  die "N='${1:-}' must be a positive integer; $usage"
[[ $DEVICES_PER_PROCESS =~ ^[1-9][0-9]*$ ]] ||
  die "DEVICES_PER_PROCESS='$DEVICES_PER_PROCESS' must be a positive integer"
command -v "$PYTHON" >/dev/null ||
  die "PYTHON='$PYTHON' is not a command; name an interpreter that has jax"
number=$1
shift

if [[ -z $PORT ]]; then
  PORT=$("$PYTHON" -c '
import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')
fi

export JAX_PLATFORMS=cpu
export JAX_NUM_CPU_DEVICES=$DEVICES_PER_PROCESS
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT
# JAX's own default listens on every interface.
export JAX_COORDINATOR_BIND_ADDRESS=$JAX_COORDINATOR_ADDRESS
export JAX_NUM_PROCESSES=$number
# XLA divides sums among a process's threads: as many as its cores, or devices.
# As many as one process with all the devices has: then it computes the same.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
devices=$((number * DEVICES_PER_PROCESS))
export NPROC=${NPROC:-$((cores > devices ? cores : devices))}
export PYTHONUNBUFFERED=1
# gRPC would ask a proxy for loopback too.
[[ -z ${http_proxy:-}${https_proxy:-} ]] ||
  export no_proxy=127.0.0.1,localhost${no_proxy:+,$no_proxy}

pipes=$(mktemp -d)
groups=() # number in the run -> process group, while it runs

send() { # signal: to every process still running, and its children
  local group
  for group in ${groups[@]+"${groups[@]}"}; do
    kill "-$1" -- "-$group" 2>/dev/null || true
  done
}

# shellcheck disable=SC2317  # Called by the trap.
clean_up() {
  trap - EXIT INT TERM
  send KILL
  rm -rf "$pipes"
}
trap clean_up EXIT

signals=0
# shellcheck disable=SC2317  # Called by the traps.
forward() {
  signals=$((signals + 1))
  if ((signals == 1)); then
    say "got SIG$1; passed on (once more to kill)"
    send "$1"
  fi
}
trap 'forward INT' INT
trap 'forward TERM' TERM

# Each process leads a group of its own: a terminal's Ctrl-C reaches this script
# alone, and what a process has started ends with it. How it has ended it writes
# into a pipe: `wait -n` misses some ends under `set -m`.
mkfifo "$pipes/ends"
exec 3<>"$pipes/ends"
leaders=()
set -m
for ((id = 0; id < number; id++)); do
  {
    # Signals are meant for the process: its end is still told, its output read.
    trap : INT TERM
    {
      trap : INT TERM
      result=0
      JAX_PROCESS_ID=$id "$PYTHON" -m "$MODULE" "$@" 2>&1 3>&- || result=$?
      echo "$id $result" >&3
    } 2>/dev/null | { # Bash's own remarks on signals.
      trap '' INT TERM
      exec sed -u "s/^/[$id] /" 3>&-
    }
  } &
  groups[id]=$!
  leaders+=("$!")
done

status=0
deadline=
while ((${#groups[@]} > 0)); do
  if ((signals > 1)) || { [[ -n $deadline ]] && ((SECONDS >= deadline)); }; then
    send KILL
    if ((status == 0)); then status=137; fi
    break
  fi
  # Once a second for the sake of signals and the deadline.
  if ! read -r -t 1 -u 3 id result; then
    # Who was killed before it could tell is told of here; who has told, first.
    for id in "${!groups[@]}"; do
      kill -0 -- "-${groups[id]}" 2>/dev/null || echo "$id 137" >&3
    done
    continue
  fi
  [[ -n ${groups[id]:-} ]] || continue
  unset "groups[$id]"
  if ((result != 0 && status == 0)); then
    status=$result
    say "process $id ended with status $result"
    if ((${#groups[@]} > 0 && signals == 0)); then
      say "stopping the others; SIGKILL follows in $GRACE_SECONDS s"
      send TERM
      deadline=$((SECONDS + GRACE_SECONDS))
    fi
  fi
done
# Their last lines.
wait "${leaders[@]}" 2>/dev/null || true
exit "$status"
