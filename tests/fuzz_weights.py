"""Damages weight files of every kind, and holds their readers to `mutation`.

  python -m tests.fuzz_weights --count 20000 --seed 1

Kinds: `.pth` of both containers, `.safetensors`, also of a network that only
its user knows, ncnn's two files, also of an SRVGGNetCompact; an SRResNet as
`.h5`; VGG19 as `.pth` and as `.h5` in Keras's two layouts. What is read must be
a network of finite numbers and the shapes that its configuration says.
"""

import io
import json
import pathlib
import pickletools
import random
import struct
import sys
import tempfile
import zipfile

import flax.linen as nn
import jax
import numpy as np

from esrgan_jax.export import ncnn_files, programs
from esrgan_jax.models import registry
from esrgan_jax.weights import fields, files, vgg
from esrgan_jax.weights.dialects import DIALECTS, compact, plain, srresnet
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from esrgan_jax.weights.formats import limits, safetensors_file, torch_file
from tests import golden, mutation
from tests import weight_builders as build

_REFUSALS = (
  ValueError,
  UnsupportedWeightsError,
  torch_file.UnsafeFileError,
  limits.DamagedFileError,
)
_INTEGERS = (
  *(0, 1, 2, 3, 8, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31),
  *(2**32 - 1, 2**47, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
_VALUES = (
  *(None, True, -1, 0, 1, 3, 1.5, 2**31, 2**63, 10**30, "", "x", "F8_E4M3"),
  *("F16", "F64", "I64", "U64", "BF16", "BOOL", "\x1b[31m", "\n", [], [[]], {}),
)


class _Net(nn.Module):
  """A network of the user's own, which has no dialect."""

  scale: int = 2
  width: int = 2
  sizes: tuple[int, ...] = (1, 1)

  @nn.compact
  def __call__(self, lr):
    x = nn.BatchNorm(use_running_average=True, name="norm")(lr)
    x = nn.Conv(self.width, self.sizes, name="first")(x)
    return nn.Conv(3, (1, 1), name="last")(x).repeat(self.scale, 1)


def _plain_file():
  variables = jax.tree.map(
    lambda x: np.full(x.shape, 0.5, np.float32),
    jax.eval_shape(_Net().init, jax.random.key(0), np.zeros((1, 8, 8, 3))),
  )
  config = {"architecture": "FuzzNet", "scale": 2}
  state = plain.to_state_dict(variables.pop("params"), variables)
  notes = {"architecture": "FuzzNet", "fields": fields.to_text(config)}
  return safetensors_file.to_bytes(state, notes)


def targets():
  """Returns every kind of file with its reader."""
  registry.register_generator("FuzzNet", _Net)
  small = {"num_block": 1, "num_feat": 2, "num_grow_ch": 1}
  states = [
    build.random_state(small),
    build.random_state({**small, "scale": 2, "unshuffle": 2}, dtype="f2"),
    build.oldest(build.random_state(small, dtype="f8")),
    build.authors(build.random_state({**small, "num_block": 2})),
  ]
  pickled = (_pickle_of_zip, _pickle_of_zip, _zip_record)
  kernels = build.vgg_kernels()
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root)
    pairs = []
    for half in (True, False):
      param = build.write_ncnn(folder, states[0], half=half)
      pairs.append((param.read_bytes(), param.with_suffix(".bin").read_bytes()))
    compact_pair = _compact_pair(folder)
    keras_2 = [
      build.write_keras_2(folder / "a.h5", kernels, **options).read_bytes()
      for options in ({}, {"inside": "model_weights", "encode": str})
    ]
    keras_3 = build.write_keras_3(folder / "b.h5", kernels).read_bytes()
    generators = [
      build.write_keras_layers(
        folder / "c.h5", build.keras_srresnet(2, 1, num_up, first=9)
      ).read_bytes()
      for num_up in (1, 2)
    ]
  wraps = (lambda t: {"state_dict": {"net": t}}, _with_average, _as_ours)
  wrapped = [(states[0], w) for w in wraps]
  wrapped += [(s, dict) for s in states[1:3]]
  kinds = (
    (
      "pth",
      [build.zip_pth(s, w) for s, w in wrapped],
      _reader(".pth"),
      pickled,
    ),
    (
      "old pth",
      [build.legacy_pth(s, w) for s, w in wrapped],
      _reader(".pth"),
      (_pickle,),
    ),
    (
      "safetensors",
      [
        safetensors_file.to_bytes(states[0], {"scale": "4", "format": "pt"}),
        safetensors_file.to_bytes(
          states[1],
          {"architecture": "RRDBNet", "scale": "2", "unshuffle": "2"},
        ),
        safetensors_file.to_bytes(states[3], {}),
      ],
      _reader(".safetensors"),
      (_header, _header, _length),
    ),
    (
      "plain",
      [_plain_file()],
      _read_plain,
      (_fields, _fields, _header, _length),
    ),
    (
      "param",
      [param for param, _ in pairs],
      _reader(".param", ".bin", pairs[0][1]),
      (_token, _line),
    ),
    (
      "bin",
      [binary for _, binary in pairs],
      _reader(".bin", ".param", pairs[0][0]),
      (),
    ),
    (
      "compact param",
      compact_pair[:1],
      _reader(".param", ".bin", compact_pair[1]),
      (_token, _line),
    ),
    (
      "compact bin",
      compact_pair[1:],
      _reader(".bin", ".param", compact_pair[0]),
      (),
    ),
    ("h5", generators, _read_srresnet, (_hdf5, _hdf5_address)),
    (
      "vgg pth",
      [build.zip_pth(build.torchvision_state(kernels))],
      _read_vgg,
      pickled,
    ),
    ("vgg h5", [*keras_2, keras_3], _read_vgg, (_hdf5, _hdf5_address)),
  )
  return [
    mutation.Target(name, samples, read, edits, _REFUSALS)
    for name, samples, read, edits in kinds
  ]


def _compact_pair(folder):
  config = golden.compact_config("x2 of 4", num_feat=2)
  params = compact.from_state_dict(golden.compact_state(config)).params
  config = {"architecture": "SRVGGNetCompact", **config}
  path = folder / "compact.param"
  weights = files.Weights(config, params, {})
  ncnn_files.write(path, weights, programs.Options("float16"))
  return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _with_average(tree):
  return {"params": tree, "params_ema": tree, "epoch": 7, "rest": [1, None]}


def _as_ours(tree):
  own = {"architecture": "RRDBNet", "scale": "4", "unshuffle": "1", "alpha": 0}
  return {"params": tree, "esrgan_jax": own}


def _reader(suffix, other=None, content=b""):
  def read(folder, data):
    path = folder / f"model{suffix}"
    path.write_bytes(data)
    if other:
      path.with_suffix(other).write_bytes(content)
    weights = files.read_weights(path)
    dialect = DIALECTS[weights.config["architecture"]]
    state = dialect.to_state_dict(weights.params)
    expected = dialect.shapes(weights.config)
    assert {k: v.shape for k, v in state.items()} == expected
    for name, value in state.items():
      assert np.isfinite(value).all(), name
    for key, value in weights.metadata.items():
      assert isinstance(value, str), key

  return read


def _read_srresnet(folder, data):
  path = folder / "model.h5"
  path.write_bytes(data)
  weights = files.read_weights(path)
  # Compares names and shapes with those of the network.
  state = srresnet.to_state_dict(
    weights.params, weights.collections, weights.config
  )
  for name, value in state.items():
    assert np.isfinite(value).all(), name


def _read_plain(folder, data):
  path = folder / "model.safetensors"
  path.write_bytes(data)
  weights = files.read_weights(path)
  net = registry.make_generator(**weights.config)
  found = {"params": weights.params, **weights.collections}
  expected = jax.eval_shape(
    net.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32)
  )
  assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected)
  for value in jax.tree.leaves(found):
    assert np.isfinite(value).all()


def _read_vgg(folder, data):
  path = folder / "vgg.file"
  path.write_bytes(data)
  params = vgg.read_vgg(path, shapes=build.SLIM_VGG)
  for name, shape in build.SLIM_VGG.items():
    assert params[name]["kernel"].shape == shape
    assert params[name]["bias"].shape == shape[-1:]
    for value in params[name].values():
      assert np.isfinite(np.asarray(value)).all(), name


# --- damage that knows the format -------------------------------------------


def _pickle(rng: random.Random, data: bytes) -> bytes:
  """Replaces, repeats or removes instructions of a pickle, or their values."""
  places = _instructions(data)
  if len(places) < 3:
    return data
  i = rng.randrange(len(places) - 1)
  start, end = places[i], places[i + 1]
  match rng.randrange(7):
    case 0:
      codes = pickletools.opcodes
      return (
        data[:start] + rng.choice(codes).code.encode("latin-1") + data[end:]
      )
    case 1:
      j = min(i + rng.randint(1, 40), len(places) - 1)
      times = rng.choice((1, 2, 50))
      piece = (data[start : places[j]] * times)[: 2**15]
      return data[:start] + piece + data[start:]
    case 2:
      return data[:start] + data[end:]
    case 3:
      a, b = sorted(rng.sample(range(len(places) - 1), 2))
      return (
        data[: places[a]]
        + data[places[b] : places[b + 1]]
        + data[places[a] : places[b]]
        + data[places[b + 1] :]
      )
    case 4:
      value = rng.choice(_INTEGERS)
      raw = b"\x8a\x09" + value.to_bytes(9, "little")
      return data[:start] + raw + data[end:]
    case 5:
      extra = (
        *(b"0", b"2", b"(", b"t", b"]", b"}", b"N", b"e", b"u", b"s", b"R"),
        *(b"h\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"Q", b"b"),
        *(b"ctorch\nSize\n", b"X\xff\xff\xff\xff", b"\x94", b"K\x02\x85"),
        *(b"ccollections\nOrderedDict\n", b"cos\nsystem\n", build.laughs(28)),
      )
      return (
        data[:start] + rng.choice(extra) * rng.choice((1, 1, 99)) + data[start:]
      )
    case _:
      damaged = bytearray(data)
      damaged[rng.randrange(start, end)] = rng.randrange(256)
      return bytes(damaged)


def _instructions(data: bytes) -> list[int]:
  """Where the instructions of the pickles at a file's beginning start."""
  stream, places = io.BytesIO(data), []
  try:
    while len(places) < 20_000:
      for _, _, place in pickletools.genops(stream):
        places.append(place)
  except Exception:  # Damaged before, or the pickles are over.
    pass
  return places


def _pickle_of_zip(rng: random.Random, data: bytes) -> bytes:
  """Damages a part of an archive, and makes its checksum right again."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
  except Exception:
    return data
  name = next((n for n in members if n.endswith("data.pkl")), None)
  if name and rng.random() < 0.8:
    members[name] = _pickle(rng, members[name])
  elif members:
    name = rng.choice(sorted(members))
    members[name] = members[name][: rng.choice((0, 1, 5))] + rng.randbytes(
      rng.choice((0, 1, len(members[name])))
    )
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def _zip_record(rng: random.Random, data: bytes) -> bytes:
  """Sets a field of one of the archive's records."""
  magic, size = rng.choice(((b"PK\1\2", 46), (b"PK\3\4", 30), (b"PK\5\6", 22)))
  places = [i for i in range(len(data)) if data.startswith(magic, i)]
  if not places:
    return data
  width = rng.choice((2, 4))
  place = rng.choice(places) + rng.randrange(4, size - width + 1, 2)
  value = rng.choice((*_INTEGERS, len(data), rng.choice(places)))
  raw = (value % 256**width).to_bytes(width, "little")
  return data[:place] + raw + data[place + width :]


def _fields(rng: random.Random, data: bytes) -> bytes:
  """Sets a field of the network, or damages their text."""
  size = int.from_bytes(data[:8], "little")
  try:
    header = json.loads(data[8 : 8 + size])
    notes = header["__metadata__"]
    found = json.loads(notes["fields"])
    value = rng.choice((*_VALUES, *_INTEGERS, [1, 2], [[1]], [-1, 0], [9**5]))
    found[rng.choice((*found, "architecture", "parent", "x"))] = value
    notes["fields"] = json.dumps(found)
    if rng.random() < 0.2:
      damaged = mutation.damage_any(rng, notes["fields"].encode())
      notes["fields"] = damaged.decode("latin-1")
    head = json.dumps(header).encode()
  except Exception:  # It was damaged before.
    return mutation.damage_any(rng, data)
  return len(head).to_bytes(8, "little") + head + data[8 + size :]


def _header(rng: random.Random, data: bytes) -> bytes:
  """Sets a value of the JSON header, or damages its text."""
  size = int.from_bytes(data[:8], "little")
  head, body = data[8 : 8 + size], data[8 + size :]
  try:
    header = json.loads(head)
    name = rng.choice(sorted(header))
    entry = header[name]
    match rng.randrange(6):
      case 0:
        entry[rng.choice(sorted(entry))] = rng.choice(_VALUES)
      case 1:
        values = entry[rng.choice(("shape", "data_offsets"))]
        values[rng.randrange(len(values))] = rng.choice(
          (*_INTEGERS, -1, 1.0, True, None)
        )
      case 2:
        header[rng.choice(("a", "\x1b[2J", "x" * 600, f"b.{name}"))] = entry
      case 3:
        del header[name]
      case 4:
        header[name] = header[rng.choice(sorted(header))]
      case _:
        other = rng.choice(("body.9.x", "body.30000000.x", "model.99.weight"))
        header[rng.choice((other, f"{name}.{name}"))] = header.pop(name)
    head = json.dumps(header).encode()
  except Exception:
    head = mutation.damage_any(rng, head)
  if rng.random() < 0.1:
    head = head.replace(b"[", rng.choice((b"[" * 5000, b"{", b"[[")), 1)
  return len(head).to_bytes(8, "little") + head + body


def _length(rng: random.Random, data: bytes) -> bytes:
  size = int.from_bytes(data[:8], "little")
  size = rng.choice((*_INTEGERS, size + 1, size - 1, len(data), len(data) - 8))
  return (size % 2**64).to_bytes(8, "little") + data[8:]


def _token(rng: random.Random, data: bytes) -> bytes:
  """Replaces a word of a `.param` file, or an option's number."""
  lines = data.split(b"\n")
  i = rng.randrange(len(lines))
  words = lines[i].split(b" ")
  j = rng.randrange(len(words))
  key, sign, _ = words[j].partition(b"=")
  texts = (b"-1", b"0", b"1", b"3", b"99999999999", b"1e400", b"nan", b"inf")
  odd = (b"\x1b[2J", b"", b"=", b"0x10", b"1_0", b"\xef\xbc\x92", b"9" * 5000)
  new = rng.choice((*texts, *odd, b"Convolution", b"PReLU", b"Interp"))
  words[j] = key + sign + new if sign else new
  lines[i] = b" ".join(words)
  return b"\n".join(lines)


def _line(rng: random.Random, data: bytes) -> bytes:
  """Repeats, removes or moves a line of a `.param` file; may fix the count."""
  lines = data.split(b"\n")
  i = rng.randrange(len(lines))
  times = rng.choice((0, 0, 2, 3, 15, 100))
  lines[i : i + 1] = [lines[i]] * times
  if len(lines) > 1 and rng.random() < 0.7:
    lines[1] = b"%d 9" % sum(1 for line in lines[2:] if line.split())
  return b"\n".join(lines)


def _hdf5(rng: random.Random, data: bytes) -> bytes:
  """Sets a number in a header, where HDF5 has its numbers: at even places."""
  signatures = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"\x89HDF", b"\x01\0")
  places = _find(data, rng.choice(signatures))
  if not places:
    return data
  width = rng.choice((1, 2, 4, 8))
  place = rng.choice(places) + rng.randrange(0, 96, max(width // 2, 1))
  value = rng.choice((*_INTEGERS, len(data), rng.randrange(32)))
  raw = (value % 256**width).to_bytes(width, "little")
  return data[:place] + raw + data[place + width :]


def _hdf5_address(rng: random.Random, data: bytes) -> bytes:
  """Has an address lead to another thing in the file."""
  places = [i for s in (b"TREE", b"SNOD", b"HEAP") for i in _find(data, s)]
  headers = _find(data, b"\x01\0")
  aims = [*places, *headers]
  if not aims:
    return data
  known = {struct.pack("<Q", place) for place in aims}
  spots = [i for i in range(0, len(data) - 8, 8) if data[i : i + 8] in known]
  if not spots:
    return data
  place = rng.choice(spots)
  return data[:place] + struct.pack("<Q", rng.choice(aims)) + data[place + 8 :]


def _find(data: bytes, signature: bytes) -> list[int]:
  return [i for i in range(0, len(data), 8) if data.startswith(signature, i)]


if __name__ == "__main__":
  sys.exit(mutation.main("tests.fuzz_weights", targets))
