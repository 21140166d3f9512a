"""Writes what PyTorch says to `tests/goldens`: see `tests.golden`.

python -m tests.oracles.record

What it says does not change, nor do the files' bytes, but for those of
`saved_legacy.pth`: PyTorch's older form calls arrays by their addresses.
"""

import numpy as np
import safetensors.numpy
import torch

from tests import golden
from tests.oracles import answers


def main():
  """Writes all files."""
  golden.FOLDER.mkdir(exist_ok=True)
  metadata = {
    "source": f"python -m tests.oracles.record, PyTorch {torch.__version__}"
  }
  for file, ask in answers.ANSWERS.items():
    arrays = {
      f"{case}/{name}": value
      for case, values in ask().items()
      for name, value in values.items()
    }
    path = golden.FOLDER / f"{file}.safetensors"
    arrays = {k: np.array(value, order="C") for k, value in arrays.items()}
    safetensors.numpy.save_file(arrays, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes")
  for name, is_zip in golden.SAVED.items():
    path = golden.FOLDER / name
    torch.save(answers.saved(), path, _use_new_zipfile_serialization=is_zip)
    print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
