"""Builds small weight files byte by byte: no PyTorch, no ncnn needed."""

import dataclasses
import io
import pickle
import struct
import zipfile

import h5py
import numpy as np

from esrgan_jax.models import vgg
from esrgan_jax.weights import zoo
from esrgan_jax.weights.dialects import rrdb as names
from tests import golden

CONFIG = {
  "num_in_ch": 3,
  "num_out_ch": 3,
  "num_feat": 6,
  "num_block": 2,
  "num_grow_ch": 4,
  "scale": 4,
  "unshuffle": 1,
}
# What is read has the architecture besides.
NETWORK = {"architecture": "RRDBNet", **CONFIG}

_STORAGE = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage"}


def random_state(config=None, seed=0, dtype=np.float32):
  """Returns a state dict of random arrays in BasicSR's names."""
  rng = np.random.default_rng(seed)
  return {
    name: (0.1 * rng.standard_normal(shape)).astype(dtype)
    for name, shape in names.shapes({**CONFIG, **(config or {})}).items()
  }


def authors(state):
  """Returns the state dict in the names of xinntao/ESRGAN."""
  changes = (
    ("body.", "RRDB_trunk."),
    (".rdb", ".RDB"),
    ("conv_body", "trunk_conv"),
    ("conv_up", "upconv"),
    ("conv_hr", "HRconv"),
  )
  result = {}
  for key, value in state.items():
    for new, old in changes:
      if new != "body." or key.startswith("body."):
        key = key.replace(new, old)
    result[key] = value
  return result


def oldest(state):
  """Returns the state dict in the names of xinntao/ESRGAN before 2019."""
  blocks = len({k.split(".")[1] for k in state if k.startswith("body.")})
  num_up = len({k.split(".")[0] for k in state if k.startswith("conv_up")})
  layers = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
  layers |= {f"conv_up{i + 1}": f"model.{3 * i + 3}" for i in range(num_up)}
  layers["conv_hr"] = f"model.{3 * num_up + 2}"
  layers["conv_last"] = f"model.{3 * num_up + 4}"
  result = {}
  for key, value in state.items():
    layer, kind = key.rsplit(".", 1)
    if layer.startswith("body."):
      _, n, rdb, conv = layer.split(".")
      name = f"model.1.sub.{n}.{rdb.upper()}.{conv}.0"
    else:
      name = layers[layer]
    result[f"{name}.{kind}"] = value
  return result


class Pickler:
  """Writes pickle instructions, those that PyTorch writes and others."""

  def __init__(self):
    self.code = bytearray(b"\x80\x02")

  def put(self, value):
    """Appends the instructions that build a plain value."""
    if isinstance(value, bytes):  # Instructions as they are.
      self.code += value
    elif value is None:
      self.code += b"N"
    elif isinstance(value, bool):
      self.code += b"\x88" if value else b"\x89"
    elif isinstance(value, int):
      self.code += b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)
    elif isinstance(value, str):
      raw = value.encode()
      self.code += b"X" + struct.pack("<I", len(raw)) + raw
    elif isinstance(value, (list, tuple)):
      self.code += b"("
      for item in value:
        self.put(item)
      self.code += b"t" if isinstance(value, tuple) else b"l"
    else:
      self.code += b"}("
      for key, item in value.items():
        self.put(key)
        self.put(item)
      self.code += b"u"

  def done(self):
    return bytes(self.code) + b"."


def dumps(value):
  pickler = Pickler()
  pickler.put(value)
  return pickler.done()


def tensor_code(
  key, array, *, legacy=False, storage=None, size=None, shape=None,
  strides=None, offset=0,
):  # fmt: skip
  """Returns the instructions that rebuild a tensor, lies included."""
  storage = storage or _STORAGE[array.dtype.str[1:]]
  shape = array.shape if shape is None else shape
  if strides is None:
    strides = tuple(s // array.itemsize for s in array.strides)
  size = array.size if size is None else size
  reference = ("storage", f"ctorch\n{storage}\n".encode(), key, "cpu", size)
  pickler = Pickler()
  pickler.code.clear()
  pickler.put(b"ctorch._utils\n_rebuild_tensor_v2\n")
  pickler.put(b"(")
  pickler.put((*reference, None) if legacy else reference)
  pickler.put(b"Q")
  for value in (offset, tuple(shape), tuple(strides), False):
    pickler.put(value)
  pickler.put(b"ccollections\nOrderedDict\n)R")
  pickler.put(b"tR")
  return bytes(pickler.code)


def zip_file(pickled, arrays, *, byteorder=b"little", compression=0):
  """Returns a .pth file of PyTorch >= 1.6."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", compression) as archive:
    archive.writestr("archive/data.pkl", pickled)
    if byteorder is not None:
      archive.writestr("archive/byteorder", byteorder)
    for key, array in arrays.items():
      archive.writestr(f"archive/data/{key}", array.tobytes())
    archive.writestr("archive/version", b"3\n")
  return buffer.getvalue()


def zip_pth(state, wrap=lambda tree: tree, **options):
  """Returns a state dict as a .pth file of PyTorch >= 1.6."""
  arrays = {str(i): value for i, value in enumerate(state.values())}
  tree = {
    name: tensor_code(key, arrays[key])
    for name, key in zip(state, arrays, strict=True)
  }
  return zip_file(dumps(wrap(tree)), arrays, **options)


def legacy_pth(state, wrap=lambda tree: tree):
  """Returns a state dict as a .pth file of PyTorch < 1.6."""
  arrays = {str(1000 + i): value for i, value in enumerate(state.values())}
  tree = {
    name: tensor_code(key, arrays[key], legacy=True)
    for name, key in zip(state, arrays, strict=True)
  }
  info = {"protocol_version": 1001, "little_endian": True}
  pickles = (0x1950A86A20F9469CFC6C, 1001, info, wrap(tree), list(arrays))
  parts = [dumps(p) for p in pickles]
  for array in arrays.values():
    parts += [struct.pack("<q", array.size), array.tobytes()]
  return b"".join(parts)


def laughs(depth):
  """Returns instructions for a list of 2**depth items, in a few bytes."""
  code = b"](K\x01K\x01e"
  for i in range(depth):
    code += b"q" + bytes([i]) + b"0](" + (b"h" + bytes([i])) * 2 + b"e"
  return code


class Evil:
  """Pickles into a call of any function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def evil_pickle(function, *args, protocol=2):
  return pickle.dumps(Evil(function, *args), protocol=protocol)


def write_ncnn(folder, state, *, factors=(2, 2), half=True, name="model"):
  """Writes a state dict as ncnn's pair of files; returns the `.param`."""
  layers = ["Input data 0 1 data"]
  blob = b""
  ups = iter(factors)
  for key in [k for k in state if k.endswith(".weight")]:
    weight, bias = state[key], state[key.replace(".weight", ".bias")]
    if key.startswith("conv_up"):
      layers.append(f"Interp {key} 1 1 a b 0=1 1={(f := next(ups)):e} 2={f:e}")
    layers.append(
      f"Convolution {key} 1 1 a b 0={weight.shape[0]} 1=3 4=1 5=1"
      f" 6={weight.size} 9=2 -23310=1,2.000000e-01"
    )
    data = weight.astype("<f2" if half else "<f4").tobytes()
    blob += struct.pack("<I", 0x01306B47 if half else 0)
    blob += data + b"\0" * (-len(data) % 4) + bias.astype("<f4").tobytes()
  param = folder / f"{name}.param"
  param.write_text(f"7767517\n{len(layers)} 9\n" + "\n".join(layers) + "\n")
  param.with_suffix(".bin").write_bytes(blob)
  return param


def write_general(folder):
  """Writes the zoo's two models of a strength of denoising, small ones.

  One has the other's weights, negated. Returns their entries, without checksum.
  """
  found = []
  state = golden.compact_state(golden.compact_config("x4"))
  for name, sign in (("general-x4v3", 1), ("general-wdn-x4v3", -1)):
    entry = dataclasses.replace(zoo.get(name), sha256=None, url=None)
    arrays = {key: sign * value for key, value in state.items()}
    data = zip_pth(arrays, lambda tree: {"params": tree})
    (folder / entry.filename).write_bytes(data)
    found.append(entry)
  return tuple(found)


# VGG19's layers, 2 channels wide but for the image.
SLIM_VGG = {
  name: (3, 3, 3 if name == "conv1_1" else 2, 2) for name in vgg.CONV_LAYERS
}
SLIM_VGG16 = {name: SLIM_VGG[name] for name in vgg.VGG16_KERNEL_SHAPES}


def vgg_kernels(shapes=None):
  """Returns `{"conv1_1": (kernel, bias), ...}`, slim by default."""
  rng = np.random.default_rng(0)
  return {
    name: (
      rng.standard_normal(shape, np.float32),
      rng.standard_normal(shape[-1], np.float32),
    )
    for name, shape in (shapes or SLIM_VGG).items()
  }


def torchvision_state(kernels, layers=vgg.LAYERS):
  """Returns a VGG's kernels as torchvision's state dict."""
  state = {}
  for name, (kernel, bias) in kernels.items():
    place = f"features.{layers.index(name)}"
    kernel_oihw = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    state[f"{place}.weight"] = kernel_oihw
    state[f"{place}.bias"] = bias
  state["classifier.0.weight"] = np.zeros((2, 2), np.float32)
  return state


def write_keras_2(path, kernels, *, inside="", slash=False, encode=str.encode):
  """Writes VGG19's kernels as Keras 1 and 2 do; a model's are `inside`."""
  layers = {}
  for name, arrays in kernels.items():
    layer = f"block{name[4]}_conv{name[6]}"
    weights = [f"{layer}_W_1:0", f"{layer}_b_1:0"]
    if slash:
      weights = [f"{layer}/kernel:0", f"{layer}/bias:0"]
    layers[layer] = dict(zip(weights, arrays, strict=True))
  layers["block1_pool"] = {}
  return write_keras_layers(path, layers, inside=inside, encode=encode)


def write_keras_layers(path, layers, *, inside="", encode=str.encode):
  """Writes `{layer: {weight: array}}` as Keras 1 and 2 do."""
  with h5py.File(path, "w") as file:
    root = file.create_group(inside) if inside else file
    for layer, weights in layers.items():
      group = root.create_group(layer)
      group.attrs["weight_names"] = [encode(each) for each in weights]
      for weight, array in weights.items():
        group[weight] = array
    root.attrs["layer_names"] = [encode(each) for each in layers]
  return path


def keras_srresnet(num_feat=4, num_block=2, num_up=2, *, first=0):
  """Returns an SRResNet's layers as Keras has them, numbered from `first`."""
  rng = np.random.default_rng(0)
  layers, numbers = {}, {}

  def add(kind, arrays):
    number = numbers.setdefault(kind, first)
    numbers[kind] += 1
    layer = f"{kind}_{number}" if number else kind
    layers[layer] = {
      f"{layer}/{name}:0": rng.random(shape, np.float32) - (name != "alpha") / 2
      for name, shape in arrays.items()
    }
    return layers[layer]

  def conv(num_in, num_out, side=3):
    shape = (side, side, num_in, num_out)
    add("conv2d", {"kernel": shape, "bias": (num_out,)})

  def norm():
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    arrays = add("batch_normalization", dict.fromkeys(names, (num_feat,)))
    for name in arrays:
      arrays[name] += name.endswith("variance:0")

  def slope():
    add("p_re_lu", {"alpha": (1, 1, num_feat)})

  conv(3, num_feat, 9)
  slope()
  for _ in range(num_block):
    conv(num_feat, num_feat)
    norm()
    slope()
    conv(num_feat, num_feat)
    norm()
  layers["add"] = {}
  conv(num_feat, num_feat)
  norm()
  for _ in range(num_up):
    conv(num_feat, 4 * num_feat)
    slope()
  conv(num_feat, 3, 9)
  return layers


def write_keras_3(path, kernels):
  """Writes VGG19's kernels as Keras 3's `save_weights` does."""
  layers = {
    "conv2d" + f"_{index}" * bool(index): dict(zip("01", arrays, strict=True))
    for index, arrays in enumerate(kernels.values())
  }
  for name in ("input_layer", "max_pooling2d", "conv2d_transpose_1"):
    layers[name] = {}
  return write_keras_3_layers(path, layers)


def write_keras_3_layers(path, layers, container="layers"):
  """Writes `{layer: {weight: array}}` as Keras 3 does: numbers for names."""
  with h5py.File(path, "w") as file:
    file.create_group("vars")
    for name, weights in layers.items():
      group = file.create_group(f"{container}/{name}/vars")
      for index, array in enumerate(weights.values()):
        group[str(index)] = array
  return path
