#!/usr/bin/env bash
# A TPU's first minutes: does all of it run there, and as was estimated?
# It was never run on a TPU, nor is it known how long it takes there.
#
#   launch/tpu_smoke.sh [FOLDER]     in a checkout on a TPU VM, one v5e chip;
#                                    FOLDER, runs/smoke, must be new
#
# Installs into .venv what is not there (by uv, which brings a Python: the
# images' own is too old), then runs `python -m benchmarks.tpu_smoke FOLDER`: 100
# steps of each phase, a preemption, upscaling, and time and memory beside the
# compiler's estimates. docs/tpu.md says how to read it. With SMALL=1, toy
# networks go the same way on a CPU.
#
#   VENV=DIR                 another environment than .venv, with all of it
#   PYTHON=3.12              what .venv is made with
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
needed=(flax ml_collections orbax.checkpoint skimage libtpu)
extra=tpu
options=(--chips "${CHIPS:-v5e:1}")
if [[ ${SMALL:-0} == 1 ]]; then # Without libtpu there are no estimates.
  options+=(--small)
  extra=tpu-aot
  unset 'needed[-1]'
fi

# Asks for packages, not for the interpreter, which half an installation has.
complete() {
  "$python" - "${needed[@]}" 2>/dev/null <<'PYTHON'
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))
PYTHON
}

if ! complete; then
  if [[ -n ${VENV:-} ]]; then
    echo "VENV=$VENV lacks something of ${needed[*]}; unset VENV to have .venv\
 made, or: uv pip install --python $python -r requirements.txt '.[$extra]'" >&2
    exit 2
  fi
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -x $python ]] || uv venv --quiet --python "${PYTHON:-3.12}" .venv
  uv pip install --quiet --python "$python" -r requirements.txt -e ".[$extra]"
fi
exec "$python" -m benchmarks.tpu_smoke "$folder" "${options[@]}"
