#!/usr/bin/env bash
# Trains on a Cloud TPU VM, from nothing to a deleted machine.
#
#   launch/tpu_vm.sh create            the TPU VM; waits until it is ready
#   launch/tpu_vm.sh install           this checkout, on every worker
#   launch/tpu_vm.sh prepare           DIV2K: once into the bucket, then a copy
#                                      on every worker's disk
#   launch/tpu_vm.sh start [flags...]  esrgan_jax.main on every worker, detached
#   launch/tpu_vm.sh logs              follows worker WORKER until the run ends
#   launch/tpu_vm.sh resume [flags...] after preemption: a new VM, and onward
#   launch/tpu_vm.sh delete            the VM (never the bucket)
#   launch/tpu_vm.sh all [flags...]    create install prepare start logs, and
#                                      resume as often as it takes
#
#   PROJECT=my-project ZONE=us-west4-a BUCKET=gs://my-bucket TPU=v5e-8 \
#     launch/tpu_vm.sh all --config.batch_size=64
#
# [flags...] go to esrgan_jax.main after --config and --workdir. Every step may
# be called again: what is there already is left alone. A run resumes from the
# last checkpoint in the bucket, so give `resume` the flags that `start` had.
# With DRY_RUN=1 the commands are printed and nothing is done.

set -euo pipefail

PROJECT=${PROJECT:-}                 # Google Cloud project
ZONE=${ZONE:-}                       # one that has the TPU and your quota
BUCKET=${BUCKET:-}                   # gs://NAME; made if it does not exist
TPU=${TPU:-v5e-8}                    # v4-8, v5e-8, v5p-8, v6e-8 and larger
NAME=${NAME:-esrgan}                 # of the TPU VM, and of the run
SPOT=${SPOT:-1}                      # 1: cheaper, may be preempted
QUEUED=${QUEUED:-0}                  # 1: wait in Google's queue for capacity
CONFIG=${CONFIG:-configs/gan.py}     # within the checkout
WORKDIR=${WORKDIR:-${BUCKET%/}/$NAME} # checkpoints, curves, report
DATASET=${DATASET-bicubic_x4}        # DIV2K's configuration; empty: no DIV2K
RUNTIME=${RUNTIME:-}                 # empty: what goes with TPU
WORKER=${WORKER:-0}                  # whose log is followed
TRIES=${TRIES:-5}                    # of what may fail for a while
POLL_SECONDS=${POLL_SECONDS:-30}     # between them
MAX_RESUMES=${MAX_RESUMES:-100}      # of `all`
DRY_RUN=${DRY_RUN:-0}

# On a worker, in the checkout: is a run going on?
# shellcheck disable=SC2016  # It is the worker's shell that expands it.
running='grep -qs esrgan_jax.main "/proc/$(cat run.pid 2>/dev/null)/cmdline"'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf 'tpu_vm: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 2
}

usage() {
  sed -n '/^# /,/^$/{/^#/!q;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

run() { # command...: carried out, or only printed
  if [[ $DRY_RUN == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

retry() { # command...: until it succeeds, TRIES times at most
  local try
  for ((try = 1; ; try++)); do
    if "$@"; then return 0; fi
    if ((try >= TRIES)); then return 1; fi
    say "failed ($try of $TRIES tries); again in $POLL_SECONDS s"
    sleep "$POLL_SECONDS"
  done
}

tpus() { # group and verb, then arguments
  run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
}

remote() { # worker or "all", command
  tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}

state_of() { # tpu-vm or queued-resources: prints NAME's state, "" for none
  local group=$1 field=state lines
  [[ $group == tpu-vm ]] || field=state.state
  if [[ $DRY_RUN == 1 ]]; then return 0; fi
  # A list tells "there is none" from "you may not ask", which describe blurs.
  lines=$(tpus "$group" list --format="value(name.basename(),$field)") ||
    return 1
  awk -v name="$NAME" '$1 == name { print $2 }' <<<"$lines"
}

runtime() { # the software version that goes with TPU
  case $TPU in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "TPU='$TPU' is none of v4-N, v5e-N, v5p-N, v6e-N; for another set\
 RUNTIME to its software version" ;;
  esac
}

create() {
  local state options=()
  [[ -n $RUNTIME ]] || RUNTIME=$(runtime)
  [[ $SPOT != 1 ]] || options+=(--spot)

  state=$(state_of tpu-vm)
  case $state in
    READY)
      say "$NAME is ready"
      return
      ;;
    "" | CREATING | STARTING | RESTARTING | REPAIRING) ;;
    *)
      # Preempted, terminated, stopped: a spot VM cannot be started again.
      say "$NAME is $state: making it anew"
      delete
      state=
      ;;
  esac

  if [[ $QUEUED == 1 ]]; then
    create_queued ${options[@]+"${options[@]}"}
  elif [[ -z $state ]]; then
    retry tpus tpu-vm create "$NAME" --accelerator-type="$TPU" \
      --version="$RUNTIME" ${options[@]+"${options[@]}"} ||
      die "$TPU was refused in $ZONE $TRIES times: try another ZONE, SPOT=0, or\
 QUEUED=1 to wait for it; raise TRIES to insist"
  fi
  wait_for tpu-vm READY
}

create_queued() {
  local state
  state=$(state_of queued-resources)
  case $state in
    FAILED | SUSPENDED | SUSPENDING)
      say "the request for $NAME is $state: asking anew"
      tpus queued-resources delete "$NAME" --force --quiet
      state=
      ;;
  esac
  if [[ -z $state ]]; then
    retry tpus queued-resources create "$NAME" --node-id="$NAME" \
      --accelerator-type="$TPU" --runtime-version="$RUNTIME" "$@" ||
      die "the request for $TPU in $ZONE was refused"
  fi
  wait_for queued-resources ACTIVE
}

wait_for() { # group, state
  local group=$1 wanted=$2 state shown=
  [[ $DRY_RUN != 1 ]] || return 0
  while true; do
    state=$(retry state_of "$group")
    [[ $state != "$wanted" ]] || return 0
    case $state in
      "" | FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED | STOPPED)
        die "$NAME is ${state:-gone} instead of $wanted: call resume, or create\
 in another ZONE"
        ;;
    esac
    if [[ $state != "$shown" ]]; then say "$NAME is $state; waiting"; fi
    shown=$state
    sleep "$POLL_SECONDS"
  done
}

install() {
  local files=() file
  # The last two are for launch/tpu_smoke.sh there.
  for file in esrgan_jax configs pyproject.toml requirements.txt README.md \
    LICENSE benchmarks launch; do
    if [[ -e $root/$file ]]; then files+=("$file"); fi
  done
  run tar -C "$root" --exclude=__pycache__ -czf "$scratch/esrgan_jax.tar.gz" \
    "${files[@]}"

  # A new VM may refuse its first connections.
  retry tpus tpu-vm scp "$scratch/esrgan_jax.tar.gz" "$NAME:" --worker=all ||
    die "cannot copy to $NAME; with several workers, run ssh-add\
 ~/.ssh/google_compute_engine first"
  # The images' own Python is too old (3.10): uv brings one.
  retry remote all "set -e
export PATH=\"\$HOME/.local/bin:\$PATH\"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
mkdir -p esrgan_jax
if (cd esrgan_jax && $running); then
echo 'a run is going on here: nothing is changed'
exit 0
fi
tar -C esrgan_jax -xzf esrgan_jax.tar.gz
cd esrgan_jax
[ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python \
-r requirements.txt -e . 'jax[tpu]'" ||
    die "installing on $NAME failed; see above"
  say "installed on every worker of $NAME"
}

prepare() {
  local bucket stored mark
  bucket=gs://$(cut -d / -f 3 <<<"$BUCKET")
  if [[ $DRY_RUN == 1 ]] || ! gcloud storage buckets describe "$bucket" \
    --project="$PROJECT" >/dev/null 2>&1; then
    run gcloud storage buckets create "$bucket" --project="$PROJECT" \
      --location="${ZONE%-*}" --uniform-bucket-level-access
  fi
  if [[ -z $DATASET ]]; then return; fi

  # Prepared on a disk: TFDS's many small writes are slow in a bucket. The mark
  # is written last, so that half an upload is not taken for the whole.
  stored=$BUCKET/tensorflow_datasets/div2k/$DATASET
  mark=$stored.complete
  remote 0 "set -e
dataset=$(printf %q "$DATASET") stored=$(printf %q "$stored")
if gcloud storage ls $(printf %q "$mark") >/dev/null 2>&1; then
echo 'DIV2K is in the bucket'
exit 0
fi
cd esrgan_jax
.venv/bin/python -m esrgan_jax.data.prepare --config \"\$dataset\" \
--data_dir ~/tensorflow_datasets
gcloud storage rsync --recursive \
~/tensorflow_datasets/div2k/\"\$dataset\" \"\$stored\"
date >prepared
gcloud storage cp prepared $(printf %q "$mark")"
  remote all "set -e
folder=~/tensorflow_datasets/div2k/$(printf %q "$DATASET")
mkdir -p \"\$folder\"
gcloud storage rsync --recursive $(printf %q "$stored") \"\$folder\""
  say "DIV2K is on every worker of $NAME"
}

start() {
  local command
  # Quoted twice: for the remote shell, and for the one that outlives it.
  printf -v command '%q ' .venv/bin/python -u -m esrgan_jax.main \
    --config="$CONFIG" --workdir="$WORKDIR" "$@"
  command="$command; echo \$? >run.status"
  remote all "set -e
cd esrgan_jax
if $running; then
echo 'already running'
exit 0
fi
rm -f run.status
touch run.log
setsid bash -c $(printf %q "$command") >>run.log 2>&1 </dev/null &
echo \$! >run.pid
echo started"
  say "the run's workdir is $WORKDIR"
}

# 0: the run has ended well. 3: it has failed. 4: none was started. Anything
# else: the connection is lost.
logs() {
  remote "$WORKER" "cd esrgan_jax || exit 4
[ -e run.pid ] || { echo 'nothing was started here' >&2; exit 4; }
tail -n \${TAIL_LINES:-1000} -F --pid=\"\$(cat run.pid)\" run.log 2>/dev/null
status=\$(cat run.status 2>/dev/null || echo unknown)
echo \"the run has ended with status \$status\"
[ \"\$status\" = 0 ] || exit 3"
}

resume() {
  create
  install
  prepare
  start "$@"
}

delete() {
  local queued single=
  queued=$(state_of queued-resources)
  if [[ -n $queued || $DRY_RUN == 1 && $QUEUED == 1 ]]; then
    # The VM goes with its request; alone, it would leave that behind.
    tpus queued-resources delete "$NAME" --force --quiet
    queued=yes
  fi
  single=$(state_of tpu-vm)
  if [[ -n $single || $DRY_RUN == 1 && $QUEUED != 1 ]]; then
    tpus tpu-vm delete "$NAME" --quiet
    single=yes
  fi
  if [[ -n $queued$single ]]; then
    say "deleted $NAME; the bucket $BUCKET stays"
  else
    say "there is no $NAME in $ZONE"
  fi
}

all() {
  local resumes status state
  resume "$@"
  for ((resumes = 0; ; resumes++)); do
    status=0
    logs || status=$?
    if ((status == 0)); then return 0; fi
    # Workers notice a preemption before the state shows it.
    sleep "$POLL_SECONDS"
    state=$(retry state_of tpu-vm)
    if [[ $state == READY ]] && ((status == 3)); then
      say "the run has failed on a healthy VM: see the log above. The VM still\
 costs money: call delete"
      return 3
    fi
    if ((resumes >= MAX_RESUMES)); then
      say "stopped after $MAX_RESUMES resumptions (MAX_RESUMES)"
      return 3
    fi
    if [[ $state == READY ]] && ((status != 4)); then
      say "lost the connection; following again"
      continue
    fi
    say "lost $NAME (${state:-gone}); resuming"
    # A process of its own: its failure, for want of capacity, is not the end.
    "$BASH" "${BASH_SOURCE[0]}" resume "$@" || say "resuming failed"
  done
}

step=${1:-}
[[ $# == 0 ]] || shift
case $step in
  create | install | prepare | logs | delete)
    (($# == 0)) || die "$step takes no arguments, but got: $*"
    ;;
  start | resume | all) ;;
  -h | --help | help)
    usage
    exit 0
    ;;
  *)
    usage >&2
    die "step '$step' must be one of create install prepare start logs resume\
 delete all"
    ;;
esac
for variable in PROJECT ZONE BUCKET; do
  [[ -n ${!variable} ]] ||
    die "$variable is not set: PROJECT=... ZONE=... BUCKET=gs://... $0 $step"
done
[[ $BUCKET == gs://?* ]] || die "BUCKET='$BUCKET' must begin with gs://"
BUCKET=${BUCKET%/}
[[ $TPU != v5e-* ]] || TPU=v5litepod-${TPU#v5e-} # as gcloud calls it
command -v gcloud >/dev/null || [[ $DRY_RUN == 1 ]] ||
  die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$step" "$@"
