"""SRGAN: SRResNet by MSE, then by VGG19's features and a GAN, on DIV2K.

Reproduces: SRGAN-VGG54 x4 (arXiv:1609.04802), whose data was ImageNet: the
  recipe, on data that can be had. The batch of 128 is that of the two-phase
  TensorFlow program that this card stands for; the paper's is 16.
Command: python -m esrgan_jax.main --config=configs/srgan.py --workdir=DIR
  VGG22 instead: --config.perceptual.layers="{'relu2_2': 1.0}"
  0.006 is for Keras's VGG19, as in that program and the paper, whose features
  are of images in [0, 255]. Torchvision's are far smaller, and others that have
  them weigh them 1: --config.phases.gan.perceptual_weight=1.0
  The paper's older form, features over 12.75 instead of 0.006 (12.75**-2 is
  0.00615): --config.phases.gan.perceptual_weight=1.0
  --config.perceptual.layers="{'relu5_4': 0.00615}"
  BasicSR's networks: --config.generator.variant=msrresnet
  --config.discriminator.architecture=VGGStyleDiscriminator
Data: as configs/gan.py. VGG19: config.perceptual.weights, a file of either.
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
      "generator": {
        "architecture": "SRResNet",
        "num_feat": 64,
        "num_block": 16,
      },
      "discriminator": {
        "architecture": "SRGANDiscriminator",
        "num_feat": 64,
      },
      "batch_size": 128,
      "patch_size": 96,  # HR pixels.
      "ema_decay": 0.999,  # BasicSR; the paper has none.
      "phases": {
        "psnr": {
          "num_train_steps": 1_000_000,
          "learning_rate": 1e-4,
          "schedule": {"name": "constant"},
          "pixel_loss": "mse",
        },
        "gan": {
          "num_train_steps": 200_000,
          "learning_rate": 1e-4,
          "d_learning_rate": 1e-4,
          # 1e5 steps at 1e-4, and as many at 1e-5.
          "schedule": {
            "name": "milestones",
            "milestones": (100_000,),
            "factor": 0.1,
          },
          "pixel_weight": 0.0,  # Content is that of features alone.
          # Features pull 200 times as much as a new discriminator (by VGG16,
          # from bicubic; docs/results.md).
          "perceptual_weight": 0.006,
          "adversarial": "vanilla",  # Cross-entropy, of images by themselves.
          "adversarial_weight": 1e-3,
        },
      },
      "perceptual": {
        "weights": "auto",
        "layers": {"relu5_4": 1.0},  # VGG54, after the activation.
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
