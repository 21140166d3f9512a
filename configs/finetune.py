"""Fine-tunes a pretrained ESRGAN on a folder of your own photos.

Reproduces: nothing published. Learning rates and losses are phase two's, a
  tenth as long; LR images are made by bicubic downscaling.
Command: python -m esrgan_jax.main --config=configs/finetune.py --workdir=DIR \
    --config.data.sources=FOLDER --config.data.eval=OTHER_FOLDER
  Starts from the zoo's realesrgan-x4plus; another start (a name, a file, a
  workdir): --config.init_from=MODEL
Data: images of 128 pixels a side or more. VGG19: config.perceptual.weights.
Hardware: meant for one GPU or TPU of 16 GB.
Cost: not measured.
Result: not measured.
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      # Of realesrgan-x4plus.
      "generator": {"num_feat": 64, "num_block": 23, "num_grow_ch": 32},
      "init_from": "realesrgan-x4plus",
      "batch_size": 16,
      "patch_size": 128,  # HR pixels.
      "phases": {
        "gan": {
          "num_train_steps": 40_000,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          "schedule": {"name": "milestones", "milestones": (20_000, 30_000)},
        },
      },
      # No photos are named: the command does that.
      "data": {"sources": "", "eval": "", "cache": "memmap"},
      "eval_every_steps": 1000,
      "checkpoint_every_steps": 1000,
    }
  )
