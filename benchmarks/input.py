"""How many crops a second a core makes, and how many a training step wants.

What feeds the steps, `esrgan_jax.data.pipeline`, with each of its caches, on
the sample photos and on larger pictures made of them:

- ram: crops of decoded images in memory, put on the device;
- memmap: the same from a file that is mapped into memory, pages in memory;
- stream: Grain reads and decodes a file for every crop;
- device: images in device memory; nothing is left for the host to do.

And what is done inside the step, by itself: flips, turns and conversion of an
8-bit batch, or cutting the crops out of device memory and then these.

  pip install scikit-image grain
  python -m benchmarks.input [--step_images_per_second 500]

"crops/s and core" is by the processor time of all threads: what one core that
does nothing else makes. Host figures are those of a consumer that never waits.
"""

import argparse
import contextlib
import functools
import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks import machine, train

HOST_CACHES = ("ram", "memmap", "stream")
INSIDE = "inside the step"


def enlarge(folder, count, size):
  """Makes PNG pictures of a size out of sample photos; returns "HR::LR"."""
  from PIL import Image

  from esrgan_jax.data.sources import SamplePhotos
  from esrgan_jax.resize import imresize_uint8

  photos = SamplePhotos("train", scale=train.SCALE)
  rng = np.random.default_rng(0)
  roots = [pathlib.Path(folder, name) for name in ("HR", "LR")]
  for root in roots:
    root.mkdir()
  for i in range(count):
    photo = Image.fromarray(photos[i % len(photos)].hr)
    picture = np.asarray(photo.resize(size, Image.Resampling.BICUBIC), np.int16)
    # Enlarged photos are smooth and would pack too well.
    picture = picture + rng.integers(-3, 4, picture.shape)
    hr = picture.clip(0, 255).astype(np.uint8)
    lr = imresize_uint8(hr, scale=1 / train.SCALE)
    for root, image in zip(roots, (hr, lr), strict=True):
      Image.fromarray(image).save(root / f"{i:04}.png", compress_level=6)
  return "::".join(map(str, roots))


def measure_host(pipeline, step, seconds):
  """Returns crops a second, those of a core, and the next step's number."""
  # What was made ahead while others were measured does not count.
  for _ in range(6):
    pipeline.batch(step)
    step += 1
  begin, busy, crops = time.perf_counter(), time.process_time(), 0
  while time.perf_counter() - begin < seconds or not crops:
    batch = pipeline.batch(step)
    crops += len(batch["hr"])
    step += 1
  busy = time.process_time() - busy
  return crops / (time.perf_counter() - begin), crops / busy, step


def measure_device(program, raw, batch_size, step, seconds):
  """As `measure_host`, for the part that is inside the step."""
  import jax

  jax.block_until_ready(program(step, raw))
  begin, busy, crops = time.perf_counter(), time.process_time(), 0
  while time.perf_counter() - begin < seconds:
    for _ in range(8):
      result = program(step, raw)
      step += 1
    jax.block_until_ready(result)
    crops += 8 * batch_size
  busy = time.process_time() - busy
  return crops / (time.perf_counter() - begin), crops / busy, step


def compile_preprocess(data):
  """The pipeline's part of the step as a program of its own."""
  import jax

  from esrgan_jax import compilation

  @functools.partial(jax.jit, compiler_options=compilation.compiler_options())
  def program(step, raw):
    return data.preprocess(jax.random.fold_in(jax.random.key(0), step), raw)

  return program


def compare(name, spec, args, wanted):
  """Measures all caches on a source, in turns, and prints a table."""
  import jax

  from esrgan_jax.data.pipeline import open_data
  from esrgan_jax.training import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(1)
  measures, failures, opened = {}, {}, {}
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    for cache in (*HOST_CACHES, "device"):
      config = {"sources": [spec], "cache": cache, "cache_dir": folder}
      config["num_threads"] = args.threads
      begin = time.perf_counter()
      try:
        data = open_data(
          config,
          scale=train.SCALE,
          batch_size=args.batch,
          patch_size=args.patch,
          mesh=mesh,
        )
        pipeline = stack.enter_context(data.pipeline(seed=0))
        raw = jax.block_until_ready(pipeline.batch(0))
      except Exception as error:
        failures[cache] = f"{type(error).__name__}: {error}".split("\n")[0]
        continue
      opened[cache] = time.perf_counter() - begin
      if cache in HOST_CACHES:
        measures[cache] = functools.partial(measure_host, pipeline)
      if cache in ("ram", "device"):
        what = "flips" if cache == "ram" else "crops and flips"
        measures[f"{what}, {INSIDE}"] = functools.partial(
          measure_device, compile_preprocess(data), raw, args.batch
        )
    rates = {key: [] for key in measures}
    steps = dict.fromkeys(measures, 1)
    for _ in range(args.rounds):
      for key, measure in measures.items():
        *rate, steps[key] = measure(steps[key], args.seconds)
        rates[key].append(rate)
    report = data.report

  print(f"\n{name}: {report}; batch {args.batch}, {args.patch} x {args.patch}")
  head = ["", "crops/s", "crops/s and core", "relative to ram", "opened in s"]
  if wanted:
    head.append("cores for the step")
  print(f"| {' | '.join(head)} |")
  print("| --- " * len(head) + "|")
  on_cpu = jax.default_backend() == "cpu"
  for key, found in rates.items():
    total, each = (statistics.median(v) for v in zip(*found, strict=True))
    host = key in HOST_CACHES
    # Of an accelerator's work, the host's processor time says nothing.
    per_core = f"{each:.4g}" if host or on_cpu else "-"
    cells = [key, f"{total:.4g}", per_core, "-", "-"]
    if host:
      if "ram" in rates:
        pairs = zip(found, rates["ram"], strict=True)
        ratio = statistics.median(a[1] / b[1] for a, b in pairs)
        cells[3] = f"{ratio:.2f}"
      cells[4] = f"{opened[key]:.1f}"
    elif key.startswith("crops"):
      cells[4] = f"{opened['device']:.1f}"
    if wanted:
      cells.append(f"{wanted / each:.3g}" if per_core != "-" else "-")
    print(f"| {' | '.join(cells)} |")
  for key, reason in failures.items():
    print(f"| {key} | failed: {reason} |")


def step_images_per_second(tiny):
  """Measures what the step of phase one consumes on this machine."""
  name = "gpu" if train.gpu() else "cpu"
  case = train.Case(
    side=train.OURS,
    task="psnr",
    batch=16 if name == "gpu" else 2,
    size=16 if tiny else 128,
    platform=name,
    dtype="bfloat16" if name == "gpu" else "float32",
    steps=10 if name == "gpu" else 1,
    tiny=tiny,
  )
  side = train.Side(case)
  try:
    side.ask("", 120)
    side.ask("prepare", 300)
    answers = [side.ask("run", 120) for _ in range(3)]
  finally:
    side.close()
  if side.failure:
    print(f"the step could not be measured: {side.failure}")
    return 0.0
  return case.batch / statistics.median(a["seconds"] for a in answers)


def make_parser():
  """Returns the parser of the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add("--batch", type=int, default=16)
  add("--patch", type=int, default=128, help="HR pixels")
  add("--rounds", type=int, default=3)
  add("--seconds", type=float, default=2, help="of each measure in a round")
  add("--threads", type=int, default=0, help="for decoding; 0 for one a CPU")
  add("--pictures", type=int, default=8, help="larger ones; 0 for none")
  add("--size", type=int, nargs=2, default=(2040, 1356), help="of these")
  add(
    "--step_images_per_second",
    default="",
    help="what the step consumes: a number, or 'measure'",
  )
  add("--tiny", action="store_true", help="small and short: tries the script")
  return parser


def main(arguments=None):
  """Prints a table a source."""
  args = make_parser().parse_args(arguments)
  if args.tiny:
    args.batch, args.patch, args.rounds, args.seconds = 2, 32, 1, 0.02
    args.pictures, args.size = 2, (160, 128)
  wanted = 0.0
  if args.step_images_per_second == "measure":
    wanted = step_images_per_second(args.tiny)
  elif args.step_images_per_second:
    wanted = float(args.step_images_per_second)
  # Only now: the step's process had the device for itself.
  import jax

  print(machine.versions("jax", "jaxlib", "numpy", "grain"))
  device = jax.devices()[0]
  print(f"{machine.describe()}; device {device.device_kind}")
  if wanted:
    print(f"the step consumes {wanted:.4g} images a second")
  compare("sample photos", "sample_photos", args, wanted)
  if args.pictures:
    with tempfile.TemporaryDirectory() as folder:
      spec = enlarge(folder, args.pictures, tuple(args.size))
      size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*.png"))
      width, height = args.size
      name = f"PNG of {width} x {height}, {size / args.pictures / 1e6:.1f} MB"
      compare(f"{name} a pair", spec, args, wanted)


if __name__ == "__main__":
  main()
