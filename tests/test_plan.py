"""What results are called, and which images get one."""

import dataclasses
import os
import pathlib
import re

import numpy as np
import pytest

from esrgan_jax import images
from esrgan_jax.upscaling.inputs import Input, find_inputs
from esrgan_jax.upscaling.names import Naming, output_of
from esrgan_jax.upscaling.plan import make_plan
from esrgan_jax.upscaling.result_size import ResultSize


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def save(*names, size=(6, 4)):
  for name in names:
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.zeros((*size[::-1], 1), np.uint8)
    images.write_image(path, images.Image(grey), overwrite=True)


def save_results(*names):
  grey = np.zeros((40, 40, 1), np.uint8)
  made_here = images.Metadata(record="esrgan_jax 0.1.0, a model x4")
  for name in names:
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    images.write_image(name, images.Image(grey, metadata=made_here))


def plan(*texts, recursive=False, naming=None, **options):
  inputs = find_inputs(texts, recursive=recursive).found
  return make_plan(inputs, naming or Naming(), **options)


def targets(made):
  return [job.target.as_posix() for job in made.jobs]


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, "in/x/a.b_x4.jpg"),
    ({"size": ResultSize(scale=1.5)}, "in/x/a.b_x1.5.jpg"),
    ({"size": ResultSize(width=99)}, "in/x/a.b_w99.jpg"),
    ({"size": ResultSize(width=99, height=9)}, "in/x/a.b_99x9.jpg"),
    ({"size": ResultSize(long_side=99)}, "in/x/a.b_long99.jpg"),
    ({"format": "webp"}, "in/x/a.b_x4.webp"),
    ({"lossless": True}, "in/x/a.b_x4.png"),
    ({"suffix": "-{model}"}, "in/x/a.b-my_net.v2.jpg"),
    ({"template": "{name}{suffix}"}, "in/x/a.b_x4.jpg"),
    ({"template": "{scale}/{folder}-{width}.WebP"}, "in/x/4/x-24.WebP"),
    ({"template": "b.webp", "format": "png"}, "in/x/b.png"),
    ({"folder": pathlib.Path("out")}, "out/x/a.b.jpg"),
    ({"folder": pathlib.Path("out"), "suffix": "_2"}, "out/x/a.b_2.jpg"),
    ({"file": pathlib.Path("b.png"), "template": "{name}"}, "b.png"),
    (
      {"template": "{width}x{height}_{scale}", "size": ResultSize(height=10)},
      "in/x/15x10_2.5.jpg",
    ),
  ],
)
def test_names(options, expected):
  naming = Naming(model="my/net.v2.PTH", model_scale=4, **options)
  image = Input(pathlib.Path("in/x/a.b.jpg"), pathlib.PurePath("x"))
  assert naming.target(image, (6, 4)).as_posix() == expected


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{nam}", r"has \{nam\}; fields are \{name\}"),
    ("{name.__class__}", "fields are"),
    ("{name!r:>9}", "fields are"),
    ("a{", "has a brace alone"),
    ("a/..", "leads out of the folder"),
    ("../{name}", "leads out of the folder"),
    ("/tmp/{name}", "leads out of the folder"),
    ("\x1b{}", r"\\x1b"),
  ],
)
def test_templates_that_cannot_be_meant(template, message):
  with pytest.raises(ValueError, match=message):
    Naming(template=template)


def test_a_damaged_file_is_blamed_rather_than_the_name():
  save("a.png")
  pathlib.Path("b.png").write_bytes(b"no image")
  made = plan("a.png", "b.png", naming=Naming(template="{name}_{width}"))
  assert targets(made) == ["a_24.png"]
  (problem,) = made.problems
  assert problem.startswith("b.png: not an image of a known format")


def test_results_have_a_bound():
  save("a.png")
  naming = Naming(size=ResultSize(width=200_000))
  (problem,) = plan("a.png", naming=naming).problems
  assert problem.startswith("a.png: its result would be 200000 x 133333 pixels")
  needed = int(re.search(r"--max-pixels (\d+)", problem)[1])
  assert plan("a.png", naming=naming, max_pixels=needed).jobs
  assert plan("a.png", naming=naming, max_pixels=needed - 1).problems


def test_a_name_that_becomes_nothing_is_told():
  save("a.png")
  naming = Naming(folder=pathlib.Path("out"), template="{suffix}")
  assert plan("a.png", naming=naming).problems == (
    "a.png: '{suffix}' gives its result no name; add {name}",
  )


def test_a_tree_is_kept():
  save("in/a.png", "in/x/a.png", "in/x/y/a.png")
  naming = Naming(folder=pathlib.Path("out"))
  made = plan("in", recursive=True, naming=naming)
  assert targets(made) == ["out/a.png", "out/x/a.png", "out/x/y/a.png"]


@pytest.mark.parametrize("name", ["a", "caf\udce9", "写_真"])
@pytest.mark.parametrize(
  ("label", "size"),
  [("x4", (24, 16)), ("x2", (12, 8)), ("x1.5", (9, 6)), ("w9", (9, 6))],
)
def test_results_beside_their_images_are_no_images(name, label, size):
  save(f"in/{name}.png")
  save(f"in/{name}_{label}.png", f"in/{name}_{label}.jpg", size=size)
  made = plan("in")
  assert targets(made) == [f"in/{name}_x4.png"] or made.problems
  assert {path.stem for path in made.earlier} == {f"{name}_{label}"}
  assert len(made.earlier) == 2
  # Nor are results of results, and those are told by any way of naming.
  assert len(plan(*(str(p) for p in pathlib.Path("in").iterdir())).earlier) == 2
  # By itself, it is an image.
  assert plan(f"in/{name}_{label}.png").earlier == ()
  naming = Naming(folder=pathlib.Path("out"))
  assert len(plan("in", "in/*", naming=naming).earlier) == 2
  # Where results lie elsewhere, what is named is meant.
  named = (f"in/{name}.png", f"in/{name}_{label}.png")
  assert plan(*named, naming=naming).earlier == ()


def test_what_is_merely_called_like_a_result_is_an_image():
  save("in/tile.png", "in/tile_x2.png", "in/a_b.png", "in/a.png", "in/c_x4.png")
  made = plan("in")
  assert made.earlier == ()
  assert len(made.jobs) == 5
  # And is not replaced.
  made = plan("in", naming=Naming(model_scale=2), overwrite=True)
  assert len(made.jobs) == 4
  assert made.problems == (
    "in/tile.png: in/tile_x2.png would replace an input; choose another name"
    " for the output",
  )
  made = plan("in", naming=Naming(model_scale=2), skip_existing=True)
  assert (made.existing, len(made.problems)) == ((), 1)


def test_names_of_ones_own_are_recognised_too():
  naming = Naming(suffix=" (large)")
  save("in/a.png")
  save("in/a (large).png", size=(24, 16))
  made = plan("in", naming=naming, skip_existing=True)
  assert [path.name for path in made.earlier] == ["a (large).png"]
  assert [path.name for path in made.existing] == ["a (large).png"]
  assert (made.jobs, made.problems) == ((), ())


def test_results_are_recognised_by_their_record_and_name():
  save("in/a.png", "in/b.png")
  grey = np.zeros((40, 40, 1), np.uint8)
  made_here = images.Metadata(record="esrgan_jax 0.1.0, a model x4")
  for suffix in ("png", "jpg", "webp", "tif"):
    result = images.Image(grey, metadata=made_here)
    images.write_image(f"in/a large.{suffix}", result)
    images.write_image(f"in/c.{suffix}", result)
  images.write_image("in/bare.png", images.Image(grey))
  made = plan("in")
  assert {path.stem for path in made.earlier} == {"a large"}
  assert len(made.earlier) == 4
  assert {job.source.name for job in made.jobs} > {"bare.png", "c.png", "a.png"}


def test_results_are_recognised_wherever_they_lie():
  save("in/p.png", "in/sub/q.jpg", "in/1.png")
  results = (
    "in/p_big.png",
    "in/p_x2_x2.jpg",
    "in/p.webp",
    "in/out/p.png",
    "in/out/sub/q.jpg",
    "in/out2/out/p_x2.png",
    "in/p_x2/p_0001.png",
  )
  save_results(*results, "in/10.png", "in/out/other.png", "other/p_y.png")
  for naming in (Naming(), Naming(folder=pathlib.Path("elsewhere"))):
    made = plan("in", "other", recursive=True, naming=naming)
    assert {each.as_posix() for each in made.earlier} == {*results}
    assert {job.source.as_posix() for job in made.jobs} == {
      *("in/p.png", "in/sub/q.jpg", "in/1.png"),
      *("in/10.png", "in/out/other.png", "other/p_y.png"),
    }
    made = plan("in/**/*.png", naming=naming)
    assert pathlib.Path("in/out/p.png") in made.earlier
  # Results alone are images: none of them is of another.
  save_results("only/a.png", "only/a_b.png", "only/x/a.png")
  assert plan("only", recursive=True).earlier == ()


def test_advice_on_results_of_one_name_helps():
  naming = Naming(folder=pathlib.Path("out"), format="png")
  for names, template in (
    (("1/x.png", "2/x.png"), "{folder}_{name}"),
    (("1/x.png", "1/x.jpg"), "{name}_{type}"),
    (("3/x.png", "3/x.jpg", "4/x.png"), "{folder}_{name}_{type}"),
  ):
    save(*names)
    problems = plan(*names, naming=naming).problems
    assert problems
    for problem in problems:
      assert f"--name '{template}' tells them apart" in problem
    wider = dataclasses.replace(naming, template=template)
    assert len(plan(*names, naming=wider).jobs) == len(names)
  save("5/6/x.png", "7/6/x.png")
  (problem,) = plan("5/6/x.png", "7/6/x.png", naming=naming).problems
  assert "by itself" in problem
  # Beside images, an ending stays.
  (problem,) = plan("1/x.png", "1/x.jpg", naming=Naming(format="png")).problems
  assert "--name '{name}{suffix}_{type}'" in problem


def test_one_of_several_images_of_one_name_may_be_the_origin():
  save("in/a.jpg", size=(8, 8))
  save("in/a.png", size=(5, 5))
  save("in/a_x2.png", size=(10, 10))
  save("in/a_x2.jpg", size=(16, 16))
  save("in/a_x2.webp", size=(11, 11))
  names = [path.name for path in plan("in").earlier]
  assert names == ["a_x2.jpg", "a_x2.png"]


def test_what_exists_is_not_done_for_an_image_that_collides():
  save("1/a.png", "2/a.tif", "3/b.png")
  naming = Naming(folder=pathlib.Path("out"), format="png")
  made = plan("1", "2", "3", naming=naming)
  assert targets(made) == ["out/a.png", "out/b.png"]
  (problem,) = made.problems
  assert problem.startswith("2/a.tif: its result out/a.png is that of 1/a.png")
  save("out/a.png", "out/b.png")
  made = plan("1", "2", "3", naming=naming, skip_existing=True)
  there = [path.as_posix() for path in made.existing]
  assert there == ["out/a.png", "out/b.png"]
  assert made.jobs == ()
  assert made.problems == (problem,)
  naming = Naming(folder=pathlib.Path("out"), template="{folder}_{name}")
  assert len(plan("1", "2", "3", naming=naming).jobs) == 3


def test_one_name_too_long_is_one_problem():
  save("a.png", "x" * 250 + ".png")
  for options in ({}, {"skip_existing": True}, {"overwrite": True}):
    made = plan("a.png", "x" * 250 + ".png", **options)
    assert targets(made) == ["a_x4.png"]
    (problem,) = made.problems
    assert problem.endswith("cannot be written: File name too long")


def test_what_is_large_enough_is_left_alone():
  save("small.png", size=(60, 40))
  save("large.png", size=(40, 200))
  pathlib.Path("broken.png").write_bytes(b"no image")
  naming = Naming(size=ResultSize(long_side=100))
  made = plan("small.png", "large.png", "broken.png", naming=naming)
  assert made.large == ()
  names = ("small.png", "large.png", "broken.png")
  made = plan(*names, naming=naming, only_smaller=True)
  assert [path.name for path in made.large] == ["large.png"]
  assert targets(made) == ["small_long100.png", "broken_long100.png"]
  # A frame is filled by one side.
  naming = Naming(size=ResultSize(width=60, height=999))
  made = plan("small.png", naming=naming, only_smaller=True)
  assert len(made.large) == 1


def test_turned_images_have_the_size_that_is_seen():
  from PIL import Image as PilImage

  exif = PilImage.Exif()
  exif[274] = 6
  PilImage.new("L", (6, 4)).save("a.jpg", exif=exif)
  made = plan("a.jpg", naming=Naming(template="{width}x{height}"))
  assert targets(made) == ["16x24.jpg"]
  assert made.jobs[0].size == (4, 6)


def test_outputs_are_files_or_folders():
  os.mkdir("there.png")
  path = pathlib.Path
  for output, count, expected in (
    (None, 9, (None, None)),
    ("out", 1, (path("out"), None)),
    ("out.d/", 1, (path("out.d"), None)),
    ("out.d", 2, (path("out.d"), None)),
    ("there.png", 1, (path("there.png"), None)),
    ("b.PNG", 1, (None, path("b.PNG"))),
  ):
    assert output_of(output, count) == expected
  for output, count in (("b.png", 2), ("b.xyz", 1)):
    with pytest.raises(ValueError, match=output):
      output_of(output, count)
  for output, message in (("", "'' is no name of"), ("/dev/null", "a device")):
    with pytest.raises(ValueError, match=message):
      output_of(output, 1)
