"""Images in pieces: as in one, whatever interrupts them."""

import dataclasses
import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from esrgan_jax import images
from esrgan_jax.images import Image, Metadata, large
from esrgan_jax.images import metadata as meta
from esrgan_jax.images.directories import swapped
from esrgan_jax.upscaling import pieces, upscaler
from tests import image_builders as build
from tests.image_builders import SRGB, noise
from tests.test_commands_upscale import run, save, weights
from tests.test_images_floats import waves
from tests.test_images_large import pyramid
from tests.test_upscaler import make_model
from tests.training_runs import ROOT

__all__ = ["run", "weights"]  # Fixtures.

# 6 x 5 tiles, and a row of tiles of the result that three of them give.
SIZE, TILE = (150, 110), ("--tile", 24, "--halo", 4)


def pictures():
  """Pictures of every kind, by name."""
  H, W = SIZE
  seen = np.zeros((H, W), np.uint8)
  seen[20:90, 30:80] = noise(70, 50) | 1
  words = Metadata(
    dpi=(300.0, 300.0),
    icc_profile=SRGB,
    exif=build.exif_block(),
    geotiff={33550: (2.0, 2.0, 0.0), 33922: (0.0,) * 6},
  )
  return {
    "rgb": Image(noise(H, W, 3), metadata=words),
    "grey": Image(noise(H, W, 1)),
    "16 bits": Image(noise(H, W, 3, dtype=np.uint16)),
    "floats": Image(waves(H, W, 3, top=2.0)),
    "halves of light": Image(
      waves(H, W, 3, dtype=np.float16).astype(np.float32),
      metadata=Metadata(bits=16, linear=True),
    ),
    "opaque": Image(noise(H, W, 3), np.full((H, W), 255, np.uint8)),
    "alpha": Image(noise(H, W, 3), seen | 1),
    "bands": Image(
      noise(H, W, 1), noise(H, W) | 1, extra=noise(H, W, 2, seed=3)
    ),
  }


def same(a, b, *, atol=0):
  """Asserts that two files have one picture, and say the same of it."""
  a, b = images.read_image(a), images.read_image(b)
  for name in ("pixels", "alpha", "extra"):
    left, right = getattr(a, name), getattr(b, name)
    assert (left is None) == (right is None)
    if left is not None:
      assert left.dtype == right.dtype
      np.testing.assert_allclose(
        left.astype(np.float64), right.astype(np.float64), rtol=0, atol=atol
      )
  assert said(a) == said(b)


def said(image):
  """Returns an image's metadata, and its EXIF's tags in one byte order."""
  exif = meta.load_exif(image.metadata.exif)
  assert not exif.damaged
  little = exif.order == "<"
  tree = exif.tree if little else swapped(exif.tree, exif.order)
  return dataclasses.replace(image.metadata, exif=None), tree


QUICK = {"rgb"}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in pictures()
  ],
)
def test_the_result_is_that_of_the_whole(run, name):
  images.write_image("a.tif", pictures()[name])
  assert run("a.tif", "-o", "whole.tif", *TILE)[0] == 0
  status, out, err = run("a.tif", "-o", "b.tif", *TILE, "--pieces", "always")
  assert (status, err) == (0, "")
  assert "b.tif: in " in out
  atol = {"floats": 1e-5, "halves of light": 2e-3}.get(name, 1)
  same("whole.tif", "b.tif", atol=atol)
  with tifffile.TiffFile("b.tif") as tiff:
    assert tiff.is_bigtiff
  assert {*os.listdir()} - {"cache"} == {"a.tif", "b.tif", "whole.tif"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--exact",), ("--ensemble",), ()])
def test_png_is_decoded_whole(run, options):
  save("a.png", size=SIZE[::-1])
  options = *options, *TILE[: 2 if options else 4]
  assert run("a.png", "-o", "whole.tif", *options)[0] == 0
  options = *options, "--pieces", "always"
  assert run("a.png", "-o", "b.tif", *options)[0] == 0
  same("whole.tif", "b.tif", atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [("--scale", 2), ("--width", 700)])
def test_other_sizes_are_resized_as_the_whole_is(run, size):
  images.write_image("a.tif", pictures()["16 bits"])
  assert run("a.tif", "-o", "whole.tif", *TILE, *size)[0] == 0
  options = *TILE, *size, "--pieces", "always"
  status, _, err = run("a.tif", "-o", "b.tif", *options)
  assert (status, err) == (0, "")
  same("whole.tif", "b.tif", atol=1)


@pytest.mark.slow
def test_what_is_seen_is_that_of_the_whole(run):
  """What lies under transparency far from all that is seen is not."""
  H, W = SIZE
  alpha = np.zeros((H, W), np.uint8)
  alpha[20:60, 30:80] = noise(40, 50) | 1
  images.write_image("a.tif", Image(noise(H, W, 3), alpha))
  assert run("a.tif", "-o", "whole.tif", *TILE)[0] == 0
  assert run("a.tif", "-o", "b.tif", *TILE, "--pieces", "always")[0] == 0
  a, b = images.read_image("whole.tif"), images.read_image("b.tif")
  np.testing.assert_allclose(a.alpha, b.alpha, rtol=0, atol=1)
  # As far as a pixel's nearest neighbour is one, and not one of several.
  seen = np.kron(alpha, np.ones((4, 4), np.uint8)) > 0
  differ = np.abs(a.pixels.astype(int) - b.pixels)[seen] > 1
  assert differ.mean() < 0.01


class _Stopped(BaseException):
  """As an interrupt."""


def upscale(model, source, target, **options):
  options = {"tile": 24, "halo": 4, **options}
  return pieces.upscale(
    model, pathlib.Path(source), pathlib.Path(target), **options
  )


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder, in which every tile is marked at once."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(pieces, "_OFTEN", 0.0)
  return tmp_path


def parts():
  return [path for path in pathlib.Path().iterdir() if path.suffix == ".part"]


def test_wherever_it_is_stopped_the_result_has_the_same_bytes(here):
  model = make_model(num_feat=4, num_grow_ch=2, devices=2)
  picture = pictures()["bands"]
  pyramid(
    "a.tif",
    np.concatenate([picture.pixels, picture.extra], axis=2),
    below=True,
    photometric="minisblack",
    planarconfig="contig",
    extrasamples=[0, 0],
  )
  upscale(model, "a.tif", "whole.tif")
  expected = pathlib.Path("whole.tif").read_bytes()
  begun, total = [], 0
  for stop in range(0, 200, 7):
    counts = []

    def stopping(done, most, counts=counts, stop=stop):
      counts.append((done, most))
      if len(counts) > 1 and done >= stop:
        raise _Stopped

    try:
      upscale(model, "a.tif", "b.tif", progress=stopping)
    except _Stopped:
      assert len(parts()) == 1
    begun.append(counts[0][0])
    total = counts[0][1]
    if not parts():
      break
  # Each went on where the one before it had been stopped, and not earlier.
  assert total == 6 * 5 * 3
  assert begun == sorted(begun)
  assert len(begun) > 5
  assert pathlib.Path("b.tif").read_bytes() == expected
  assert parts() == []


@pytest.mark.slow
def test_stopped_while_smaller_copies_are_made(here, monkeypatch):
  model = make_model(num_feat=4, num_grow_ch=2)
  pyramid("a.tif", noise(300, 150, 3), below=False, photometric="rgb")
  options = {"tile": 150, "halo": 4}
  upscale(model, "a.tif", "whole.tif", **options)
  usual, stopped = pieces._Run._reduced, 0
  for number in range(1, 6):

    def stopping(run, done, total, number=number):
      usual(run, done, total)
      if total - done <= 6 - number:
        raise _Stopped

    monkeypatch.setattr(pieces._Run, "_reduced", stopping)
    try:
      upscale(model, "a.tif", "b.tif", **options)
    except _Stopped:
      stopped += 1
  monkeypatch.setattr(pieces._Run, "_reduced", usual)
  upscale(model, "a.tif", "b.tif", **options, overwrite=True)
  assert stopped >= 3
  whole, got = (pathlib.Path(f"{n}.tif").read_bytes() for n in ("whole", "b"))
  assert got == whole


def test_a_torn_journal_and_lost_rows_cost_only_themselves(here):
  model = make_model(num_feat=4, num_grow_ch=2)
  images.write_image("a.tif", pictures()["rgb"])
  upscale(model, "a.tif", "whole.tif")
  expected = pathlib.Path("whole.tif").read_bytes()

  def stop(done, total):
    if done >= 13:
      raise _Stopped

  def began():
    counts = []

    def first(done, total):
      counts.append(done)
      raise _Stopped

    with pytest.raises(_Stopped):
      upscale(model, "a.tif", "b.tif", progress=first)
    return counts[0]

  with pytest.raises(_Stopped):
    upscale(model, "a.tif", "b.tif", progress=stop)
  (part,) = parts()
  assert began() == 13
  journal = part / "journal"
  with open(journal, "ab") as file:
    file.write(b'{"pieces": 19, "byt')
  assert began() == 13
  with open(part / "result.tif", "ab") as file:
    file.write(b"what was not marked")
  (part / "row.2.0").unlink()
  assert began() == 10  # Of five in a row, the third row has to begin anew.
  upscale(model, "a.tif", "b.tif")
  assert pathlib.Path("b.tif").read_bytes() == expected


@pytest.mark.slow
def test_another_model_or_image_begins_anew_and_loses_nothing(here):
  first, second = (
    make_model(seed, num_feat=4, num_grow_ch=2) for seed in (0, 1)
  )
  images.write_image("a.tif", pictures()["rgb"])

  def stop(done, total):
    if done >= 13:
      raise _Stopped

  with pytest.raises(_Stopped):
    upscale(first, "a.tif", "b.tif", progress=stop)
  (part,) = parts()
  said = []
  upscale(second, "a.tif", "b.tif", tell=said.append)
  assert any(part.name in line for line in said)
  assert parts() == [part]
  expected = second.upscale(pictures()["rgb"].pixels, tile=24, halo=4)
  got = images.read_image("b.tif").pixels
  np.testing.assert_allclose(got, expected, rtol=0, atol=1)
  counts = []
  upscale(
    first,
    "a.tif",
    "b.tif",
    overwrite=True,
    progress=lambda *done: counts.append(done[0]),
  )
  assert counts[0] == 13
  assert parts() == []


def test_nothing_is_overwritten_and_one_process_is_at_it(here):
  model = make_model(num_feat=4, num_grow_ch=2)
  images.write_image("a.tif", pictures()["rgb"])
  pathlib.Path("b.tif").write_bytes(b"mine")
  with pytest.raises(FileExistsError, match="exists already"):
    upscale(model, "a.tif", "b.tif")
  assert pathlib.Path("b.tif").read_bytes() == b"mine"

  def again(done, total):
    if done:
      upscale(model, "a.tif", "b.tif", overwrite=True)

  with pytest.raises(OSError, match="another process is at the same result"):
    upscale(model, "a.tif", "b.tif", overwrite=True, progress=again)
  assert pathlib.Path("b.tif").read_bytes() == b"mine"


def test_a_full_disk_costs_nothing_that_was_done(here):
  model = make_model(num_feat=4, num_grow_ch=2)
  images.write_image("a.tif", pictures()["rgb"])
  upscale(model, "a.tif", "whole.tif")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
  try:
    with pytest.raises(OSError, match=r"b.tif cannot be written: .* make room"):
      upscale(model, "a.tif", "b.tif")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not pathlib.Path("b.tif").exists()
  counts = []
  upscale(
    model, "a.tif", "b.tif", progress=lambda *done: counts.append(done[0])
  )
  assert counts[0] > 5
  whole, got = (pathlib.Path(f"{n}.tif").read_bytes() for n in ("whole", "b"))
  assert got == whole


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output"),
    (MemoryError(), "not enough memory"),
  ],
)
def test_what_may_pass_costs_nothing_that_was_done(
  here, monkeypatch, error, reason
):
  """A disk that fails, or memory that is short, while the image is read."""
  model = make_model(num_feat=4, num_grow_ch=2)
  images.write_image("a.tif", pictures()["rgb"])
  read, failing = large._Tiff._stored_window, []

  def read_or_not(*args, **options):
    if failing:
      raise error
    return read(*args, **options)

  def progress(done, total):
    if done >= 8:
      failing.append(done)

  monkeypatch.setattr(large._Tiff, "_stored_window", read_or_not)
  with pytest.raises(
    images.ImageError, match=rf"a\.tif: {reason}.*; what is done is kept"
  ):
    upscale(model, "a.tif", "b.tif", progress=progress)
  assert len(parts()) == 1
  failing.clear()
  counts = []
  upscale(
    model, "a.tif", "b.tif", progress=lambda *done: counts.append(done[0])
  )
  assert counts[0] >= 8
  assert parts() == []


@pytest.mark.slow
def test_a_damaged_image_leaves_nothing(here):
  model = make_model(num_feat=4, num_grow_ch=2)
  tifffile.imwrite(
    "a.tif",
    noise(*SIZE, 3),
    photometric="rgb",
    tile=(32, 32),
    compression="zlib",
    metadata=None,
  )
  with tifffile.TiffFile("a.tif") as tiff:
    at, size = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
  data = bytearray(pathlib.Path("a.tif").read_bytes())
  data[at : at + size] = bytes(size)
  pathlib.Path("a.tif").write_bytes(data)
  with pytest.raises(images.ImageError, match=r"a\.tif: damaged"):
    upscale(model, "a.tif", "b.tif")
  assert os.listdir() == ["a.tif"]


_KILLED = """
import os, pathlib, signal, sys
from esrgan_jax.upscaling import pieces, upscaler
pieces._OFTEN = 0.0
def progress(done, total):
  if done >= 11:
    os.kill(os.getpid(), signal.SIGKILL)
pieces.upscale(
  upscaler.load(sys.argv[1]), *map(pathlib.Path, ("a.tif", "b.tif")),
  tile=24, halo=4, record="as the command says", progress=progress,
)
"""


@pytest.mark.slow
def test_kill_and_the_command_again(run, weights, tmp_path):
  """A real process, killed in the middle; then a real signal in another."""
  images.write_image("a.tif", pictures()["alpha"])
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "ESRGAN_JAX_CACHE": str(tmp_path / "cache"),
  }
  started = {"cwd": tmp_path, "env": environment, "check": False}
  done = subprocess.run(
    [sys.executable, "-c", _KILLED, str(weights)], **started
  )
  assert done.returncode == -signal.SIGKILL
  (part,) = parts()
  with open(part / "journal") as journal:
    assert len(journal.readlines()) > 2
  killed = _KILLED.replace("SIGKILL", "SIGTERM").replace("11", "20")
  done = subprocess.run([sys.executable, "-c", killed, str(weights)], **started)
  assert done.returncode == -signal.SIGTERM
  assert parts() == [part]
  model = upscaler.load(weights, devices=None)
  counts = []
  upscale(
    model,
    "a.tif",
    "b.tif",
    record="as the command says",
    progress=lambda *done: counts.append(done[0]),
  )
  assert counts[0] >= 20
  upscale(model, "a.tif", "c.tif", record="as the command says")
  same("b.tif", "c.tif", atol=1)
  assert parts() == []


@pytest.mark.slow
def test_a_pyramid_stays_one_and_is_chosen_by_itself(run):
  H, W = 260, 200
  for below in (True, False):
    pyramid("a.tif", noise(H, W, 3), below=below, photometric="rgb")
    status, out, err = run("a.tif", "--overwrite", "-n")
    assert (status, err) == (0, "")
    assert "200 x 260 -> 800 x 1040, in pieces" in out
    assert run("a.tif", "--overwrite", "--tile", 100, "--halo", 4)[0] == 0
    with tifffile.TiffFile("a_x4.tif") as tiff:
      page = tiff.pages[0]
      copies = page.pages if below else tiff.pages[1:]
      sizes = [copy.shape[:2] for copy in copies]
      assert sizes == [(520, 400), (260, 200), (130, 100)]
      whole = page.asarray().astype(float)
      means = whole.reshape(130, 8, 100, 8, 3).mean(axis=(1, 3))
      difference = np.abs(copies[-1].asarray() - means)
    assert difference.max() <= 1.5  # Of three roundings.
    assert images.read_storage("a_x4.tif") == (
      3,
      "parts" if below else "pages",
    )


def test_what_outgrows_memory_is_done_in_pieces(run, monkeypatch):
  # Of a header alone: 192 MB that are not there.
  tifffile.memmap("huge.tif", shape=(8000, 8000, 3), dtype=np.uint8)
  status, out, err = run("huge.tif", "-o", "huge_x4.tif", "--dry-run")
  assert (status, err) == (0, "")
  assert "8000 x 8000 -> 32000 x 32000, in pieces" in out
  for options, reason in (
    (("-o", "b.png"), "results in pieces are .tif, .tiff or .zarr, not"),
    (("--seamless",), "are not joined in pieces"),
    (("--consistent",), "--consistent looks at the whole image"),
  ):
    status, out, err = run("huge.tif", *options, "-n")
    assert (status, err) == (0, "")
    assert f"not in pieces: {reason}" in out or reason in out
    status, out, err = run("huge.tif", *options, "-n", "--pieces", "always")
    assert status == 1
    assert reason in err
  status, out, _ = run("huge.tif", "-n", "--pieces", "never")
  assert "pieces" not in out
  os.unlink("huge.tif")
  save("a.png")
  assert "pieces" not in run("a.png", "-o", "a.tif", "-n")[1]
  monkeypatch.setattr(pieces, "BUDGET", 5000)
  assert ", in pieces" in run("a.png", "-o", "a.tif", "-n")[1]
  assert ", not in pieces" in run("a.png", "-n")[1]


@pytest.mark.slow
def test_memory_that_is_short_is_told(here, monkeypatch):
  model = make_model(num_feat=4, num_grow_ch=2)
  images.write_image("a.tif", pictures()["rgb"])

  def stop(done, total):
    if done >= 13:
      raise _Stopped

  with pytest.raises(_Stopped):
    upscale(model, "a.tif", "b.tif", progress=stop)
  monkeypatch.setattr("esrgan_jax.upscaling.memory.free_memory", lambda _: 10)
  with pytest.raises(pieces.memory.OutOfMemoryError):
    upscale(model, "a.tif", "b.tif")
  assert len(parts()) == 1
