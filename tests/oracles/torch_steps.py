"""Gradients of both phases in PyTorch, in the order of BasicSR: an oracle."""

import numpy as np
import torch
from torch.nn import functional

from tests.oracles.torch_vgg import VGG19


def to_torch(image):
  """Our images as PyTorch's, in float64."""
  return torch.tensor(np.moveaxis(image, -1, -3)).double()


def to_numpy(tensors):
  """Named tensors as float32 arrays, copied."""
  return {
    name: np.array(tensor.detach().numpy(), np.float32)
    for name, tensor in tensors.items()
  }


def with_state(module, state):
  """The module in float64 with the weights of a state dict, for training."""
  tensors = {name: torch.tensor(value) for name, value in state.items()}
  missing, unexpected = module.load_state_dict(tensors, strict=False)
  assert not unexpected
  assert all(name.endswith("num_batches_tracked") for name in missing)
  return module.double()


def bce(logits, is_real):
  """Mean binary cross-entropy of logits."""
  target = torch.full_like(logits, float(is_real))
  return functional.binary_cross_entropy_with_logits(logits, target)


def pixel_distance(name, sr, hr, epsilon=1e-12):
  """The mean distance of pixels, by name."""
  if name == "l1":
    return functional.l1_loss(sr, hr)
  if name == "mse":
    return functional.mse_loss(sr, hr)
  return torch.sqrt((sr - hr) ** 2 + epsilon).mean()


def perceptual_distance(state, sr, hr, layer_weights, criterion="l1"):
  """The distance of VGG19's features, of a network with these weights."""
  network = VGG19(len(state["features.0.bias"]))
  network = with_state(network, state).requires_grad_(False)
  deepest = max(layer_weights, key=network.names.index)
  sr, hr = network(sr, deepest), network(hr, deepest)
  distance = {"l1": functional.l1_loss, "l2": functional.mse_loss}[criterion]
  return sum(
    weight * distance(sr[layer], hr[layer])
    for layer, weight in layer_weights.items()
  )


def relativistic(high, low, *, halve, detach_means=False):
  """RaGAN's loss of the player who wants `high` above `low`."""
  means = high.mean(), low.mean()
  if detach_means:
    means = [mean.detach() for mean in means]
  loss = bce(high - means[1], True) + bce(low - means[0], False)
  return loss / 2 if halve else loss


def least_squares(scores, label, halve):
  """LSGAN's loss of scores against one label."""
  loss = functional.mse_loss(scores, torch.full_like(scores, float(label)))
  return loss / 2 if halve else loss


def gradient_penalty(critic, real, fake, place):
  """WGAN-GP's penalty at given places between the images."""
  between = (place * real + (1 - place) * fake).detach().requires_grad_()
  scores = critic(between)
  (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
  return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()


def psnr_gradients(generator, batch, pixel_loss):
  """Gradients and loss of phase one."""
  loss = pixel_distance(
    pixel_loss, generator(to_torch(batch["lr"])), to_torch(batch["hr"])
  )
  return _gradients(loss, generator), loss.item()


def gan_gradients(
  generator,
  discriminator,
  batch,
  *,
  vgg_state,
  layer_weights,
  pixel_weight,
  perceptual_weight,
  adversarial_weight,
  pixel_loss="l1",
  criterion="l1",
  adversarial="relativistic",
  detach_means=False,
  halve=True,
  penalty_weight=10.0,
  place=None,
):
  """Gradients of both networks in phase two.

  G is updated first, then D with the images of the old G, as BasicSR does.

  Returns:
    Gradients by name of G and of D; running statistics of D after it saw real
    images, then fake ones; a dict of losses.
  """
  lr, hr = to_torch(batch["lr"]), to_torch(batch["hr"])
  losses = {}

  real = discriminator(hr).detach()
  sr = generator(lr)
  fake = discriminator(sr)
  stats = {
    name: value.clone()
    for name, value in discriminator.named_buffers()
    if "running" in name
  }
  if adversarial == "relativistic":
    g_gan = relativistic(fake, real, halve=halve)
  elif adversarial == "vanilla":
    g_gan = bce(fake, True)
  elif adversarial == "lsgan":
    g_gan = least_squares(fake, 1, halve)
  else:
    g_gan = -fake.mean()
  g_loss = (
    pixel_weight * pixel_distance(pixel_loss, sr, hr)
    + perceptual_weight
    * perceptual_distance(vgg_state, sr, hr, layer_weights, criterion)
    + adversarial_weight * g_gan
  )
  grads = _gradients(g_loss, generator)
  sgd = torch.optim.SGD(generator.parameters(), lr=1e-2)
  for name, parameter in generator.named_parameters():
    parameter.grad = grads[name]
  sgd.step()

  real = discriminator(hr)
  fake = discriminator(sr.detach())
  if adversarial == "relativistic":
    options = {"detach_means": detach_means, "halve": halve}
    d_loss = relativistic(real, fake, **options)
  elif adversarial == "vanilla":
    d_loss = bce(real, True) + bce(fake, False)
  elif adversarial == "lsgan":
    d_loss = least_squares(real, 1, halve) + least_squares(fake, 0, halve)
  elif adversarial == "hinge":
    d_loss = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
  else:
    penalty = gradient_penalty(discriminator, hr, sr, place)
    losses["d/penalty"] = penalty.item()
    d_loss = fake.mean() - real.mean() + penalty_weight * penalty
  d_grads = _gradients(d_loss, discriminator)
  losses |= {"g/loss": g_loss.item(), "d/loss": d_loss.item()}
  return grads, d_grads, stats, losses


def _gradients(loss, module):
  """Gradients by name; zeros for what the loss doesn't depend on.

  Such is the last bias of a critic: PyTorch calls its gradient unused.
  """
  grads = torch.autograd.grad(
    loss, list(module.parameters()), allow_unused=True
  )
  return {
    name: torch.zeros_like(parameter) if grad is None else grad
    for (name, parameter), grad in zip(
      module.named_parameters(), grads, strict=True
    )
  }
