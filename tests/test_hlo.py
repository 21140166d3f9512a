# ruff: noqa: E501 - XLA writes long lines.
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import hlo, tpu_aot

# A loop of 3 around a loop of 5, which XLA has counted; fusions whose insides
# carry estimates too, as a TPU's may.
NESTED = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[8]{0}}

FileNames
1 "step.py"

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(256)} parameter(0)
  ROOT %n = f32[8]{0} negate(%p), backend_config={"window_config":{"estimated_cycles":"999"}}
}

%inner_body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %v = f32[8]{0:T(256)} get-tuple-element(%t), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %f = f32[8]{0:T(256)S(1)} fusion(%v), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
  %sum = f32[8]{0:T(256)} all-reduce(%f), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(256)}) tuple(%next, %sum)
}

%inner_condition (t.1: (s32[], f32[8])) -> pred[] {
  %t.1 = (s32[], f32[8]) parameter(0)
  ROOT %c = pred[] constant(true)
}

%outer_body (t.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t.2 = (s32[], f32[8]) parameter(0)
  %i.2 = s32[] get-tuple-element(%t.2), index=0
  %one.2 = s32[] constant(1)
  %next.2 = s32[] add(%one.2, %i.2)
  %again = (s32[], f32[8]) while(%t.2), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"5"}}
  %v.2 = f32[8] get-tuple-element(%again), index=1
  %copied = f32[8] copy(%v.2), backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %out.2 = (s32[], f32[8]) tuple(%next.2, %copied)
}

%outer_condition (t.3: (s32[], f32[8])) -> pred[] {
  %t.3 = (s32[], f32[8]) parameter(0)
  %i.3 = s32[] get-tuple-element(%t.3), index=0
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i.3, %limit), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %ab = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(256)} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]) tuple(%zero, %x)
  %loop = (s32[], f32[8]) while(%start), condition=%outer_condition, body=%outer_body
  ROOT %result = f32[8] get-tuple-element(%loop), index=1
}
"""


def test_a_body_counts_as_often_as_it_runs_and_a_fusion_once():
  module = hlo.parse(NESTED)
  assert hlo.estimated_cycles(module) == 3 * (5 * 7 + 100)
  assert hlo.collectives(module) == {"all-reduce": (15, 15 * 8 * 4)}


def loop(condition, start="0", step="1"):
  """A loop with a condition, and one estimated cycle a turn."""
  return hlo.parse(f"""
%body (t: (s32[], s32[])) -> (s32[], s32[]) {{
  %t = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=1
  %n = s32[] get-tuple-element(%t), index=0
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step), backend_config={{"estimated_cycles":"1"}}
  ROOT %out = (s32[], s32[]) tuple(%n, %next)
}}
{condition}
ENTRY %main (n: s32[]) -> (s32[], s32[]) {{
  %n = s32[] parameter(0)
  %zero = s32[] constant({start})
  %copy = s32[] copy(%zero)
  %start = (s32[], s32[]) tuple(%n, %copy)
  ROOT %loop = (s32[], s32[]) while(%start), condition=%condition, body=%body
}}
""")


def compare(operands, direction):
  return f"""
%condition (u: (s32[], s32[])) -> pred[] {{
  %u = (s32[], s32[]) parameter(0)
  %n = s32[] get-tuple-element(%u), index=0
  %i = s32[] get-tuple-element(%u), index=1
  %limit = s32[] constant(9)
  ROOT %go = pred[] compare({operands}), direction={direction}
}}"""


FUSED = """
%compared (limit: s32[], counter: s32[]) -> pred[] {
  %limit = s32[] parameter(0)
  %counter = s32[] parameter(1)
  ROOT %go = pred[] compare(%counter, %limit), direction=LT
}
%condition (u: (s32[], s32[])) -> pred[] {
  %u = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%u), index=1
  %nine = s32[] constant(9)
  ROOT %go = pred[] fusion(%nine, %i), kind=kLoop, calls=%compared
}"""


@pytest.mark.parametrize(
  ("condition", "start", "turns"),
  [
    (compare("%i, %limit", "LT"), "0", 9),
    (compare("%i, %limit", "LT"), "2", 7),
    (compare("%i, %limit", "LE"), "0", 10),
    (compare("%i, %limit", "NE"), "0", 9),
    (compare("%limit, %i", "GT"), "0", 9),
    (compare("s32[] %i, s32[] %limit", "LT"), "0", 9),
    (compare("%i, %limit", "LT"), "11", 0),
    (FUSED, "0", 9),
  ],
)
def test_trip_count_from_the_condition(condition, start, turns):
  module = loop(condition, start)
  assert hlo.trip_count(module, "main", "loop") == turns
  assert hlo.estimated_cycles(module) == turns


@pytest.mark.parametrize(
  ("condition", "options", "problem"),
  [
    (compare("%i, %n", "LT"), {}, "compares get-tuple-element with get-tuple"),
    (compare("%limit, %i", "LT"), {}, "compares by GT"),
    (compare("%i, %limit", "GT"), {}, "compares by GT"),
    (compare("%n, %limit", "LT"), {}, "start is not known"),
    (compare("%i, %limit", "LT"), {"step": "2"}, "goes up by 2"),
  ],
)
def test_a_trip_count_that_is_not_known_is_no_guess(
  condition, options, problem
):
  with pytest.raises(hlo.UnknownTripCountError, match=problem):
    hlo.estimated_cycles(loop(condition, **options))


BRANCHES = """
%cheap (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %y = f32[4]{0} copy(%x), backend_config={"estimated_cycles":"1"}
}
%dear (x.1: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  ROOT %y.1 = f32[4]{0} negate(%x.1), backend_config={"estimated_cycles":"20"}
}
%scattered (x.2: f32[4]) -> f32[2] {
  %x.2 = f32[4]{0} parameter(0)
  %all = f32[4]{0} all-reduce(%x.2), to_apply=%add
  %id = u32[] partition-id()
  ROOT %mine = f32[2]{0} dynamic-slice(%all, %id), dynamic_slice_sizes={2}
}
%wrapped (x.3: f32[4]) -> f32[8] {
  %x.3 = f32[4]{0} parameter(0)
  ROOT %gathered = f32[8]{0} all-gather(%x.3), dimensions={0}
}
ENTRY %main (c: s32[], x.4: f32[4]) -> f32[4] {
  %c = s32[] parameter(0)
  %x.4 = f32[4]{0} parameter(1)
  %sum = (f32[4]{0}, f32[4]{0}) all-reduce-start(%x.4, %x.4), to_apply=%add
  %sum-done = (f32[4]{0}, f32[4]{0}) all-reduce-done(%sum)
  %first = f32[4]{0} get-tuple-element(%sum-done), index=0
  %chosen = f32[4]{0} conditional(%c, %first, %first), branch_computations={%cheap, %dear}
  %half = f32[2]{0} fusion(%chosen), kind=kCustom, calls=%scattered
  %begun = ((f32[4]), f32[8], s32[]) async-start(%chosen), calls=%wrapped
  %ended = f32[8]{0} async-done(%begun), calls=%wrapped
  ROOT %called = f32[4]{0} call(%chosen), to_apply=%cheap
}
"""


def test_branches_calls_and_asynchronous_collectives():
  module = hlo.parse(BRANCHES)
  assert hlo.estimated_cycles(module) == 20 + 1
  assert hlo.collectives(module) == {
    "all-reduce": (2, 32 + 16),
    "all-gather": (1, 16),
  }


def test_memory_traffic_is_of_main_memory_and_of_the_parts_that_move():
  module = hlo.parse("""
%taken (stack: f32[9,8,128], i: s32[], row: f32[1,8,128]) -> f32[9,8,128] {
  %stack = f32[9,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,8,128]{2,1,0:T(8,128)S(1)} parameter(2)
  %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%stack, %i, %i, %i)
  %new = f32[1,8,128]{2,1,0:T(8,128)} add(%one, %row)
  ROOT %out = f32[9,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%stack, %new, %i, %i, %i)
}
ENTRY %main (stack.1: f32[9,8,128], i.1: s32[]) -> f32[9,8,128] {
  %stack.1 = f32[9,8,128]{2,1,0:T(8,128)} parameter(0)
  %i.1 = s32[]{:S(2)} parameter(1)
  %near = f32[1,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %f = f32[9,8,128]{2,1,0:T(8,128)} fusion(%stack.1, %i.1, %near), kind=kLoop, calls=%taken
}
""")
  row = 8 * 128 * 4
  assert hlo.memory_traffic(module) == 2 * row + 4  # And the index, in %taken.


def test_shape_bytes_of_tiled_and_narrow_arrays():
  assert hlo.shape_bytes("bf16[3,5]{0,1:T(8,128)(2,1)}", padded=True) == 2048
  assert hlo.shape_bytes("f32[]{:T(128)}", padded=True) == 4
  assert hlo.shape_bytes("(s4[3], f8e4m3fn[2], token[])") == 2 + 2


def test_text_that_is_no_program():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.parse("nothing")


def conv(x, kernel, **options):
  return lax.conv_general_dilated(
    x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
  )


def test_where_platforms_differ_the_operations_are_those_of_the_rest():
  def f(x):
    return lax.platform_dependent(
      x, tpu=lambda x: x @ x @ x, cpu=jnp.sin, default=lambda x: x @ x
    )

  assert hlo.jaxpr_flops(jax.make_jaxpr(f)(jnp.ones((8, 8)))) == 2 * 8**3


@pytest.mark.parametrize(
  "options",
  [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))},
    {
      "window_strides": (1, 1),
      "padding": ((1, 2), (0, 1)),
      "lhs_dilation": (2, 3),
    },
    {"window_strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 1)},
    {
      "window_strides": (1, 1),
      "padding": "SAME",
      "feature_group_count": 2,
    },
  ],
)
def test_convolutions_have_the_operations_that_xla_counts(options):
  groups = options.get("feature_group_count", 1)
  x, kernel = jnp.ones((2, 9, 8, 4)), jnp.ones((4, 3, 4 // groups, 6))

  def run(x, kernel):
    return conv(x, kernel, **options)

  def gradients(x, kernel, dy):
    return jax.vjp(run, x, kernel)[1](dy)

  dy = run(x, kernel)
  for function, arguments in ((run, (x, kernel)), (gradients, (x, kernel, dy))):
    counted = hlo.jaxpr_flops(jax.make_jaxpr(function)(*arguments))
    assert counted > 0
    xla = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    assert counted == xla


def test_operations_of_loops_and_branches_and_of_nothing_that_is_not_needed():
  a = jnp.ones((8, 8))
  product = 2 * 8**3

  def f(x):
    unused = x @ x @ x
    del unused
    x = lax.scan(lambda x, _: (jax.jit(jnp.dot)(x, x), None), x, length=7)[0]
    return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert hlo.jaxpr_flops(jax.make_jaxpr(f)(a)) == (7 + 2) * product


SCANNED = """
import jax, jax.numpy as jnp, json, sys
from benchmarks import hlo, tpu_aot
mesh = tpu_aot.make_mesh("v5e:1x1")
one = jax.NamedSharding(mesh, jax.P())
x = jax.ShapeDtypeStruct((8, 32, 32, 128), jnp.bfloat16, sharding=one)
kernels = jax.ShapeDtypeStruct((4, 3, 3, 128, 128), jnp.bfloat16, sharding=one)
def body(x, kernel):
  for _ in range(4):
    x = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jnp.maximum(x, 0)
  return x, None
for unroll in (1, 4):
  f = lambda x, k: jax.lax.scan(body, x, k, unroll=unroll)[0]
  compiled = jax.jit(f).lower(x, kernels).compile()
  text = compiled.as_text()
  print(json.dumps({
    "cycles": hlo.estimated_cycles(hlo.parse(text)),
    "traffic": hlo.memory_traffic(hlo.parse(text)),
    "once": compiled.cost_analysis()["flops"],
    "loops": text.count(" while("),
  }))
"""


@pytest.mark.slow  # Where libtpu is.
def test_a_scan_compiled_for_a_tpu_costs_about_what_its_unrolled_form_does():
  pytest.importorskip("libtpu")
  done = subprocess.run(
    [sys.executable, "-c", SCANNED],
    cwd=tpu_aot.ROOT,
    env=os.environ | tpu_aot.ENVIRONMENT,
    capture_output=True,
    text=True,
    check=True,
  )
  scanned, unrolled = map(json.loads, done.stdout.splitlines()[-2:])
  assert (scanned["loops"], unrolled["loops"]) == (1, 0)
  assert scanned["once"] < unrolled["once"] / 3  # What the walk puts right.
  assert 0.9 < scanned["cycles"] / unrolled["cycles"] < 1.2
