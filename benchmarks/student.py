"""A student of realesrgan-x4plus: photos to learn from, and how good it is.

  mkdir DEBS
  for file in *.deb; do dpkg-deb -x "$file" DEBS/"${file%%_*}"; done
  python -m benchmarks.student photos DEBS --out DATA [--crops 1000]
  python -m benchmarks.student teach DATA/train
  python -m benchmarks.student table --model WORKDIR --photos DATA/test

`photos` cuts LR images for `configs/distill.py` from the photos that
`student_photos.csv` lists, with their packages, authors and licences:
`DATA/train` of `--lists` and, of those held out, `DATA/held_out`, small ones,
and `DATA/test`, 320x180 pixels; docs/student.md says how to get DEBS. A photo
is taken for what a camera or the web gives: as it is, or shrunk by 2 to 8; of
ten crops, two have a little noise and JPEG's artefacts, and one is degraded as
for the teacher's own training. The more crops, the more there are besides those
that a smaller number has.

`teach` computes what the teacher makes of a folder, ahead of the training,
which does so itself: here by OpenVINO in bfloat16, in three fifths of the time
and within some levels of 255.

`table` upscales those of `DATA/test`, or of any folder: time beside the
teacher's, taking turns, and PSNR, SSIM and, where the extra `perceptual` is
installed, LPIPS to the teacher's results, of student and bicubic.
"""

import argparse
import collections
import csv
import itertools
import math
import pathlib
import statistics
import time

import imagecodecs
import jax
import jax.numpy as jnp
import numpy as np

import esrgan_jax
from benchmarks import machine, peers
from esrgan_jax import degradation, images
from esrgan_jax.data import sources, teaching
from esrgan_jax.evaluation import evaluator, measures
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.weights.dialects import rrdb

LIST = pathlib.Path(__file__).with_name("student_photos.csv")
TEACHER = "realesrgan-x4plus"
SCALE = 4
SIDE = 96  # LR pixels a side of a crop to train on.
TEST_SIZE = (180, 320)
# By how much a photo is shrunk, and how often.
FACTORS = {1: 0.12, 2: 0.25, 3: 0.2, 4: 0.25, 6: 0.1, 8: 0.08}


def main():
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("photos", help="cut LR images from photos")
  command.add_argument("debs", type=pathlib.Path)
  command.add_argument("--out", type=pathlib.Path, required=True)
  command.add_argument("--crops", type=int, default=1000)
  lists = ("train", "extra")
  command.add_argument("--lists", nargs="+", choices=lists, default=lists)
  command = commands.add_parser("teach", help="have OpenVINO be the teacher")
  command.add_argument("photos", type=pathlib.Path)
  command = commands.add_parser("table", help="measure the student")
  command.add_argument("--model", required=True, help="a file or a workdir")
  command.add_argument("--teacher", default=TEACHER)
  command.add_argument("--photos", type=pathlib.Path, required=True)
  command.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  run = {"photos": make_photos, "teach": teach, "table": print_table}
  run[args.command](args)


def make_photos(args):
  """Cuts all LR images."""
  found = listed(args.debs, [*args.lists, "held_out"])
  others = sources.SamplePhotos("held_out", scale=SCALE)
  for index, name in enumerate(others.names):
    found["held_out"].append((name, others.read_hr(index)))
  photos = [photo for split in args.lists for photo in found[split]]
  for number, photo in enumerate(photos):
    name, pixels = read(photo)
    shrunk = _Shrunk(pixels)
    for k in range(share(args.crops, number, len(photos))):
      random = np.random.default_rng([0, number, k])
      factor = random.choice([*FACTORS], p=[*FACTORS.values()])
      chance = random.random()
      if chance < 0.1:
        side = SCALE * SIDE
        hr = shrunk.at_least(max(factor // SCALE, 1), side, side)
        key = jax.random.fold_in(jax.random.key(number), k)
        crop = _degraded(key, _detailed(hr, side, random))
      else:
        crop = shrunk.at_least(factor, SIDE, SIDE)
        crop = _detailed(crop, SIDE, random)
        crop = _worn(crop, random) if chance < 0.3 else crop
      # Sorted, the first few are of all photos.
      _write(args.out / "train" / f"{k:03}_{name}.png", crop)
  for photo in found["held_out"]:
    name, pixels = read(photo)
    shrunk = _Shrunk(pixels)
    frame = _centre(shrunk.filling(TEST_SIZE), TEST_SIZE)
    _write(args.out / "test" / f"{name}.png", frame)
    for factor in (1, 4):
      crop = _centre(shrunk.at_least(factor, 128, 128), (128, 128))
      _write(args.out / "held_out" / f"{name}_{factor}.png", crop)
  held_out = found["held_out"]
  for split, of in (
    ("train", photos),
    ("held_out", held_out),
    ("test", held_out),
  ):
    files = list((args.out / split).glob("*.png"))
    print(f"{split}: {len(of)} photos, {len(files)} LR images in", end=" ")
    print(args.out / split)


def share(crops, number, photos):
  """How many crops are of a photo: of none fewer where there are more in all.

  >>> [share(5, number, 3) for number in range(3)]
  [2, 2, 1]
  """
  return max(math.ceil((crops - number) / photos), 0)


def listed(debs, splits):
  """Paths of the list's photos, by split."""
  found = collections.defaultdict(list)
  for row in csv.DictReader(LIST.read_text("utf-8").splitlines()):
    if row["split"] in splits:
      found[row["split"]].append(_path(debs, row))
  return found


def _path(debs, row):
  pattern = f"{row['package']}/usr/share/*/{row['file']}"
  paths = list(debs.glob(pattern))
  if len(paths) != 1:
    raise SystemExit(f"no photo {debs / pattern}: unpack Debian's package")
  return paths[0]


def read(photo):
  """Its name, without what could not be a file's, and its pixels."""
  if isinstance(photo, tuple):
    return photo[0].partition(".")[0], photo[1]
  return name_of(photo), sources.LrFolder(photo, scale=SCALE).read_lr(0)


def name_of(path):
  """A photo's name: Plasma calls the files by their size.

  >>> name_of(pathlib.Path("Kite/contents/images/2560x1600.jpg"))
  'Kite'
  """
  of_plasma = path.parts[-3:-1] == ("contents", "images")
  return path.parts[-4] if of_plasma else path.stem


class _Shrunk:
  """A photo in smaller sizes, each made once."""

  def __init__(self, pixels):
    self._pixels, self._made = pixels, {}

  def at_least(self, factor, height, width):
    """Shrunk by a factor, or less where it would be smaller than that."""
    room = min(self._pixels.shape[0] // height, self._pixels.shape[1] // width)
    factor = max(min(int(factor), room), 1)
    if factor not in self._made:
      self._made[factor] = _resize(self._pixels, 1 / factor)
    return self._made[factor]

  def filling(self, size):
    """Shrunk to fill that size."""
    scales = [n / m for n, m in zip(size, self._pixels.shape, strict=False)]
    return _resize(self._pixels, min(max(scales), 1))


def _resize(pixels, scale):
  return pixels if scale == 1 else imresize_uint8(pixels, scale=scale)


def _centre(pixels, size):
  top, left = ((n - m) // 2 for n, m in zip(pixels.shape, size, strict=False))
  return pixels[top : top + size[0], left : left + size[1]]


def _detailed(pixels, side, random):
  """The crop of two with more in it."""
  room = [n - side + 1 for n in pixels.shape[:2]]
  crops = []
  for _ in range(2):
    top, left = (int(random.integers(n)) for n in room)
    crops.append(pixels[top : top + side, left : left + side])
  return max(
    crops, key=lambda crop: np.abs(np.diff(crop.astype(int), axis=1)).mean()
  )


def _worn(crop, random):
  """With Gaussian noise, then as JPEG."""
  noise = random.normal(0, random.uniform(0, 8), crop.shape)
  crop = np.clip(np.round(crop + noise), 0, 255).astype(np.uint8)
  quality = int(random.integers(50, 96))
  data = imagecodecs.jpeg8_encode(crop, level=quality, subsampling="420")
  return imagecodecs.jpeg8_decode(data)


def _degraded(key, hr):
  """LR of HR as Real-ESRGAN's training makes it."""
  batch = jnp.asarray(hr[None], jnp.float32) / 255
  settings = degradation.Degradation()
  lr = _degrade(key[None], batch, settings, SCALE)
  return np.asarray(jnp.round(lr[0] * 255)).astype(np.uint8)


_degrade = jax.jit(degradation.degrade, static_argnums=(2, 3))


def _write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.ascontiguousarray(pixels)
  images.write_image(path, images.Image(pixels), overwrite=True)


def teach(args):
  """Writes where the training looks for the teacher's results."""
  source = sources.LrFolder(args.photos, scale=SCALE)
  teacher = teaching.Teacher(_InOpenVino(TEACHER))
  teacher.teach(
    source, progress=lambda done, total: print(f"{done} of {total}")
  )


class _InOpenVino:
  """A model whose images another runtime upscales."""

  def __init__(self, name):
    self._model = esrgan_jax.load(name, dtype="float32")
    params = jax.tree.map(np.asarray, self._model.params)
    state = rrdb.to_state_dict(params)
    self._run = peers.make_openvino_of_one_size(state, half=True)

  def __getattr__(self, name):
    return getattr(self._model, name)

  def stream(self, images, **options):
    """As `Upscaler.stream`."""
    del options
    return map(self._run, images)


def print_table(args):
  """Prints times, then distances to the teacher."""
  student = esrgan_jax.load(args.model, dtype="float32")
  teacher = esrgan_jax.load(args.teacher, dtype="float32")
  print(machine.versions("jax", "jaxlib"))
  print(machine.describe())
  source = sources.LrFolder(args.photos, scale=teacher.scale)
  pixels = map(source.read_lr, range(len(source)))
  frames = (lr for lr in pixels if lr.shape[:2] == TEST_SIZE)
  if (frame := next(frames, None)) is not None:
    models = student, teacher
    seconds = _time(models, frame, args.rounds)
    for model, took in zip(models, seconds, strict=True):
      print(f"{model.name}: 320x180 to 1280x720 in {took:.3f} s")
    print(f"{seconds[1] / seconds[0]:.1f} times as fast")
  taught = teaching.Teacher(teacher).teach(
    source, progress=lambda done, total: print(f"teacher: {done} of {total}")
  )
  names = ["psnr_rgb", "psnr_y", "ssim_y"]
  names += [each.name for each in measures.present("lpips")]
  chosen = measures.choose(names)
  found = [
    evaluator.evaluate_pairs(
      upscale,
      evaluator.named_pairs(taught),
      scale=taught.scale,
      model=model,
      measures=chosen,
    )
    for model, upscale in (
      ("bicubic", lambda lr: evaluator.bicubic(lr, scale=taught.scale)),
      (student.name, student),
    )
  ]
  print(found[0].protocol)
  headings = [each.heading for each in chosen]
  titles = itertools.product(("bicubic", "student"), headings)
  titles = ["photo", *map(" ".join, titles)]
  print(_row(titles))
  print(_row(["---"] * len(titles)))
  for scores in zip(*(each.scores for each in found), strict=True):
    cells = [
      each.show(score.values[each.name])
      for score, each in itertools.product(scores, chosen)
    ]
    print(_row([scores[0].name, *cells]))
  cells = [
    each.show(result.means[each.name])
    for result, each in itertools.product(found, chosen)
  ]
  print(_row(["mean", *cells]))
  gain = found[1].means["psnr_rgb"] - found[0].means["psnr_rgb"]
  print(f"nearer to the teacher than bicubic by {gain:.2f} dB (RGB)")


def _row(cells):
  return f"| {' | '.join(cells)} |"


def _time(models, frame, rounds):
  """Medians, after a first call each, taking turns."""
  for model in models:
    model.upscale(frame)
  times = [[] for _ in models]
  for _ in range(rounds):
    for model, own in zip(models, times, strict=True):
      began = time.perf_counter()
      model.upscale(frame)
      own.append(time.perf_counter() - began)
  return [statistics.median(own) for own in times]


if __name__ == "__main__":
  main()
