"""Looks at what was built: an sdist and a wheel hold the package and no more.

python -m tests.built DIST
"""

import pathlib
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parent.parent
# What a build adds, and what says what it is.
_IN_SDIST = {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
_IN_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt"}
_IN_INFO |= {"licenses/LICENSE"}


def package(root=ROOT):
  """Returns the files of the package, as the tools of a build name them."""
  return {
    path.relative_to(root).as_posix()
    for path in (root / "esrgan_jax").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }


def wrong(archive, expected):
  """Returns what an archive lacks, and what it should not have."""
  if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as file:
      names = set(file.namelist())
    (info,) = {n.partition("/")[0] for n in names if ".dist-info/" in n}
    expected = expected | {f"{info}/{name}" for name in _IN_INFO}
  else:
    with tarfile.open(archive) as file:
      names = {each.name for each in file.getmembers() if not each.isdir()}
    (top,) = {name.partition("/")[0] for name in names}
    expected = {f"{top}/{name}" for name in expected | _IN_SDIST}
  return [
    f"{archive.name} lacks {name}" for name in sorted(expected - names)
  ] + [f"{archive.name} has {name}" for name in sorted(names - expected)]


def main():
  (folder,) = sys.argv[1:]
  archives = sorted(pathlib.Path(folder).iterdir())
  kinds = [each.name.rpartition(".")[2] for each in archives]
  problems = [] if kinds == ["whl", "gz"] else [f"built was {kinds}"]
  if not problems:
    expected = package()
    problems = [line for each in archives for line in wrong(each, expected)]
  print(*problems or [f"{len(expected)} files of the package"], sep="\n")
  return bool(problems)


if __name__ == "__main__":
  sys.exit(main())
