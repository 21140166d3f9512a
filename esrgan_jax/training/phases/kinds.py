"""Kinds of phases by name, and what all of them are made with.

A kind is what a phase's section of the config is about: its keys, how the phase
begins, what a step of it does. One that is registered has a name for configs:

    register_kind(Kind("soft", "Soft L1", defaults={...}, make=make_soft))
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from esrgan_jax.models import registry
from esrgan_jax.steps import optimizer as optimizer_lib
from esrgan_jax.steps import state as state_lib
from esrgan_jax.training.errors import ConfigError

__all__ = [
  "AUGMENTATION",
  "PUBLISHED",
  "Kind",
  "Phase",
  "augmentation",
  "find_kind",
  "kinds",
  "make_optimizer",
  "make_phase",
  "make_regression",
  "order",
  "register_kind",
  "starts",
  "taught_by",
  "title",
  "unregister_kind",
  "variables",
]


@dataclasses.dataclass(frozen=True)
class Phase:
  """One phase.

  Attributes:
    name: Its section of `config.phases`, and its folder in a workdir.
    title: What people call it.
    total: Its last step.
    seed: Of its first parameters, its batches and its random numbers.
    create: `(key, variables) -> state`, the state before its first step;
      `variables` are those of the generator to start from, or None.
    step: `(state, batch, **arrays) -> (state, metrics)` of float images,
      augmented before. A state has the fields of `PsnrState`, at least; among
      the metrics are `skipped` and `skipped_in_a_row`.
    arrays: Arguments of `step` that stay the same: put on the devices once.
    load: `state -> state` of the state that `create` has made, or an abstract
      one, with arrays of a file for some; None for none.
  """

  name: str
  title: str
  total: int
  seed: int
  create: Callable[[jax.Array, Any], Any]
  step: Callable[..., tuple[Any, dict[str, jax.Array]]]
  arrays: Mapping[str, Any]
  load: Callable[[Any], Any] | None = None

  def abstract_state(self, variables: Any) -> Any:
    """Returns the shapes of its state.

    Args:
      variables: As of `create`; abstract arrays will do.
    """
    return jax.eval_shape(self.create, jax.random.key(self.seed), variables)


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of phase.

  Attributes:
    name: As `config.phases.NAME.kind` has it; a phase of this name is of this
      kind without saying so.
    title: What people call it.
    defaults: A section of the config: its keys, and what they are unless the
      user says otherwise. `num_train_steps` is one.
    make: `(run, name, generator) -> Phase`, for the section of that name; see
      `make_phase`. Called with another generator too, to try the step.
    choices: What a key may be, of those that are one of several.
    positive: Keys that must be more than 0.
    check: `(settings, config) -> problem`, for what depends on more than one
      key; nothing if there is none.
    needs_start: Whether it goes on from a generator that was trained before.
    offset: Of the seed, for the phase that has the kind's name: what has been
      trained stays what it was. None for one that depends on its place.
  """

  name: str
  title: str
  defaults: Mapping[str, Any]
  make: Callable[[Any, str, nn.Module], Phase]
  choices: Mapping[str, Collection[Any]] = dataclasses.field(
    default_factory=dict
  )
  positive: Sequence[str] = ()
  check: Callable[[Any, Any], str] | None = None
  needs_start: bool = False
  offset: int | None = None


# ESRGAN's two phases, each of the kind of its name.
PUBLISHED = ("psnr", "gan")
# The section that every phase has, besides its kind's keys.
AUGMENTATION = "augmentation"

_kinds: dict[str, Kind] = {}


def register_kind(kind: Kind) -> None:
  """Gives a kind of phase its name.

  Args:
    kind: The kind.

  Raises:
    ValueError: If another kind has the name, it has no `num_train_steps`, or a
      key that every phase has.

  >>> find_kind("psnr").title
  'PSNR'
  """
  before = _kinds.get(kind.name)
  if before and before.make is not kind.make:
    raise ValueError(f"another kind of phase is called {kind.name!r}")
  if "num_train_steps" not in kind.defaults:
    raise ValueError(
      f"the defaults of {kind.name!r} have no num_train_steps: a phase needs it"
    )
  if taken := {"kind", AUGMENTATION} & {*kind.defaults}:
    raise ValueError(
      f"the defaults of {kind.name!r} have {', '.join(sorted(taken))}, which"
      " every phase has: choose another name"
    )
  _kinds[kind.name] = kind


def unregister_kind(name: str) -> None:
  """Forgets a kind, where there is one; for tests and notebooks."""
  _kinds.pop(name, None)


def kinds() -> tuple[str, ...]:
  """Returns the names of all kinds.

  >>> {"psnr", "gan"} <= set(kinds())
  True
  """
  return tuple(_kinds)


def find_kind(name: str) -> Kind:
  """Returns the kind of that name.

  Raises:
    ConfigError: If there is none; says what there is.

  >>> find_kind("gna")
  Traceback (most recent call last):
  ...
  esrgan_jax.training.errors.ConfigError: no kind of phase 'gna'; did you...
  """
  if name in _kinds:
    return _kinds[name]
  near = difflib.get_close_matches(str(name), _kinds, n=1)
  lead = f"did you mean {near[0]}? There" if near else "there"
  raise ConfigError(
    f"no kind of phase {name!r}; {lead} are {', '.join(_kinds)}. One of"
    " your own is registered by a plugin (CONTRIBUTING.md)"
  )


def order(config: Any) -> tuple[str, ...]:
  """Returns the names of the phases that a config asks for, as they follow.

  Args:
    config: A complete config.

  Returns:
    `config.phase_order`, or else phase one, unless `config.init_from` takes its
    place, and phase two; without those that have no steps.
  """
  names = tuple(config.phase_order) or tuple(
    name
    for name in PUBLISHED
    if not config.init_from or find_kind(name).needs_start
  )
  return tuple(n for n in names if config.phases[n].num_train_steps)


def taught_by(config: Any) -> Any:
  """Returns the section of the first phase of the kind distill, or None.

  Args:
    config: A complete config.
  """
  sections = (config.phases[name] for name in order(config))
  return next((each for each in sections if each.kind == "distill"), None)


def title(config: Any, name: str) -> str:
  """Returns what people call a phase.

  Args:
    config: A complete config.
    name: The phase's.
  """
  kind = find_kind(config.phases[name].kind)
  return kind.title if name == kind.name else f"{kind.title} ({name})"


def starts(architecture: str) -> tuple[str, ...]:
  """Returns what `config.initialization` may be for a network.

  >>> starts("RRDBNet")
  ('published', 'bilinear')
  """
  return ("published", *registry.find_generator(architecture).starts)


def augmentation(config: Any, name: str) -> dict[str, Any]:
  """Returns what is done to a phase's pairs: arguments of `augment.transform`.

  Args:
    config: A complete config.
    name: The phase's; what its own section leaves None, `config.augmentation`
      says.

  Returns:
    `one_of`, and all `operations`, those of probability 0 too.
  """
  common = config[AUGMENTATION].to_dict()
  own = config.phases[name][AUGMENTATION].to_dict()
  one_of = own.pop("one_of")
  return {
    "one_of": common["one_of"] if one_of is None else one_of,
    "operations": {
      operation: {
        option: common[operation][option] if value is None else value
        for option, value in options.items()
      }
      for operation, options in own.items()
    },
  }


def variables(
  config: Any, generator: nn.Module, key: jax.Array
) -> dict[str, Any]:
  """Returns a generator's first variables, as `config.initialization` says.

  Args:
    config: A complete config.
    generator: The generator.
    key: Random key.
  """
  found = state_lib.init_generator(key, generator)
  if config.initialization != "published":
    network = registry.find_generator(config.generator.architecture)
    start = network.starts[config.initialization]
    found["params"] = start(found["params"])
  return found


def make_phase(
  run: Any,
  name: str,
  create: Callable[..., Any],
  step: Callable[..., Any],
  arrays: Mapping[str, Any] | None = None,
  *,
  load: Callable[[Any], Any] | None = None,
) -> Phase:
  """Returns a phase, from what its kind has made of its section.

  Args:
    run: The run, as `training.run.make_run` returns it.
    name: The phase's.
    create: See `Phase`.
    step: See `Phase`.
    arrays: See `Phase`.
    load: See `Phase`.
  """
  config = run.config
  kind = find_kind(config.phases[name].kind)
  offset = kind.offset
  if offset is None or name != kind.name:
    offset = len(PUBLISHED) + order(config).index(name)
  return Phase(
    name=name,
    title=title(config, name),
    total=config.phases[name].num_train_steps,
    seed=config.seed + offset,
    create=create,
    step=step,
    arrays=arrays or {},
    load=load,
  )


def make_regression(
  run: Any,
  name: str,
  generator: nn.Module,
  step: Callable[..., Any],
  options: Sequence[str],
) -> Phase:
  """Returns a phase of a generator alone, which is compared with an image.

  Args:
    run: As of `make_phase`.
    name: Likewise.
    generator: What it trains.
    step: `steps.psnr_step`, or another with its arguments.
    options: Further arguments of it, which the phase's section has.
  """
  config, settings = run.config, run.config.phases[name]
  optimizer = make_optimizer(config, name, settings.learning_rate)

  def create(key, start):
    if start is None:
      start = variables(config, generator, key)
    params, collections = state_lib.split(start)
    return state_lib.create_psnr_state(
      key, generator, optimizer, params=params, collections=collections
    )

  step = functools.partial(
    step,
    generator=generator,
    optimizer=optimizer,
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    seed=config.seed,
    **{key: settings[key] for key in options},
  )
  return make_phase(run, name, create, step)


def make_optimizer(
  config: Any, name: str, learning_rate: float
) -> optax.GradientTransformation:
  """Returns Adam as a phase's section has it.

  Args:
    config: A complete config.
    name: The phase's; its section has `schedule`, `b1` and `b2`.
    learning_rate: Before any schedule.

  Raises:
    ConfigError: If the section makes no optimizer.
  """
  settings = config.phases[name]
  try:
    return optimizer_lib.make_optimizer(
      learning_rate,
      schedule=settings.schedule.to_dict(),
      b1=settings.b1,
      b2=settings.b2,
      clip_norm=config.clip_norm or None,
    )
  # A TypeError is an option that the schedule does not have.
  except (TypeError, ValueError) as error:
    raise ConfigError(f"config.phases.{name}: {error}") from error
