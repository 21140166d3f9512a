"""Training steps and tiles, beside PyTorch, on CPU or GPU.

A step of phase one (L1), a step of phase two (VGG19 conv5_4, relativistic GAN,
discriminator for 128 pixels) and the upscaling of a tile, with the full network
(64/23/32), Adam and averaged parameters on both sides. Ours is the program's
own compiled step: state donated, 8-bit batch converted, flipped and turned
inside it, updates that are not finite left out. PyTorch's (`torch_networks.py`)
is given float batches. Neither loads data or logs.

  pip install torch
  python -m benchmarks.train [--task psnr gan tile] [--batch 2] [--patch 128]

Every side is a process of its own; they take turns, whose first step does not
count. On a CPU, the large buffers of both lie in large pages, as the training
program's do (`esrgan_jax.large_pages`). On a GPU, all compute in bfloat16; a
row that fails says why, and the others go on.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import machine
from esrgan_jax import large_pages

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCALE = 4
OURS = "esrgan_jax"
FORMS = {
  "eager": "PyTorch, channels_last",
  "blocks": "PyTorch, torch.compile of each block",
  "whole": "PyTorch, torch.compile of each network",
  "graph": "PyTorch, compiled blocks in a CUDA graph",
}

# Dense bfloat16 of matrix units, FLOP/s, by the makers' data sheets; the first
# name that is part of the device's counts.
PEAKS = (
  ("B200", 2250e12),
  ("H200", 989e12),
  ("H100 PCIe", 756e12),
  ("H100 NVL", 835e12),
  ("H100", 989e12),
  ("A100", 312e12),
  ("L40S", 362e12),
  ("L4", 121e12),
  ("RTX 4090", 165e12),
  ("A10", 125e12),
)

VGG_STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))


@dataclasses.dataclass(frozen=True)
class Case:
  """One thing to measure, of one side.

  Attributes:
    side: "esrgan_jax", or one of `FORMS`.
    task: "psnr", "gan" or "tile".
    batch: Images; 1 for tiles.
    size: HR pixels a side; for a tile, LR pixels.
    platform: "cpu" or "gpu".
    dtype: Compute dtype.
    steps: Steps that are timed together.
    tiny: Whether the networks are small ones, to try this script.
    unroll: Blocks per iteration of our loop over blocks.
    mode: `torch.compile`'s.
    operations: Augmentation of ours, each of half of the pairs.
  """

  side: str
  task: str
  batch: int
  size: int
  platform: str
  dtype: str
  steps: int
  tiny: bool = False
  unroll: int = 1
  mode: str = "default"
  operations: tuple[str, ...] = ()

  @property
  def generator(self):
    """Sizes of the generator."""
    num_feat, num_block, num_grow_ch = (4, 2, 2) if self.tiny else (64, 23, 32)
    return {
      "num_feat": num_feat,
      "num_block": num_block,
      "num_grow_ch": num_grow_ch,
    }

  @property
  def d_feat(self):
    """Width of the discriminator."""
    return 4 if self.tiny else 64

  @property
  def vgg_stages(self):
    """Convolutions of each stage of VGG19, and their width."""
    return ((2, 4), (1, 8)) if self.tiny else VGG_STAGES

  def title(self):
    """Says what is measured, whichever the side."""
    tiny = ", tiny networks" if self.tiny else ""
    if self.task == "tile":
      return (
        f"upscaling, {self.size} x {self.size} pixels to x{SCALE},"
        f" {self.dtype}{tiny}"
      )
    return (
      f"{self.task} step, batch {self.batch}, HR {self.size} x {self.size},"
      f" {self.dtype}{tiny}"
    )

  def flops(self):
    """Floating-point operations that the task cannot do without, about.

    A backward pass costs two forward passes where it forms gradients of weights
    and inputs, one where only of inputs. Phase two: G forward and backward; D
    forward and backward over real and fake images, and back to the images for
    G; VGG19 forward over both and back to the images.
    """
    generator = generator_macs(**self.generator)
    if self.task == "tile":
      return 2 * generator * self.size**2
    macs = 3 * generator * (self.size // SCALE) ** 2
    if self.task == "gan":
      macs += 7 * discriminator_macs(self.d_feat, self.size)
      macs += 3 * vgg_macs(self.vgg_stages, self.size)
    return 2 * self.batch * macs


def generator_macs(num_feat, num_block, num_grow_ch):
  """Multiply-adds of the generator's forward pass, for an LR pixel."""
  f, g = num_feat, num_grow_ch
  block = 3 * (sum((f + i * g) * g for i in range(4)) + (f + 4 * g) * f)
  up = 4 * f * f + 16 * f * f + 16 * f * f + 16 * f * 3
  return 9 * (3 * f + num_block * block + f * f + up)


def discriminator_macs(num_feat, size):
  """Multiply-adds of the discriminator's forward pass, for an image."""
  macs, channels, stage = 0, 3, 0
  while size > 4:
    width = num_feat * min(2**stage, 8)
    macs += 9 * channels * width * size**2
    size, stage = size // 2, stage + 1
    macs += 16 * width * width * size**2
    channels = width
  return macs + channels * size**2 * 100 + 100


def vgg_macs(stages, size):
  """Multiply-adds of VGG19 to conv5_4, for an image."""
  macs, channels = 0, 3
  for count, width in stages:
    for _ in range(count):
      macs += 9 * channels * width * size**2
      channels = width
    size //= 2
  return macs


def arrays_of(case):
  """Returns 8-bit arrays of random pixels: LR and HR, or a tile."""
  rng = np.random.default_rng(0)
  if case.task == "tile":
    shapes = [(1, case.size, case.size, 3)]
  else:
    sizes = (case.size // SCALE, case.size)
    shapes = [(case.batch, size, size, 3) for size in sizes]
  return [rng.integers(0, 256, shape, np.uint8) for shape in shapes]


# --- A side, in its own process.


def prepare_jax(case):
  """Returns a function that runs ours once, and one that gives peak memory.

  Networks and state are made here; the first call compiles.
  """
  import jax

  from esrgan_jax import compilation
  from esrgan_jax.models.rrdb import RRDBNet

  backend = jax.default_backend()
  if backend != case.platform:
    raise RuntimeError(f"JAX has {backend}, and no {case.platform}")
  dtype = compilation.compute_dtype(case.dtype, backend)
  options = compilation.compiler_options(backend)
  net = RRDBNet(**case.generator, scale=SCALE, dtype=dtype, unroll=case.unroll)
  prepare = prepare_jax_tile if case.task == "tile" else prepare_jax_step
  run = prepare(case, net, dtype, options)

  def peak():
    if backend == "cpu":
      return peak_rss()
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", math.nan)

  return run, peak


def prepare_jax_step(case, net, dtype, options):
  """The program's step, as in `training/loop.py`."""
  import jax

  from esrgan_jax import augment
  from esrgan_jax.models.discriminators import VGGStyleDiscriminator
  from esrgan_jax.steps import gan, psnr
  from esrgan_jax.steps import optimizer as optimizer_lib
  from esrgan_jax.steps import state as state_lib
  from esrgan_jax.training import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(1)
  arrays = {}
  if case.task == "psnr":
    adam = optimizer_lib.make_optimizer(2e-4)
    parts = {"generator": net, "optimizer": adam}
    create = functools.partial(state_lib.create_psnr_state, **parts)
    step = functools.partial(psnr.psnr_step, **parts)
  else:
    adam = optimizer_lib.make_optimizer(1e-4)
    discriminator = VGGStyleDiscriminator(
      case.d_feat, input_size=case.size, dtype=dtype
    )
    parts = {
      "generator": net,
      "discriminator": discriminator,
      "optimizer": adam,
      "d_optimizer": adam,
    }
    create = functools.partial(state_lib.create_gan_state, **parts)
    step = functools.partial(gan.gan_step, **parts)
    stages = case.vgg_stages
    layer = f"conv{len(stages)}_{stages[-1][0]}"  # conv5_4, unless tiny.
    arrays["perceptual"] = gan.vgg_perceptual(
      random_vgg(stages), layer_weights={layer: 1.0}, dtype=dtype
    )

  operations = {name: {"probability": 0.5} for name in case.operations}

  def run_step(state, raw, **arrays):
    key = jax.random.fold_in(jax.random.key(0), state.step)
    batch = augment.to_float(augment.augment(key, raw))
    batch = augment.transform(key, batch, operations)
    return step(state, batch, **arrays)

  lr, hr = arrays_of(case)
  raw = mesh_lib.global_batch(mesh, {"lr": lr, "hr": hr})
  jitted = mesh_lib.jit_step(run_step, mesh, compiler_options=options, **arrays)
  state = random_like(jax.eval_shape(create, jax.random.key(0)))
  state = jax.device_put(state, mesh_lib.replicated(mesh), may_alias=False)
  compiled = None

  def run(count):
    nonlocal compiled, state
    compiled = compiled or jitted.compile(state, raw)
    for _ in range(count):
      state, metrics = compiled(state, raw)
    jax.block_until_ready((state, metrics))
    return float(metrics["g/loss"])

  return run


def prepare_jax_tile(case, net, dtype, options):
  """What the upscaler runs on a tile."""
  import jax
  import jax.numpy as jnp

  from esrgan_jax.upscaling.tiles import upscale_tiles

  del dtype
  (tile,) = arrays_of(case)
  # As many strips as the upscaler cuts.
  features = case.size**2 * SCALE**2 * net.num_feat
  count = max(1, features // (2**25 if case.platform == "cpu" else 2**29))
  height = -(-case.size // count)
  top = np.minimum(height * np.arange(count), case.size - height)
  corners = np.stack([top, np.zeros_like(top)], axis=-1)[None]
  upscale = jax.jit(
    functools.partial(upscale_tiles, net, size=(height, case.size)),
    compiler_options=options,
  )
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  arguments = jax.device_put(
    (random_like(shapes), tile, corners.astype(np.int32))
  )

  def run(count):
    for _ in range(count):
      result, finite = upscale(*arguments)
    jax.block_until_ready((result, finite))
    return 0.0 if finite.all() else math.nan

  return run


def random_like(shapes):
  """Fills a tree: kernels at random, as the networks' own, the rest plainly.

  Initialising for real takes a compilation longer than some steps'.
  """
  import jax

  rng = np.random.default_rng(0)

  def fill(path, leaf):
    field, name = (
      getattr(key, "name", None) or getattr(key, "key", None)
      for key in (path[0], path[-1])
    )
    array = np.zeros(leaf.shape, leaf.dtype)
    if field.endswith("params") and name == "kernel":
      gain = 1.0 if field == "d_params" else 0.1
      deviation = gain * math.sqrt(2 / np.prod(leaf.shape[:-1][-3:]))
      array += deviation * rng.standard_normal(leaf.shape, leaf.dtype)
    elif field.startswith("d_") and name in ("scale", "var"):
      array += field != "d_opt_state"
    return array

  return jax.tree_util.tree_map_with_path(fill, shapes)


def random_vgg(stages):
  """VGG19's parameters, of any widths."""
  rng = np.random.default_rng(0)
  params = {
    "normalization": {
      "mean": np.float32([0.485, 0.456, 0.406]),
      "std": np.float32([0.229, 0.224, 0.225]),
    }
  }
  channels = 3
  for stage, (count, width) in enumerate(stages, 1):
    for index in range(1, count + 1):
      kernel = rng.standard_normal((3, 3, channels, width), np.float32)
      kernel *= math.sqrt(2 / (9 * channels))
      bias = np.zeros(width, np.float32)
      params[f"conv{stage}_{index}"] = {"kernel": kernel, "bias": bias}
      channels = width
  return params


def prepare_torch(case):
  """As `prepare_jax`, for one form of PyTorch's."""
  import torch

  from benchmarks import torch_networks as networks

  torch.manual_seed(0)
  cuda = case.platform == "gpu"
  if cuda and not torch.cuda.is_available():
    raise RuntimeError("PyTorch has no GPU")
  if not (cuda or "OMP_NUM_THREADS" in os.environ):
    torch.set_num_threads(machine.num_cores())
  torch.backends.cudnn.benchmark = True
  settings = networks.Settings(
    "cuda" if cuda else "cpu", case.dtype, case.side, case.mode
  )
  generator = networks.RRDBNet(**case.generator)
  arrays = arrays_of(case)
  if case.task == "psnr":
    make = functools.partial(networks.psnr_step, settings, generator, *arrays)
  elif case.task == "gan":
    discriminator = networks.Discriminator(case.d_feat, case.size)
    vgg = networks.VGG19(case.vgg_stages)
    make = functools.partial(
      networks.gan_step, settings, generator, discriminator, vgg, *arrays
    )
  else:
    make = functools.partial(networks.upscaling, settings, generator, *arrays)
  step = None

  def run(count):
    nonlocal step
    step = step or make()  # A CUDA graph is captured in the first call.
    for _ in range(count):
      result = step()
    if cuda:
      torch.cuda.synchronize()
    return 0.0 if case.task == "tile" else float(result)

  def peak():
    return torch.cuda.max_memory_allocated() if cuda else peak_rss()

  return run, peak


def peak_rss():
  """Bytes of this process's largest resident set."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def work(case):
  """Serves one case: a line of JSON comes back for each line that comes in."""
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Whatever libraries print goes the other way.
  prepare = prepare_jax if case.side == OURS else prepare_torch

  def tell(**row):
    replies.write(json.dumps(row) + "\n")
    replies.flush()

  run = None
  try:
    importlib.import_module("jax" if case.side == OURS else "torch")
    tell()
    for line in sys.stdin:
      command = line.strip()
      if command == "prepare":
        run, peak = prepare(case)
        begin = time.perf_counter()
        loss = run(1)
        seconds = time.perf_counter() - begin
        run(2)  # Allocators and clocks settle.
        if not math.isfinite(loss):
          raise FloatingPointError(f"the loss is {loss}")
        tell(first_call=seconds)
      elif command == "run":
        run(1)  # While others had their turn, free memory went to the system.
        begin = time.perf_counter()
        run(case.steps)
        tell(seconds=(time.perf_counter() - begin) / case.steps)
      elif command == "peak":
        tell(peak=peak())
  except Exception as error:
    lines = str(error).strip().splitlines() or [""]
    tell(error=f"{type(error).__name__}: {lines[0]}"[:160])
    raise


class Side:
  """The process of a side; after a failure, `failure` says why."""

  def __init__(self, case):
    self.case, self.failure, self.row = case, "", {}
    self.seconds = []
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if case.platform == "cpu":
      environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
      if case.task != "tile":  # The upscaling program has no large pages.
        environment |= large_pages.large_pages(environment)
    else:
      # All sides are on the card at once.
      environment |= {
        "JAX_PLATFORMS": "cuda",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4",
      }
    self.errors = tempfile.TemporaryFile()  # noqa: SIM115, see close().
    self.process = subprocess.Popen(
      [
        *(sys.executable, "-m", "benchmarks.train"),
        *("--worker", json.dumps(dataclasses.asdict(case))),
      ],
      cwd=ROOT,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      bufsize=0,
    )

  def ask(self, command, limit):
    """Sends a command, if any, and waits for its answer; None if it failed."""
    if self.failure:
      return None
    with contextlib.suppress(BrokenPipeError):
      if command:
        self.process.stdin.write(f"{command}\n".encode())
    limit = max(limit, 0.1)
    ready, _, _ = select.select([self.process.stdout], [], [], limit)
    if not ready:
      self.failure = f"no answer to {command or 'import'} in {limit:.0f} s"
      self.process.kill()
      return None
    answer = json.loads(self.process.stdout.readline() or b"null")
    if answer is None:
      self.errors.seek(0, os.SEEK_END)
      self.errors.seek(max(0, self.errors.tell() - 2000))
      lines = self.errors.read().decode(errors="replace").split("\n")
      last = next((line for line in reversed(lines) if line.strip()), "")
      code = self.process.wait()
      answer = {"error": f"ended with code {code}: {last[:160]}"}
    self.failure = answer.get("error", "")
    return None if self.failure else answer

  def close(self):
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    try:
      self.process.wait(10)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
    self.process.stdout.close()
    self.errors.close()


# --- The comparison.


class Clock:
  """Time that is left, in seconds."""

  def __init__(self, limit):
    self.end = time.monotonic() + limit if limit else math.inf

  def left(self, most=math.inf):
    """Returns what is left, and no more than `most`."""
    return min(self.end - time.monotonic(), most, 86400)


def compare(cases, rounds, clock, prepare_limit):
  """Runs one task's sides in turns and prints their table."""
  sides = [Side(case) for case in cases]
  try:
    for side in sides:
      side.ask("", clock.left(120))
    for side in sides:
      answer = side.ask("prepare", clock.left(prepare_limit))
      side.row |= answer or {}
    done = 0
    for _ in range(rounds):
      answers = [side.ask("run", clock.left()) for side in sides]
      for side, answer in zip(sides, answers, strict=True):
        side.seconds.append(answer["seconds"] if answer else math.nan)
      done += 1
      if clock.left() < 10:
        break
    for side in sides:
      side.row |= side.ask("peak", 10) or {}
  finally:
    for side in sides:
      side.close()
  print_table(sides, done)


def print_table(sides, rounds):
  """Prints what the sides of one task took."""
  case = sides[0].case
  peak_rate = None
  if case.platform == "gpu":
    name = gpu()
    peak_rate = next((rate for part, rate in PEAKS if part in name), None)
  what = "tile" if case.task == "tile" else "step"
  print(
    f"\n{case.title()}; median of {rounds} rounds of {case.steps};"
    f" {case.flops() / 1e12:.3g} TFLOP a {what}"
  )
  memory = "peak GB of GPU" if case.platform == "gpu" else "peak GB of process"
  share = "| share of peak " if peak_rate else ""
  images = "pixels/s out" if case.task == "tile" else "images/s"
  print(
    f"| | seconds | {images} | relative to ours | first call | {memory}"
    f" {share}|"
  )
  print("| --- " * (7 if peak_rate else 6) + "|")
  ours = sides[0]
  for side in sides:
    name = FORMS.get(side.case.side, OURS)
    if side.failure:
      print(f"| {name} | failed: {side.failure.replace('|', '/')} |")
      continue
    seconds = statistics.median(side.seconds)
    ratio = "-"
    if not ours.failure:
      pairs = zip(side.seconds, ours.seconds, strict=True)
      ratio = f"{statistics.median(a / b for a, b in pairs):.2f}"
    done = case.batch
    if case.task == "tile":
      done = (case.size * SCALE) ** 2
    cells = [
      name,
      f"{seconds:.4g}",
      f"{done / seconds:.4g}",
      ratio,
      f"{side.row['first_call']:.1f}",
      f"{side.row.get('peak', math.nan) / 1e9:.2f}",
    ]
    if peak_rate:
      cells.append(f"{case.flops() / seconds / peak_rate:.1%}")
    print(f"| {' | '.join(cells)} |")
  sys.stdout.flush()


@functools.cache
def gpu():
  """Returns the first GPU's name and driver, empty where there is none."""
  query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
  try:
    done = subprocess.run(
      ["nvidia-smi", *query], capture_output=True, text=True, timeout=60
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""


def make_parser():
  """Returns the parser of the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  tasks = ("psnr", "gan", "tile")
  add("--task", nargs="+", choices=tasks, default=["psnr", "gan"])
  add("--batch", nargs="+", type=int, help="default: 2; 16 64 on a GPU")
  add("--patch", type=int, default=128, help="HR pixels")
  add("--tile", nargs="+", type=int, help="LR pixels; 128; 256 512 on a GPU")
  add("--rounds", type=int, default=5)
  add("--steps", type=int, help="steps a round; default: 3; 10 on a GPU")
  add("--device", choices=("auto", "cpu", "gpu"), default="auto")
  dtypes = ("auto", "float32", "bfloat16")
  add("--dtype", choices=dtypes, default="auto", help="bfloat16 on a GPU")
  add("--unroll", type=int, default=1, help="of our loop over blocks")
  add(
    "--peer",
    nargs="*",
    choices=FORMS,
    help="forms of PyTorch; default: eager, and blocks where there is a C++"
    " compiler; with graph on a GPU",
  )
  add("--torch_mode", default="default", help="torch.compile's mode")
  add("--limit", type=float, help="seconds in all; default: none; 510 on a GPU")
  add(
    "--prepare_limit",
    type=float,
    help="seconds of one first call; default: 600; 120 on a GPU",
  )
  add("--tiny", action="store_true", help="tiny networks: tries the script")
  add("--worker", help=argparse.SUPPRESS)
  return parser


def main(arguments=None):
  """Prints a table a task and size."""
  args = make_parser().parse_args(arguments)
  if args.worker:
    work(Case(**json.loads(args.worker)))
    return
  name = args.device
  if name == "auto":
    name = "gpu" if gpu() else "cpu"
  on_gpu = name == "gpu"
  if args.limit is None:
    args.limit = 510 if on_gpu else 0
  if args.prepare_limit is None:
    args.prepare_limit = 120 if on_gpu else 600
  clock = Clock(args.limit)
  dtype = args.dtype
  if dtype == "auto":
    dtype = "bfloat16" if on_gpu else "float32"
  batches = args.batch or ([16, 64] if on_gpu else [2])
  tiles = args.tile or ([256, 512] if on_gpu else [128])
  peers = args.peer
  if peers is None:
    peers = ["eager", "blocks", "graph"] if on_gpu else ["eager"]
    if not on_gpu and shutil.which("g++"):
      peers.append("blocks")
  steps = args.steps or (10 if on_gpu else 3)
  patch = args.patch
  if args.tiny:
    batches, patch, tiles = batches[:1], 16, [16]

  print(machine.versions("jax", "jaxlib", "flax", "torch"))
  print(machine.describe())
  if on_gpu:
    print(gpu() or "no GPU found")
  if set(peers) - {"eager"}:
    print(
      f"torch.compile mode {args.torch_mode!r}; what one form has compiled,"
      " the next may find in PyTorch's caches"
    )
  sys.stdout.flush()
  sizes = [
    (task, batch, size)
    # The usual size of every task comes first: time may run out.
    for rank in range(max(len(batches), len(tiles)))
    for task in args.task
    for batch, size in (
      [(1, s) for s in tiles[rank : rank + 1]]
      if task == "tile"
      else [(b, patch) for b in batches[rank : rank + 1]]
    )
  ]
  for task, batch, size in sizes:
    case = Case(
      side=OURS,
      task=task,
      batch=batch,
      size=size,
      platform=name,
      dtype=dtype,
      steps=steps,
      tiny=args.tiny,
      unroll=args.unroll,
      mode=args.torch_mode,
    )
    if clock.left() < 30:
      print(f"\n{case.title()}: left out, {args.limit:.0f} s are over")
      continue
    cases = [case, *(dataclasses.replace(case, side=peer) for peer in peers)]
    try:
      compare(cases, args.rounds, clock, args.prepare_limit)
    except Exception as error:
      print(f"\n{case.title()}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
  main()
