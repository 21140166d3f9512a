r"""Prepares a data set with TensorFlow Datasets' own builder, once.

    python -m esrgan_jax.data.prepare --config bicubic_x4 --data_dir DIR
    python -m esrgan_jax.data.prepare oxford_flowers102 --data_dir DIR

downloads what it is made of (DIV2K, in a configuration: the official archives,
4.5 GB for bicubic_x4) and writes ArrayRecord files. Where there is no network,
put the archives into a folder and name it with --manual_dir: DIV2K's official
zips, or what the data set's page in TFDS's catalog says. Preparing needs
TensorFlow (tensorflow-cpu will do); reading what was prepared does not.
"""

from __future__ import annotations

import argparse
import sys

from esrgan_jax.data.sources.div2k import prepare_div2k
from esrgan_jax.data.sources.tfds_images import prepare_tfds
from esrgan_jax.errors import ArgumentParser, UsageError

__all__ = ["main"]

_EXIT = """\
exit status:
  0    it is prepared
  1    something failed: standard error says what
  2    the arguments cannot be used
  130  interrupted (Ctrl-C)"""


def main(arguments: list[str] | None = None) -> int:
  """Runs the command line.

  Args:
    arguments: Command-line arguments; None for the process's own.

  Returns:
    The exit status: 0, or 1 or 2 after an error that is printed as one line.

  >>> main(["--manual_dir", "/tmp/no-such-folder", "--data_dir", "/tmp/tfds"])
  1
  """
  parser = ArgumentParser(
    prog="python -m esrgan_jax.data.prepare",
    description="Prepares a data set for training, once.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog=_EXIT,
  )
  parser.add_argument(
    "name",
    nargs="?",
    default="div2k",
    help="what TFDS calls it, such as coco/2014 (default: %(default)s)",
  )
  parser.add_argument(
    "--config",
    default="bicubic_x4",
    help="DIV2K's configuration (default: %(default)s)",
  )
  parser.add_argument("--data_dir", help="TFDS's folder; default: its own")
  parser.add_argument(
    "--manual_dir", help="folder of what was downloaded by hand"
  )
  options = parser.parse_args(arguments)

  def say(line):
    sys.stderr.write(line + "\n")

  name, _, config = options.name.removeprefix("tfds:").partition("/")
  folders = {"data_dir": options.data_dir, "manual_dir": options.manual_dir}
  try:
    if name == "div2k":
      config = config or options.config
      path = prepare_div2k(config=config, **folders, report=say)
    else:
      path = prepare_tfds(options.name.removeprefix("tfds:"), **folders)
  except KeyboardInterrupt:
    say("\ninterrupted")
    return 130
  except (ImportError, OSError, RuntimeError, ValueError) as error:
    say(f"error: {error}")
    return 2 if isinstance(error, UsageError) else 1
  sys.stdout.write(f"{path}\n")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
