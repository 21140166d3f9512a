"""Augmentation of float pairs: a table of operations, and what draws of it.

An operation is a function of one pair, and an entry of `OPERATIONS`, which says
what it is called, its strengths, and what these may be. A training's config has
a section of each.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from esrgan_jax import checks
from esrgan_jax.augment import colors, degradations, mixes
from esrgan_jax.ops import axes
from esrgan_jax.ops import keys as keys_lib


@dataclasses.dataclass(frozen=True)
class Operation:
  """Something that is done to some pairs of a batch.

  Attributes:
    function: `(key, pair, **strengths) -> pair` of one pair, for `jax.vmap`;
      or `(key, pair, partner, **strengths)`.
    strengths: Its options, and what they are by default: numbers, or the least
      and the most of a range.
    most: What none of an option's numbers may exceed; none may be below 0.
    positive: Options that must be more than 0.
    mixes: Whether it takes a partner.
  """

  function: Callable[..., mixes.Pair]
  strengths: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  most: Mapping[str, float] = dataclasses.field(default_factory=dict)
  positive: tuple[str, ...] = ()
  mixes: bool = False


# In the order in which they are done. Clean pixels in LR come last: they are
# none where others degrade LR afterwards.
OPERATIONS: dict[str, Operation] = {
  # The order of the channels, of LR and HR alike.
  "permute_channels": Operation(colors.permute_channels),
  # The light, of both alike: factors of 1 - x to 1 + x, and turns of the hue.
  "color_jitter": Operation(
    colors.color_jitter,
    {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05},
    most={"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5},
  ),
  # A mean with another pair, its weight Beta(alpha, alpha). This alpha, and
  # sides of 0.7, are those of CutBlur's authors.
  "mixup": Operation(
    mixes.mixup, {"alpha": 1.2}, positive=("alpha",), mixes=True
  ),
  # A box of another pair: least and most of the height, and of the width.
  "cutmix": Operation(
    mixes.cutmix, {"sides": (0.7, 0.7)}, most={"sides": 1.0}, mixes=True
  ),
  # LR blurred by a Gaussian: least and most deviation, in pixels of LR.
  "blur": Operation(degradations.blur, {"sigmas": (0.2, 1.5)}),
  # LR with noise: least and most deviation, in levels of 255.
  "noise": Operation(
    degradations.noise, {"levels": (1.0, 10.0)}, most={"levels": 255.0}
  ),
  # A box of LR, or all around it, made of HR: clean.
  "cutblur": Operation(
    mixes.cutblur, {"sides": (0.7, 0.7)}, most={"sides": 1.0}
  ),
}


def register_operation(name: str, operation: Operation) -> None:
  """Gives an operation its name; it is done after those that have theirs.

  Args:
    name: An identifier; a config's section of it is called so.
    operation: The operation.

  Raises:
    ValueError: If it is none, or another operation has the name.

  >>> register_operation("one of", OPERATIONS["noise"])
  Traceback (most recent call last):
  ...
  ValueError: an operation's name is an identifier, and not 'one_of', got 'o...
  """
  if not name.isidentifier() or name == "one_of":
    raise ValueError(
      f"an operation's name is an identifier, and not 'one_of', got {name!r}"
    )
  if OPERATIONS.get(name, operation) != operation:
    raise ValueError(f"another operation is called {name!r}")
  OPERATIONS[name] = operation


def defaults() -> dict[str, dict[str, Any]]:
  """Returns all operations' options, as they are unless somebody says so.

  >>> defaults()["mixup"]
  {'probability': 0.0, 'alpha': 1.2}
  """
  return {
    name: {"probability": 0.0, **operation.strengths}
    for name, operation in OPERATIONS.items()
  }


def problem_of(name: str, option: str, value: Any) -> str:
  """Returns why an option of an operation cannot be that; nothing if it can.

  Args:
    name: Of the operation.
    option: `"probability"`, or one of its strengths.
    value: What it is to be.

  >>> problem_of("blur", "sigmas", (2.0, 1.0))
  'it must be the least and the most, such as (0.2, 1.5)'
  >>> problem_of("mixup", "probability", 0.5)
  ''
  """
  operation, default = OPERATIONS[name], defaults()[name][option]
  is_range = isinstance(default, tuple)
  numbers = value if is_range else (value,)
  fits = isinstance(numbers, tuple | list) and all(map(_is_number, numbers))
  if is_range and not (fits and len(numbers) == 2 and numbers[0] <= numbers[1]):
    return f"it must be the least and the most, such as {default}"
  if not fits:
    return "it must be a number"
  most = {"probability": 1.0, **operation.most}.get(option, math.inf)
  if option in operation.positive and not 0 < value < math.inf:
    return "it must be more than 0"
  if not all(0 <= number <= most and number < math.inf for number in numbers):
    return (
      f"it must be from 0 to {most:g}"
      if most < math.inf
      else ("it must be 0 or more")
    )
  return ""


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)


def transform(
  key: Array,
  batch: Mapping[str, Array],
  operations: Mapping[str, Mapping[str, Any]],
  *,
  one_of: bool = False,
) -> dict[str, Array]:
  """Does operations to some pairs of a batch, each pair with its own luck.

  What is drawn for a pair depends on the key, its row in the batch and the
  operation's name, and on nothing else: not on the devices that have the batch,
  nor on which other operations there are. Those of probability 0 are no part
  of the program. A pair's partner is that of the row before.

  Under `jax.shard_map` and `jax.pmap` a batch is one device's: fold the axis'
  index into the key. Partners are then on the same device.

  Args:
    key: PRNG key; give each step its own, such as `fold_in(key, step)`.
    batch: `"lr"` `[B, h, w, 3]` and `"hr"` `[B, scale * h, scale * w, 3]`,
      float in [0, 1].
    operations: By their names in `OPERATIONS`, in any order: `"probability"`,
      and strengths that are not to be as by default.
    one_of: At most one of them is done to a pair, as in CutBlur's mixture of
      augmentations: probabilities are shares, 1 together at most. Otherwise
      each is drawn for itself.

  Returns:
    A dict of the same shapes and dtypes.

  Raises:
    TypeError: If images are not of floats, or `key` is no key.
    ValueError: If an operation or an option is unknown or out of range, shares
      exceed 1, HR is no multiple of LR, or a batch of one pair is to be mixed.

  Source: CutBlur (arXiv:2004.00448), section 2 and Table 1.

  >>> batch = {"lr": jnp.zeros((4, 4, 4, 3)), "hr": jnp.ones((4, 8, 8, 3))}
  >>> out = transform(
  ...   jax.random.key(1), batch, {"noise": {"probability": 0.5}})
  >>> [bool(lr.any()) for lr in out["lr"]], bool((out["hr"] == 1).all())
  ([True, False, False, False], True)
  """
  checks.check_key(key)
  lr, hr = _check_batch(batch)
  chosen = _check_operations(operations, one_of, len(lr))
  if not chosen:
    return {"lr": lr, "hr": hr}

  def run(lr, hr, keys):
    pairs, lowest = (lr, hr), 0.0
    shares = _uniform(_rows(keys, "one_of"))
    for name, operation in OPERATIONS.items():
      if name not in chosen:
        continue
      strengths = dict(chosen[name])
      probability = strengths.pop("probability")
      own = _rows(keys, name)
      if one_of:
        done = (shares >= lowest) & (shares < lowest + probability)
        lowest += probability
      else:
        done = _uniform(_rows(own, "probability")) < probability
      pairs = _where(done, _all(operation, own, pairs, strengths), pairs)
    return dict(zip(("lr", "hr"), pairs, strict=True))

  keys = keys_lib.of_rows(key, len(lr))
  return axes.anywhere(run, lr, hr, keys, kept=1)


def _all(operation, keys, pairs, strengths):
  """An operation on every pair."""

  def one(key, *pairs):
    return operation.function(key, *pairs, **strengths)

  if not operation.mixes:
    return jax.vmap(one)(keys, pairs)
  partners = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), pairs)
  return jax.vmap(one)(keys, pairs, partners)


def _rows(keys, name):
  """Keys of the rows for something that has a name: no other moves them."""
  return jax.vmap(lambda key: keys_lib.named(key, name))(keys)


def _uniform(keys):
  draw = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))
  return draw(keys)


def _where(done, new, old):
  done = done[:, None, None, None]
  return tuple(jnp.where(done, a, b) for a, b in zip(new, old, strict=True))


def _check_batch(batch):
  lr, hr = (
    checks.check_images(batch[name], f"batch[{name!r}]", channels=3, batch=True)
    for name in ("lr", "hr")
  )
  scale = max(hr.shape[1] // lr.shape[1], 1)
  wanted = (len(lr), scale * lr.shape[1], scale * lr.shape[2], 3)
  if hr.shape != wanted:
    raise ValueError(
      "batch['hr'] must be as many images as batch['lr'], larger by a whole"
      f" factor, got {hr.shape} and {lr.shape}"
    )
  return lr, hr


def _check_operations(operations, one_of, count):
  """Those of a probability above 0, with all their options."""
  chosen = {}
  for name, given in operations.items():
    if name not in OPERATIONS:
      near = difflib.get_close_matches(name, OPERATIONS, n=1, cutoff=0)
      raise ValueError(f"no operation {name!r}; did you mean {near[0]!r}?")
    options = defaults()[name]
    for option, value in given.items():
      if option not in options:
        raise ValueError(
          f"{name} has no option {option!r}; it has {', '.join(options)}"
        )
      if problem := problem_of(name, option, value):
        raise ValueError(f"{name}.{option} is {value!r}; {problem}")
    options |= given
    if options["probability"]:
      chosen[name] = options
  if problem := together(chosen, one_of, count):
    raise ValueError(problem)
  return chosen


def together(
  chosen: Mapping[str, Mapping[str, Any]], one_of: bool, count: int
) -> str:
  """Returns why operations do not go together, or with a batch, if so.

  Args:
    chosen: By name, with all their options, each checked.
    one_of: As of `transform`.
    count: Pairs of the batch.

  >>> together({"mixup": {"probability": 0.5}}, False, 1)
  'mixup needs a second pair to mix with, and batch_size is 1: take 2 or more'
  """
  found = {name: each["probability"] for name, each in chosen.items()}
  found = {name: share for name, share in found.items() if share}
  total = math.fsum(found.values())
  if one_of and total > 1 + 1e-6:
    shares = ", ".join(f"{name} {share:g}" for name, share in found.items())
    return (
      f"the shares are {total:g} together ({shares}); with one_of they must be"
      " 1 at most"
    )
  for name in found:
    if OPERATIONS[name].mixes and count < 2:
      return (
        f"{name} needs a second pair to mix with, and batch_size is {count}:"
        " take 2 or more"
      )
  return ""
