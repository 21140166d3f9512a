"""All of ESRGAN in a few minutes on a laptop's CPU: both phases, small.

Reproduces: nothing published; shows that everything works, from photos to the
  interpolated model. The photos are scikit-image's: six to train on, three
  held out. VGG19's trained weights cannot be shipped, so that the perceptual
  loss compares random features, and the GAN phase is too short to shine.
Command: python -m esrgan_jax.main --config=configs/quickstart.py --workdir=DIR
Hardware: 2 CPU cores, 2.5 GB of free memory.
Cost: 2 minutes 53 seconds on two cores of an AMD EPYC (Python 3.11, jax 0.10.2,
  nothing compiled before): phase one at 73 images a second, phase two at 19.
Result: held-out photos, Y, x4: bicubic 29.59 dB / 0.808, PSNR model 30.02 /
  0.823, GAN model 29.99 / 0.825 (seed 0).
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      "generator": {"num_feat": 24, "num_block": 2, "num_grow_ch": 12},
      # The published start takes some hundred steps to learn to copy.
      "initialization": "bilinear",
      "discriminator": {"num_feat": 8},
      "batch_size": 8,
      "patch_size": 64,  # HR pixels.
      "ema_decay": 0.98,
      "phases": {
        "psnr": {
          "num_train_steps": 700,
          "learning_rate": 1.5e-3,
          "schedule": {"name": "cosine_restart", "periods": (700,)},
        },
        "gan": {
          "num_train_steps": 60,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          "schedule": {"name": "constant"},
        },
      },
      "perceptual": {
        "weights": "random",
        "layers": {"conv3_4": 1.0},  # A quarter of the cost of conv5_4.
      },
      "data": {"sources": "sample_photos", "eval": "sample_photos:held_out"},
      "log_every_steps": 25,
      "eval_every_steps": 175,
      "checkpoint_every_steps": 175,
      "eval": {"num_samples": 3, "sample_size": 128},
      "interpolation_alphas": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    }
  )
