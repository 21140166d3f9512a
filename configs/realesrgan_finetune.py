"""Fine-tunes Real-ESRGAN on photos of your own, or on pairs of LR and HR.

Reproduces: Real-ESRGAN's `options/finetune_realesrgan_x4plus.yml` and, with
  pairs, `options/finetune_realesrgan_x4plus_pairdata.yml`; the steps are a
  tenth of theirs.
Command: python -m esrgan_jax.main --config=configs/realesrgan_finetune.py \
    --workdir=DIR --config.data.sources=FOLDER --config.data.eval=OTHER_FOLDER
  With the discriminator that theirs starts from, a file of their releases:
  --config.init_discriminator=RealESRGAN_x4plus_netD.pth
  Pairs, as they are: --config.degradation.enabled=false
  --config.data.sources=HR::LR --config.data.eval=OTHER_HR::OTHER_LR
  Starts from the zoo's realesrgan-x4plus; their Real-ESRNet:
  --config.init_from=RealESRNet_x4plus.pth
Data: images of 400 pixels a side or more; pairs, of 256 (HR). VGG19:
  config.perceptual.weights.
Hardware: not measured; 12 pairs are what theirs has on each GPU.
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
      "discriminator": {
        "architecture": "UNetDiscriminatorSN",
        "num_feat": 64,
      },
      "batch_size": 12,
      "patch_size": 256,  # HR pixels, cut of crops of 400.
      "ema_decay": 0.999,
      "phases": {
        "gan": {
          "num_train_steps": 40_000,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          "schedule": {"name": "constant"},
          "b1": 0.9,
          "b2": 0.99,
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
      "degradation": {"enabled": True},
      # No photos are named: the command does that.
      "data": {"sources": "", "eval": "", "cache": "memmap"},
      "eval_every_steps": 1000,
      "checkpoint_every_steps": 1000,
    }
  )
