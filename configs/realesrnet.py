"""Real-ESRNet: phase one on photos that are degraded inside the step.

Reproduces: Real-ESRGAN's `options/train_realesrnet_x4plus.yml`
  (arXiv:2107.10833), whose data are DF2K and OST: here DIV2K's HR alone. What
  differs, and why: docs/realesrgan.md.
Command: python -m esrgan_jax.main --config=configs/realesrnet.py --workdir=DIR
  Their training goes on from ESRGAN's GAN model: --config.init_from=esrgan-x4
  --config.phase_order=psnr
  Photos of your own: --config.data.sources=FOLDER --config.data.eval=OTHERS
Data: HR alone, of 400 pixels a side or more. VGG19 is not needed.
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
        "gan": {"num_train_steps": 0},
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
