"""What the real programs cost on TPUs, compiled for them without one.

Phase one's step and phase two's, built from the config files as the training
program builds them, and what `Upscaler` runs for a tile, go through the TPU
compiler (libtpu) for one chip or a slice of many. Memory, operations and
collectives are those of the compiled program; times are its own estimates, and
nothing here has run on a TPU.

  pip install libtpu
  python -m benchmarks.tpu_aot --chips v5e:1 v5e:8
  python -m benchmarks.tpu_aot --topology v6e:16x16 --programs gan_step

Programs: `psnr_step` (configs/psnr.py), `gan_step` (configs/gan.py),
`realesrgan_step` (phase two of configs/realesrgan.py, which degrades inside the
step), `tile` (256 x 256 LR pixels of a large photo by
`Upscaler.upscale(tile=256)`, a tile a chip), `student_tile` (the same by
esrgan-jax-fast-x4) and `net` (`net.apply` of 1 x 256 x 256, no halo, on each
chip).

XLA counts a loop's body once; here it counts as often as it runs
(`benchmarks/hlo.py`). Each case is a process of its own. Minutes a case.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, PartitionSpec

from benchmarks import hlo
from esrgan_jax import augment, compilation, losses
from esrgan_jax.models import registry, vgg
from esrgan_jax.ops import platforms
from esrgan_jax.steps import gan, psnr
from esrgan_jax.steps import optimizer as optimizer_lib
from esrgan_jax.steps import state as state_lib
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import degrading
from esrgan_jax.training import mesh as mesh_lib
from esrgan_jax.upscaling import memory, tiles

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of a training step: its config's name, and the phase.
CONFIGS = {
  "psnr_step": ("psnr", "psnr"),
  "gan_step": ("gan", "gan"),
  "realesrgan_step": ("realesrgan", "gan"),
}
PROGRAMS = (*CONFIGS, "tile", "student_tile", "net")
STUDENT = {"architecture": "SRVGGNetCompact", "num_feat": 64, "num_conv": 8}
TILE = 256
PHOTO = (1440, 2560)  # LR pixels; its tiles are as large as any photo's.

_INITS = {"vgg19": vgg.init_vgg19, "vgg16": vgg.init_vgg16}

# libtpu asks where it is, unless it is told.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generation of TPUs, by Google's data sheets; figures of one chip.

  Attributes:
    hbm_gib: Memory.
    tflops: Peak, dense bfloat16.
    ghz: Clock of the matrix units. Peak over clock is what they do in a cycle,
      2 * 128 * 128 (v6e: 2 * 256 * 256) times their number: 4 on a v5e or v6e,
      8 on a v4 or v5p. That a cycle of the estimates is one of theirs is an
      assumption; one product of 8192 x 8192 bears it out: 0.88 of the peak on
      v5e, 0.70 on v6e, 0.90 on v5p, 0.90 on v4, all by estimate.
    cubes: Whether slices have three axes.
    devices: That a chip shows.
  """

  hbm_gib: int
  tflops: float
  ghz: float
  cubes: bool = False
  devices: int = 1


GENERATIONS = {
  "v4": Generation(32, 275, 1.05, cubes=True, devices=2),
  "v5e": Generation(16, 197, 1.5),
  "v5p": Generation(95, 459, 1.75, cubes=True),
  "v6e": Generation(32, 918, 1.75),
}
_SQUARES = {
  1: "1x1",
  4: "2x2",
  8: "2x4",
  16: "4x4",
  32: "4x8",
  64: "8x8",
  128: "8x16",
  256: "16x16",
}
_CUBES = {
  1: "2x2x1",  # One chip of the smallest slice.
  4: "2x2x1",
  8: "2x2x2",
  16: "2x2x4",
  32: "2x4x4",
  64: "4x4x4",
  128: "4x4x8",
  256: "4x8x8",
}


def topology_name(chips: str) -> tuple[str, int]:
  """Returns the slice that "v5e:8" means, and its number of chips to use.

  >>> topology_name("v5e:8"), topology_name("v5p:1")
  (('v5e:2x4', 8), ('v5p:2x2x1', 1))
  """
  name, _, count = chips.partition(":")
  if name not in GENERATIONS:
    raise ValueError(f"no TPU {name!r}; choose one of {', '.join(GENERATIONS)}")
  shapes = _CUBES if GENERATIONS[name].cubes else _SQUARES
  if not count.isdecimal() or int(count) not in shapes:
    raise ValueError(
      f"no slice {chips!r}; give {name}: and one of"
      f" {', '.join(map(str, shapes))}, or --topology"
    )
  return f"{name}:{shapes[int(count)]}", int(count)


def make_mesh(topology: str, chips: int | None = None) -> Mesh:
  """Returns a mesh of devices that are not there.

  Args:
    topology: Such as "v5e:2x4".
    chips: How many of its chips, from the first; None for all.

  Returns:
    A mesh of one axis, "data".
  """
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=topology
  ).devices
  if chips:
    devices = devices[: chips * GENERATIONS[topology.split(":")[0]].devices]
  return Mesh(np.array(devices), (mesh_lib.AXIS,), axis_types=(AxisType.Auto,))


@dataclasses.dataclass(frozen=True)
class Program:
  """A function with its abstract arguments, and how it is compiled."""

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  options: dict[str, Any]
  note: str
  # Of a program that is of all devices together: what splits the batch.
  mesh: Mesh | None = None

  def lower(self) -> jax.stages.Lowered:
    """Traces and lowers it, as for the machine that it is for."""
    with platforms.tracing_for("tpu", self.mesh):
      return jax.jit(self.function, **self.options).lower(*self.arguments)


def _read_config(program, num_block, settings):
  """The config of a program, changed by "key=value" texts."""
  name, _ = CONFIGS[program]
  config = config_lib.read_config(ROOT / "configs" / f"{name}.py")
  settings = [tuple(s.split("=", 1)) for s in settings]
  if num_block:
    settings.append(("generator.num_block", str(num_block)))
  if any(len(setting) == 1 for setting in settings):
    raise ValueError(f"settings are KEY=VALUE, got {settings}")
  config_lib.override(config, settings)
  return config_lib.complete(config)


def training_step(
  config: Any, phase: str, *, form: str = "fast", mesh: Mesh | None = None
) -> tuple[Any, Any, dict[str, Any]]:
  """Returns a phase's step on 8-bit batches, as `training.loop` builds it.

  Args:
    config: A complete config.
    phase: "psnr" or "gan".
    form: Of the generator.
    mesh: Where images are degraded, if the config has them so.

  Returns:
    The step, `(state, raw, **arrays) -> (state, metrics)`; an abstract state;
    and abstract arrays, which the step takes as keyword arguments.
  """
  settings = config.phases[phase]
  dtype = compilation.compute_dtype(config.dtype, "tpu")
  generator = registry.make_generator(
    **{**config.generator, "form": form},
    scale=config.scale,
    dtype=dtype,
    remat=config.remat,
  )

  def make_optimizer(learning_rate):
    return optimizer_lib.make_optimizer(
      learning_rate,
      schedule=settings.schedule.to_dict(),
      b1=settings.b1,
      b2=settings.b2,
      clip_norm=config.clip_norm or None,
    )

  networks = {
    "generator": generator,
    "optimizer": make_optimizer(settings.learning_rate),
  }
  common = {
    "ema_decay": config.ema_decay,
    "accumulate": config.accumulate,
    "pixel_loss": settings.pixel_loss,
  }
  arrays = {}
  if phase == "psnr":
    create = state_lib.create_psnr_state
    step = functools.partial(
      psnr.psnr_step, **networks, **common, gt_usm=settings.gt_usm
    )
  else:
    networks |= {
      "discriminator": registry.make_discriminator(
        **config.discriminator, input_size=config.patch_size, dtype=dtype
      ),
      "d_optimizer": make_optimizer(settings.d_learning_rate),
    }
    create = state_lib.create_gan_state
    options = (
      "pixel_weight",
      "perceptual_weight",
      "adversarial",
      "adversarial_weight",
      "l1_gt_usm",
      "percep_gt_usm",
      "gan_gt_usm",
      *losses.find_adversarial_loss(settings.adversarial).options,
    )
    step = functools.partial(
      gan.gan_step,
      **networks,
      **common,
      seed=config.seed,
      **{name: settings[name] for name in options},
    )
    if settings.perceptual_weight:
      network = config.perceptual.network
      if network not in _INITS:
        raise ValueError(
          f"perceptual.network is {network!r}; have {', '.join(_INITS)}"
        )
      arrays["perceptual"] = gan.vgg_perceptual(
        jax.eval_shape(_INITS[network], jax.random.key(0)),
        layer_weights=config.perceptual.layers.to_dict(),
        criterion=config.perceptual.criterion,
        network=network,
        dtype=dtype,
      )
  state = jax.eval_shape(
    functools.partial(create, **networks), jax.random.key(0)
  )
  seed = config.seed + ("psnr", "gan").index(phase)
  degraded = degrading.of(config)

  def run_step(state, raw, **arrays):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if config.data.augment:  # What `Pipeline.preprocess` does, "ram".
      raw = augment.augment(key, raw)
    batch = augment.to_float(raw)
    if degraded:
      batch = degraded.pairs(key, batch["hr"], mesh)
    return step(state, batch, **arrays)

  return run_step, state, arrays


def training_program(
  config: Any, phase: str, mesh: Mesh, batch_size: int, *, form: str = "fast"
) -> Program:
  """Returns a phase's step on a mesh, compiled as `mesh.jit_step` does.

  Args:
    config: A complete config.
    phase: "psnr" or "gan".
    mesh: From `make_mesh`.
    batch_size: Of all devices together.
    form: Of the generator.

  Returns:
    The program.
  """
  step, state, arrays = training_step(config, phase, form=form, mesh=mesh)
  whole, split = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh)
  size = config.patch_size
  degraded = degrading.of(config)
  cut = degraded.crop_size if degraded else size
  sides = {"lr": cut // config.scale, "hr": cut}
  raw = {
    name: jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
    for name, side in sides.items()
  }

  def run(state, raw, arrays):
    return step(state, raw, **arrays)

  return Program(
    run,
    (state, raw, arrays),
    {
      "in_shardings": (whole, split, whole),
      "out_shardings": (whole, whole),
      "donate_argnums": 0,
      "compiler_options": compilation.compiler_options("tpu"),
    },
    f"batch {batch_size // mesh.size} a device, HR {size} x {size}",
    mesh,
  )


def _abstract(tree, sharding):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def upscaling_program(
  program: str, mesh: Mesh, num_block: int, *, form: str = "fast"
) -> Program:
  """Returns the program of a tile, or the network alone.

  Args:
    program: "tile" or "student_tile", what `Upscaler.upscale(photo, tile=256)`
      runs, 8-bit, or "net", `net.apply` of a float image of 256 x 256.
    mesh: From `make_mesh`; one tile a device.
    num_block: Of the network, but the student's.
    form: Of the network.

  Returns:
    The program.
  """
  dtype = compilation.compute_dtype("auto", "tpu")
  if program == "student_tile":
    net = registry.make_generator(**STUDENT, form=form, dtype=dtype)
  else:
    net = registry.make_generator(num_block=num_block, form=form, dtype=dtype)
  params = jax.eval_shape(
    lambda: net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  )
  params = _abstract(params, mesh_lib.replicated(mesh))

  def split(*shape, dtype):
    return jax.ShapeDtypeStruct(
      (mesh.size, *shape), dtype, sharding=mesh_lib.batch_sharding(mesh)
    )

  if program == "net":

    def function(params, lr):
      return net.apply({"params": params}, lr)

    arguments = split(TILE, TILE, 3, dtype=jnp.float32)
    note = f"1 x {TILE} x {TILE} a device, no halo"
    return Program(function, (params, arguments), {}, note, mesh)

  # As `Upscaler._program`, for devices that are not there.
  halo = tiles.choose_halo(net)
  strip_size = memory.strip_size("tpu")
  shape = tiles.Plan.make((*PHOTO, 3), net, TILE, halo, strip_size).shape
  spec = PartitionSpec(mesh_lib.AXIS)
  function = jax.shard_map(
    functools.partial(tiles.upscale_tiles, net, size=shape.strip),
    mesh=mesh,
    in_specs=(PartitionSpec(), spec, spec, spec, spec),
    out_specs=spec,
    check_vma=False,
  )
  arguments = (
    {"params": params},
    split(shape.height, shape.width, 3, dtype=jnp.uint8),
    split(shape.num_strips, 2, dtype=jnp.int32),
    split(shape.height, shape.width, 1, dtype=jnp.bool_)
    if shape.masked
    else None,
    split(dtype=jnp.bool_),
  )
  note = (
    f"window {shape.height} x {shape.width} (halo {halo}) a device, up to"
    f" {shape.strip_height * shape.num_strips} x {shape.strip_width} of it kept"
  )
  return Program(
    function,
    arguments,
    {"compiler_options": compilation.compiler_options("tpu")},
    note,
  )


# The generator as it is, and as the paper draws it, to compare.
FORMS = {"default": "fast", "textbook": "plain"}


def make_program(
  program: str,
  mesh: Mesh,
  *,
  form: str = "fast",
  num_block: int | None = None,
  batch_per_chip: int | None = None,
  settings: Sequence[str] = (),
) -> Program:
  """Returns one of `PROGRAMS`, for a mesh.

  Args:
    program: Its name.
    mesh: From `make_mesh`.
    form: Of the generator.
    num_block: None for the config's, 23 for upscaling.
    batch_per_chip: Images; None for the config's batch, split over the mesh.
    settings: What replaces the config's values, as "key=value".

  Returns:
    The program.
  """
  if program not in CONFIGS:
    return upscaling_program(program, mesh, num_block or 23, form=form)
  config = _read_config(program, num_block, settings)
  batch_size = config.batch_size
  if batch_per_chip:
    kind = GENERATIONS[_generation(mesh)]
    batch_size = batch_per_chip * mesh.size // kind.devices
  batch_size = max(1, batch_size // mesh.size) * mesh.size
  _, phase = CONFIGS[program]
  return training_program(config, phase, mesh, batch_size, form=form)


def _generation(mesh):
  kind = mesh.devices.flat[0].device_kind
  names = {"lite": "e", "": "p"}
  if kind == "TPU v4":
    return "v4"
  _, version, *rest = kind.split()
  return version + names["".join(rest)]


def measure(program: Program, mesh: Mesh, *, hlo_file: str = "") -> dict:
  """Compiles a program and returns what the compiler says about it.

  Args:
    program: From `make_program`.
    mesh: The same mesh.
    hlo_file: Where to write the compiled program's text.

  Returns:
    Figures of one device by name; sizes in bytes.
  """
  kind = GENERATIONS[_generation(mesh)]
  lowered = program.lower()
  began = time.perf_counter(), time.process_time()
  compiled = lowered.compile()
  seconds = time.perf_counter() - began[0], time.process_time() - began[1]
  text = compiled.as_text()
  if hlo_file:
    pathlib.Path(hlo_file).write_text(text)
  module = hlo.parse(text)
  memory = compiled.memory_analysis()
  costs = compiled.cost_analysis()
  cycles = hlo.estimated_cycles(module)
  return {
    "note": program.note,
    "devices": mesh.size,
    "hbm": kind.hbm_gib * 2**30 // kind.devices,
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "peak": memory.peak_memory_in_bytes,
    "traffic": hlo.memory_traffic(module),
    "cycles": cycles,
    "milliseconds": cycles / kind.ghz / 1e6,
    "collectives": hlo.collectives(module),
    "compile_seconds": seconds[0],
    "compile_cpu_seconds": seconds[1],
    "xla_flops_bodies_once": costs["flops"],
    "xla_bytes_bodies_once": costs["bytes accessed"],
  }


def run_case(case: dict) -> dict:
  """Measures one case, in the process that it has for itself."""
  mesh = make_mesh(case["topology"], case["chips"])

  def make(form):
    return make_program(
      case["program"],
      mesh,
      form=FORMS[form],
      num_block=case["num_block"],
      batch_per_chip=case["batch_per_chip"],
      settings=case["settings"],
    )

  program = make("textbook")  # The same work for every form.
  jaxpr = jax.make_jaxpr(program.function)(*program.arguments)
  flops = hlo.jaxpr_flops(jaxpr) // mesh.size
  row = measure(make(case["form"]), mesh, hlo_file=case["hlo_file"])
  kind = GENERATIONS[_generation(mesh)]
  peak = kind.tflops * 1e3 / kind.ghz / kind.devices  # FLOP a cycle.
  return row | {
    "flops": flops,
    "share_of_peak": flops / row["cycles"] / peak if row["cycles"] else 0.0,
  }


def _start(case, timeout):
  """Runs a case in a process of its own; a failure is a row as well."""
  try:
    done = subprocess.run(
      [sys.executable, "-m", "benchmarks.tpu_aot", "--case", json.dumps(case)],
      cwd=ROOT,
      env=os.environ | ENVIRONMENT,
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return {"error": f"not compiled in {timeout} s"}
  if done.returncode:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in lines if "RESOURCE_EXHAUSTED" in line] or lines
    message = told[-1].strip() if told else f"exit code {done.returncode}"
    return {"error": message[:300]}
  return json.loads(done.stdout.splitlines()[-1])


HEADER = (
  "| slice | form | blocks | arguments GiB | temporaries GiB | peak GiB of HBM"
  " | TFLOP | GB to and from HBM (est.) | Mcycles (est.) | ms (est.) | share of"
  " peak (est.) | collectives | compile s (CPU s) |"
)
NOTES = """\
Compiled, not run: memory is the compiler's plan, and what is marked est. is an
estimate. Figures are one device's: a chip, of v4 half of one.
TFLOP: multiplications and additions of convolutions and products in the
  textbook's form, so that all forms are measured alike.
GB to and from HBM: operands and results of each instruction, as they lie there.
Mcycles: the compiler's estimates, each loop's body as often as it runs; they
  leave out collectives and waiting for memory.
ms: at {clocks}; an assumption.
Share of peak: TFLOP over what the matrix units could do in these cycles.
Collectives: kind, how many run a step, and the bytes a device puts in."""


def _cells(row):
  """A row's figures, as text."""
  if "error" in row:
    return [row["error"].replace("|", "/")]
  gib = 2**30
  exchanged = ", ".join(
    f"{kind} {count} ({size / 1e6:.3g} MB)"
    for kind, (count, size) in row["collectives"].items()
  )
  return [
    f"{row['arguments'] / gib:.2f}",
    f"{row['temporaries'] / gib:.2f}",
    f"{row['peak'] / gib:.2f} of {row['hbm'] / gib:.0f}",
    f"{row['flops'] / 1e12:.3g}",
    f"{row['traffic'] / 1e9:.3g}",
    f"{row['cycles'] / 1e6:.4g}",
    f"{row['milliseconds']:.3g}",
    f"{row['share_of_peak']:.1%}",
    exchanged or "none",
    f"{row['compile_seconds']:.0f} ({row['compile_cpu_seconds']:.0f})",
  ]


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs every case in its own process and prints a table a program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", nargs="+", default=[], metavar="TPU:COUNT")
  parser.add_argument("--topology", nargs="+", default=[], metavar="TPU:SHAPE")
  parser.add_argument(
    "--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS)
  )
  parser.add_argument("--form", nargs="+", choices=FORMS, default=["default"])
  parser.add_argument("--batch_per_chip", type=int, help="default: config's")
  parser.add_argument("--num_block", type=int, help="default: config's, or 23")
  parser.add_argument(
    "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the config"
  )
  parser.add_argument(
    "--timeout", type=int, default=1800, help="seconds a case"
  )
  parser.add_argument("--json", metavar="FILE", help="also write rows there")
  parser.add_argument("--hlo", metavar="FOLDER", help="keep compiled programs")
  parser.add_argument("--case", help=argparse.SUPPRESS)
  args = parser.parse_args(arguments)
  if args.case:
    print(json.dumps(run_case(json.loads(args.case))))
    return
  try:
    slices = [topology_name(chips) for chips in args.chips]
  except ValueError as error:
    parser.error(str(error))
  slices += [(name, None) for name in args.topology]
  slices = slices or [topology_name("v5e:1")]
  for name, _ in slices:
    if name.partition(":")[0] not in GENERATIONS:
      parser.error(f"no figures of {name!r}; have {', '.join(GENERATIONS)}")
  names = dict.fromkeys(name.partition(":")[0] for name, _ in slices)
  clocks = ", ".join(f"{name} {GENERATIONS[name].ghz} GHz" for name in names)

  blocks = dict.fromkeys(args.programs, args.num_block or 23)
  try:
    for program in CONFIGS.keys() & blocks.keys():
      config = _read_config(program, args.num_block, args.set)
      blocks[program] = config.generator.num_block
  except ValueError as error:
    parser.error(str(error))
  try:
    version = importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    parser.error("the TPU compiler is not installed: pip install libtpu")
  print(f"jax {jax.__version__}, libtpu {version}")
  print(NOTES.format(clocks=clocks))
  rows = []
  for program in args.programs:
    print(f"\n{program}\n\n{HEADER}\n{'| --- ' * HEADER.count(' | ')}| --- |")
    notes = []
    for (topology, chips), form in itertools.product(slices, args.form):
      case = {
        "program": program,
        "topology": topology,
        "chips": chips,
        "form": form,
        "num_block": args.num_block,
        "batch_per_chip": args.batch_per_chip,
        "settings": args.set,
        "hlo_file": "",
      }
      kind, _, shape = topology.partition(":")
      count = chips or math.prod(map(int, shape.split("x")))
      if args.hlo:
        name = f"{program}_{kind}_{count}_{form}_{blocks[program]}.txt"
        case["hlo_file"] = os.path.join(os.path.abspath(args.hlo), name)
      row = _start(case, args.timeout)
      rows.append(case | row)
      notes.append(row.get("note", ""))
      cells = [f"{kind} x {count}", form, str(blocks[program]), *_cells(row)]
      print(f"| {' | '.join(cells)} |", flush=True)
      if args.json:
        pathlib.Path(args.json).write_text(json.dumps(rows, indent=1))
    print("\n" + "\n".join(dict.fromkeys(filter(None, notes))))


if __name__ == "__main__":
  main()
