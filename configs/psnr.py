"""Phase one of ESRGAN alone: the PSNR model, by L1, on DIV2K.

Reproduces: RRDB_PSNR x4 of arXiv:1809.00219, on DIV2K alone. Published, trained
  on DF2K, Y: 32.73 dB on Set5, 28.99 on Set14; mmagic on DIV2K, RGB: 30.64 and
  27.05.
Command: python -m esrgan_jax.main --config=configs/psnr.py --workdir=DIR
  Going on from trained weights (a name, a file, a workdir):
  --config.init_from=MODEL --config.phase_order=psnr
Data: as configs/gan.py; VGG19 is not needed.
Hardware: meant for one TPU host or GPU, 16 GB of memory and 8 GB of RAM.
Cost: not measured. The authors: about a week on a Titan Xp.
Result: not measured.
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      "generator": {"num_feat": 64, "num_block": 23, "num_grow_ch": 32},
      "batch_size": 16,
      "patch_size": 128,  # HR pixels.
      "ema_decay": 0.999,  # BasicSR; the paper has none.
      "phases": {
        "psnr": {
          "num_train_steps": 1_000_000,
          "learning_rate": 2e-4,
          "schedule": {
            "name": "milestones",
            "milestones": (200_000, 400_000, 600_000, 800_000),
          },
          "pixel_loss": "l1",
        },
        "gan": {"num_train_steps": 0},
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
