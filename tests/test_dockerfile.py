"""Images: what their steps name reaches them."""

import re
import shlex

import pytest

from tests import dockerfile, pages
from tests.training_runs import ROOT

IGNORED = (ROOT / ".dockerignore").read_text()
# What `pip install .` reads.
PACKAGE = ["pyproject.toml", "README.md", "LICENSE", "esrgan_jax/__init__.py"]


def _texts():
  """The Dockerfile, and those of pages, by where they are."""
  found = {"Dockerfile": (ROOT / "Dockerfile").read_text()}
  for page in pages.pages():
    for snippet in pages.snippets(page):
      if re.match(r"(ARG|FROM) ", snippet.text):
        found[snippet.place] = snippet.text
  return found


def _named(text):
  """Paths of the checkout that steps copy or install."""
  for name, rest in dockerfile.steps(text):
    words = [w for w in shlex.split(rest) if not w.startswith("--")]
    if name == "COPY":
      yield from words[:-1]
    elif name == "RUN":
      for word in words:
        path = re.sub(r"[\[$].*", "", word)
        if path == "." or path.endswith("/esrgan_jax"):
          yield from PACKAGE
        elif path and "/" not in path and (ROOT / path).exists():
          yield path


@pytest.mark.parametrize("place", _texts())
def test_what_steps_name_is_sent(place):
  named = [*_named(_texts()[place])]
  assert {*PACKAGE} <= {*named}
  for path in named:
    assert (ROOT / path).exists()
    assert path == "." or dockerfile.is_sent(path, IGNORED), path


def test_there_are_images_on_pages():
  assert len(_texts()) == 3


def test_configs_of_jobs_are_sent():
  """Of manifests in launch/, whose images are those of `COPY .`."""
  found = []
  for path in (ROOT / "launch").glob("*.yaml"):
    found += re.findall(r"--config=([\w./]+)", path.read_text())
  assert found == ["configs/gan.py"]
  for path in found:
    assert dockerfile.is_sent(path, IGNORED)


@pytest.mark.parametrize(
  ("path", "sent"),
  [
    ("a", False),
    ("b", True),
    ("b/c/d.py", True),
    ("b/__pycache__/d.pyc", False),
    ("b/c/__pycache__", False),
    ("b/c.tmp", False),
    ("b/c/c.tmp", True),
  ],
)
def test_the_last_line_that_fits_counts(path, sent):
  ignored = "# Nothing\n*\n!b\n**/__pycache__\nb/?.tmp\n"
  assert dockerfile.is_sent(path, ignored) == sent


def test_a_copy_is_of_what_is_sent(tmp_path):
  context = tmp_path / "context"
  for name in ("b/__pycache__/d.pyc", "b/d.py", "a"):
    path = context / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  (context / ".dockerignore").write_text("*\n!b\n**/__pycache__\n")
  image = dockerfile.Image(tmp_path / "root", {})
  image.build("FROM x\nWORKDIR /src\nCOPY . all\nCOPY b b\n", context)
  there = [p for p in (tmp_path / "root/src").rglob("*") if p.is_file()]
  names = {p.relative_to(tmp_path / "root/src").as_posix() for p in there}
  assert names == {"all/b/d.py", "b/d.py"}
  with pytest.raises(ValueError, match="keeps a from the image"):
    image.build("COPY a .", context)
