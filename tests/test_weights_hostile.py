"""Weight files made to take all time or memory, or to mislead: refused at once.

Each case once took seconds to for ever, gigabytes, or ended in a traceback, or
is of the same kind. `fuzz_weights` looks for more.
"""

import contextlib
import json
import pickle
import re
import struct

import numpy as np
import pytest
import safetensors

from esrgan_jax.text import printable
from esrgan_jax.weights import files, selection
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from esrgan_jax.weights.formats import safetensors_file
from tests import fuzz_weights, mutation
from tests import weight_builders as build

_SMALL = {"num_block": 1, "num_feat": 2, "num_grow_ch": 1}
_TELLTALE = "body.0.rdb1.conv1.weight"


def _refused(path, message):
  with (
    mutation.bounded(seconds=5, megabytes=300),
    pytest.raises(ValueError, match=message) as caught,
  ):
    files.read_weights(path)
  text = str(caught.value)
  assert text.startswith(f"{path}")
  assert text == printable(text, limit=len(text) + 1)
  assert len(text) <= 1000


def _save(tmp_path, data, name="model.pth"):
  (tmp_path / name).write_bytes(data)
  return tmp_path / name


# --- .pth: the pickle -------------------------------------------------------


def _text(value):
  return b"X" + struct.pack("<I", len(value)) + value.encode()


def _tensor():
  """Instructions that keep a tensor of one number under memo 0."""
  return build.tensor_code("0", np.zeros(1, "<f4")) + b"q\x000"


_SIZES = b"ctorch\nSize\nq\x000](" + b"N" * 9000 + b"e\x85q\x010"
_PAIRS = (
  b"ccollections\nOrderedDict\nq\x000]("
  + b"".join(_text(str(i)) + b"N\x86" for i in range(5000))
  + b"e\x85q\x010"
)
_DEEP = b"]" * 3000 + b"a" * 2999
_START = b"".join(
  map(build.dumps, (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
)
_PICKLES = {
  "lists of lists, as metadata": (
    build.dumps({"esrgan_jax": {"x": build.laughs(40)}}),
    "an unknown network",
  ),
  "a list in a list, as metadata": (
    build.dumps({"esrgan_jax": {"x": _DEEP}}),
    "an unknown network",
  ),
  "lists of lists, as a name": (
    b"\x80\x04" + build.laughs(40) + _text("x") + b"\x93.",
    "a name is no text",
  ),
  "lists of lists, as a key": (
    b"\x80\x02}" + build.laughs(40) + b"Ns.",
    "a dict key is a list",
  ),
  "tuples of tuples, as a key": (
    b"\x80\x02})" + b"q\x00h\x00\x86" * 40 + b"Ns.",
    "an unknown network",
  ),
  "sizes, copied": (
    b"\x80\x02" + _SIZES + b"](" + b"h\x00h\x01R" * 9000 + b"e.",
    "refused: torch.Size",
  ),
  "dicts, copied": (
    b"\x80\x02" + _PAIRS + b"](" + b"h\x00h\x01R" * 5000 + b"e.",
    "more steps to read than its size",
  ),
  "sets, copied": (
    b"\x80\x02c__builtin__\nset\nq\x00](" + b"N" * 9000 + b"e\x85q\x010"
    b"](" + b"h\x00h\x01R" * 5000 + b"e.",
    "more steps to read than its size",
  ),
  "tensors without end": (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x000("
    + build.tensor_code("0", np.zeros(1, "<f4")).partition(b"v2\n(")[2][:-1]
    + b"q\x010]("
    + b"h\x00h\x01R" * 50_000
    + b"e.",
    "more steps",
  ),
  "numbers that collide": (
    pickle.dumps({i * (2**61 - 1): None for i in range(20_000)}, 2),
    "an unknown network",
  ),
  "places that collide": (
    b"\x80\x02}"
    + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(20_000))
    + b".",
    "a place far away",
  ),
  "a place far away": (b"\x80\x02}r\xff\xff\xff\x7f.", "a place far away"),
  "a number of a megabyte": (
    b"\x80\x02}" + _text("x") + b"\x8b\x40\x42\x0f\0" + b"\x7f" * 10**6 + b"s.",
    "a number has 7999999 bits",
  ),
  "digits": (b"\x80\x02}Nd" + b"I" + b"9" * 10**6 + b"\ns.", "digits"),
  "a long name": (build.dumps({"x" * 10**5: 1}), "100000 characters"),
  "a text that is not there": (
    b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "cut off or malformed",
  ),
  "bytes that are not there": (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "cut off"),
  "networks without end": (
    b"\x80\x02"
    + _tensor()
    + b"}("
    + b"".join(_text(f"p{i}.{_TELLTALE}") + b"h\x00" for i in range(20_000))
    + b"u.",
    "20000 networks, .*: p0, p1, p2, p3, ...",
  ),
  "dicts of networks without end": (
    b"\x80\x02"
    + _tensor()
    + b"}("
    + b"".join(
      _text(f"p{i}") + b"}" + _text(_TELLTALE) + b"h\x00s"
      for i in range(20_000)
    )
    + b"u.",
    "20000 networks, .*: p0, p1",
  ),
  "long paths": (
    b"\x80\x02}"
    + b"".join(_text("k" * 400 + str(i)) + b"}" for i in range(2000))
    + b"s" * 2000
    + b".",
    "an unknown network",
  ),
  "a call that recolours": (b"\x80\x02c\x1b[31m\nx\n.", r"refused: \\x1b\[31m"),
  "a key that recolours": (
    build.dumps({f"\x1b[2J{_TELLTALE}\n": 1}),
    r"\\x1b\[2J.*\\n",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", _PICKLES)
def test_pickles(tmp_path, case):
  pickled, message = _PICKLES[case]
  arrays = {"0": np.zeros(10**5, "<f4")}
  _refused(_save(tmp_path, build.zip_file(pickled, arrays)), message)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (
      build.dumps(0x1950A86A20F9469CFC6C)
      + build.dumps(build.laughs(40))
      + build.dumps({}),
      "unknown version of an odd kind",
    ),
    (_START + build.dumps({}) + build.dumps(build.laughs(40)), "name is bad"),
    (_START + build.dumps({}) + build.dumps(["\x1b[2J"]), r"\\x1b\[2J belongs"),
  ],
)
def test_pickles_of_the_old_container(tmp_path, data, message):
  _refused(_save(tmp_path, data), message)


def test_metadata_that_are_no_text_are_left_out(tmp_path):
  own = {"licence": "MIT", "x": build.laughs(40), "y": _DEEP, "scale": 4}
  state = build.random_state(_SMALL)
  data = build.zip_pth(state, lambda t: {"params": t, "esrgan_jax": own})
  weights = files.read_weights(_save(tmp_path, data))
  assert weights.metadata == {"licence": "MIT", "scale": "4"}


# --- .pth: the archive ------------------------------------------------------


def _field(magic, offset, form, *values, last=False):
  """Sets a field of the first (or last) record of a kind."""

  def change(data):
    place = (data.rindex if last else data.index)(magic) + offset
    raw = struct.pack(form, *values)
    return data[:place] + raw + data[place + len(raw) :]

  return change


def _wide(data):
  """Gives the last file in the directory an offset of eight bytes."""
  place = data.rindex(b"PK\1\2")
  size = struct.unpack_from("<H", data, place + 28)[0]
  extra = struct.pack("<2HQ", 1, 8, 2**63)
  entry = bytearray(data[place : place + 46 + size] + extra)
  struct.pack_into("<H", entry, 30, len(extra))
  struct.pack_into("<L", entry, 42, 2**32 - 1)
  end = bytearray(data[-22:])
  struct.pack_into("<L", end, 12, struct.unpack_from("<L", end, 12)[0] + 12)
  return data[:place] + bytes(entry) + bytes(end)


_ENTRY, _END = b"PK\1\2", b"PK\5\6"
_ARCHIVES = {
  "a version of the future": (_field(_ENTRY, 6, "<H", 99), "version 9.9"),
  "encrypted": (_field(_ENTRY, 8, "<H", 1), "compressed or encrypted"),
  "no such compression": (_field(_ENTRY, 10, "<H", 99), "compressed or enc"),
  "two sizes": (_field(_ENTRY, 24, "<L", 7), "two different sizes"),
  "gigabytes": (_field(_ENTRY, 20, "<2L", 2**31, 2**31), "beyond its end|over"),
  "exabytes": (_field(_ENTRY, 20, "<2L", 2**32 - 1, 2**32 - 1), "damaged"),
  "elsewhere": (_field(_ENTRY, 42, "<L", 2**31), "beyond its end"),
  "far elsewhere": (_wide, "beyond its end"),
  "in another file's place": (_field(_ENTRY, 42, "<L", 0, last=True), "over"),
  "no such directory": (_field(_END, 16, "<L", 2**31), "cut off"),
  "more files than there are": (_field(_END, 10, "<H", 999), "cut off|damaged"),
  "a comment that is not there": (_field(_END, 20, "<H", 999), "not supported"),
  "a name that is not UTF-8": (
    lambda d: _field(_ENTRY, 8, "<H", 0x800)(
      _field(_ENTRY, 46, "<B", 0xFF)(d)
    ),
    "not UTF-8",
  ),
  "another name in the file": (
    lambda d: d.replace(b"data.pkl", b"data.pkx", 1),
    "something else is",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", _ARCHIVES)
def test_archives(tmp_path, case):
  change, message = _ARCHIVES[case]
  data = change(build.zip_file(build.dumps({"a": 1}), {"0": np.zeros(9)}))
  _refused(_save(tmp_path, data), message)


# --- .safetensors -----------------------------------------------------------


def _file(header, body=b""):
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  return len(header).to_bytes(8, "little") + header + body


def _one(**changes):
  return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


def _network(*extra, prefixes=("",)):
  """A sound network (or several) and arrays of one number each."""
  state = build.random_state(_SMALL)
  arrays = {p + k: v for p in prefixes for k, v in state.items()}
  arrays |= {name: np.zeros(1, np.float32) for name in extra}
  return safetensors_file.to_bytes(arrays, {})


_MANY = {
  f"p{i}.{_TELLTALE}": _one(data_offsets=[4 * i, 4 * i + 4])
  for i in range(20_000)
}
_TWICE = json.dumps({"a": _one()})[:-1] + ', "a": ' + json.dumps(_one()) + "}"
_SAFETENSORS = {
  "block thirty million": (_network("body.30000000.x"), "1 left over"),
  "block 1e12": (_network("body.999999999999.x"), "1 left over"),
  "block 9999": (_network("body.9999.rdb1.conv1.bias"), "9998 are missing"),
  "a block of 5000 digits": (_network("body." + "9" * 5000 + ".x"), "5007"),
  "upsamplings": (
    _network(*(f"conv_up{i}.x" for i in range(2000))),
    "2000 left over",
  ),
  "many networks": (_file(_MANY, bytes(80_000)), "20000 networks"),
  "many names": (
    _network(*(f"{i}" * 50 for i in range(4000))),
    "4000 left over",
  ),
  "two networks": (_network(prefixes=("b.", "a.")), ": a, b. Save"),
  "two averages": (
    _network(prefixes=("g.", "g_ema.", "d_ema.")),
    "3 networks, .*: d_ema, g_ema. Save",
  ),
  "a cinema": (_network(prefixes=("a.", "cinema.")), "2 networks"),
  "escapes": (_network("\x1b[2J\x1b]0;x\x07"), r"\\x1b\[2J\\x1b\]0;x\\x07"),
  "a line": (_network("x\n/tmp/a: RRDBNet ok"), r"x\\n/tmp/a: RRDBNet ok"),
  "turned": (_network("x\u202egpj.exe"), r"x\\u202egpj\.exe"),
  "a long header": (_file(b"{}")[:6] + b"\1\0{}", "no weight file"),
  "a header that is not there": (_file(b"{" + b" " * 99)[:40], "cut off"),
  "deep": (_file(b'{"a":' + b"[" * 10**5), "damaged"),
  "wide": (_file(b'{"a":[' + b"[]," * 10**5 + b"1]}"), "a is malformed"),
  "not UTF-8": (_file(b'{"\xff": 1}'), "damaged"),
  "no object": (_file(b"{]"), "damaged"),
  "not a number": (_file(b'{"a": NaN}'), "NaN stands in it"),
  "a fraction": (_file({"a": _one(shape=[1.0])}, bytes(4)), r"1\.0 stands"),
  "digits": (_file(b'{"a":' + b"9" * 9999 + b"}"), "damaged"),
  "true": (_file({"a": _one(shape=[True])}, bytes(4)), "malformed"),
  "negative": (_file({"a": _one(data_offsets=[-4, 0])}, bytes(4)), "malformed"),
  "no offsets": (_file({"a": {"dtype": "F32", "shape": [1]}}), "malformed"),
  "a number for an array": (_file({"a": 1}), "a is malformed"),
  "a name twice": (_file(_TWICE.encode(), bytes(4)), "a name stands twice"),
  "overlap": (_file({"a": _one(), "b": _one()}, bytes(4)), "overlap"),
  "gap": (_file({"a": _one(data_offsets=[4, 8])}, bytes(8)), "overlap"),
  "rest": (_file({"a": _one()}, bytes(8)), "end before the file"),
  "beyond": (_file({"a": _one(data_offsets=[0, 400])}, bytes(4)), "outside"),
  "overflow": (_file({"a": _one(shape=[2**32] * 3)}, bytes(4)), "malformed"),
  "terabytes": (_file({"a": _one(shape=[4] * 30)}, bytes(4)), "has 4 bytes"),
  "axes": (_file({"a": _one(shape=[1] * 99)}, bytes(4)), "malformed"),
  "a type that is none": (
    _file({"a": _one(dtype="F8\x1b[2J")}, bytes(4)),
    r"type F8\\x1b\[2J; supported",
  ),
  "metadata that are no strings": (
    _file({"__metadata__": {"a": 1}, "b": _one()}, bytes(4)),
    "metadata",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", _SAFETENSORS)
def test_safetensors(tmp_path, case):
  data, message = _SAFETENSORS[case]
  _refused(_save(tmp_path, data, "model.safetensors"), message)


@pytest.mark.parametrize(
  "metadata", [{"scale": "9" * 5000}, {"scale": "x"}, {"unshuffle": "-1"}]
)
def test_metadata_are_not_believed(tmp_path, metadata):
  state = build.random_state(_SMALL)
  data = safetensors_file.to_bytes(
    state, {"architecture": "RRDBNet", **metadata}
  )
  weights = files.read_weights(_save(tmp_path, data))
  assert (weights.config["scale"], weights.config["unshuffle"]) == (4, 1)


def test_an_average_among_networks_is_taken_and_said(tmp_path):
  for average in ("g_ema.", "ema.", "EMA_model.", "netEMA.", "paramsEma."):
    data = _network(prefixes=("a.", average, "b."))
    (note,) = files.read_weights(_save(tmp_path, data)).notes
    assert f"took {average[:-1]} (the moving average), left a, b" in note


def test_one_network_in_two_places_is_two_networks():
  state = build.random_state(_SMALL)
  tree = {"a": state, **{f"a.{k}": v for k, v in state.items()}}
  with pytest.raises(UnsupportedWeightsError, match="2 networks"):
    selection.find_network(tree)


def test_what_the_formats_own_reader_refuses_is_refused():
  """And what both take is the same."""
  (target,) = (t for t in fuzz_weights.targets() if t.name == "safetensors")
  taken = 0
  for case in range(200):
    data = mutation.make([target], 11, case)
    theirs = None
    with contextlib.suppress(safetensors.SafetensorError):
      theirs = dict(safetensors.deserialize(data))
    try:
      ours = safetensors_file.parse(data)[0]
    except ValueError:
      continue
    assert theirs is not None
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
      assert list(array.shape) == theirs[name]["shape"]
      if theirs[name]["dtype"] != "BF16":
        assert array.tobytes() == bytes(theirs[name]["data"])
    taken += 1
  assert taken > 10


# --- ncnn -------------------------------------------------------------------


_PARAMS = {
  "0=inf": ("0=2 1=3", "0=inf 1=3", "0=inf is not finite"),
  "0=nan": ("0=2 1=3", "0=nan 1=3", "0=nan is not finite"),
  "0=1e400": ("0=2 1=3", "0=1e400 1=3", "0=1e400 is not finite"),
  "0=-2": ("0=2 1=3", "0=-2 1=3", "0=-2 is no count"),
  "digits": ("0=2 1=3", "0=" + "9" * 99999 + " 1=3", "is not finite"),
  "no weights": ("6=54", "6=0", "0 weights do not make"),
  "more weights than bytes": ("6=54", "6=1152921504606846954", "is no count"),
  "all weights": ("6=54", "6=2147483646", "cut off"),
  "1=inf": ("1=2.000000e+00", "1=inf", "1=inf is not finite"),
  "1=nan": ("1=2.000000e+00", "1=nan", "1=nan is not finite"),
  "1=-2": ("1=2.000000e+00", "1=-2", "upsamples"),
  "1=1e300": ("1=2.000000e+00", "1=1e300", "upsamples 2e.300 times"),
  "inputs": ("Input data 0 1", "Input data 999999 1", "line 3 is malformed"),
  "negative inputs": ("Input data 0 1", "Input data -9 1", "line 3 is malform"),
  "other digits": ("Input data 0 1", "Input data ² 1", "not text"),
  "no option": ("0=2 1=3", "0 1=3", "malformed"),
  "escapes": ("0=2 1=3", "0=\x1b[2J\x07 1=3", r"0=\\x1b\[2J\\x07 is no number"),
  "a layer that recolours": ("Input ", "\x1b[31m ", r"type \\x1b\[31m, which"),
  "a long layer": ("Input ", "x" * 10**6 + " ", "type xxxx"),
  "many layers": ("Input data 0 1 data\n", "Input a 0 0\n" * 10**5, "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("case", _PARAMS)
def test_ncnn(tmp_path, case):
  old, new, message = _PARAMS[case]
  param = build.write_ncnn(tmp_path, build.random_state(_SMALL))
  text = param.read_text()
  assert old in text
  param.write_bytes(text.replace(old, new, 1).encode("latin-1"))
  _refused(param, message)


def test_ncnn_of_one_line(tmp_path):
  param = build.write_ncnn(tmp_path, build.random_state(_SMALL))
  for text in ("7767517", "7767517\n", "7767517\n1", "7767517\n1 1\nInput"):
    param.write_text(text)
    _refused(param, re.escape(param.name))


# --- all --------------------------------------------------------------------


def test_damaged_files_of_every_kind_are_refused_or_sound():
  targets = fuzz_weights.targets()
  cases = range(50 * len(targets))
  report = mutation.run(targets, seed=20, cases=cases, seconds=5, megabytes=300)
  assert not report.violations, str(report)
  for target in targets:
    outcomes = report.outcomes(target.name)
    assert outcomes["read"] < sum(outcomes.values()) == 50
