"""The command line: `python -m esrgan_jax COMMAND`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence, Set
from typing import NoReturn

from esrgan_jax import __version__, extras, plugins, storage, text
from esrgan_jax.errors import ArgumentParser, UsageError

# Each is a module of `esrgan_jax.commands`, imported only when it is used.
_COMMANDS = {
  "upscale": "make images larger with a pretrained or own model",
  "models": "list the models that have a name",
  "convert": "convert a weight file by suffix",
  "evaluate": "measure PSNR and SSIM of a model on images",
  "interpolate": "mix a PSNR model and a GAN model",
  "explore": "show an image by all models between a PSNR and a GAN model",
  "export": "write a model as ONNX, SavedModel, TFLite, ncnn or StableHLO",
  "demo": "serve a page on this machine where pictures are upscaled",
  "augment": "draw a picture of what a training's augmentation does",
  "degrade": "draw a page of what second-order degradation does",
}

_TAKING_MODELS = {*_COMMANDS} - {"augment", "degrade", "models"}

_EXIT = """\
exit status:
  0    all went well
  1    something failed: standard error says what
  2    the arguments cannot be used
  130  interrupted (Ctrl-C); of another signal, 128 and its number"""


def _factor(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{text} is not at least 1")
  return value


def _parser(chosen: str | None) -> argparse.ArgumentParser:
  parser = ArgumentParser(
    prog="python -m esrgan_jax",
    description="ESRGAN in JAX: upscale, evaluate, convert.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="`python -m esrgan_jax COMMAND --help` explains a command.\nTraining"
    f" is `python -m esrgan_jax.main --config=configs/gan.py`.\n\n{_EXIT}",
  )
  parser.add_argument(
    "--version", action="version", version=f"esrgan_jax {__version__}"
  )
  commands = parser.add_subparsers(
    title="commands", dest="command", required=True, metavar="COMMAND"
  )
  for name, summary in _COMMANDS.items():
    child = commands.add_parser(name, help=summary)
    if name == chosen:
      module = importlib.import_module(f"esrgan_jax.commands.{name}")
      child.description = module.__doc__
      child.epilog = _EXIT
      child.formatter_class = argparse.RawDescriptionHelpFormatter
      module.add_arguments(child)
      child.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="run a Python file that registers networks and measures of your"
        " own; may be given several times",
      )
      if name in _TAKING_MODELS:
        child.add_argument(
          "--config",
          metavar="FILE",
          help="JSON of a network's architecture, scale and fields, for another"
          " program's checkpoint or file that does not tell them"
          " (docs/checkpoints.md)",
        )
        child.add_argument(
          "--model-scale",
          type=_factor,
          metavar="N",
          help="the network's own factor, for the rare file that does not tell:"
          " x3 and plain x2 look alike",
        )
      child.set_defaults(run=module.run)
  return parser


class _Signalled(SystemExit):
  """The end by a signal that asks for it."""


def _leave(number: int) -> NoReturn:
  """Ends the process on a signal, without waiting for what devices compute."""
  said = b"\ninterrupted\n" if number == signal.SIGINT else b""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    if sys.stderr.isatty():
      said = b"\x1b[?25h" + (said or b"\n")  # A bar hides the cursor.
    os.write(sys.stderr.fileno(), said)
  storage.remove_unfinished()
  os._exit(128 + number)  # As a shell says it.


_ENDING = [
  getattr(signal, name)
  for name in ("SIGTERM", "SIGHUP")
  if hasattr(signal, name)
]

# Seconds that compiled code may go on after a signal, before the process ends.
_PATIENCE = 5.0


@contextlib.contextmanager
def _tidy_ends() -> Iterator[None]:
  """Ends as by an error where a signal would end at once, and leave debris."""

  def end(number: int, _: object) -> NoReturn:
    raise _Signalled(128 + number)  # As a shell says it.

  before, numbers = {}, {signal.SIGINT}
  with contextlib.ExitStack() as stack:
    if threading.current_thread() is threading.main_thread():
      for number in _ENDING:
        handler = signal.getsignal(number)
        if handler is signal.SIG_DFL:
          before[number] = signal.signal(number, end)
        if handler in (signal.SIG_DFL, _end_process):
          numbers.add(number)
      stack.enter_context(_impatient(numbers))
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def _impatient(numbers: Set[int]) -> Iterator[None]:
  """Ends the process some time after a signal, if nothing else has.

  Python handles signals between its own instructions, in the main thread. One
  that computes a tile or packs an image is not there for many seconds, and who
  sent the signal may kill the process by then, which leaves debris.
  """
  reading, writing = socket.socketpair()
  for each in (reading, writing):
    each.setblocking(False)
  before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

  def watch() -> None:
    ending = None
    while True:
      if not select.select([reading], [], [], ending and _PATIENCE)[0]:
        break
      for number in reading.recv(100):
        if number == 0:
          return
        if number in numbers:
          ending = number
    _leave(ending)

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  _watched.append(os.getpid())
  try:
    yield
  finally:
    if _watched.pop() == os.getpid():  # Else a fork: none of this is its own.
      signal.set_wakeup_fd(before)
      writing.send(b"\0")
      watcher.join()
    reading.close()
    writing.close()


# Processes whose signals a thread waits for: this one, or none.
_watched: list[int] = []


def _unwatch() -> None:
  """Keeps a fork's signals from being taken for those of its parent."""
  if _watched:
    signal.set_wakeup_fd(-1)
  for number, usual in _usual.items():
    if signal.getsignal(number) is _end_process:
      signal.signal(number, usual)


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_unwatch)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: Arguments after the program's name; None means the process's.

  Returns:
    The exit status: 0 if all went well, 1 if something failed, 2 for unusable
    arguments (raised as `SystemExit` by argparse), 130 if interrupted; 128 and
    its number (raised likewise) for another signal.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  text.escape_unencodable(sys.stdout, sys.stderr)
  text.log_warnings()
  chosen = next((word for word in argv if not word.startswith("-")), None)
  args = _parser(chosen).parse_args(argv)
  try:
    with _tidy_ends():
      plugins.load(args.plugin)
      return args.run(args)
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr)  # noqa: T201
    return 130
  except BrokenPipeError:
    # The reader, `head` say, has seen enough.
    sys.stderr.close()
    return 1
  except Exception as error:
    if os.environ.get("ESRGAN_JAX_TRACEBACK"):
      raise
    from esrgan_jax import console  # Which takes a while to import.

    told = extras.explain_missing(error) or text.explain(error)
    message = console.lines(f"error: {told}")
    console.make_console(stderr=True).print(message)
    return 2 if isinstance(error, UsageError) else 1


def _end_process(number: int, _: object) -> NoReturn:
  """Ends on a signal, wherever it comes.

  An exception would have to come through whatever runs: the imports of C++,
  which swallow it, callbacks and finalizers, out of which it is printed.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):  # It may be at it, or be closed.
      stream.flush()
  _leave(number)


# What the signals meant before this process took them.
_usual: dict[int, object] = {}


def run_process() -> NoReturn:
  """Runs the one command of a process, which ends at once on a signal."""
  for number in (signal.SIGINT, *_ENDING):
    usual = signal.getsignal(number)
    if usual in (signal.SIG_DFL, signal.default_int_handler):
      _usual[number] = usual
      signal.signal(number, _end_process)
  sys.exit(main())


if __name__ == "__main__":
  run_process()
