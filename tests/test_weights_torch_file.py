"""Reading `.pth` without PyTorch: right values; hostile files do nothing."""

import builtins
import collections
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest

from esrgan_jax.weights import selection
from esrgan_jax.weights.dialects import rrdb as names
from esrgan_jax.weights.dialects.protocol import UnsupportedWeightsError
from esrgan_jax.weights.formats import limits, torch_file
from tests import golden
from tests import weight_builders as build

read = torch_file.read_torch


@pytest.fixture
def save(tmp_path):
  def write(data, name="model.pth"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name

  return write


def _equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("form", [build.zip_pth, build.legacy_pth])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8"])
def test_both_containers_without_torch(save, form, dtype):
  state = build.random_state({"num_block": 1}, dtype=dtype)
  tree = read(save(form(state, lambda t: {"params": t, "iter": 7, "n": None})))
  assert (tree["iter"], tree["n"]) == (7, None)
  _equal(tree["params"], state)


def test_torch_is_never_imported(save):
  path = save(build.zip_pth(build.random_state()))
  code = (
    "import sys; from esrgan_jax.weights.files import read_weights;"
    f"w = read_weights({str(path)!r}); assert w.config['num_block'] == 2;"
    "bad = {'torch', 'tensorflow', 'PIL'} & set(sys.modules); assert not bad"
  )
  root = pathlib.Path(__file__).parents[1]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_big_endian_archive(save):
  values = np.arange(6, dtype=">f4").reshape(2, 3)
  code = build.tensor_code("0", values.astype("<f4"))
  data = build.zip_file(
    build.dumps({"a": code}), {"0": values}, byteorder=b"big"
  )
  np.testing.assert_array_equal(read(save(data))["a"], values)


def test_bfloat16_is_widened(save):
  values = np.float32([1.0, -2.5, 3.140625, np.inf])
  halves = (values.view(np.uint32) >> 16).astype("<u2")
  code = build.tensor_code("0", halves, storage="BFloat16Storage")
  data = build.zip_file(build.dumps({"a": code}), {"0": halves})
  np.testing.assert_array_equal(read(save(data))["a"], values)


def test_strides_offsets_and_shared_storages(save):
  base = np.arange(12, dtype="<f4")
  tree = {
    "whole": build.tensor_code("0", base),
    "turned": build.tensor_code(
      "0", base, shape=(3, 2), strides=(1, 3), offset=4
    ),
    "none": build.tensor_code("0", base, shape=(0, 3), strides=(3, 1)),
    "one": build.tensor_code("0", base, shape=(), strides=(), offset=11),
  }
  found = read(save(build.zip_file(build.dumps(tree), {"0": base})))
  np.testing.assert_array_equal(found["turned"], [[4, 7], [5, 8], [6, 9]])
  assert found["none"].shape == (0, 3)
  assert found["one"] == 11
  assert np.shares_memory(found["whole"], found["turned"])


@pytest.mark.parametrize(
  "lie",
  [
    {"offset": 1},
    {"shape": (13,), "strides": (1,)},
    {"shape": (2,), "strides": (12,)},
    {"shape": (10**6, 10**6), "strides": (0, 0)},
    {"shape": (2**60,), "strides": (1,)},
    {"shape": (-1,), "strides": (1,)},
    {"shape": (12,), "strides": (-1,)},
    {"shape": (12,), "strides": (1, 1)},
    {"size": 13},
    {"size": 2**40},
    {"size": -1},
  ],
)
def test_tensors_that_reach_out_of_their_storage(save, lie):
  base = np.arange(12, dtype="<f4")
  code = build.tensor_code("0", base, **lie)
  data = build.zip_file(build.dumps({"a": code}), {"0": base})
  with pytest.raises(torch_file.DamagedFileError):
    read(save(data))


def test_tensors_may_share_memory_a_few_times(save):
  base = np.arange(9999, dtype="<f4")
  tree = {f"{n}": build.tensor_code("0", base) for n in range(9)}
  few = build.dumps({n: tree[n] for n in "012"})
  assert len(read(save(build.zip_file(few, {"0": base})))) == 3
  with pytest.raises(torch_file.DamagedFileError, match="4 times over"):
    read(save(build.zip_file(build.dumps(tree), {"0": base})))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["zip", "legacy", "plain", "nested"])
def test_malicious_pickles_run_nothing(save, tmp_path, protocol, place):
  trace = tmp_path / "trace"
  evil = build.evil_pickle(os.mkdir, str(trace), protocol=protocol)
  if place == "nested":
    evil = pickle.dumps(
      {"params": {"a": [build.Evil(os.mkdir, str(trace))]}}, protocol
    )
  if place in ("zip", "nested"):
    data = build.zip_file(evil, {})
  elif place == "legacy":
    start = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    data = b"".join(map(build.dumps, start)) + evil
  else:
    data = evil
  with pytest.raises(torch_file.UnsafeFileError, match=r"refused: \w+\.mkdir"):
    read(save(data))
  assert not trace.exists()
  pickle.loads(evil)  # The file is a real weapon: unpickled, it does work.
  assert trace.exists()


@pytest.mark.parametrize(
  ("function", "args"),
  [
    (builtins.eval, ("1",)),
    (builtins.exec, ("1",)),
    (os.system, ("true",)),
    (subprocess.run, (["true"],)),
    (getattr, (1, "real")),
    (pickle.loads, (b"N.",)),
  ],
)
def test_other_functions_are_refused_by_name(save, function, args):
  data = build.zip_file(build.evil_pickle(function, *args), {})
  with pytest.raises(torch_file.UnsafeFileError, match=function.__name__):
    read(save(data))


@pytest.mark.parametrize(
  "code",
  [
    b"ctorch.hub\nload\n",
    b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
    b"ccollections\nOrderedDict.__init__\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93",  # STACK_GLOBAL
    b"(ios\nsystem\n",  # INST
    b"(ccollections\nOrderedDict\no",  # OBJ
    b"ccollections\ndefaultdict\n)\x81",  # NEWOBJ
    b"ccollections\nOrderedDict\n)}\x92",  # NEWOBJ_EX
    b"\x82\x01",  # EXT1: copyreg's registry, which may hold anything
    b"\x83\x01\x00",
    b"\x84\x01\x00\x00\x00",
    b"Pstorage\n",  # PERSID
    b"\x97",  # NEXT_BUFFER
    b"(\x91",  # FROZENSET
    b"ccollections\nCounter\nK\x01\x85R",
    b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",  # 2 GB of zeros.
    b"ctorch\nTensor\nK\x01\x85R",
    b"X\x01\x00\x00\x00a)R",  # REDUCE of a string
    b"ctorch\nFloatStorage\n)R",
    b"ctorch._utils\n_rebuild_parameter\nX\x01\x00\x00\x00a\x85R",
  ],
)
def test_instructions_and_names_that_are_not_needed(save, code):
  data = build.zip_file(build.dumps({"a": code}), {})
  with pytest.raises(torch_file.UnsafeFileError, match="refused"):
    read(save(data))


@pytest.mark.parametrize(
  "pickled",
  [
    b"",
    b"\x80\x02",
    b"\x80\x02}",
    b"\x80\x02.",
    b"\x80\x02t.",
    b"\x80\x02}}.",
    b"\x80\x02h\x05.",
    b"\x80\x02q\x05.",
    b"\x80\x02\x80",
    b"\x80\x02}(K\x01u.",
    b"\x80\x02K\x01K\x02K\x03s.",
    b"\x80\x02}]K\x01s.",  # An unhashable key.
    b"\x80\x02}(]K\x01u.",
    b"\x80\x02NK\x01Q.",
    b"\x80\x02K\x01}b.",  # State for a number.
    b"\x80\x02}X\xff\xff\xff\xffab.",  # A string of 4 GB.
    b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.",
    b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    b"\x80\x02r\xff\xff\xff\xff.",  # Memo entry four billion.
    b"\xff\xfe",
    b"I1e9\n.",
    build.dumps({"a": 1})[:-1] + b"X\x01\x00\x00\x00aK\x02s.",  # A name twice.
  ],
)
def test_malformed_pickles_raise(save, pickled):
  with pytest.raises(torch_file.DamagedFileError):
    read(save(build.zip_file(pickled, {})))


def test_deep_nesting_and_cycles_end(save):
  deep = b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 50_000 + b"a" * 49_999 + b"s."
  assert list(read(save(build.zip_file(deep, {})))) == ["a"]
  cycle = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
  tree = read(save(build.zip_file(cycle, {})))
  assert tree["a"] is tree
  with pytest.raises(UnsupportedWeightsError):
    selection.find_network(tree)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("MAX_STEPS", "or over 99: no weights"),
    ("MAX_TABLE_BYTES", "the limit is 99"),
    ("MAX_ARRAYS", "the limit is 99"),
    ("MAX_FILE_BYTES", "the limit is 99"),
  ],
)
def test_limits(save, monkeypatch, name, message):
  path = save(build.zip_pth(build.random_state({"num_block": 3})))
  monkeypatch.setattr(limits, name, 99)
  with pytest.raises(ValueError, match=message):
    read(path)


def test_keys_that_are_numbers_become_digits(save):
  tree = read(save(build.zip_file(pickle.dumps({0: "a", 1.5: "b"}, 2), {})))
  assert tree == {"0": "a", "1.5": "b"}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_classes_of_training_states(save, protocol):
  state = {
    "milestones": collections.Counter({10: 1, 20: 2}),
    "seen": {3, 4, 5},
    "empty": [collections.Counter(), set()],
    "complex": 1 + 2j,
    "bytes": [b"ab", bytearray(b"\xe4b")],
    None: "none",
    b"key": 1,
    (64, 64): 2,
  }
  found = read(save(build.zip_file(pickle.dumps(state, protocol), {})))
  assert found["milestones"] == {"10": 1, "20": 2}
  assert sorted(found["seen"]) == [3, 4, 5]
  assert found["empty"] == [{}, []]
  assert found["complex"] == 1 + 2j
  text = [
    b if isinstance(b, str) else b.decode("latin-1") for b in found["bytes"]
  ]
  assert text == ["ab", "\xe4b"]
  assert (found["None"], found["key"]) == ("none", 1)
  assert 2 in found.values()  # Of a key that is no name.


def test_bytes_that_are_recalled_take_no_memory(save):
  long = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000
  text = b"q\x00X\x06\x00\x00\x00latin1\x86q\x01"
  encode = b"c_codecs\nencode\nq\x02" + long + text + b"R"
  again = b"h\x02h\x01R" * 300
  code = build.dumps({"a": b"(" + encode + again + b"l"})
  found = read(save(build.zip_file(code, {})))["a"]
  assert len(found) == 301
  assert len({id(each) for each in found}) == 1


def test_state_dict_attributes_are_dropped(save):
  # nn.Module.state_dict() hangs `_metadata` on its OrderedDict.
  code = b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadataNsb."
  assert read(save(build.zip_file(code, {}))) == {}


def test_protocols_zero_to_five_of_plain_values(save):
  value = {"a": [1, -(2**70), 1.5, "ä", b"b", None, True, (1, 2, 3, 4), {}]}
  for protocol in range(6):
    if protocol < 3:  # Bytes take a call of _codecs.encode there.
      value["a"][4] = 5
    data = build.zip_file(pickle.dumps(value, protocol), {})
    assert read(save(data)) == value
    value["a"][4] = b"b"


def _zip(*members, compression=0):
  buffer = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
    warnings.simplefilter("ignore", UserWarning)  # Duplicate names.
    for name, data in members:
      # Of no day: a test's name may have what is written.
      archive.writestr(zipfile.ZipInfo(name), data, compression)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (_zip(("a/data.pkl", b"}."), ("a/data.pkl", b"}.")), "data.pkl twice"),
    (_zip(("a/data.pkl", b"}."), ("b/data.pkl", b"}.")), "2 data.pkl"),
    (_zip(("weights.npy", b"")), "no PyTorch file: it has 0 data.pkl"),
    (_zip(("a/data.pkl", b"}."), ("a/code/net.py", b"")), "TorchScript"),
    (_zip(("a/data.pkl", b"}." * 99), compression=8), "compressed"),
    (_zip(("a/data.pkl", b"}."), ("a/byteorder", b"middle")), "byte order"),
    (_zip(("a/data.pkl", b"]."),), "holds a list"),
  ],
)  # fmt: skip
def test_archives_that_are_not_pytorchs(save, data, message):
  with pytest.raises(ValueError, match=message):
    read(save(data))


@pytest.mark.parametrize("key", ["../../x", "/etc/passwd", "", "a" * 65])
def test_paths_in_array_names_are_refused(save, key):
  base = np.zeros(2, "<f4")
  pickled = build.dumps({"a": build.tensor_code(key, base)})
  data = _zip(("a/data.pkl", pickled), (f"a/data/{key}", base.tobytes()))
  with pytest.raises(torch_file.DamagedFileError, match="malformed"):
    read(save(data))


def test_member_that_lies_about_its_size(save):
  # A zip bomb: the directory declares more than is there.
  base = np.zeros(64, "<f4")
  data = bytearray(
    build.zip_file(
      build.dumps({"a": build.tensor_code("0", base)}), {"0": base}
    )
  )
  entry = data.rindex(b"archive/data/0") - 46
  data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
  with pytest.raises(
    torch_file.DamagedFileError, match=r"overlap|beyond its end"
  ):
    read(save(bytes(data)))


@pytest.mark.parametrize("form", [build.zip_pth, build.legacy_pth])
def test_every_truncation_raises(save, form):
  data = form({"a": np.arange(3, dtype="<f4"), "b": np.ones(2, "<f2")})
  for end in range(2, len(data), 7):
    with pytest.raises(ValueError, match=r"."):
      read(save(data[:end]))


def test_flipped_byte_in_an_array_is_noticed(save):
  data = bytearray(build.zip_pth({"a": np.zeros(1000, "<f4")}))
  data[data.index(b"\0" * 500) + 100] ^= 1
  with pytest.raises(torch_file.DamagedFileError, match="CRC"):
    read(save(bytes(data)))


def test_foreign_pickles(save):
  with pytest.raises(ValueError, match=r"not one that torch\.save wrote"):
    read(save(pickle.dumps({"weights": [1.0]})))
  with pytest.raises(ValueError, match="version 7"):
    read(save(build.dumps(0x1950A86A20F9469CFC6C) + build.dumps(7) * 2))
  start = build.dumps(0x1950A86A20F9469CFC6C) + build.dumps(1001)
  with pytest.raises(ValueError, match="big-endian"):
    read(save(start + build.dumps({"little_endian": False})))


def test_legacy_view_of_a_storage(save):
  base = np.arange(10, dtype="<f4")
  code = build.tensor_code("0", base, legacy=True, shape=(3,), strides=(1,))
  # The last item of the reference becomes (key, offset, size) of a view.
  view = build.Pickler()
  view.code.clear()
  view.put(("view", 4, 3))
  code = code.replace(b"NtQ", bytes(view.code) + b"tQ")
  start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": code})
  data = b"".join(map(build.dumps, (*start, ["0"])))
  found = read(save(data + struct.pack("<q", 10) + base.tobytes()))
  np.testing.assert_array_equal(found["a"], [4, 5, 6])


@pytest.mark.parametrize("name", golden.SAVED)
def test_what_torch_saved(name):
  tree = read(golden.FOLDER / name)
  assert tree["other"][0] == (2, 3)
  assert tree["other"][2:] == [1.5, None]
  for dtype in golden.SAVED_DTYPES:
    expected = golden.saved(dtype)
    found = tree[dtype]
    assert found["plain"].dtype == expected.dtype
    assert found["scalar"] == expected[0, 0, 1]
    np.testing.assert_array_equal(found["plain"], expected)
    np.testing.assert_array_equal(found["parameter"], expected)
    np.testing.assert_array_equal(found["turned"], golden.turned(expected))


@pytest.mark.torch
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
  "dtype",
  ["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool"],
)
def test_against_torch(tmp_path, new, dtype):
  import torch

  torch.manual_seed(0)
  base = (10 * torch.randn(4, 5, 6)).to(getattr(torch, dtype))
  tree = {
    "plain": base,
    "turned": base.permute(2, 0, 1)[1:, ::2],
    "scalar": base[0, 0, 0],
    "parameter": torch.nn.Parameter(base, requires_grad=False),
    "other": [torch.Size([2, 3]), torch.float32, 1.5, None],
  }
  path = tmp_path / "model.pth"
  torch.save(tree, path, _use_new_zipfile_serialization=new)
  found = read(path)
  for key in ("plain", "turned", "scalar", "parameter"):
    expected = tree[key].float() if dtype == "bfloat16" else tree[key]
    np.testing.assert_array_equal(found[key], expected.detach().numpy())
  assert found["other"][0] == (2, 3)


@pytest.mark.torch
@pytest.mark.parametrize("new", [True, False])
def test_state_dict_of_a_torch_net(tmp_path, new):
  import torch

  from tests.oracles.torch_rrdb import RRDBNet

  net = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, scale=2)
  path = tmp_path / "model.pth"
  torch.save(
    {"params_ema": net.state_dict()}, path, _use_new_zipfile_serialization=new
  )
  found = selection.find_network(read(path))
  assert (found.config["scale"], found.config["unshuffle"]) == (2, 2)
  again = names.to_state_dict(found.params)
  net.load_state_dict({k: torch.from_numpy(v) for k, v in again.items()})


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # PyTorch's, of what is deprecated.
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_takes_with_weights_only(tmp_path, new):
  import torch

  kernel = torch.nn.Parameter(torch.randn(2, 3))
  kernel.note = "an attribute"
  adam = torch.optim.Adam([kernel], lr=0.1)
  kernel.sum().backward()
  adam.step()
  plan = torch.optim.lr_scheduler.MultiStepLR(adam, [10, 20, 20])
  base = torch.arange(6).reshape(2, 3)
  state = {
    "net": {"kernel": kernel, "alone": kernel.detach()},
    "optimizer": adam.state_dict(),
    "scheduler": plan.state_dict(),
    "complex": torch.complex(torch.ones(2), torch.zeros(2)),
    "quantised": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8),
    "nested": torch.nested.nested_tensor([torch.ones(1)]),
    "uint16": base.to(torch.uint16).T,
    "float8": torch.ones(2).to(torch.float8_e5m2),
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.empty(2, device="meta"),
    "kinds": [torch.strided, torch.qint8, torch.per_tensor_affine],
    "size": [torch.Size([2]), torch.device("cuda:1"), b"a", {1, 2}],
  }
  # These have no legacy form; a nested tensor is read there before its sizes
  # are, which succeeds or fails as what lies in memory will have it.
  if not new:
    for key in ("uint16", "float8", "nested"):
      del state[key]
  path = tmp_path / "state.pth"
  torch.save(state, path, _use_new_zipfile_serialization=new)
  torch.load(path, weights_only=True)
  found = read(path)
  for key, tensor in state["net"].items():
    expected = tensor.detach().numpy()
    np.testing.assert_array_equal(found["net"][key], expected)
  assert found["scheduler"]["milestones"] == {"10": 1, "20": 2}
  moment = adam.state_dict()["state"][0]["exp_avg"]
  np.testing.assert_array_equal(
    found["optimizer"]["state"]["0"]["exp_avg"], moment
  )
  np.testing.assert_array_equal(found["complex"], [1, 1])
  np.testing.assert_array_equal(found["quantised"], [2, 2])
  if new:
    assert found["uint16"].dtype == np.uint16
    np.testing.assert_array_equal(found["uint16"], base.T)
  assert found["sparse"] == "a sparse tensor"
  assert found["meta"] == "a tensor without data"


@pytest.mark.torch
def test_torch_training_state_with_a_module_is_refused(tmp_path):
  import torch

  path = tmp_path / "model.pth"
  torch.save(torch.nn.Conv2d(1, 1, 1), path)
  with pytest.raises(torch_file.UnsafeFileError, match=r"refused: torch\.nn"):
    read(path)


@pytest.mark.torch
def test_torchscript_is_named(tmp_path):
  import torch

  path = tmp_path / "model.pt"
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchScript itself is deprecated.
    net = torch.nn.Conv2d(1, 1, 1)
    torch.jit.trace(net, torch.zeros(1, 1, 2, 2)).save(str(path))
  with pytest.raises(ValueError, match="TorchScript"):
    read(path)
