"""Real-ESRGAN: Real-ESRNet, then a U-Net discriminator, on degraded photos.

Reproduces: Real-ESRGAN's `options/train_realesrnet_x4plus.yml` and
  `options/train_realesrgan_x4plus.yml` (arXiv:2107.10833), whose data are DF2K
  and OST: here DIV2K's HR alone. What differs, and why: docs/realesrgan.md.
Command: python -m esrgan_jax.main --config=configs/realesrgan.py --workdir=DIR
  With a trained Real-ESRNet, phase two alone: --config.init_from=FILE
  Photos of your own: --config.data.sources=FOLDER --config.data.eval=OTHERS
Data: HR alone, of 400 pixels a side or more. VGG19: config.perceptual.weights.
Hardware: theirs is four GPUs, 12 pairs each.
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
      "discriminator": {
        "architecture": "UNetDiscriminatorSN",
        "num_feat": 64,
      },
      "batch_size": 48,  # Their 12 on each of four GPUs.
      "patch_size": 256,  # HR pixels, cut of crops of 400.
      "ema_decay": 0.999,
      "phases": {
        "psnr": {
          "num_train_steps": 1_000_000,
          "learning_rate": 2e-4,
          "schedule": {"name": "constant"},
          "b1": 0.9,
          "b2": 0.99,
          "pixel_loss": "l1",
          "gt_usm": True,
        },
        "gan": {
          "num_train_steps": 400_000,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          "schedule": {"name": "constant"},
          "b1": 0.9,
          "b2": 0.99,
          # From bicubic, the five layers pull 3, 14, 530, 950 and 1,300 times
          # as much as the pixels (by VGG16; docs/results.md).
          "pixel_weight": 1.0,
          "perceptual_weight": 1.0,
          "adversarial": "vanilla",
          "adversarial_weight": 0.1,
          "l1_gt_usm": True,
          "percep_gt_usm": True,
          "gan_gt_usm": False,
        },
      },
      "perceptual": {
        "weights": "auto",
        # Before the activation.
        "layers": {
          "conv1_2": 0.1,
          "conv2_2": 0.1,
          "conv3_4": 1.0,
          "conv4_4": 1.0,
          "conv5_4": 1.0,
        },
        "criterion": "l1",
      },
      # Their ranges are the defaults of this section.
      "degradation": {"enabled": True},
      "data": {
        "sources": ("div2k/bicubic_x4",),  # Its HR.
        "eval": "div2k/bicubic_x4:validation",
        "cache": "ram",  # 7 GB; "device" where the accelerators hold it.
      },
      "eval_every_steps": 5000,
      "checkpoint_every_steps": 5000,
    }
  )
