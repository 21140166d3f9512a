"""Zarr in and out, by the command; what is wrong with a stranger's folder."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from esrgan_jax import extras, images
from esrgan_jax.images import ImageError, large, zarr_arrays
from esrgan_jax.upscaling import pieces
from tests.image_builders import noise
from tests.test_commands_upscale import run, save, weights
from tests.test_images_floats import waves
from tests.test_pieces import TILE, _Stopped, here, parts, upscale
from tests.test_upscaler import make_model

__all__ = ["here", "run", "weights"]  # Fixtures.


def test_without_the_package_it_is_said_what_is_missing(run, monkeypatch):
  monkeypatch.setattr(zarr_arrays, "can_write", lambda: False)
  save("a.png")
  status, _, err = run("a.png", "-o", "b.zarr")
  assert status == 1
  assert extras.pip_install("zarr") in err
  os.mkdir("c.zarr")
  pathlib.Path("c.zarr", "zarr.json").write_text("{}")
  status, _, err = run("c.zarr", "-o", "b.tif")
  assert status == 1
  assert "error: c.zarr" in err


def make(path, samples, **options):
  import zarr

  options = {"chunks": (40, 40, 3)[: samples.ndim], **options}
  array = zarr.create_array(
    path, shape=samples.shape, dtype=samples.dtype, **options
  )
  array[...] = samples
  return path


def read(path, inner=""):
  import zarr

  return zarr.open_array(f"{path}{inner}", mode="r")[...]


@pytest.mark.runtimes
@pytest.mark.parametrize("version", [2, 3])
def test_an_array_becomes_one_of_its_kind(run, weights, version):
  from esrgan_jax.upscaling import upscaler

  samples = noise(110, 150, 3, dtype=np.uint16)
  names = {"dimension_names": ["c", "y", "x"]} if version == 3 else {}
  make(
    "a.zarr",
    samples.transpose(2, 0, 1),
    chunks=(3, 40, 40),
    zarr_format=version,
    **names,
  )
  status, out, err = run("a.zarr", *TILE, "-n")
  assert (status, err) == (0, "")
  assert "a_x4.zarr  150 x 110 -> 600 x 440, in pieces" in out
  status, out, err = run("a.zarr", *TILE)
  assert (status, err) == (0, "")
  result = read("a_x4.zarr").transpose(1, 2, 0)
  expected = upscaler.load(weights).upscale(samples, tile=24, halo=4)
  np.testing.assert_allclose(
    result.astype(int), expected.astype(int), rtol=0, atol=1
  )
  head = {2: ".zarray", 3: "zarr.json"}[version]
  assert os.path.isfile(f"a_x4.zarr/{head}")
  # No folder is replaced, and what is there is left out if that is asked for.
  assert run("a.zarr", "--overwrite")[0] == 1
  assert run("a.zarr", "--skip-existing")[1] == "a_x4.zarr  exists, skipped\n"


@pytest.mark.runtimes
def test_ome_zarr_stays_such_with_scales_that_fit(run):
  import zarr

  samples = noise(300, 260, dtype=np.uint16)
  axes = [
    {"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"
  ]
  axes.insert(0, {"name": "z", "type": "space"})
  datasets = [
    {
      "path": name,
      "coordinateTransformations": [{"type": "scale", "scale": [1, s, s]}],
    }
    for name, s in (("full", 0.5), ("half", 1.0))
  ]
  zarr.create_group(
    "a.zarr",
    zarr_format=2,
    attributes={
      "multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]
    },
  )
  options = {"chunks": (1, 64, 64), "zarr_format": 2}
  make("a.zarr/full", samples[None], **options)
  make("a.zarr/half", samples[None, ::2, ::2], **options)
  status, _, err = run("a.zarr", "-o", "b.zarr", "--tile", 64, "--halo", 4)
  assert (status, err) == (0, "")
  found = json.loads(pathlib.Path("b.zarr/.zattrs").read_text())
  (scales,) = found["multiscales"]
  assert scales["axes"] == axes
  assert [
    each["coordinateTransformations"][0]["scale"] for each in scales["datasets"]
  ] == [[1, 0.125, 0.125], [1, 0.25, 0.25], [1, 0.5, 0.5]]
  assert "esrgan_jax" in found["software"]
  full, half = read("b.zarr", "/0")[0], read("b.zarr", "/1")[0]
  means = full.reshape(600, 2, 520, 2).astype(float).mean(axis=(1, 3))
  assert np.abs(half - means).max() <= 0.5
  # And into a TIFF with as many copies.
  assert run("a.zarr", "-o", "b.tif", "--tile", 64, "--halo", 4)[0] == 0
  np.testing.assert_array_equal(images.read_image("b.tif").pixels[..., 0], full)
  assert images.read_storage("b.tif") == (2, "parts")


@pytest.mark.runtimes
@pytest.mark.parametrize("levels", [False, True])
def test_wherever_it_is_stopped_the_result_is_the_same(
  here, levels, monkeypatch
):
  monkeypatch.setattr(zarr_arrays, "_CHUNK", 256)
  model = make_model(num_feat=4, num_grow_ch=2, devices=2)
  samples = waves(150, 110, 4)
  make("a.zarr", samples, chunks=(40, 40, 4))
  if levels:
    from tests.test_images_large import pyramid

    shutil.rmtree("a.zarr")
    pyramid("a.zarr.tif", noise(150, 110, 3), below=True, photometric="rgb")
    os.rename("a.zarr.tif", "a.zarr")
  upscale(model, "a.zarr", "whole.zarr")
  begun = []
  for stop in range(5, 200, 11):
    counts = []

    def stopping(done, total, counts=counts, stop=stop):
      counts.append(done)
      if len(counts) > 1 and done >= stop:
        raise _Stopped

    try:
      upscale(model, "a.zarr", "b.zarr", progress=stopping)
    except _Stopped:
      assert len(parts()) == 1
    begun.append(counts[0])
    if not parts():
      break
  assert begun == sorted(begun)
  assert len(begun) > 3
  files = [
    {
      path.relative_to(folder): path.read_bytes()
      for path in pathlib.Path(folder).rglob("*")
      if path.is_file()
    }
    for folder in ("whole.zarr", "b.zarr")
  ]
  assert files[0] == files[1]
  assert len(files[0]) > 4


@pytest.mark.runtimes
def test_what_a_stranger_may_not_say(tmp_path):
  good = make(tmp_path / "a.zarr", noise(60, 50, 3))
  head = json.loads((good / "zarr.json").read_text())

  def refused(match, **changes):
    (good / "zarr.json").write_text(json.dumps({**head, **changes}))
    with pytest.raises(ImageError, match=match), large.open_large(good):
      pass

  def grid(*sides):
    return {"name": "regular", "configuration": {"chunk_shape": sides}}

  refused("codec 'pickle' is not read", codecs=[{"name": "pickle"}])
  inside = {"codecs": [{"name": "numcodecs.python"}], "index_codecs": []}
  shards = {"name": "sharding_indexed", "configuration": inside}
  refused("codec 'numcodecs.python' is not read", codecs=[shards])
  refused("its numbers are int64", data_type="int64")
  refused("its chunks .* decoded at once", chunk_grid=grid(40000, 40000, 3))
  refused("more than max_pixels", shape=[10**6, 10**6, 3])
  refused("of chunks", shape=[60, -5, 3])
  refused("a picture is", shape="large")
  refused("a picture is", shape=[60, 50, 7])
  refused("is a group without OME-Zarr's", node_type="group", shape=None)
  (good / "zarr.json").write_text(json.dumps(head))
  chunk = next(path for path in good.rglob("c/0/0/0"))
  chunk.unlink()
  chunk.symlink_to("/etc/hostname")
  with pytest.raises(ImageError, match="is a link"):
    zarr_arrays.stamps(good)
  chunk.unlink()
  chunk.write_bytes(b"no chunk")
  with (
    large.open_large(good) as picture,
    pytest.raises(ImageError, match=r"a\.zarr: damaged"),
  ):
    picture.read(slice(0, 10), slice(0, 10))
  group = tmp_path / "b.zarr"
  group.mkdir()
  elsewhere = {"multiscales": [{"datasets": [{"path": "../a.zarr"}]}]}
  (group / "zarr.json").write_text(
    json.dumps({"zarr_format": 3, "attributes": {"ome": elsewhere}})
  )
  with (
    pytest.raises(ImageError, match="lies elsewhere"),
    large.open_large(group),
  ):
    pass


@pytest.mark.runtimes
def test_png_becomes_an_array(run):
  array = save("a.png", "L", size=(60, 50))
  status, _, err = run("a.png", "-o", "b.zarr", *TILE)
  assert (status, err) == (0, "")
  assert run("a.png", "-o", "b.png", *TILE)[0] == 0
  assert read("b.zarr").shape == (4 * array.shape[0], 4 * array.shape[1])
  np.testing.assert_allclose(
    read("b.zarr").astype(int),
    images.read_image("b.png").pixels[..., 0].astype(int),
    rtol=0,
    atol=1,
  )
  assert pieces.why_not(pathlib.Path("b.zarr")) is None
