"""A function where a Linen module is asked for.

So that networks of NNX, Equinox, Haiku or none of them can be trained and
applied: what the training steps and `registry.infer` want of a network is
`init` and `apply`, with variables as Flax has them, `{"params": ...}` and other
collections, each any pytree.

NNX: `nnx.split` gives a definition and the state, `nnx.merge` a network of
both; `examples/nnx_generator.py` trains one so, and another by
`nnx.bridge.ToLinen`. Equinox, whose images have no batch and channels first:

    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(variables, images):
      network = eqx.combine(variables["params"], static)
      return jax.vmap(network)(images.transpose(0, 3, 1, 2)).transpose(
        0, 2, 3, 1
      )

    generator = FromFunction(apply, lambda *_: {"params": params}, scale=4)

and after training `eqx.combine(state.ema_params, static)` is the network. One
with `eqx.nn.State` has that as a collection, with `takes_train=True`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class FromFunction:
  """A network that is a function of its variables and images.

  Attributes:
    function: `(variables, images) -> result`, pure; `variables["params"]` are
      trained. With `takes_train` it is `(variables, images, *, train, key) ->
      (result, changed)`: `changed` has the collections as they are after, by
      name; `key` is for dropout and its like, None where `train` is False.
    begin: `(key, images) -> variables`, those that training begins with; None
      where they are always given.
    takes_train: Whether the function has a mode to be trained in.
    scale: A generator's: size of its result over that of its images.
    num_in_ch: Channels of its images.
    num_out_ch: Channels of a generator's result.
    size_multiple: What the images' height and width must be multiples of.
    input_size: Height and width of a discriminator's images, if only one will
      do.

  >>> import jax, jax.numpy as jnp
  >>> def brighten(variables, images):
  ...   return images * variables["params"]["gain"]
  >>> def begin(key, images):
  ...   return {"params": {"gain": jnp.float32(2.0)}}
  >>> net = FromFunction(brighten, begin, scale=1)
  >>> images = jnp.ones((1, 4, 4, 3))
  >>> variables = net.init(jax.random.key(0), images)
  >>> float(net.apply(variables, images).mean())
  2.0
  """

  function: Callable[..., Any]
  begin: Callable[[Array, Array], Variables] | None = None
  takes_train: bool = False
  scale: int = 1
  num_in_ch: int = 3
  num_out_ch: int = 3
  size_multiple: int = 1
  input_size: int | None = None

  def init(
    self, key: Array, images: Array, *, train: bool = False
  ) -> dict[str, Any]:
    """Returns the variables that training begins with.

    Raises:
      ValueError: If the network was made without `begin`.
    """
    del train  # For those that a Linen module would ask.
    if self.begin is None:
      raise ValueError(
        "this network has no `begin`, a function (key, images) -> variables:"
        " make it with one, such as lambda *_: {'params': params}, or pass"
        " `params`, and `collections` if it has such"
      )
    return dict(self.begin(key, images))

  def apply(
    self,
    variables: Variables,
    images: Array,
    *,
    train: bool = False,
    mutable: Any = False,
    rngs: Array | None = None,
  ) -> Any:
    """Returns the result; with `mutable`, and the collections that changed.

    Args:
      variables: `{"params": ...}` and other collections.
      images: Float `[B, H, W, num_in_ch]` in [0, 1].
      train: Whether to run as in training.
      mutable: Whether what changes is asked for; not False where it is.
      rngs: Random key, for what is random in training.
    """
    if not self.takes_train:
      result, changed = self.function(variables, images), {}
    else:
      result, changed = self.function(variables, images, train=train, key=rngs)
    return result if mutable is False else (result, changed)
