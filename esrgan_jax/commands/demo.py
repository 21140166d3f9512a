"""Serves a page on this machine: drop a picture, and compare.

  python -m esrgan_jax demo
  python -m esrgan_jax demo --model my.pth
  python -m esrgan_jax demo --psnr-model runs/mine --model runs/mine

Open the address that it prints. The page upscales a square of a picture at
once, beside what a filter makes of it, with any model that has a name or was
given here, and mixtures of two; then the whole picture, to be downloaded as
`upscale` would have written it. Only this machine reaches the page unless
--host says otherwise; Ctrl-C ends it, and what was uploaded is gone then.
docs/demo.md has more. It needs Gradio, `pip install '.[demo]'` in a clone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import re
import socket
from collections.abc import Sequence

from esrgan_jax import compilation, console, extras, storage
from esrgan_jax.commands import arguments
from esrgan_jax.errors import UsageError
from esrgan_jax.text import printable

_PORT = 7860  # Gradio's own.
_NAMES = ("gradio", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "-m",
    "--model",
    action="append",
    default=[],
    metavar="MODEL",
    help="a weight file, workdir or checkpoint to offer before the models that"
    " have a name, or one of these; may be given several times",
  )
  parser.add_argument(
    "--psnr-model",
    metavar="MODEL",
    help="what the first --model is mixed with from the start, as by `upscale`;"
    " alpha is then a slider",
  )
  parser.add_argument(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="address of this machine to serve at; 0.0.0.0: at all of them, for"
    " everybody who can reach it, without a password (default: %(default)s,"
    " which only this machine reaches)",
  )
  parser.add_argument(
    "--port",
    type=_port,
    metavar="N",
    help=f"port to serve at; 0: one that is free (default: {_PORT}, or one that"
    " is free)",
  )
  parser.add_argument(
    "--name",
    action="append",
    default=[],
    type=_host_name,
    metavar="HOST",
    help="answer browsers that call the page by this name, a proxy's or this"
    " machine's; names that were not given, but for localhost, are refused then"
    " with --host as well; may be given several times",
  )
  parser.add_argument(
    "--max-upload",
    type=_megabytes,
    default=64,
    metavar="MB",
    help="refuse larger files (default: %(default)s MB)",
  )
  arguments.add_precision(parser)
  arguments.add_max_pixels(
    parser, refused="results of more than 16 times as many"
  )


def run(args: argparse.Namespace) -> int:
  """Serves until it is interrupted; returns the exit status."""
  missing = [n for n in _NAMES if importlib.util.find_spec(n) is None]
  if missing:
    raise RuntimeError(
      f"the demo needs {' and '.join(missing)}, not installed here:"
      f" {extras.pip_install('demo')}"
    )
  out = console.make_console()
  with _bound(args.host, args.port) as bound, storage.temporary_folder() as own:
    # Before Gradio is imported, which reads them.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(own)
    address, port = bound.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}/"
    for note in compilation.precision_notes(args.precision):
      out.print(f"note: {note}")
    out.print("loading; the address comes when the page is there")
    hosts = _hosts(args.host, address, args.name)
    _serve(args, bound, own, hosts, out, url)
  return 0


def _serve(args, bound, folder, hosts, out, url):
  import uvicorn

  from esrgan_jax.demo import page, studio
  from esrgan_jax.weights import find

  compilation.enable_compilation_cache(storage.cache_dir() / "xla")
  app = page.make_app(
    studio.Studio(
      folder,
      models=args.model,
      psnr_model=args.psnr_model,
      precision=args.precision,
      max_pixels=args.max_pixels,
      scale=args.model_scale,
      config=find.read_config(args.config),
    ),
    max_upload=args.max_upload * 10**6,
    hosts=hosts,
  )

  class Server(uvicorn.Server):
    async def startup(self, sockets=None):
      await super().startup(sockets)
      if self.started:
        out.print(f"the page is at {url}  (Ctrl-C ends it)")
        if hosts is None:
          out.print(
            "note: everybody who can reach that address can use it, and web"
            " pages that lead a browser there; --name HOST, the name that you"
            " call it by, keeps those out"
          )

  Server(
    uvicorn.Config(
      app,
      log_level="warning",
      # Pages that are open would keep it.
      timeout_graceful_shutdown=1,
      server_header=False,
    )
  ).run(sockets=[bound])


def _bound(host: str, port: int | None) -> socket.socket:
  """Returns a socket at an address, before anything takes long."""
  try:
    found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError) as error:
    raise UsageError(
      f"--host {printable(host)} is no address of this machine; give 127.0.0.1,"
      " or 0.0.0.0 for all"
    ) from error
  family, _, _, _, place = found[0]
  wanted = [_PORT, 0] if port is None else [port]
  for number in wanted:
    try:
      return socket.create_server((place[0], number), family=family)
    except OSError as error:
      problem = error
  raise OSError(
    f"cannot serve at {printable(host)} port {wanted[-1]}:"
    f" {problem.strerror}; give another --port, or --port 0"
  ) from problem


def _hosts(
  host: str, address: str, names: Sequence[str] = ()
) -> set[str] | None:
  """Returns names by which a page may be asked for; None for any."""
  is_local = ipaddress.ip_address(address.partition("%")[0]).is_loopback
  if not (is_local or names):
    return None
  own = {"localhost", "127.0.0.1", "[::1]", host.lower(), address}
  return {*own, f"[{address}]", *names}


def _host_name(text: str) -> str:
  """Returns a name as browsers send it, without its port."""
  with contextlib.suppress(ValueError):
    if ipaddress.ip_address(text.strip("[]")).version == 6:
      return f"[{text.strip('[]').lower()}]"
  if not re.fullmatch(r"[\w.-]+", text, re.ASCII):
    raise argparse.ArgumentTypeError(
      f"{text} is no name of a machine, such as pictures.example: without"
      " http:// and port"
    )
  return text.lower()


def _port(text: str) -> int:
  if not (text.strip().isdecimal() and int(text) < 2**16):
    raise argparse.ArgumentTypeError(f"{text} is no port, 0 to 65535")
  return int(text)


def _megabytes(text: str) -> int:
  if not (text.strip().isdecimal() and 1 <= int(text) <= 10**6):
    raise argparse.ArgumentTypeError(
      f"{text} is not a number of megabytes, 1 to 1000000"
    )
  return int(text)
