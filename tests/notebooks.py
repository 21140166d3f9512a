"""Executes the notebooks, as Jupyter does, in a folder that is thrown away.

python -m tests.notebooks [NAME...]     wants the extra `notebooks`
"""

import pathlib
import sys
import tempfile
import time

_LEAST = 3  # Pictures, in each.
FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"


def execute(path):
  """Runs all cells; what one raises ends it."""
  import nbclient
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  with tempfile.TemporaryDirectory() as folder:
    resources = {"metadata": {"path": folder}}
    nbclient.NotebookClient(
      notebook, timeout=900, resources=resources
    ).execute()
  return notebook


def main(names):
  """Executes those that are named, or all."""
  for path in sorted(FOLDER.glob("*.ipynb")):
    if names and path.stem not in names:
      continue
    began = time.monotonic()
    notebook = execute(path)
    shown = sum(
      "image/png" in output.get("data", {})
      for cell in notebook.cells
      for output in cell.get("outputs", [])
    )
    if shown < _LEAST:
      raise AssertionError(f"{path.name} shows {shown} pictures")
    seconds = time.monotonic() - began
    print(
      f"{path.name}: {len(notebook.cells)} cells, {shown} pictures,"
      f" {seconds:.0f} s"
    )


if __name__ == "__main__":
  main(sys.argv[1:])
