"""Distillation: a small fast network learns what a large one makes of LR.

Reproduces: nothing published: the squared distance to the teacher's results,
  realesrgan-x4plus's, by a network of a fiftieth of its multiply-adds;
  docs/student.md.
Command: python -m esrgan_jax.main --config=configs/distill.py --workdir=DIR \
    --config.data.sources=::FOLDER --config.data.eval=::OTHER_FOLDER
  Photos of `::FOLDER` are LR, at the size they have: the teacher upscales them
  once, ahead, and its results are kept. Another teacher (a name, a file, a
  workdir): --config.phases.distill.teacher=MODEL
  On a fast accelerator, in each step: --config.phases.distill.targets=step
  Then adversarially, against the teacher's results:
  --config.phase_order=distill,gan
Hardware: 2 CPU cores; a GPU or TPU for targets=step.
Cost: 0.21 s a step on two AVX-512 cores, and 1.3 s a photo of 96x96 before.
Result: docs/student.md: three such runs on up to 3,360 crops, 2.08 dB nearer to
  the teacher than bicubic, on photos that it hasn't seen.
"""

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "scale": 4,
      # 0.32 M multiply-adds a LR pixel: 9 (3 F + n F F + 48 F).
      "generator": {
        "architecture": "SRVGGNetCompact",
        "num_feat": 64,
        "num_conv": 8,
      },
      "initialization": "bilinear",
      "discriminator": {"num_feat": 32},
      "batch_size": 16,
      "patch_size": 128,  # HR pixels.
      "ema_decay": 0.995,
      "phase_order": ("distill",),
      "phases": {
        "distill": {
          "teacher": "realesrgan-x4plus",
          "targets": "ahead",
          "margin": 16,  # LR pixels.
          "num_train_steps": 37_500,
          "learning_rate": 1e-3,
          # Where a period ends is a good place to stop.
          "schedule": {
            "name": "cosine_restart",
            "periods": (2_500, 5_000, 10_000, 20_000),
          },
          # Nearer to the teacher, by PSNR, than "l1"; docs/student.md.
          "pixel_loss": "mse",
        },
        "gan": {
          "num_train_steps": 10_000,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          "schedule": {"name": "constant"},
          "pixel_weight": 1.0,  # Real-ESRGAN's: it stays near to the teacher.
          "perceptual_weight": 1.0,
          "adversarial_weight": 5e-3,
        },
      },
      "data": {"sources": "sample_photos", "eval": "sample_photos:held_out"},
      "log_every_steps": 50,
      "eval_every_steps": 1000,
      "checkpoint_every_steps": 500,
    }
  )
