r"""What configs/science.py, or any training of two phases, comes to: a table.

  python -m benchmarks.results photos DEBS --out photos
  python -m esrgan_jax.main --config=configs/science.py \
    --workdir=runs/science --config.data.sources=photos/train,sample_photos \
    --config.data.eval=photos/held_out \
    --config.eval.measures=psnr_y,ssim_y,lpips
  python -m benchmarks.results table runs/science --sets Set5 Set14 \
    --out results --crops Set5/img_003 Set14/img_001

`photos` writes the photos that `student_photos.csv` lists as `train` and
`held_out`, half as large, which leaves little of JPEG's artefacts: HR.
(docs/student.md says how to get DEBS.)

`table` measures bicubic, the models of a workdir's two phases, and what lies
between them, on folders with `HR` and `LRbicx4`, or with HR alone, whose LR is
made. It prints Markdown and writes `table.md`, `numbers.json`, a chart of LPIPS
over PSNR a set, the workdir's curves, and `pictures.png`: of each image that
`--crops` names, as SET/IMAGE, the square where the phases differ most.
"""

import argparse
import functools
import pathlib

import jax

from benchmarks import machine, student
from esrgan_jax import images, storage
from esrgan_jax.data import sources
from esrgan_jax.evaluation import evaluator, measures
from esrgan_jax.report import chart_files, curves, samples, sweep
from esrgan_jax.resize import imresize_uint8
from esrgan_jax.upscaling import upscaler
from esrgan_jax.weights import mixing

ALPHAS = (0.2, 0.4, 0.6, 0.8)
SIDE = 32  # LR pixels of a picture's square.


def main(arguments=None):
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("photos", help="write photos to train on")
  command.add_argument("debs", type=pathlib.Path)
  command.add_argument("--out", type=pathlib.Path, required=True)
  command = commands.add_parser("table", help="measure a training")
  command.add_argument("model", help="a workdir; or a file, of phase one")
  command.add_argument("--gan-model", help="a file, of phase two")
  command.add_argument(
    "--sets", type=pathlib.Path, nargs="+", required=True, metavar="FOLDER"
  )
  command.add_argument("--out", type=pathlib.Path, required=True)
  command.add_argument("--alphas", type=float, nargs="*", default=ALPHAS)
  command.add_argument(
    "--crops", nargs="*", default=[], metavar="SET/IMAGE", help="to be shown"
  )
  command.add_argument(
    "--measures",
    default="psnr_y,ssim_y,lpips,dists,niqe",
    help="with commas between; those that are not here are left out",
  )
  args = parser.parse_args(arguments)
  {"photos": write_photos, "table": write_table}[args.command](args)


def write_photos(args):
  """Writes all photos, half as large."""
  found = student.listed(args.debs, ("train", "held_out"))
  for split, paths in found.items():
    for path in paths:
      name, pixels = student.read(path)
      small = imresize_uint8(pixels, scale=1 / 2)
      file = args.out / split / f"{name}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      images.write_image(file, images.Image(small), overwrite=True)
    print(f"{len(paths)} photos in {args.out / split}")


def open_set(folder, scale):
  """A set's pairs, and what LR is."""
  hr, lr = folder / "HR", folder / f"LRbicx{scale}"
  spec = {"hr": str(hr), "lr": str(lr)} if lr.is_dir() else str(folder)
  source = sources.open_source(spec, scale=scale)
  return list(evaluator.named_pairs(source)), source.lr_origin


def write_table(args):
  """Measures, prints, writes."""
  pair = mixing.find_pair(args.model, args.gan_model or args.model)
  scale = pair.config["scale"]
  models = {"bicubic": functools.partial(evaluator.bicubic, scale=scale)}
  first = upscaler.load_mixture(pair, 0.0, dtype="float32")
  for alpha in (0.0, *args.alphas, 1.0):
    weights = pair.mix(alpha)
    model = first.with_params(weights.params, weights.collections)
    models[_title(alpha)] = model.upscale
  wanted = dict.fromkeys(("psnr_y", *args.measures.split(",")))
  taken = measures.present(*wanted)
  if absent := wanted.keys() - {each.name for each in taken}:
    print(f"left out, see docs/measures.md: {', '.join(absent)}")
  args.out.mkdir(parents=True, exist_ok=True)
  lines = [machine.versions("jax", "jaxlib"), machine.describe(), ""]
  found, shown = [], {name: [] for name in (*models, "HR")}
  for folder in args.sets:
    pairs, origin = open_set(folder, scale)
    rows = {
      name: evaluator.evaluate_pairs(
        upscale,
        pairs,
        scale=scale,
        model=f"{folder.name}, {name}",
        measures=taken,
      )
      for name, upscale in models.items()
    }
    found += rows.values()
    lines += [f"{folder.name}: {len(pairs)} images, LR {_short(origin)}", ""]
    lines += _table(rows, taken)
    lines += _difference(rows)
    drawn = _draw_plane(args, rows)
    if drawn:
      path = args.out / f"{folder.name}_lpips.png"
      storage.write_whole(path, drawn, overwrite=True)
    for name, each in _squares(args.crops, folder.name, pairs, models, scale):
      shown[name].append(each)
  lines.insert(2, found[0].protocol)
  print("\n".join(lines))
  text = "\n".join(lines) + "\n"
  storage.write_whole(args.out / "table.md", text, overwrite=True)
  evaluator.write_evaluations(args.out / "numbers.json", found, overwrite=True)
  if shown["HR"]:
    picture = samples.png(samples.grid(shown))
    storage.write_whole(args.out / "pictures.png", picture, overwrite=True)
  is_workdir = pathlib.Path(args.model).is_dir()
  for path in curves.write_curves(args.model) if is_workdir else ():
    if path.suffix == ".png":
      copy = args.out / path.name
      storage.write_whole(copy, path.read_bytes(), overwrite=True)
  print(f"table, numbers and pictures: {args.out}")


def _title(alpha):
  ends = {0.0: "phase one", 1.0: "phase two"}
  return ends.get(alpha, f"alpha {alpha:g}")


def _short(origin):
  """Where LR is from, without folders of this machine."""
  return origin if origin.startswith("made") else pathlib.Path(origin).name


def _table(rows, taken):
  """Markdown: a row a model."""
  cells = [["", *(each.title for each in taken)]]
  cells.append(["---"] * len(cells[0]))
  for name, result in rows.items():
    values = [each.show(result.means[each.name]) for each in taken]
    cells.append([name, *values])
  return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _difference(rows):
  """What the two aims are about."""
  first, last = rows["phase one"].means, rows["phase two"].means
  gain = first["psnr_y"] - rows["bicubic"].means["psnr_y"]
  told = [f"phase one is {gain:+.2f} dB from bicubic"]
  if "lpips" in first:
    change = last["lpips"] / first["lpips"] - 1
    told.append(f"phase two's LPIPS is {100 * change:+.1f} % from phase one's")
  return ["; ".join(told), ""]


def _draw_plane(args, rows):
  """LPIPS over PSNR, by alpha, as a PNG."""
  alphas = (0.0, *args.alphas, 1.0)
  points = [{"alpha": a, **rows[_title(a)].means} for a in alphas]
  if "lpips" not in points[0]:
    return None
  title, chart = sweep.plan_curve(points, perception="lpips")
  return chart and chart_files.png(chart, title)


def _squares(wanted, folder, pairs, models, scale):
  """Of each image that is asked for, each model's square, and its name."""
  by_name = {f"{folder}/{pathlib.Path(p.name).stem}": p for p in pairs}
  for name in wanted:
    if (pair := by_name.get(name)) is None:
      continue
    results = {each: run(pair.lr) for each, run in models.items()}
    crop = sweep.choose_crop(
      results["phase one"], results["phase two"], side=SIDE, scale=scale
    )
    for each, pixels in {**results, "HR": pair.hr}.items():
      yield each, crop.of(pixels, scale)


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  main()
