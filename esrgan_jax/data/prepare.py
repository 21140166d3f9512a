r"""Prepares DIV2K with TensorFlow Datasets' own builder, once.

    python -m esrgan_jax.data.prepare --config bicubic_x4 --data_dir DIR

downloads the official archives (4.5 GB for bicubic_x4) and writes ArrayRecord
files. Where there is no network, put the official zips into a folder and name
it with --manual_dir. Preparing needs TensorFlow (tensorflow-cpu will do);
reading what was prepared does not.
"""

from __future__ import annotations

import argparse
import sys

from esrgan_jax.data.sources.div2k import prepare_div2k

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
  """Runs the command line.

  Args:
    arguments: Command-line arguments; None for the process's own.

  Returns:
    The exit status: 0, or 1 after an error that is printed as one line.

  >>> main(["--manual_dir", "/tmp/no-such-folder", "--data_dir", "/tmp/tfds"])
  1
  """
  parser = argparse.ArgumentParser(
    prog="python -m esrgan_jax.data.prepare",
    description="Prepares DIV2K for training, once.",
  )
  parser.add_argument(
    "--config", default="bicubic_x4", help="default: %(default)s"
  )
  parser.add_argument("--data_dir", help="TFDS's folder; default: its own")
  parser.add_argument("--manual_dir", help="folder of the official zips")
  options = parser.parse_args(arguments)

  def say(line):
    sys.stderr.write(line + "\n")

  try:
    path = prepare_div2k(
      options.data_dir,
      config=options.config,
      manual_dir=options.manual_dir,
      report=say,
    )
  except (ImportError, OSError, RuntimeError, ValueError) as error:
    say(f"error: {error}")
    return 1
  sys.stdout.write(f"{path}\n")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
