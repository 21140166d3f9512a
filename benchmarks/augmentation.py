"""What augmentation costs a training step: steps with it and without, in turns.

A step is that of `benchmarks.train`, with the full network; augmentation is all
of `esrgan_jax.augment.OPERATIONS`, or some, each of half of the pairs. It is
timed by itself as well: on slow processors a step varies by more than it takes.

  python -m benchmarks.augmentation [--task psnr gan] [--batch 2] [--patch 128]
"""

import argparse
import dataclasses
import statistics
import time

from benchmarks import machine, train


def seconds_of(run, count):
  """Seconds of one of so many runs."""
  begin = time.perf_counter()
  run(count)
  return (time.perf_counter() - begin) / count


def prepare_alone(case):
  """Returns a function that augments a batch so many times, and that alone."""
  import jax

  from esrgan_jax import augment, compilation

  lr, hr = train.arrays_of(case)
  batch = jax.device_put(augment.to_float({"lr": lr, "hr": hr}))
  operations = {name: {"probability": 0.5} for name in case.operations}

  def transform(step, batch):
    key = jax.random.fold_in(jax.random.key(0), step)
    return augment.transform(key, batch, operations)

  program = jax.jit(
    transform, compiler_options=compilation.compiler_options(case.platform)
  )

  def run(count):
    for step in range(count):
      result = program(step, batch)
    jax.block_until_ready(result)

  return run


def compare(case, rounds):
  """Prints a task's seconds a step, and what augmentation adds to them."""
  without = dataclasses.replace(case, operations=())
  runs = {
    "without": train.prepare_jax(without)[0],
    "with": train.prepare_jax(case)[0],
    "alone": prepare_alone(case),
  }
  for run in runs.values():  # Compiles, then settles.
    run(1)
    run(1)
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      seconds[name].append(seconds_of(run, case.steps))
  middle = {name: statistics.median(each) for name, each in seconds.items()}
  ratios = [
    a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)
  ]
  print(f"\n{case.title()}; median of {rounds} rounds of {case.steps}")
  print("| without | with | with / without | by itself | by itself / without |")
  print("| --- " * 5 + "|")
  print(
    f"| {middle['without']:.4g} s | {middle['with']:.4g} s"
    f" | {statistics.median(ratios):.3f} | {1e3 * middle['alone']:.3g} ms"
    f" | {middle['alone'] / middle['without']:.2%} |",
    flush=True,
  )


def main(arguments=None):
  """Prints a table a task."""
  import jax

  from esrgan_jax import augment

  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add("--task", nargs="+", choices=("psnr", "gan"), default=["psnr", "gan"])
  add(
    "--operations",
    nargs="+",
    choices=augment.OPERATIONS,
    default=list(augment.OPERATIONS),
  )
  add("--batch", type=int, help="default: 2; 16 on a GPU")
  add("--patch", type=int, default=128, help="HR pixels")
  add("--rounds", type=int, default=5)
  add("--steps", type=int, help="steps a round; default: 3; 10 on a GPU")
  add("--tiny", action="store_true", help="tiny networks: tries the script")
  args = parser.parse_args(arguments)
  platform = jax.default_backend()
  small = platform == "cpu"
  print(machine.versions("jax", "jaxlib", "flax"))
  print(machine.describe() if small else train.gpu())
  print("augmentation:", ", ".join(args.operations), flush=True)
  for task in args.task:
    case = train.Case(
      side=train.OURS,
      task=task,
      batch=args.batch or (2 if small else 16),
      size=16 if args.tiny else args.patch,
      platform=platform,
      dtype="float32" if small else "bfloat16",
      steps=args.steps or (3 if small else 10),
      tiny=args.tiny,
      operations=tuple(args.operations),
    )
    compare(case, args.rounds)


if __name__ == "__main__":
  main()
