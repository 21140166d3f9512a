"""Files, folders and patterns: which images are meant, and what is said."""

import contextlib
import os
import pathlib
import sys

import pytest

from esrgan_jax import extras
from esrgan_jax.data.sources import ImageFolder, PairFolder
from esrgan_jax.images.folders import list_images
from esrgan_jax.upscaling.inputs import find_inputs
from tests.hostile_names import NAMES


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def touch(*names):
  for name in names:
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(name))


def found(*texts, **options):
  inputs = find_inputs(texts, **options)
  return [each.path.as_posix() for each in inputs.found]


def test_what_is_in_a_folder_and_is_no_image_is_told():
  touch("in/a.png", "in/b.JPG", "in/._a.png", "in/.x.part.png", "in/.DS_Store")
  touch("in/notes.txt", "in/c.xyz", "in/d.xyz", "in/LICENSE", "in/sub/e.png")
  os.mkfifo("in/pipe.png")
  os.symlink("nowhere", "in/gone.png")
  inputs = find_inputs(["in"])
  assert [each.path.name for each in inputs.found] == ["a.png", "b.JPG"]
  assert inputs.problems == ()
  assert inputs.notes == (
    "in: left out 2 .xyz, 2 hidden, 2 links or devices,"
    " 1 without a suffix, 1 .txt, 1 subfolder (--recursive takes it)",
  )


def test_what_no_reader_is_installed_for_is_told(monkeypatch):
  touch("in/a.heic", "in/b.HEIC", "in/c.png")
  # As where the module is not installed.
  monkeypatch.setitem(sys.modules, "pi_heif", None)
  inputs = find_inputs(["in"])
  assert [each.path.name for each in inputs.found] == ["c.png"]
  assert inputs.notes == (
    f"in: left out 2 .heic ({extras.pip_install('heif')} to read them)",
  )
  # Whoever reads one that is named tells the same.
  assert found("in/a.heic", "in/*.heic") == ["in/a.heic"]


def test_hidden_files_are_taken_by_name_alone():
  touch("in/._a.png", "in/a.png", "._b.png")
  assert found("in", "in/*", "*.png", "**/*.png") == ["in/a.png"]
  assert found("in/._a.png", "._*") == ["in/._a.png", "._b.png"]


def test_subfolders_are_kept_apart():
  touch("in/a.png", "in/x/a.png", "in/x/y/b.png", "in/.git/c.png")
  inputs = find_inputs(["in"], recursive=True)
  assert [(each.path.as_posix(), str(each.below)) for each in inputs.found] == [
    ("in/a.png", "."),
    ("in/x/a.png", "x"),
    ("in/x/y/b.png", "x/y"),
  ]
  assert found("in/**/b.*") == ["in/x/y/b.png"]
  assert found("in/**/x/*") == ["in/x/a.png"]
  assert found("**/x/**/*.png") == ["in/x/a.png", "in/x/y/b.png"]
  assert found("i*/**") == ["in/a.png", "in/x/a.png", "in/x/y/b.png"]


def test_links_in_circles_count_each_image_once():
  touch("in/a.png", "in/x/b.png", "in/y/c.png")
  os.symlink(".", "in/loop")
  os.symlink("../y", "in/x/other")
  os.symlink("../x", "in/y/other")
  os.symlink("self", "in/self")
  expected = ["in/a.png", "in/x/b.png", "in/y/c.png"]
  assert found("in", recursive=True) == expected
  assert found("in/**/*.png") == expected
  assert found("**/*.png", "in", recursive=True) == expected
  assert ImageFolder("in", scale=2).names == ["a.png", "x/b.png", "y/c.png"]
  # A folder that is elsewhere is looked into by its link.
  touch("far/d.png")
  os.symlink("../far", "in/near")
  assert found("in", recursive=True)[1] == "in/near/d.png"


def test_names_of_one_file_are_several_images_of_a_data_set():
  """One ground truth may have several LR images."""
  touch("hr/a.png", "lr/a.png", "lr/b.png")
  os.symlink("a.png", "hr/b.png")
  assert PairFolder("hr", "lr", scale=2).names == ["a.png", "b.png"]


def test_a_file_under_two_names_is_one_input_and_said():
  touch("a.png", "d.png")
  os.symlink("a.png", "b.png")
  os.link("a.png", "c.png")
  inputs = find_inputs(["a.png", "./a.png", "b.png", "c.png", "d.png"])
  assert [each.path.name for each in inputs.found] == ["a.png", "d.png"]
  assert inputs.notes == (
    "a.png is an input already; left out, and 2 more likewise",
  )
  assert find_inputs(["b.png", "a.png"]).notes == (
    "a.png is an input already, as b.png; left out",
  )


def test_results_in_a_folder_are_not_its_images():
  touch("in/a.png", "in/out/a.png")
  assert found("in", recursive=True, results="in/out") == ["in/a.png"]
  assert find_inputs(["in"], results="in/out").notes == ()
  assert len(find_inputs(["in"]).notes) == 1
  assert len(found("in", recursive=True, results="in")) == 2
  assert len(found("in", recursive=True, results="in/none")) == 2


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ("none", "none: no such file"),
    ("*.bmp", "*.bmp: nothing matches"),
    ("**/*.bmp", "**/*.bmp: nothing matches"),
    ("empty", "empty: no image in this folder"),
    ("texts", "texts: no image in this folder, but 1 .txt"),
    ("pipe", "pipe: not a file; name an image, or a folder"),
    ("link", "link: a link to nowhere, which is not there"),
    ("loop", "loop: a link to loop, which is not there"),
    ("x" * 300, "File name too long: " + "x" * 300),
    ("a.png/b.png", "a.png/b.png: no such file"),
    ("a\0b", "a\\x00b: no such file"),
  ],
)
def test_what_stands_for_nothing_does_not_stop_the_others(text, problem):
  touch("a.png", "texts/b.txt")
  os.mkdir("empty")
  os.mkfifo("pipe")
  os.symlink("nowhere", "link")
  os.symlink("loop", "loop")
  inputs = find_inputs([text, "a.png"])
  assert inputs.problems == (problem,)
  assert [each.path.name for each in inputs.found] == ["a.png"]


@contextlib.contextmanager
def as_nobody():
  """As somebody for whom rights count, where root runs the tests."""
  os.chmod(".", 0o755)
  before = os.geteuid()
  if before == 0:
    os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(before)


def test_a_folder_that_cannot_be_read_does_not_hide_the_others():
  touch("in/a.png", "in/x/b.png", "in/y/c.png")
  os.chmod("in/x", 0)
  try:
    with as_nobody():
      inputs = find_inputs(["in", "in/x/b.png", "in/x"], recursive=True)
      problems = ImageFolder("in", scale=2).problems
  finally:
    os.chmod("in/x", 0o755)
  assert [each.path.name for each in inputs.found] == ["a.png", "c.png"]
  assert inputs.problems == (
    "Permission denied: in/x",
    "Permission denied: in/x/b.png",
    "Permission denied: in/x",
  )
  assert problems == [("in/x", "Permission denied")]


def test_names_are_text():
  touch(*("in/" + name for name in NAMES), "in/a.\x1b[31m")
  inputs = find_inputs(["in", *("./in/" + name for name in NAMES)])
  assert len(inputs.found) == len(NAMES)
  assert all(line.isprintable() for line in inputs.notes)
  assert "1 .\\x1b[31m" in inputs.notes[0]


def test_what_a_folder_lists_is_what_there_is():
  touch("in/b.png", "in/a.png")
  assert [path.name for path in list_images("in", recursive=False).files] == [
    "a.png",
    "b.png",
  ]
  with pytest.raises(NotADirectoryError):
    list_images("in/a.png", recursive=False)
