"""VGG19's weights from files: torchvision's, Keras's layouts, hostile ones."""

import math
import struct

import h5py
import numpy as np
import pytest

from esrgan_jax.models import vgg
from esrgan_jax.text import printable
from esrgan_jax.weights.vgg import read_vgg
from tests import mutation
from tests import weight_builders as build


def _read(path):
  return read_vgg(path, shapes=build.SLIM_VGG)


def _write_torchvision(path, kernels):
  path.write_bytes(build.zip_pth(build.torchvision_state(kernels)))
  return path


def _keras_2(**options):
  return lambda path, kernels: build.write_keras_2(path, kernels, **options)


_KERAS = {
  "keras 2": _keras_2(),
  "keras 2, a model": _keras_2(inside="model_weights", slash=True, encode=str),
  "keras 3": build.write_keras_3,
}


@pytest.mark.parametrize(
  ("layout", "dtype"),
  [
    *(("torchvision", dtype) for dtype in ("<f4", "<f2", "<f8")),
    *((k, dtype) for k in _KERAS for dtype in ("<f4", "<f2", "<f8", ">f4")),
  ],
)
def test_every_layout_gives_the_same_kernels(tmp_path, layout, dtype):
  is_bgr, write = layout in _KERAS, _KERAS.get(layout, _write_torchvision)
  kernels = {
    name: [array.astype(dtype) for array in arrays]
    for name, arrays in build.vgg_kernels().items()
  }
  found = _read(write(tmp_path / "vgg.file", kernels))
  for name, (kernel, bias) in kernels.items():
    if is_bgr and name == "conv1_1":
      kernel = kernel[:, :, ::-1]
    for array, expected in zip(
      (found[name]["kernel"], found[name]["bias"]), (kernel, bias), strict=True
    ):
      np.testing.assert_array_equal(array, expected.astype(np.float32))
  expected = (
    np.array([123.68, 116.779, 103.939]) / 255
    if is_bgr
    else np.array([0.485, 0.456, 0.406])
  )
  np.testing.assert_allclose(found["normalization"]["mean"], expected, 1e-6)


def test_shapes_are_those_of_the_network():
  # As Keras counts them (`VGG19(include_top=False)`, `VGG16`).
  for shapes, expected in (
    (vgg.KERNEL_SHAPES, 20_024_384),
    (vgg.VGG16_KERNEL_SHAPES, 14_714_688),
  ):
    sizes = (math.prod(s) + s[-1] for s in shapes.values())
    assert sum(sizes) == expected


def _write_vgg16(path, kernels):
  state = build.torchvision_state(kernels, vgg.VGG16_LAYERS)
  path.write_bytes(build.zip_pth(state))
  return path


@pytest.mark.parametrize("layout", ["torchvision", *_KERAS])
def test_vgg16_is_told_from_vgg19(tmp_path, layout):
  kernels = build.vgg_kernels(build.SLIM_VGG16)
  options = {"network": "vgg16", "shapes": build.SLIM_VGG16}
  write = _KERAS.get(layout, _write_vgg16)
  found = read_vgg(write(tmp_path / "vgg16.file", kernels), **options)
  assert found.keys() == {"normalization", *build.SLIM_VGG16}
  for name, (kernel, bias) in kernels.items():
    if layout in _KERAS and name == "conv1_1":
      kernel = kernel[:, :, ::-1]
    np.testing.assert_array_equal(found[name]["kernel"], kernel)
    np.testing.assert_array_equal(found[name]["bias"], bias)
  with pytest.raises(ValueError, match=r"vgg16\.file is not VGG19: "):
    _read(tmp_path / "vgg16.file")
  write = _KERAS.get(layout, _write_torchvision)
  path = write(tmp_path / "vgg19.file", build.vgg_kernels())
  with pytest.raises(ValueError, match=r"vgg19\.file is not VGG16: "):
    read_vgg(path, **options)


def test_there_are_two_networks(tmp_path):
  with pytest.raises(ValueError, match="one of vgg19, vgg16, got 'vgg13'"):
    read_vgg(tmp_path / "a.pth", network="vgg13")


def _external(file):
  del file["block3_conv1/block3_conv1_W_1:0"]
  file["block3_conv1"].create_dataset(
    "block3_conv1_W_1:0",
    (3, 3, 2, 2),
    "<f4",
    external=[("/etc/passwd", 0, 144)],
  )


def _replace(value=None, *, name="block3_conv1/block3_conv1_W_1:0", **options):
  def change(file):
    del file[name]
    if value is not None or options:
      file.create_dataset(name, data=value, **options)

  return change


def _virtual(file):
  _replace()(file)
  layout = h5py.VirtualLayout((3, 3, 2, 2), "<f4")
  layout[...] = h5py.VirtualSource("/etc/passwd", "x", (3, 3, 2, 2), "<f4")
  file["block3_conv1"].create_virtual_dataset("block3_conv1_W_1:0", layout)


def _link(link, name="block3_conv1/block3_conv1_W_1:0"):
  def change(file):
    del file[name]
    file[name] = link

  return change


def _attribute(value):
  def change(file):
    del file["block3_conv1"].attrs["weight_names"]
    if value is not None:
      file["block3_conv1"].attrs["weight_names"] = value

  return change


def _named_type(file):
  file["type"] = np.dtype("<f4")
  _replace()(file)
  file["block3_conv1"].create_dataset(
    "block3_conv1_W_1:0", (3, 3, 2, 2), file["type"]
  )


_ZEROS = np.zeros((3, 3, 2, 2), np.float32)
_HOSTILE = {
  "missing": (_replace(), "block3_conv1_W_1:0 is missing"),
  "no layer": (_replace(name="block3_conv1"), "the layer is missing"),
  "a layer that is an array": (_replace(1.0, name="block3_conv1"), "missing"),
  "an array that is a layer": (
    lambda f: (
      _replace()(f),
      f.create_group("block3_conv1/block3_conv1_W_1:0"),
    ),
    "is missing",
  ),
  "NaN": (_replace(_ZEROS * np.nan), "36 values that are NaN"),
  "infinite": (_replace(_ZEROS.astype("f8") + 1e300), "36 values"),
  "complex": (_replace(_ZEROS * 1j), "holds no floats"),
  "integers": (_replace(_ZEROS.astype("i4")), "holds no floats"),
  "booleans": (_replace(_ZEROS.astype("?")), "holds no floats"),
  "texts": (_replace(_ZEROS.astype("S4")), "holds no floats"),
  "shape": (_replace(_ZEROS[0]), r"\(3, 2, 2\), not \(3, 3, 2, 2\)"),
  "a number": (_replace(1.5), r"of shape \(\), not"),
  "nothing": (_replace(h5py.Empty("f4")), "of shape"),
  "another file": (_external, "in another file"),
  "virtual": (_virtual, "virtual"),
  "terabytes": (
    _replace(shape=(3, 3, 2**20, 2**20), dtype="f4", chunks=(3, 3, 64, 64)),
    "of shape",
  ),
  "unallocated": (
    _replace(shape=(3, 3, 2, 2), dtype="f4", chunks=(3, 3, 2, 2)),
    "in chunks",
  ),
  "never written": (_replace(shape=(3, 3, 2, 2), dtype="f4"), "never written"),
  "compressed": (_replace(_ZEROS, compression="gzip"), "h5repack -l CONTI"),
  "a type of its own": (_named_type, "has not a type of its own"),
  "soft link": (_link(h5py.SoftLink("/block3_conv2")), "link"),
  "soft link of a layer": (
    _link(h5py.SoftLink("/block3_conv2"), "block3_conv1"),
    "link",
  ),
  "external link": (_link(h5py.ExternalLink("/etc/passwd", "/")), r"."),
  "no names": (_attribute(None), "does not name a kernel"),
  "one name": (_attribute([b"a"]), "does not name a kernel"),
  "a number for names": (_attribute(7), "no list of names"),
  "floats for names": (_attribute(np.zeros(2)), "no list of names"),
  "names of nothing": (_attribute([b"a", b"b"]), "a is missing"),
  "a name that recolours": (_attribute(["\x1b[31m", "b"]), r"\\x1b\[31m is"),
  "a long name": (_attribute([b"a" * 501, b"b"]), "501 bytes"),
  "names that are paths": (_attribute([b"../b", b"/etc"]), "is missing"),
  "many names": (_attribute([b"a"] * 600), "600 items"),
}


@pytest.mark.parametrize("case", _HOSTILE)
def test_hostile_keras_files_are_refused_at_once(tmp_path, case):
  change, message = _HOSTILE[case]
  path = build.write_keras_2(tmp_path / "vgg.h5", build.vgg_kernels())
  with h5py.File(path, "r+") as file:
    change(file)
  _refused(path, message)


def _refused(path, message):
  with (
    mutation.bounded(seconds=5, megabytes=300),
    pytest.raises(ValueError, match=message) as caught,
  ):
    _read(path)
  text = str(caught.value)
  assert text.startswith(f"{path} is not VGG19: ")
  assert text == printable(text, limit=len(text) + 1)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda f: f.__delitem__("layers/conv2d_15"), "block5_conv4: the layer is"),
    (
      lambda f: f.__delitem__("layers/conv2d_3/vars"),
      "block2_conv2: the layer",
    ),
    (
      lambda f: f.__delitem__("layers/conv2d/vars/1"),
      "block1_conv1: 1 is missi",
    ),
    (lambda f: f.__delitem__("layers"), "block1_conv1: the layer is missing"),
    (lambda f: f.move("layers/conv2d_2", "layers/conv2d_99"), "block"),
  ],
)
def test_hostile_keras_3_files(tmp_path, change, message):
  kernels = build.vgg_kernels()
  kernels["conv2_1"] = kernels["conv2_1"][0][..., :1], kernels["conv2_1"][1]
  path = build.write_keras_3(tmp_path / "vgg.h5", build.vgg_kernels())
  with h5py.File(path, "r+") as file:
    change(file)
    if "conv2d_99" in file.get("layers", ()):  # Where order alone decides.
      file["layers/conv2d_99/vars/1"][0] = np.nan
  _refused(path, message)


def test_a_group_that_holds_itself(tmp_path):
  path = build.write_keras_2(tmp_path / "vgg.h5", build.vgg_kernels())
  with h5py.File(path, "r+") as file:
    file["block3_conv1/again"] = file["/"]
    file["block3_conv1"].attrs["weight_names"] = ["again/" * 80 + "x", "b"]
  _refused(path, "block3_conv1: ")


def test_a_newer_version_of_the_format_is_called_so(tmp_path):
  path = tmp_path / "vgg.h5"
  with h5py.File(path, "w", libver="latest") as file:
    file["a"] = 1.0
  _refused(path, "without libver='latest'")


@pytest.mark.parametrize("end", [9, 60, 500, 20_000, -1])
def test_keras_file_cut_off(tmp_path, end):
  path = build.write_keras_2(tmp_path / "vgg.h5", build.vgg_kernels())
  path.write_bytes(path.read_bytes()[:end])
  _refused(path, "cut off")


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (np.full((2, 2, 3, 3), np.nan, "f4"), "36 values that are NaN"),
    (np.zeros((2, 2, 3, 3), "f4")[0], r"of shape \(2, 3, 3\), not"),
    (b"N", "is missing"),
    (b"K\x07", "is no array"),
    (build.laughs(30), "is no array"),
    (b"}", "is no array"),
  ],
)
def test_hostile_torchvision_files(tmp_path, value, message):
  name = f"features.{vgg.LAYERS.index('conv3_1')}.weight"
  state = build.torchvision_state(build.vgg_kernels())
  path = tmp_path / "vgg.pth"
  if isinstance(value, bytes):
    del state[name]
    path.write_bytes(build.zip_pth(state, lambda t: {**t, name: value}))
  else:
    path.write_bytes(build.zip_pth({**state, name: value}))
  _refused(path, rf"{name} \(conv3_1\).*{message}")


def test_integers_are_no_weights(tmp_path):
  state = build.torchvision_state(build.vgg_kernels())
  name = f"features.{vgg.LAYERS.index('conv3_1')}.bias"
  code = build.tensor_code("0", np.zeros(2, "<i8"), storage="LongStorage")
  arrays = {str(i): v for i, v in enumerate(state.values(), 1)}
  tree = {
    n: build.tensor_code(k, v)
    for (k, v), n in zip(arrays.items(), state, strict=True)
  }
  data = build.zip_file(
    build.dumps({**tree, name: code}), {**arrays, "0": np.zeros(2, "<i8")}
  )
  path = tmp_path / "vgg.pth"
  path.write_bytes(data)
  _refused(path, "holds no floats")


def test_no_such_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no file"):
    read_vgg(tmp_path / "a.h5")
  (tmp_path / "short.h5").write_bytes(struct.pack("<B", 0x89))
  with pytest.raises(ValueError, match="is not VGG19"):
    read_vgg(tmp_path / "short.h5")
