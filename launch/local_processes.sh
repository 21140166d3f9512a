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
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] ||
  die "N='${1:-}' must be a positive integer; $usage"
[[ $DEVICES_PER_PROCESS =~ ^[1-9][0-9]*$ ]] ||
  die "DEVICES_PER_PROCESS='$DEVICES_PER_PROCESS' must be a positive integer"
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) ||
  die "bash $BASH_VERSION lacks 'wait -n -p'; bash 5.1 or later is needed"
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
export PYTHONUNBUFFERED=1
# gRPC would ask a proxy for loopback too.
[[ -z ${http_proxy:-}${https_proxy:-} ]] ||
  export no_proxy=127.0.0.1,localhost${no_proxy:+,$no_proxy}

pipes=$(mktemp -d)
declare -A running=() # process id -> its number in the run
prefixers=()
watchdog=

send() { # signal: to every process still running, and its children
  local pid
  for pid in "${!running[@]}"; do
    kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}

# shellcheck disable=SC2317  # Called by the trap.
clean_up() {
  trap - EXIT INT TERM
  send KILL
  [[ -z $watchdog ]] || kill -KILL -- "-$watchdog" 2>/dev/null || true
  rm -rf "$pipes"
}
trap clean_up EXIT

signals=0
# shellcheck disable=SC2317  # Called by the traps.
forward() {
  signals=$((signals + 1))
  if ((signals > 1)); then
    send KILL
  else
    say "got SIG$1; passed on (once more to kill)"
    send "$1"
  fi
}
trap 'forward INT' INT
trap 'forward TERM' TERM

# Each process leads a group of its own: a terminal's Ctrl-C reaches this script
# alone, and what a process has started ends with it.
set -m
for ((id = 0; id < number; id++)); do
  mkfifo "$pipes/$id"
  sed -u "s/^/[$id] /" <"$pipes/$id" &
  prefixers+=("$!")
  JAX_PROCESS_ID=$id "$PYTHON" -m "$MODULE" "$@" >"$pipes/$id" 2>&1 &
  running[$!]=$id
done

status=0
while ((${#running[@]} > 0)); do
  result=0
  wait -n -p ended "${!running[@]}" || result=$?
  # A signal also ends `wait`: then no process has, and -p unsets its variable.
  [[ -n ${ended:-} ]] || continue
  id=${running[$ended]}
  unset "running[$ended]"
  if ((result != 0 && status == 0)); then
    status=$result
    say "process $id ended with status $result"
    if ((${#running[@]} > 0 && signals == 0)); then
      say "stopping the others; SIGKILL follows in $GRACE_SECONDS s"
      send TERM
      (
        sleep "$GRACE_SECONDS"
        for pid in "${!running[@]}"; do
          kill -KILL -- "-$pid" 2>/dev/null || true
        done
      ) &
      watchdog=$!
    fi
  fi
done
# Their last lines.
wait "${prefixers[@]}" || true
exit "$status"
