"""What was recorded of PyTorch is what it says."""

import numpy as np
import pytest

from tests import golden

FILES = sorted(path.stem for path in golden.FOLDER.glob("*.safetensors"))


@pytest.mark.torch
@pytest.mark.parametrize("file", FILES)
def test_pytorch_says_what_was_recorded(file):
  from tests.oracles import answers

  says = answers.ANSWERS[file]()
  recorded = golden.load(file)
  assert recorded.keys() == says.keys()
  for case, values in says.items():
    assert recorded[case].keys() == values.keys()
    for name, value in values.items():
      before = recorded[case][name]
      assert (before.dtype, before.shape) == (value.dtype, value.shape)
      # Both computed in float64; pixels of 8 bits may round otherwise.
      scale = np.abs(value).max()
      atol = 1 if value.dtype == np.uint8 else 1e-6 * scale
      np.testing.assert_allclose(
        before.astype(np.float64),
        value.astype(np.float64),
        rtol=0,
        atol=atol,
        err_msg=f"{file} {case} {name}: python -m tests.oracles.record",
      )


@pytest.mark.torch
def test_all_is_recorded():
  from tests.oracles import answers

  assert sorted(answers.ANSWERS) == FILES
  assert {path.name for path in golden.FOLDER.glob("*.pth")} == {*golden.SAVED}


@pytest.mark.torch
@pytest.mark.parametrize("name", golden.SAVED)
def test_pytorch_loads_what_it_saved(name):
  import torch

  from tests.oracles import answers

  # No strangers' file: `torch.float32` in it is more than weights.
  found = torch.load(golden.FOLDER / name, weights_only=False)
  says = answers.saved()
  assert found.pop("other") == says.pop("other")
  torch.testing.assert_close(found, says, rtol=0, atol=0)
