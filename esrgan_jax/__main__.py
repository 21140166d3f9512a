"""The command line: `python -m esrgan_jax COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Each is a module of `esrgan_jax.commands`, imported only when it is used.
_COMMANDS = {
  "upscale": "make images larger with a pretrained or own model",
  "models": "list the models that have a name",
  "convert": "convert a weight file by suffix",
  "evaluate": "measure PSNR and SSIM of a model on images",
  "interpolate": "mix a PSNR model and a GAN model",
}


def _parser(chosen: str | None) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m esrgan_jax",
    description="ESRGAN in JAX: upscale, evaluate, convert.",
    epilog="Training is `python -m esrgan_jax.main --config=configs/gan.py`.",
  )
  commands = parser.add_subparsers(
    title="commands", dest="command", required=True, metavar="COMMAND"
  )
  for name, summary in _COMMANDS.items():
    child = commands.add_parser(name, help=summary)
    if name == chosen:
      module = importlib.import_module(f"esrgan_jax.commands.{name}")
      child.description = module.__doc__
      child.formatter_class = argparse.RawDescriptionHelpFormatter
      module.add_arguments(child)
      child.set_defaults(run=module.run)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: Arguments after the program's name; None means the process's.

  Returns:
    The exit status: 0 if all went well, 1 if something failed, 2 for unusable
    arguments (raised as `SystemExit` by argparse), 130 if interrupted.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  chosen = next((word for word in argv if not word.startswith("-")), None)
  args = _parser(chosen).parse_args(argv)
  try:
    return args.run(args)
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr)  # noqa: T201
    return 130
  except BrokenPipeError:
    # The reader, `head` say, has seen enough.
    sys.stderr.close()
    return 1
  except (ValueError, OSError, MemoryError, RuntimeError) as error:
    # What users can cause is raised as one of these, with a message for them.
    if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
      raise
    if os.environ.get("ESRGAN_JAX_TRACEBACK"):
      raise
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
  sys.exit(main())
