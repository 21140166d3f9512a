#!/usr/bin/env bash
# A TPU's first ten minutes: does all of it run there, and as was estimated?
# It was never run on a TPU.
#
#   launch/tpu_smoke.sh [FOLDER]     in a checkout on a TPU VM, one v5e chip;
#                                    FOLDER, runs/smoke, must be new
#
# Installs into .venv what is not there, then runs `python -m
# benchmarks.tpu_smoke FOLDER`: 100 steps of each phase, a preemption, upscaling,
# and time and memory beside the compiler's estimates. docs/tpu.md says how to
# read it. With SMALL=1, toy networks go the same way on a CPU.
#
#   VENV=DIR                 another environment than .venv, which is there
#   PYTHON=python3.12        what .venv is made with
#   CHIPS=v6e:1              what the estimates are for (v5e:1)
set -euo pipefail

case ${1:-} in
  -h | --help)
    sed -n '/^# /,/^$/{/^#/!q;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
folder=$(realpath -m "${1:-runs/smoke}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${VENV:-.venv}/bin/python
extra=tpu
[[ ${SMALL:-0} != 1 ]] || extra=tpu_aot
if [[ ! -x $python ]]; then
  "${PYTHON:-python3}" -m venv .venv
  "$python" -m pip install -q -r requirements.txt ".[$extra]"
fi
options=()
[[ ${SMALL:-0} != 1 ]] || options+=(--small)
exec "$python" -m benchmarks.tpu_smoke "$folder" --chips "${CHIPS:-v5e:1}" \
  ${options[@]+"${options[@]}"}
