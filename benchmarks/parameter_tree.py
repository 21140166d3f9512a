"""One stacked parameter tree, or one subtree a block? Time and memory of both.

Three ways to run the same network: the stacked tree as a loop (what RRDBNet
does), the stacked tree unrolled (`unroll=num_block`), and one subtree a block.

  python -m benchmarks.parameter_tree [--platform cpu tpu] [--num_block 6 23]

On CPU: seconds and memory, with large pages, as the training program has. For a
TPU v5e, without one: the TPU compiler's own estimates (needs `pip install
libtpu`). Each case is a process of its own.
"""

import argparse
import functools
import json
import os
import re
import resource
import subprocess
import sys
import time

FORMS = ("stacked, loop", "stacked, unrolled", "a subtree a block")
TASKS = ("forward", "training step")


def build(form, num_block, dtype):
  """Returns a network, its parameters' shapes, and how it is applied."""
  import jax
  import jax.numpy as jnp

  from esrgan_jax.models.rrdb import RRDBNet

  unroll = num_block if form == FORMS[1] else 1
  net = RRDBNet(num_block=num_block, unroll=unroll, dtype=dtype)
  params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))[
    "params"
  ]
  if form != FORMS[2]:
    return params, lambda params, lr: net.apply({"params": params}, lr)
  block = jax.eval_shape(
    lambda body: jax.tree.map(lambda a: a[0], body), params.pop("body")
  )
  params |= {f"body_{i}": block for i in range(num_block)}
  return params, functools.partial(apply_separate, net)


def apply_separate(net, params, lr):
  """The network of parameters with a subtree for each block."""
  from esrgan_jax.ops import dense_block
  from esrgan_jax.ops.convolution import conv

  def cast(layer):
    kernel, bias = layer["kernel"], layer["bias"]
    return kernel.astype(net.dtype), bias.astype(net.dtype)

  def convolve(name, x):
    kernel, bias = cast(params[name])
    return conv(x, kernel) + dense_block.channels(bias)

  feat = out = convolve("conv_first", lr.astype(net.dtype))
  for i in range(net.num_block):
    x = out
    for block in ("rdb1", "rdb2", "rdb3"):
      layers = params[f"body_{i}"][block]
      convs = [cast(layers[f"conv{j + 1}"]) for j in range(5)]
      out = dense_block.dense_block(out, dense_block.group_convs(convs))
    out = dense_block.add_fifth(x, out)
  feat += convolve("conv_body", out)
  return net.apply({"params": params}, feat, method="reconstruct")


def measure(form, task, num_block, platform):
  """Compiles, and on CPU runs, one case; returns its figures."""
  import jax
  import jax.numpy as jnp
  import optax

  from esrgan_jax import compilation

  cpu = platform == "cpu"
  shapes, apply = build(form, num_block, jnp.float32 if cpu else jnp.bfloat16)
  batch = (1 if task == "forward" else 2) if cpu else 16
  size = 64 if cpu and task == "forward" else 32
  optimizer = optax.adam(1e-4)

  def loss(params, lr, hr):
    return jnp.abs(apply(params, lr) - hr).mean()

  def step(state, lr, hr):
    params, opt_state = state
    value, gradient = jax.value_and_grad(loss)(params, lr, hr)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(params, updates), opt_state), value

  lr = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  hr = jax.ShapeDtypeStruct((batch, 4 * size, 4 * size, 3), jnp.float32)
  if task == "forward":
    function, arguments, donate = apply, (shapes, lr), ()
  else:
    state = (shapes, jax.eval_shape(optimizer.init, shapes))
    function, arguments, donate = step, (state, lr, hr), (0,)

  if not cpu:
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    device = topologies.get_topology_desc(
      platform="tpu", topology_name="v5e:2x2"
    ).devices[0]
    arguments = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(
        a.shape, a.dtype, sharding=SingleDeviceSharding(device)
      ),
      arguments,
    )
  program = jax.jit(
    function,
    donate_argnums=donate,
    compiler_options=compilation.compiler_options(platform),
  )
  started = time.perf_counter()
  lowered = program.lower(*arguments)
  compiled = lowered.compile()
  row = {"compile_s": time.perf_counter() - started}
  row["temporaries_mb"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
  if not cpu:
    row["megacycles"] = estimated_cycles(compiled.as_text(), num_block) / 1e6
    return row

  filled = jax.tree.map(lambda a: jnp.full(a.shape, 0.01, a.dtype), arguments)
  times = []
  for _ in range(4):
    started = time.perf_counter()
    result = jax.block_until_ready(compiled(*filled))
    times.append(time.perf_counter() - started)
    if donate:
      filled = (result[0], *filled[1:])
  row["run_s"] = sorted(times[1:])[1]
  row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return row


def estimated_cycles(text, num_block):
  """Adds up the compiler's estimates; a loop's body counts for each turn."""
  total, inside = 0, False
  bodies = set(re.findall(r"while\([^\n]*body=%?([\w.\-]+)", text))
  for line in text.splitlines():
    if line and not line[0].isspace() and line[0] != "}":
      name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)
      inside = bool(name) and name[1] in bodies
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
    total += cycles * (num_block if inside else 1)
  return total


def main():
  """Runs every case in its own process and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--platform", nargs="+", default=["cpu", "tpu"])
  parser.add_argument("--num_block", nargs="+", type=int, default=[6, 23])
  parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
  parser.add_argument("--timeout", type=int, default=600, help="seconds a case")
  parser.add_argument("--case", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.case:
    print(json.dumps(measure(*json.loads(args.case))))
    return
  import jax
  import jaxlib

  print(f"jax {jax.__version__}, jaxlib {jaxlib.__version__}")
  print(f"{os.cpu_count()} cores; float32 on CPU, bfloat16 for v5e")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  }
  for platform in args.platform:
    last = "run s | peak RSS MB" if platform == "cpu" else "estimated Mcycles"
    print(f"\n| {platform} | blocks | form | compile s | temp MB | {last} |")
    print("| --- " * (7 if platform == "cpu" else 6) + "|")
    for task in args.task:
      for num_block in args.num_block:
        for form in FORMS:
          case = json.dumps([form, task, num_block, platform])
          command = [sys.executable, "-m", "benchmarks.parameter_tree"]
          try:
            done = subprocess.run(
              [*command, "--case", case],
              env=environment,
              capture_output=True,
              text=True,
              timeout=args.timeout,
              check=True,
            )
            row = json.loads(done.stdout.splitlines()[-1])
            cells = [f"{value:.4g}" for value in row.values()]
          except subprocess.TimeoutExpired:
            cells = [f"over {args.timeout}"]
          except subprocess.CalledProcessError as error:
            cells = [error.stderr.strip().splitlines()[-1]]
          cells = " | ".join(cells)
          print(f"| {task} | {num_block} | {form} | {cells} |", flush=True)


if __name__ == "__main__":
  main()
