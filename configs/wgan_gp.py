"""ESRGAN against a WGAN-GP critic, as the older PyTorch system trained it.

Reproduces: losses, optimizer and sizes of giakou4/gans, `10. ESRGAN`: 0.01 L1 +
  VGG19 conv5_4 MSE - 0.005 E[D], penalty 10, Adam (0, 0.9) at 1e-4, one step of
  the critic for one of the generator, batches of 16, HR 96. What went wrong
  there is right here, and docs/wgan_gp.md says what: the perceptual loss
  compared an image with itself, and LR images were means of areas. It had no
  phase one; a GAN needs a generator that upscales already.
Command: python -m esrgan_jax.main --config=configs/wgan_gp.py --workdir=DIR
  With a trained PSNR model, phase two alone: --config.init_from=FILE
  In minutes, on the sample photos: configs/wgan_gp_small.py
Data: as configs/gan.py. VGG19: config.perceptual.weights.
Hardware: meant for one TPU host or GPU, 16 GB of memory and 8 GB of RAM.
Cost: not measured.
Result: not measured.
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      "generator": {"num_feat": 64, "num_block": 23, "num_grow_ch": 32},
      # The critic scores each image by itself: with "layer" or "instance", too.
      "discriminator": {
        "architecture": "SRGANDiscriminator",
        "num_feat": 64,
        "pool": 6,  # Changes nothing at 96 pixels.
        "norm": "none",
      },
      "batch_size": 16,
      "patch_size": 96,  # HR pixels.
      "ema_decay": 0.999,
      "phases": {
        # The older system had none: ESRGAN's.
        "psnr": {
          "num_train_steps": 1_000_000,
          "learning_rate": 2e-4,
          "schedule": {
            "name": "milestones",
            "milestones": (200_000, 400_000, 600_000, 800_000),
          },
          "pixel_loss": "l1",
        },
        "gan": {
          # There, 100 epochs of a folder of any size; this is ESRGAN's.
          "num_train_steps": 400_000,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          "schedule": {"name": "constant"},
          "b1": 0.0,
          "b2": 0.9,
          "pixel_loss": "l1",
          # Features pull 1e6 times as much as the pixels, and a new critic next
          # to nothing (by VGG16, from bicubic; docs/results.md).
          "pixel_weight": 1e-2,
          "perceptual_weight": 1.0,
          "adversarial": "wgan-gp",
          "adversarial_weight": 5e-3,
          "penalty_weight": 10.0,
        },
      },
      "perceptual": {
        "weights": "auto",
        "layers": {"conv5_4": 1.0},  # Before the activation.
        "criterion": "l2",
      },
      "data": {
        "sources": ("div2k/bicubic_x4",),
        "eval": "div2k/bicubic_x4:validation",
        "cache": "ram",  # 7 GB; "device" where the accelerators hold it.
      },
      "eval_every_steps": 5000,
      "checkpoint_every_steps": 5000,
    }
  )
