"""Degraded images beside BasicSR's own code: draws of both, and each function.

One image is degraded many times by each side. Of each result three figures are
taken: how sharp it is, how noisy, and how much its blocks show. Two samples'
distributions of a figure differ by Kolmogorov and Smirnov's distance: the most
that their shares below any value differ. Two samples of one distribution differ
as well, by some 0.04 for 1000 each: each side's second half beside its first
says so.

Then each function is held against what it is modelled on: BasicSR's kernels,
OpenCV's filter, PyTorch's resizing, Pillow's JPEG, SciPy's Bessel function and
Poisson distribution.

  git clone https://github.com/XPixelGroup/BasicSR
  pip install torch opencv-python-headless scikit-image
  python -m benchmarks.degradation_draws --basicsr BasicSR --figure draws.png

BasicSR's files are run as they are, but for what its packages import besides
them. torchvision is asked for one function, which is made up where it isn't
installed.
"""

import argparse
import functools
import importlib
import io
import math
import pathlib
import sys
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import scipy.special
import scipy.stats

from benchmarks import machine
from esrgan_jax import degradation
from esrgan_jax.degradation import (
  blurring,
  jpeg,
  kernels,
  noise,
  resizing,
)
from esrgan_jax.report import chart, chart_files

SCALE = 4
SIDE = 400  # Pixels that BasicSR's dataset cuts.
SETTINGS = degradation.Degradation()


# --- BasicSR.


def load_basicsr(folder):
  """Returns modules of BasicSR, without what its packages import."""
  root = pathlib.Path(folder).resolve()
  root = root if root.name == "basicsr" else root / "basicsr"
  if not (root / "data/realesrgan_dataset.py").is_file():
    raise SystemExit(f"{root}: no BasicSR; git clone it, and give its folder")
  for name in ("", ".data", ".utils", ".models", ".losses"):
    module = types.ModuleType(f"basicsr{name}")
    module.__path__ = [str(root / name.removeprefix("."))]
    sys.modules[module.__name__] = module
  _make_up_torchvision()
  utils = sys.modules["basicsr.utils"]
  for module, names in {
    "file_client": ("FileClient",),
    "logger": ("get_root_logger",),
    "img_util": ("imfrombytes", "img2tensor"),
    "diffjpeg": ("DiffJPEG",),
    "img_process_util": ("USMSharp", "filter2D"),
  }.items():
    found = importlib.import_module(f"basicsr.utils.{module}")
    for name in names:
      setattr(utils, name, getattr(found, name))
  parent = types.ModuleType("basicsr.models.srgan_model")
  parent.SRGANModel = object  # What trains is not needed.
  sys.modules[parent.__name__] = parent
  return types.SimpleNamespace(
    utils=utils,
    degradations=importlib.import_module("basicsr.data.degradations"),
    dataset=importlib.import_module("basicsr.data.realesrgan_dataset"),
    model=importlib.import_module("basicsr.models.realesrgan_model"),
  )


def _make_up_torchvision():
  """Its grey, and a name that is imported and not used."""
  try:
    importlib.import_module("torchvision.transforms.functional_tensor")
  except (ImportError, RuntimeError):  # Or is built for another PyTorch.

    def rgb_to_grayscale(image, num_output_channels=1):
      red, green, blue = image.unbind(dim=-3)
      return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)

    for name in (
      "torchvision",
      "torchvision.utils",
      "torchvision.transforms",
      "torchvision.transforms.functional",
      "torchvision.transforms.functional_tensor",
    ):
      sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.utils"].make_grid = None
    for name in ("functional", "functional_tensor"):
      module = sys.modules[f"torchvision.transforms.{name}"]
      module.rgb_to_grayscale = rgb_to_grayscale


def options():
  """Our defaults as BasicSR's options, of which names are the same."""
  ours = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in vars(SETTINGS).items()
  }
  return ours | {
    "scale": SCALE,
    "gt_size": SIDE,
    "use_hflip": False,
    "use_rot": False,
    "io_backend": {"type": "disk"},
  }


def their_draws(basicsr, image, count, seed):
  """So many results of BasicSR's dataset and model, uint8."""
  import random

  import torch

  torch.set_num_threads(1)
  for module in (random, np.random):
    module.seed(seed)
  torch.manual_seed(seed)
  model = object.__new__(basicsr.model.RealESRGANModel)
  model.opt, model.is_train, model.device = options(), True, "cpu"
  model.jpeger = basicsr.utils.DiffJPEG(differentiable=False)
  model.usm_sharpener = basicsr.utils.USMSharp()
  # A pool of pairs shuffles results, and changes none.
  model._dequeue_and_enqueue = lambda: None
  results = []
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "image.png")
    PIL.Image.fromarray(image).save(path)
    pathlib.Path(folder, "names.txt").write_text(f"{path.name}\n")
    dataset = basicsr.dataset.RealESRGANDataset(
      options()
      | {"dataroot_gt": folder, "meta_info": str(path.with_name("names.txt"))}
    )
    for _ in range(count):
      item = dataset[0]
      del item["gt_path"]
      model.feed_data({name: each[None] for name, each in item.items()})
      results.append(model.lq[0].permute(1, 2, 0).numpy())
  return np.round(np.stack(results) * 255).astype(np.uint8)


def our_draws(image, count, seed, batch=20):
  """So many results of `degradation.degrade`, uint8."""
  hr = degradation.usm_sharpen(jnp.asarray(image, jnp.float32)[None] / 255)

  @jax.jit
  def run(numbers):
    key = jax.random.key(seed)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
    images = jnp.broadcast_to(hr, (len(numbers), *hr.shape[1:]))
    return degradation.degrade(keys, images, SETTINGS, SCALE)

  results = [
    np.asarray(run(jnp.arange(begin, begin + batch)))
    for begin in range(0, count, batch)
  ]
  return np.round(np.concatenate(results)[:count] * 255).astype(np.uint8)


# --- Figures of an image.


def sharpness(grey):
  """Standard deviation of the Laplacian."""
  inner = grey[1:-1, 1:-1]
  around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
  return (around - 4 * inner).std()


def noise_level(grey):
  """Deviation of white noise, as Immerkaer (1996) estimates it."""
  rows = grey[:-2] - 2 * grey[1:-1] + grey[2:]
  both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
  return math.sqrt(math.pi / 2) * np.abs(both).mean() / 6


def blockiness(grey):
  """Steps at the borders of blocks of 8, over those inside of them."""
  ratios = []
  for axis in (0, 1):
    steps = np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis)
    border = np.arange(len(steps)) % 8 == 7
    ratios.append(steps[border].mean() / max(steps[~border].mean(), 1e-6))
  return np.mean(ratios)


FIGURES = {
  "sharpness": sharpness,
  "noise level": noise_level,
  "blockiness": blockiness,
}


def figures(images):
  """Each figure of each image."""
  grey = images.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
  return {
    name: np.array([measure(each) for each in grey])
    for name, measure in FIGURES.items()
  }


def distance(a, b):
  """Kolmogorov and Smirnov's distance."""
  return scipy.stats.ks_2samp(a, b).statistic


def compare_draws(basicsr, image, count, seed, figure):
  """Prints the distances; draws the shares."""
  ours = figures(our_draws(image, count, seed))
  theirs = figures(their_draws(basicsr, image, count, seed))
  half = count // 2
  print(f"\n{count} draws a side, of one image of {SIDE} x {SIDE}")
  print(
    "| | median here | median there | distance | here, halves | there, halves |"
  )
  print("| --- " * 6 + "|")
  pictures = []
  for name in FIGURES:
    a, b = ours[name], theirs[name]
    print(
      f"| {name} | {np.median(a):.3f} | {np.median(b):.3f}"
      f" | {distance(a, b):.3f} | {distance(a[:half], a[half:]):.3f}"
      f" | {distance(b[:half], b[half:]):.3f} |"
    )
    shares = np.linspace(0, 1, 101)[1:-1]
    lines = [
      chart.Line(label, np.quantile(x, shares).tolist(), shares.tolist())
      for label, x in (("esrgan_jax", a), ("BasicSR", b))
    ]
    drawn = chart.plan(lines, x_label=name)
    title = f"{name}: share of draws below, distance {distance(a, b):.3f}"
    pictures.append(PIL.Image.open(io.BytesIO(chart_files.png(drawn, title))))
  if figure:
    width, height = pictures[0].size
    whole = PIL.Image.new("RGB", (width, height * len(pictures)))
    for index, picture in enumerate(pictures):
      whole.paste(picture, (0, index * height))
    whole.quantize(32).save(figure, optimize=True)
    print(f"wrote {figure}")


# --- Each function.


def compare_functions(basicsr, image, seed):
  """Prints by how much functions differ from what they are modelled on."""
  random = np.random.default_rng(seed)
  planes = jnp.asarray(np.moveaxis(image, -1, 0) / 255, jnp.float32)
  print("\n| | beside | mean difference | largest |")
  print("| --- " * 4 + "|")
  theirs = basicsr.degradations
  for name, beside, compare in (
    ("kernels", "BasicSR", lambda: _kernels(theirs, random)),
    ("sinc kernels", "BasicSR, SciPy", lambda: _sincs(theirs, random)),
    ("J1, to 45", "SciPy", _bessel),
    ("Poisson, distribution function", "SciPy", _poisson),
    ("blur", "OpenCV, `filter2D`", lambda: _blurs(planes, random)),
    ("sizes", "PyTorch, `interpolate`", lambda: _sizes(planes, random)),
    ("JPEG, 30 to 95, levels", "Pillow", lambda: _jpegs(planes, random)),
    ("USM, levels", "BasicSR", lambda: _usm(basicsr.utils, image)),
  ):
    differences = np.abs(compare())
    mean, most = differences.mean(), differences.max()
    print(f"| {name} | {beside} | {mean:.2g} | {most:.2g} |", flush=True)


def _kernels(theirs, random):
  made = jax.jit(functools.partial(kernels.gaussian_kernel, within=21))
  found = []
  for name in 30 * list(degradation.KERNELS):
    turned, family = degradation.KERNELS[name]
    side = 2 * random.integers(3, 11) + 1
    sigma_x, sigma_y = random.uniform(0.2, 3, 2)
    theta = random.uniform(-np.pi, np.pi)
    beta = random.uniform(*((1, 2) if family == "plateau" else (0.5, 4)))
    given = (side, sigma_x, sigma_y, theta)
    if family == "gaussian":
      expected = theirs.bivariate_Gaussian(*given, isotropic=not turned)
      beta = 1.0
    elif family == "generalized":
      expected = theirs.bivariate_generalized_Gaussian(
        *given, beta, isotropic=not turned
      )
    else:
      expected = theirs.bivariate_plateau(*given, beta, isotropic=not turned)
    kernel = made(
      side,
      sigma_x,
      sigma_y if turned else sigma_x,
      theta if turned else 0.0,
      beta=beta,
      plateau=family == "plateau",
    )
    found.append(kernel - np.pad(expected, (21 - side) // 2))
  return np.stack(found)


def _sincs(theirs, random):
  made = jax.jit(functools.partial(kernels.sinc_kernel, within=21))
  found = []
  for _ in range(200):
    side = 2 * random.integers(3, 11) + 1
    cutoff = random.uniform(np.pi / 5, np.pi)
    expected = theirs.circular_lowpass_kernel(cutoff, side, pad_to=21)
    found.append(made(cutoff, side) - expected)
  return np.stack(found)


def _bessel():
  x = np.linspace(0, 45, 100001, dtype=np.float32)
  return kernels.bessel_j1(x, most=45.0) - scipy.special.j1(x.astype(float))


def _poisson():
  """Of numbers made of equally likely parts of the normal distribution."""
  parts = 200_000
  normal = scipy.stats.norm.ppf((np.arange(parts) + 0.5) / parts)
  found = []
  for rate in (0.3, 1.0, 3.0, 3.99, 4.0, 6.0, 20.0, 100.0, 256.0):
    drawn = noise.poisson_quantile(
      jnp.full(parts, rate, jnp.float32), jnp.asarray(normal, jnp.float32)
    )
    number = np.arange(np.asarray(drawn).max() + 2)
    below = np.searchsorted(np.sort(drawn), number, side="right") / parts
    found.append(below - scipy.stats.poisson.cdf(number, rate))
  return np.concatenate(found)


def _blurs(planes, random):
  import cv2

  found = []
  for form in (blurring.blur_by_spectra, blurring.blur_by_bands):
    kernel = random.random((21, 21)).astype(np.float32)
    kernel /= kernel.sum()
    padded = jnp.pad(planes, ((0, 0), (10, 10), (10, 10)), mode="reflect")
    expected = cv2.filter2D(np.moveaxis(np.asarray(planes), 0, -1), -1, kernel)
    made = np.moveaxis(np.asarray(form(padded, jnp.asarray(kernel))), 0, -1)
    found.append(made - expected)
  return np.stack(found)


def _sizes(planes, random):
  import torch

  side, room = planes.shape[1], int(1.5 * planes.shape[1])

  @jax.jit
  def made(planes, mode, size, step):
    weights = resizing.axis_weights(
      mode, side, size, in_length=side, out_length=room, step=step
    )
    return resizing.resize(planes, weights, weights)

  found = []
  image = torch.tensor(np.asarray(planes))[None]
  for mode in 20 * resizing.MODES:
    factor = random.uniform(0.15, 1.5)
    expected = torch.nn.functional.interpolate(
      image, scale_factor=factor, mode=mode
    )[0].numpy()
    size = expected.shape[1]
    done = made(planes, resizing.MODES.index(mode), size, 1 / factor)
    found.append(np.asarray(done)[:, :size, :size] - expected)
  return np.concatenate([np.ravel(each) for each in found])


def _jpegs(planes, random):
  made = jax.jit(jpeg.jpeg)
  levels = np.round(np.moveaxis(np.asarray(planes), 0, -1) * 255)
  found = []
  for quality in range(30, 96, 5):
    height, width = random.integers(200, SIDE, 2)
    file = io.BytesIO()
    cut = levels[:height, :width].astype(np.uint8)
    PIL.Image.fromarray(cut).save(file, "JPEG", quality=quality)
    expected = np.asarray(PIL.Image.open(file)).astype(np.float64)
    done = made(planes, float(quality), (height, width))
    done = np.moveaxis(np.asarray(done), 0, -1)[:height, :width] * 255
    found.append(np.ravel(done - expected))
  return np.concatenate(found)


def _usm(utils, image):
  import torch

  given = torch.tensor(image / 255).float().permute(2, 0, 1)[None]
  expected = utils.USMSharp()(given)[0].permute(1, 2, 0).numpy()
  images = jnp.asarray(image, jnp.float32) / 255
  return 255 * (degradation.usm_sharpen(images) - expected)


def main(arguments=None):
  """Prints both tables."""
  from skimage import data

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--basicsr", required=True, metavar="FOLDER", help="its repository"
  )
  parser.add_argument(
    "--draws", type=int, default=1000, help="0: the functions alone"
  )
  parser.add_argument("--image", help="400 x 400 or more (default: astronaut)")
  parser.add_argument("--figure", metavar="FILE", help="a PNG, of the shares")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(arguments)
  basicsr = load_basicsr(args.basicsr)
  print(machine.versions("jax", "torch", "opencv-python-headless", "scipy"))
  image = data.astronaut()
  if args.image:
    image = np.asarray(PIL.Image.open(args.image).convert("RGB"))
  image = np.ascontiguousarray(image[:SIDE, :SIDE])
  if image.shape != (SIDE, SIDE, 3):
    raise SystemExit(f"--image must be {SIDE} pixels a side or more")
  compare_functions(basicsr, image, args.seed)
  if args.draws:
    compare_draws(basicsr, image, args.draws, args.seed, args.figure)


if __name__ == "__main__":
  main()
