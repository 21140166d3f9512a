"""Learning-rate schedules and Adam, as published, for optax.

The steps take any `optax.GradientTransformation`: its updates are added to the
parameters, so one that ends with a learning rate, `optax.adam(1e-4)` and not
`optax.scale_by_adam()`. They tell it two things more, if it takes them: `step`,
the training step, and `value`, the loss. A chain takes all and hands it on: a
part of one has to take `**extra_args`, as optax asks of those that take any.
Not supported is what needs more: the line search of `optax.lbfgs`, which has to
compute losses, and `optax.lookahead`, whose parameters are a pair of networks;
the average of the steps (`ema_decay`) is like its slow one.

`make_optimizer` uses the first: its learning rate is a function of the training
step. A schedule of optax's own counts updates instead. The two differ after an
update that was skipped: that leaves the optimizer's state as it was, so that
the count of a schedule inside it lags by one, as Adam's own has to.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.schedules import WrappedSchedule

from esrgan_jax import checks


def constant_schedule(learning_rate: float) -> optax.Schedule:
  """Returns a schedule that never changes.

  Args:
    learning_rate: The value, > 0.

  Returns:
    Function of the step, int scalar >= 0, to a float32 scalar.

  Raises:
    ValueError: If `learning_rate` is not positive and finite.

  Source: SRGAN (arXiv:1609.04802), section 3.2, for the MSE phase.

  >>> float(constant_schedule(0.5)(1000))
  0.5
  """
  _check_rate(learning_rate)
  return lambda step: jnp.full_like(step, learning_rate, jnp.float32)


def milestone_schedule(
  learning_rate: float, *, milestones: Sequence[int], factor: float = 0.5
) -> optax.Schedule:
  """Returns a schedule that is multiplied by a factor at each milestone.

  Args:
    learning_rate: The value before the first milestone, > 0.
    milestones: Steps from which on the next value holds, ascending, >= 0.
      ESRGAN: 200k, 400k, 600k, 800k (PSNR), then 50k, 100k, 200k, 300k (GAN).
    factor: What each milestone multiplies by, > 0.

  Returns:
    Function of the step, int scalar >= 0, to a float32 scalar.

  Raises:
    ValueError: If a value is out of range, or milestones do not ascend.

  Source: ESRGAN (arXiv:1809.00219), section 4.1; PyTorch `MultiStepLR`, which
  also decays in the step that has the milestone's number, counted from 0.

  >>> schedule = milestone_schedule(1e-4, milestones=(50_000, 100_000))
  >>> [f"{schedule(step):.1e}" for step in (0, 49_999, 50_000, 100_000)]
  ['1.0e-04', '1.0e-04', '5.0e-05', '2.5e-05']
  """
  _check_rate(learning_rate)
  milestones = tuple(milestones)
  if any(b <= a for a, b in itertools.pairwise((-1, *milestones))):
    raise ValueError(
      f"milestones must be steps >= 0 in ascending order, got {milestones}"
    )
  if not factor > 0:
    raise ValueError(f"factor must be > 0, got {factor}")
  # Computed by Python once: float32 powers would round.
  rates = [learning_rate * factor**n for n in range(len(milestones) + 1)]

  def schedule(step):
    if not milestones:
      return jnp.full_like(step, learning_rate, jnp.float32)
    passed = jnp.sum(jnp.asarray(step) >= jnp.asarray(milestones))
    return jnp.asarray(rates, jnp.float32)[passed]

  return schedule


def cosine_restart_schedule(
  learning_rate: float,
  *,
  periods: Sequence[int],
  restart_weights: Sequence[float] | None = None,
  minimum: float = 1e-7,
) -> optax.Schedule:
  """Returns a schedule of half cosines, each from a restart to the minimum.

  Args:
    learning_rate: The value at each restart of weight 1, > 0.
    periods: Lengths of the half cosines in steps, > 0 each. BasicSR's
      RRDBNet: four times 250k, from 2e-4.
    restart_weights: Multiplies what is above the minimum, per period; `None`
      means all 1.
    minimum: The value at the end of each period, and after the last one.

  Returns:
    Function of the step, int scalar >= 0, to a float32 scalar.

  Raises:
    ValueError: If a value is out of range, or there is not one weight a period.

  Source: BasicSR `models/lr_scheduler.py::CosineAnnealingRestartLR` and
  `train_RRDBNet_PSNR_x4.yml`. A period's last step has the minimum there too:
  the restart is felt one step later. After the last period BasicSR fails.

  >>> schedule = cosine_restart_schedule(2e-4, periods=(1000, 1000))
  >>> [f"{schedule(step):.2e}" for step in (0, 500, 1000, 1500, 5000)]
  ['2.00e-04', '1.00e-04', '1.00e-07', '1.00e-04', '1.00e-07']
  """
  _check_rate(learning_rate)
  periods = tuple(periods)
  if not periods or min(periods) <= 0:
    raise ValueError(f"periods must be steps > 0, at least one, got {periods}")
  weights = (1.0,) * len(periods)
  if restart_weights is not None:
    weights = tuple(restart_weights)
  if len(weights) != len(periods):
    raise ValueError(
      f"restart_weights must have a value for each of the {len(periods)} "
      f"periods, got {weights}"
    )
  if not 0 <= minimum <= learning_rate:
    raise ValueError(
      f"minimum must be in [0, learning_rate = {learning_rate}], got {minimum}"
    )
  ends = tuple(itertools.accumulate(periods))
  starts = (0, *ends[:-1])

  def schedule(step):
    step = jnp.minimum(step, ends[-1])
    # A step that ends a period belongs to it, not to the next one.
    index = jnp.sum(step > jnp.asarray(ends))
    start, period = jnp.asarray(starts)[index], jnp.asarray(periods)[index]
    height = jnp.asarray(weights, jnp.float32)[index]
    height *= 0.5 * (learning_rate - minimum)
    place = (step - start).astype(jnp.float32) / period.astype(jnp.float32)
    return minimum + height * (1 + jnp.cos(math.pi * place))

  return schedule


_SCHEDULES = {
  "constant": constant_schedule,
  "milestones": milestone_schedule,
  "cosine_restart": cosine_restart_schedule,
}


def make_schedule(
  learning_rate: float, schedule: Mapping[str, Any] | None = None
) -> optax.Schedule:
  """Returns the schedule that a config describes in plain values.

  Args:
    learning_rate: The first value, > 0.
    schedule: `{"name": ...}` and the keyword arguments of that schedule:
      `"constant"`, `"milestones"` or `"cosine_restart"`. `None` is constant.
      Any of them takes `warmup_steps` as well, >= 0: so many first steps have
      1, 2, 3... parts of so many of what the schedule has there. It moves
      nothing else.

  Returns:
    Function of the step, int scalar >= 0, to a float32 scalar.

  Raises:
    ValueError: If the name is unknown, or a value is out of range.
    TypeError: If the schedule has no argument of a given name.

  Source: for the warm-up, Goyal et al. (arXiv:1706.02677), section 2.2; BasicSR
  `models/base_model.py::update_learning_rate`, whose `warmup_iter` it is.

  >>> card = {"name": "milestones", "milestones": (10, 20)}
  >>> [float(make_schedule(1.0, card)(step)) for step in (9, 10, 20)]
  [1.0, 0.5, 0.25]
  >>> card["warmup_steps"] = 4
  >>> [float(make_schedule(1.0, card)(step)) for step in (0, 1, 3, 4, 10)]
  [0.25, 0.5, 1.0, 1.0, 0.5]
  """
  options = dict(schedule) if schedule else {"name": "constant"}
  name = options.pop("name", None)
  warmup_steps = options.pop("warmup_steps", 0)
  if name not in _SCHEDULES:
    raise ValueError(
      f"schedule's name must be one of {tuple(_SCHEDULES)}, got {name!r}"
    )
  whole = _SCHEDULES[name](learning_rate, **options)
  checks.check_number(warmup_steps, "warmup_steps")
  if warmup_steps < 0 or warmup_steps != int(warmup_steps):
    raise ValueError(f"warmup_steps must be whole and >= 0, got {warmup_steps}")
  if not warmup_steps:
    return whole

  def warmed(step):
    share = (jnp.asarray(step) + 1).astype(jnp.float32) / warmup_steps
    return whole(step) * jnp.minimum(share, 1.0)

  return warmed


def make_optimizer(
  learning_rate: float,
  *,
  schedule: Mapping[str, Any] | None = None,
  b1: float = 0.9,
  b2: float = 0.999,
  clip_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Returns Adam, with its learning rate a function of the training step.

  Args:
    learning_rate: The first learning rate, > 0. ESRGAN: 2e-4, then 1e-4.
    schedule: A description for `make_schedule`; `None` is constant.
    b1: Decay of the first moment, in [0, 1).
    b2: Decay of the second moment, in [0, 1); BasicSR's files have 0.99.
    clip_norm: Largest norm, > 0, of all gradients together: longer ones are
      scaled down to it, before Adam sees them. `None` does not clip.

  Returns:
    Transformation of a network's gradients; G and D take one each. Its state is
    `optax.inject_hyperparams`'s, with the rate of the last update. Where
    `update` is not given `step=`, as the steps give it, it counts the updates.

  Raises:
    TypeError: If a value is no number.
    ValueError: If a value is out of range, or the schedule is unknown.

  Source: ESRGAN (arXiv:1809.00219), section 4.1. Epsilon is 1e-8.

  >>> card = {"name": "milestones", "milestones": (10,)}
  >>> optimizer = make_optimizer(0.5, schedule=card, clip_norm=1.0)
  >>> state = optimizer.init({"w": jnp.zeros(2)})
  >>> grads = {"w": jnp.array([3.0, -4.0])}
  >>> updates, state = optimizer.update(grads, state, step=10)
  >>> [round(value, 3) for value in updates["w"].tolist()]
  [-0.25, 0.25]
  >>> float(state.hyperparams["learning_rate"])
  0.25
  """
  for name, value in (("b1", b1), ("b2", b2)):
    checks.check_number(value, name)
    if not 0 <= value < 1:
      raise ValueError(f"{name} must be in [0, 1), got {value}")
  if clip_norm is not None:
    checks.check_number(clip_norm, "clip_norm")
  if clip_norm is not None and not clip_norm > 0:
    raise ValueError(
      f"clip_norm must be > 0, got {clip_norm}: None does not clip"
    )
  clip = () if clip_norm is None else (optax.clip_by_global_norm(clip_norm),)

  def adam(learning_rate):
    return optax.chain(
      *clip,
      optax.scale_by_adam(b1=b1, b2=b2, eps=1e-8),
      optax.scale_by_learning_rate(learning_rate),
    )

  rate = _StepSchedule(make_schedule(learning_rate, schedule))
  return optax.inject_hyperparams(adam, hyperparam_dtype=jnp.float32)(rate)


def check_optimizer(optimizer: Any, name: str = "optimizer") -> None:
  """Raises a TypeError that says what to pass, unless it is an optimizer.

  >>> check_optimizer(optax.adam(1e-4))
  >>> check_optimizer(optax.adam)
  Traceback (most recent call last):
  ...
  TypeError: optimizer must be an optax.GradientTransformation, such as...
  """
  methods = (getattr(optimizer, each, None) for each in ("init", "update"))
  if all(map(callable, methods)) and not isinstance(optimizer, type):
    return
  got = f"an object of type {type(optimizer).__name__}"
  if optimizer is None:
    got = "None"
  elif hasattr(optimizer, "__name__"):
    got = f"{optimizer.__name__}, which may have to be called"
  raise TypeError(
    f"{name} must be an optax.GradientTransformation, such as optax.adam(1e-4)"
    f" or make_optimizer(1e-4), got {got}"
  )


_UNSUPPORTED = {
  optax.ScaleByZoomLinesearchState: (
    "a line search, as of optax.lbfgs, has to compute losses"
  ),
  optax.ScaleByBacktrackingLinesearchState: (
    "a line search has to compute losses"
  ),
  optax.LookaheadState: (
    "optax.lookahead has a pair of networks for parameters: the steps' own"
    " average (ema_decay) is like its slow one"
  ),
}


def check_supported(opt_state: Any, name: str = "optimizer") -> None:
  """Raises a TypeError if an optimizer needs what steps do not give.

  Args:
    opt_state: Its state.
    name: What the caller calls it.

  >>> check_supported(optax.lbfgs().init(jnp.zeros(2)))
  Traceback (most recent call last):
  ...
  TypeError: optimizer is not supported: a line search, as of optax.lbfgs,...
  """
  kinds = tuple(_UNSUPPORTED)
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kinds))
  for node in nodes:
    if isinstance(node, kinds):
      reason = _UNSUPPORTED[type(node)]
      raise TypeError(f"{name} is not supported: {reason}")


def check_opt_state(
  opt_state: Any, optimizer: Any, params: Any, name: str = "opt_state"
) -> None:
  """Raises a ValueError unless a state has the structure of an optimizer's.

  A TypeError, if it is not supported.

  >>> params = jnp.zeros(2)
  >>> state = optax.sgd(0.1).init(params)
  >>> check_opt_state(state, optax.sgd(0.1), params)
  >>> check_opt_state(state, optax.adam(0.1), params)
  Traceback (most recent call last):
  ...
  ValueError: opt_state must be the optimizer's own, of optimizer.init(params...
  """
  try:
    expected = jax.eval_shape(optimizer.init, params)
  except jax.errors.JAXTypeError:
    return  # It looks at values, which a traced step does not have.
  owner = name.replace("opt_state", "optimizer")
  check_supported(expected, owner)
  if jax.tree.structure(opt_state) != jax.tree.structure(expected):
    raise ValueError(
      f"{name} must be the optimizer's own, of {owner}.init(params), with"
      f" {len(jax.tree.leaves(expected))} arrays in"
      f" {_kinds(expected)}, got {len(jax.tree.leaves(opt_state))} in"
      f" {_kinds(opt_state)}: make the state with this {owner}, by"
      " create_psnr_state or create_gan_state"
    )


def update(
  optimizer: optax.GradientTransformation,
  grads: Any,
  opt_state: Any,
  params: Any,
  **told: Array,
) -> tuple[Any, Any]:
  """Returns an optimizer's updates and state; tells it what it takes.

  Args:
    optimizer: Any transformation.
    grads: Gradients.
    opt_state: Its state.
    params: Parameters.
    **told: `step` and `value`.

  >>> sam = optax.contrib.sam(optax.sgd(1.0), optax.sgd(1.0))
  >>> one = jnp.ones(2)
  >>> updates, _ = update(sam, one, sam.init(one), one, step=1, value=one[0])
  >>> updates.tolist()
  [1.0, 1.0]
  """
  takes = inspect.signature(optimizer.update).parameters.values()
  if not any(each.kind is each.VAR_KEYWORD for each in takes):
    names = {each.name for each in takes}
    told = {name: value for name, value in told.items() if name in names}
  # optax's own promote: Adam takes a float to the power of a count.
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    return optimizer.update(grads, opt_state, params, **told)


def find_learning_rate(opt_state: Any) -> Array | None:
  """Returns the learning rate that an optimizer's state tells.

  Args:
    opt_state: The state after an update.

  Returns:
    Scalar: that of the update done; None unless there is exactly one, as
    `optax.inject_hyperparams` keeps it.

  >>> adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.5)
  >>> float(find_learning_rate(adam.init(jnp.zeros(2))))
  0.5
  >>> find_learning_rate(optax.adam(0.5).init(jnp.zeros(2))) is None
  True
  """

  def is_scalar(path, value):
    del path
    return isinstance(value, jax.Array) and value.shape == ()

  found = optax.tree.get_all_with_path(opt_state, "learning_rate", is_scalar)
  return found[0][1] if len(found) == 1 else None


class _StepSchedule(WrappedSchedule):
  """A schedule of the step where that is told, else of a count of its own."""

  def update(self, state, *, step=None, **others):
    """The count of the next update."""
    return super().update(_at(state, step), **others)

  def __call__(self, state, *, step=None, **others):
    """The rate of this update."""
    return super().__call__(_at(state, step), **others)


def _kinds(opt_state):
  """The outermost kinds of a state, in words."""
  parts = opt_state if type(opt_state) is tuple else (opt_state,)
  return ", ".join(type(part).__name__ for part in parts) or "an empty tuple"


def _at(state, step):
  if step is None:
    return state
  return state._replace(count=jnp.asarray(step, jnp.int32))


def _check_rate(learning_rate):
  """Raises unless a learning rate is positive and finite."""
  checks.check_number(learning_rate, "learning_rate")
  if not 0 < learning_rate < math.inf:
    raise ValueError(
      f"learning_rate must be positive and finite, got {learning_rate}"
    )
