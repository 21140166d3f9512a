"""Trains ESRGAN: `python -m esrgan_jax.main --config=FILE [--workdir=DIR]`.

Values of the config are set by name, for example --config.batch_size=8. The
same command goes on with a run that was interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from esrgan_jax import extras, large_pages, storage, text
from esrgan_jax.errors import ArgumentParser, UsageError

_OVERRIDE = "--config."
_EPILOG = """\
Configs are in configs/; keys, and what they mean, in
esrgan_jax/training/defaults.py.

exit status:
  0    the training is complete
  1    something failed: standard error says what
  2    the arguments cannot be used
  143  stopped by SIGTERM, as by preemption, and all that was trained is saved;
       started again, it goes on
  130  likewise, by Ctrl-C"""
# TensorFlow, which writes events and prepares DIV2K, greets on every start.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


def main(argv: Sequence[str] | None = None) -> int:
  """Trains as the arguments say.

  Args:
    argv: Arguments after the program's name; None means the process's.

  Returns:
    The exit status: 0 if the training is complete, 1 if something failed, 2
    for unusable arguments; 128 and the signal's number, as a shell says it, if
    one stopped it and all is saved: 143 for SIGTERM, 130 for SIGINT.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  parser = _parser()
  overrides, rest = _split(argv, parser)
  args = parser.parse_args(rest)
  text.log_warnings(force=True)
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  try:
    return _run(args, overrides)
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr)  # noqa: T201
    return _end(128 + signal.SIGINT)
  except Exception as error:
    if os.environ.get("ESRGAN_JAX_TRACEBACK"):
      raise
    told = extras.explain_missing(error) or text.explain(error)
    print(f"error: {told}", file=sys.stderr)  # noqa: T201
    return _end(2 if isinstance(error, UsageError) else 1)


def _parser():
  parser = ArgumentParser(
    prog="python -m esrgan_jax.main",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    epilog=_EPILOG,
  )
  parser.add_argument("--config", required=True, help="a config file")
  parser.add_argument(
    "--workdir",
    help="folder for results, or gs://BUCKET/FOLDER (default: runs/CONFIG)",
  )
  parser.add_argument(
    "--config.KEY", metavar="VALUE", help="set a value of the config"
  )
  parser.add_argument(
    "--plugin",
    action="append",
    default=[],
    metavar="FILE",
    help="run a Python file that registers networks, phases and measures of"
    " your own, as those of config.plugins; may be given several times",
  )
  return parser


def _run(args, overrides):
  # JAX, TensorFlow, orbax and the like take seconds: not for a wrong argument.
  import jax

  from esrgan_jax import compilation, distributed

  distributed.maybe_initialize()
  from esrgan_jax.training import config as config_lib

  given = [value.split(",") for key, value in overrides if key == "plugins"]
  named = [name.strip() for names in given for name in names]
  config = config_lib.read_config(
    args.config, plugin_names=[*named, *args.plugin]
  )
  workdir = args.workdir
  if not workdir:
    workdir = pathlib.Path("runs", pathlib.Path(args.config).stem)
    if jax.process_index() == 0:
      print(f"workdir: {text.printable(workdir)}", flush=True)  # noqa: T201
  config_lib.override(
    config, [(key, value) for key, value in overrides if key != "plugins"]
  )
  config = config_lib.complete(config)
  if jax.process_index() == 0:
    for line in config_lib.foretell(args.config, config):
      print(line, flush=True)  # noqa: T201
  from esrgan_jax.training import loop

  compilation.enable_compilation_cache(storage.cache_dir() / "xla")
  if signal.getsignal(signal.SIGINT) is _end_early:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    loop.train(config, workdir)
  except loop.StoppedError as stopped:
    print(text.printable_lines(stopped), file=sys.stderr)  # noqa: T201
    return 128 + stopped.signal
  return 0


def _split(argv, parser):
  """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of arguments."""
  overrides, rest = [], []
  words = iter(argv)
  for word in words:
    if not word.startswith(_OVERRIDE):
      rest.append(word)
      continue
    key, equals, value = word.removeprefix(_OVERRIDE).partition("=")
    if not equals:
      value = next(words, None)
      if value is None:
        parser.error(f"{word} needs a value, as {word}=VALUE")
    overrides.append((key, value))
  return overrides, rest


def _end(status):
  """Ends at once where others would be waited for, which wait for this one."""
  jax = sys.modules.get("jax")
  if jax and jax.distributed.is_initialized():
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def _end_early(number: int, _: object) -> NoReturn:
  """Ends on Ctrl-C, before there is anything to save.

  An exception would have to come through the imports of C++ and callbacks of
  the garbage collector, which swallow it, and the training would go on.
  """
  os.write(2, b"\ninterrupted\n")
  os._exit(128 + number)


def run_process() -> NoReturn:
  """Trains as the one command of a process."""
  large_pages.restart_with_large_pages(globals())
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_early)
  sys.exit(main())


if __name__ == "__main__":
  run_process()
