"""Runs the steps of the Dockerfile in a folder, where there is no Docker.

python -m tests.dockerfile ROOT [NAME=VALUE...] [-- ARGUMENT...]

ROOT is a system's root folder with a Python of its own, what FROM would bring
(`debootstrap`); steps run in it by `chroot`, as root. NAME=VALUE are build
arguments. After `--`, the image's entry point is run with those arguments, as
its user, in its folder. Steps that are not known here are an error, as is a
file that .dockerignore keeps from them.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# How this machine's pip finds packages is not the image's business.
_PASSED = ("PATH", "PIP_")


def steps(text):
  """Returns a Dockerfile's steps: a word in capitals, and the rest."""
  lines = [line for line in text.splitlines() if not line.startswith("#")]
  joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
  found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
  return [(name.upper(), rest.strip()) for name, rest in found]


def is_sent(path, ignored):
  """Tells whether a path below the context reaches an image's steps.

  Args:
    path: With slashes.
    ignored: The text of .dockerignore, of which the last line that fits counts.
  """
  parts = path.split("/")
  above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
  kept = True
  for line in ignored.splitlines():
    pattern = line.strip().lstrip("!").strip("/")
    if pattern and not line.startswith("#"):
      expression = re.sub(
        r"\\\*\\\*/|\\\*|\\\?", lambda m: _WILD[m[0]], re.escape(pattern)
      )
      if any(re.fullmatch(expression, each) for each in above):
        kept = line.strip().startswith("!")
  return kept


_WILD = {r"\*\*/": "(?:.*/)?", r"\*": "[^/]*", r"\?": "[^/]"}


@dataclasses.dataclass
class Image:
  """A folder that becomes what an image would be.

  Attributes:
    root: The folder.
    given: Build arguments.
    environ: Variables that steps see.
    arguments: Those of ARG, likewise.
    folder: Where they run.
    user: As whom.
    entry: The entry point.
    default: Its arguments, unless others are given.
  """

  root: pathlib.Path
  given: dict
  environ: dict = dataclasses.field(default_factory=dict)
  arguments: dict = dataclasses.field(default_factory=dict)
  folder: str = "/"
  user: str = "root"
  entry: tuple = ()
  default: tuple = ()

  def build(self, text, context):
    """Does every step."""
    for name, rest in steps(text):
      print(f"{name} {rest}", flush=True)
      getattr(self, f"_{name.lower()}")(rest, context)

  def run(self, command, **options):
    """Runs a command as a step does, or as the image's user."""
    inside = ["env", "-C", self.folder, *command]
    if self.user != "root":
      inside = ["setpriv", f"--reuid={self.user}", "--clear-groups", *inside]
    # By its place: the image's PATH need not have it.
    chroot = shutil.which("chroot") or "/usr/sbin/chroot"
    subprocess.run(
      [chroot, str(self.root), *inside],
      env=options.pop("passed", {}) | self.environ | self.arguments,
      check=True,
      **options,
    )

  def _from(self, rest, _):
    self.arguments.clear()  # They are not the image's.

  def _arg(self, rest, _):
    name, _, default = rest.partition("=")
    self.arguments[name] = self.given.get(name, "".join(shlex.split(default)))

  def _env(self, rest, _):
    for pair in shlex.split(rest):
      name, _, value = pair.partition("=")
      self.environ[name] = value

  def _workdir(self, rest, _):
    self.folder = rest
    (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

  def _copy(self, rest, context):
    *sources, target = shlex.split(rest)
    place = self.root / self.folder.lstrip("/") / target
    ignored = (context / ".dockerignore").read_text()

    def left_out(folder, names):
      below = pathlib.Path(folder).relative_to(context)
      return [n for n in names if not is_sent((below / n).as_posix(), ignored)]

    for name in sources:
      source = context / name
      if name != "." and not is_sent(name, ignored):
        raise ValueError(f".dockerignore keeps {name} from the image")
      if source.is_dir():  # Its content goes there.
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=left_out)
      else:
        shutil.copy(source, place)

  def _run(self, rest, _):
    passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED)}
    # Where a proxy's certificate is to be trusted, pip is told of a file.
    if certificates := passed.get("PIP_CERT"):
      place = self.root / certificates.lstrip("/")
      place.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(certificates, place)
    self.run(["sh", "-c", rest], passed=passed)

  def _user(self, rest, _):
    self.user = rest

  def _entrypoint(self, rest, _):
    self.entry = tuple(json.loads(rest))

  def _cmd(self, rest, _):
    self.default = tuple(json.loads(rest))


def main():
  words = sys.argv[1:]
  after = words[words.index("--") + 1 :] if "--" in words else None
  root, *given = words[: words.index("--")] if "--" in words else words
  image = Image(pathlib.Path(root), dict(each.split("=", 1) for each in given))
  image.build((ROOT / "Dockerfile").read_text(), ROOT)
  image.arguments.clear()
  path = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
  image.run([*image.entry, *(after or image.default)], passed=path)


if __name__ == "__main__":
  main()
