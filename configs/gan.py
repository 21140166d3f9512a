"""ESRGAN as published: phase one (L1), then phase two (GAN), on DIV2K.

Reproduces: ESRGAN x4 (arXiv:1809.00219), with the authors' training code where
  the paper is silent; DIV2K alone, as their shipped options have it. mmagic's
  training on the same data, RGB: PSNR model 30.64 dB on Set5, 27.05 on Set14;
  GAN model 28.27 and 24.63.
Command: python -m esrgan_jax.main --config=configs/gan.py --workdir=DIR
  With a trained PSNR model, phase two alone: --config.init_from=FILE
Data: DIV2K is fetched and prepared by the first run; without a network see
  config.data.manual_dir. VGG19: config.perceptual.weights.
Hardware: meant for one TPU host or GPU, 16 GB of memory and 8 GB of RAM.
Cost: not measured. The authors: about a week for phase one on a Titan Xp.
Result: not measured.
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      "generator": {"num_feat": 64, "num_block": 23, "num_grow_ch": 32},
      "discriminator": {"num_feat": 64},
      "batch_size": 16,
      "patch_size": 128,  # HR pixels.
      "ema_decay": 0.999,  # BasicSR; the paper has none.
      "phases": {
        "psnr": {
          "num_train_steps": 1_000_000,
          "learning_rate": 2e-4,
          # The paper's "every 2e5 steps"; BasicSR has cosine restarts.
          "schedule": {
            "name": "milestones",
            "milestones": (200_000, 400_000, 600_000, 800_000),
          },
          "pixel_loss": "l1",
        },
        "gan": {
          "num_train_steps": 400_000,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          "schedule": {
            "name": "milestones",
            "milestones": (50_000, 100_000, 200_000, 300_000),
          },
          # From bicubic, features pull 1e5 times as much as the pixels, and 600
          # times as much as a new discriminator (by VGG16; docs/results.md).
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
        "cache": "ram",  # 7 GB; "device" where the accelerators hold it.
      },
      "eval_every_steps": 5000,
      "checkpoint_every_steps": 5000,
    }
  )
