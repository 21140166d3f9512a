"""The worker's `uv`, and the `python` of the environment that it makes.

It records its argv in $HOME/calls.jsonl, and does what the real one leaves
behind, as far as the launch script sees it.
"""

import json
import os
import pathlib
import sys
import time


def main(name, arguments):
  home = pathlib.Path(os.environ["HOME"])
  with (home / "calls.jsonl").open("a") as file:
    file.write(json.dumps([name, *arguments]) + "\n")
  if name == "uv" and arguments[0] == "venv":
    python = pathlib.Path(arguments[-1], "bin/python")
    python.parent.mkdir(parents=True)
    python.symlink_to(pathlib.Path(os.environ["FAKE_CLOUD"], "bin/uv"))
  elif "esrgan_jax.data.prepare" in arguments:
    folder = home / "tensorflow_datasets/div2k" / arguments[3] / "2.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
  elif "esrgan_jax.main" in arguments:
    print("training on worker", os.environ["WORKER"], flush=True)
    gate = pathlib.Path(os.environ["FAKE_CLOUD"], "hold")
    while gate.exists():
      time.sleep(0.02)
    sys.exit(int(os.environ.get("RUN_STATUS", "0")))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[0]).name, sys.argv[1:])
