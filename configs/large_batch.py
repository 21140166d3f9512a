"""ESRGAN on many chips: 16 images on each, as many images in all, fewer steps.

Reproduces: nothing published. Of configs/gan.py's batch of 16 little is left to
  each of many chips: here each has 16 of its own. As many images are seen, in
  so many times fewer steps; Adam's rate is the published one times the root of
  that (arXiv:2205.10287), after a warm-up of a fiftieth of the steps; the
  average's decay goes with the steps (arXiv:2307.13813).
Command: python -m esrgan_jax.main --config=configs/large_batch.py --workdir=DIR
  That is for 8 chips; for 64: --config=configs/large_batch.py:64
Data: as configs/gan.py; the accelerators hold it (7 GB each).
Hardware: 8 to 256 chips, 16 GB of memory each.
Cost: not measured. By the TPU compiler's estimate a step takes as long as one
  of configs/gan.py on one chip (docs/tpu.md), so that it is so many times less.
Result: not measured. What batches do to a small network's phase one, at as many
  images: python -m benchmarks.large_batch, and docs/results.md.
"""

import ml_collections

_BATCH_A_CHIP = 16  # The published batch.


def get_config(chips="8"):
  chips = int(chips)
  if not 1 <= chips <= 256:
    raise ValueError(f"chips must be from 1 to 256, got {chips}")

  def phase(num_train_steps, learning_rate, milestones):
    steps = num_train_steps // chips
    rate = learning_rate * chips**0.5
    return {
      "num_train_steps": steps,
      "learning_rate": rate,
      "schedule": {
        "name": "milestones",
        "milestones": tuple(step // chips for step in milestones),
        "warmup_steps": steps // 50 if chips > 1 else 0,
      },
    }

  psnr = phase(1_000_000, 2e-4, (200_000, 400_000, 600_000, 800_000))
  gan = phase(400_000, 1e-4, (50_000, 100_000, 200_000, 300_000))
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      "generator": {"num_feat": 64, "num_block": 23, "num_grow_ch": 32},
      "discriminator": {"num_feat": 64},
      "batch_size": _BATCH_A_CHIP * chips,
      "patch_size": 128,  # HR pixels.
      "ema_decay": 0.999**chips,
      "phases": {
        "psnr": {**psnr, "pixel_loss": "l1"},
        "gan": {
          **gan,
          "d_learning_rate": gan["learning_rate"],
          "pixel_weight": 1e-2,
          "perceptual_weight": 1.0,
          "adversarial": "relativistic",
          "adversarial_weight": 5e-3,
        },
      },
      "perceptual": {
        "weights": "auto",
        "layers": {"conv5_4": 1.0},  # Before the activation.
        "criterion": "l1",
      },
      "data": {
        "sources": ("div2k/bicubic_x4",),
        "eval": "div2k/bicubic_x4:validation",
        "cache": "device",  # Input is none of the hosts' work then.
      },
      "log_every_steps": max(100 // chips, 1),
      "eval_every_steps": max(5000 // chips, 1),
      "checkpoint_every_steps": max(5000 // chips, 1),
    }
  )
