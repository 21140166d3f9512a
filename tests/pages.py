"""What the pages have of code: each snippet, and where a test runs it.

python -m tests.pages              lists them, and what no test runs, and why
python -m tests.pages --external   asks for every address of other places

A block is run unless its opening line has `title="Not run by a test: WHY"`,
which readers of the site see as well, or it is of a kind that `WHERE` calls
"read only": benchmarks, set-up and servers, whose options are looked for in
their parsers. Commands in running text and in tables are read by the parsers of
what they name; `python -m esrgan_jax ...` is run.
"""

import argparse
import collections
import dataclasses
import html
import pathlib
import re
import shlex
import sys
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).parents[1]

LANGUAGES = ("dockerfile", "python", "sh", "text", "yaml")
_FENCE = re.compile(
  r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE
)
_INLINE = re.compile(r"(?<!\\)`(python -m [^`]*)`")
_WHY = re.compile(r'\btitle="Not run by a test: ([^"]+)"')
_LINK = re.compile(r"(?<!`)\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")


@dataclasses.dataclass(frozen=True)
class Snippet:
  """A block of a page, or a command in its text."""

  page: str  # Below the root.
  line: int  # Of the page, from 1.
  language: str  # The block's first word; "inline" in running text.
  text: str
  why: str = ""  # No test runs it.

  @property
  def place(self):
    """As a compiler says it."""
    return f"{self.page}:{self.line}"


def pages():
  """The pages' paths below the root, sorted."""
  found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
  found += [
    ROOT / f"{name}/README.md" for name in ("launch", "notebooks", "tests")
  ]
  return sorted(str(path.relative_to(ROOT)) for path in found)


def read(page):
  """A page's text."""
  return (ROOT / page).read_text(encoding="utf-8")


def snippets(page):
  """All blocks and commands of a page, in order."""
  text = read(page)

  def line(match):
    return text.count("\n", 0, match.start()) + 1

  found = []
  for match in _FENCE.finditer(text):
    indent, info, code = match.groups()
    code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
    why = _WHY.search(info)
    language = info.split()[0] if info.split() else "text"
    found.append(
      Snippet(page, line(match), language, code, why[1] if why else "")
    )
  blank = _FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
  found += [
    Snippet(
      page,
      blank.count("\n", 0, m.start()) + 1,
      "inline",
      " ".join(m[1].split()),
    )
    for m in _INLINE.finditer(blank)
  ]
  return sorted(found, key=lambda snippet: snippet.line)


def commands(snippet):
  """The words of each command of a snippet, and what a shell makes of lines."""
  if snippet.language not in ("sh", "inline"):
    return []
  if snippet.why and "='\n" in snippet.text:  # A script within a command.
    return []
  text = snippet.text.replace("\\\n", " ").replace("\\|", "|")
  found = []
  for line in text.replace(" && ", "\n").splitlines():
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # The environment.
      del words[0]
    is_name = snippet.language == "inline" and len(words) < 5
    if words and not (is_name and words[2].startswith("esrgan_jax")):
      found.append(words)
  return found


def kind(words):
  """What a command is: see `WHERE`."""
  is_module = words[0].startswith("python") and words[1:2] == ["-m"]
  module = words[2] if is_module and words[2:] else ""
  of_set_up = words[0] in ("pip", ".") or words[0].startswith(".venv/")
  if of_set_up or module in ("build", "venv"):
    return "installation"
  if module == "esrgan_jax":
    special = words[3] if words[3:] else ""
    return special if special in ("demo", "export") else "command"
  if module == "esrgan_jax.main" or words[0].endswith("local_processes.sh"):
    return "training"
  if words[0] == "tensorboard":
    return "watching"
  if module == "esrgan_jax.data.prepare":
    return "fetching"
  if module.startswith("benchmarks."):
    return "benchmark"
  if module.startswith(("tests.", "pytest", "examples.")):
    return "tests"
  return "other"


# Where commands of a kind are run: a tier, and a test or a stage.
WHERE = {
  "command": "slow, or release: tests/test_pages.py",
  "demo": "read only; a server, which tests/test_demo_page.py starts",
  "export": "runtimes: tests/test_pages.py",
  "training": "release: tests/test_pages.py, smaller",
  "fetching": "read only; of its builders: tests/test_data_tfds.py",
  "benchmark": "read only; figures beside it are of a run by hand",
  "tests": "read only",
  "watching": "read only; a server",
  "installation": "read only; .ci/run and .ci/release install",
  "other": "",
}


def links(page):
  """The targets of a page's links, without those in code."""
  text = _FENCE.sub("", read(page))
  return _LINK.findall(re.sub(r"`[^`\n]*`", "``", text))


def anchors(page):
  """What a page's headings can be linked as, here and in the site."""
  text = _FENCE.sub("", read(page))
  found = re.findall(r"^#+ (.*?) *$", text, re.MULTILINE)
  return {slug(heading) for heading in found}


def slug(heading):
  """GitHub's name of a heading, and MkDocs'.

  >>> slug("`explore`, by hand")
  'explore-by-hand'
  """
  plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
  plain = html.unescape(plain).strip().lower()
  return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))


def external():
  """Addresses of other places, and the pages that have them."""
  found = collections.defaultdict(set)
  for page in pages():
    for target in links(page):
      if target.startswith(("http://", "https://")):
        found[target.partition("#")[0]].add(page)
  return dict(sorted(found.items()))


def ask(address, seconds=20):
  """What is wrong with an address; empty if it is there."""
  headers = {"User-Agent": "Mozilla/5.0 (links of a documentation)"}
  request = urllib.request.Request(address, headers=headers)
  try:
    with urllib.request.urlopen(request, timeout=seconds):
      return ""
  except (OSError, ValueError) as error:
    return str(error)


def _list():
  counts = collections.Counter()
  for page in pages():
    for snippet in snippets(page):
      where = snippet.why and f"NOT RUN: {snippet.why}"
      if not where and snippet.language in ("dockerfile", "text", "yaml"):
        where = "text"
      elif not where and snippet.language == "python":
        where = WHERE["command"]
      elif not where:
        kinds = dict.fromkeys(kind(words) for words in commands(snippet))
        where = "; ".join(WHERE[each] for each in kinds)
      counts[where] += 1
      first = snippet.text.strip().partition("\n")[0]
      print(f"{snippet.place}: {where}\n    {first[:100]}")
  print()
  for where, count in counts.most_common():
    print(f"{count:4} {where}")


def _ask_all():
  wrong = 0
  for address, named in external().items():
    if problem := ask(address):
      wrong += 1
      print(f"{address}: {problem} ({', '.join(sorted(named))})")
  print(f"{len(external())} addresses, {wrong} of them wrong")
  return 1 if wrong else 0


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--external", action="store_true")
  sys.exit(_ask_all() if parser.parse_args().external else _list())
