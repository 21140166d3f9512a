"""Griffe's extension: a docstring's examples become blocks of code.

They stand in docstrings without a heading, where Markdown would take `>>>` for
quotes of quotes, and `params["kernel"]["bias"]` for a link.
"""

import re

import griffe

_EXAMPLE = re.compile(r"^>>> .*\n?(?:.+\n?)*", re.MULTILINE)


def _fence(obj):
  if obj.docstring and ">>> " in obj.docstring.value:
    obj.docstring.value = _EXAMPLE.sub(
      lambda match: f"```pycon\n{match[0].rstrip()}\n```\n",
      obj.docstring.value,
    )


class Doctests(griffe.Extension):
  """Fences the examples of every docstring."""

  def on_object(self, *, obj, **_):
    """Is called with each module, class, function and attribute."""
    _fence(obj)

  def on_package(self, *, pkg, **_):
    """Is called with the package, which is none of these."""
    if "```pycon" not in (pkg.docstring.value if pkg.docstring else ""):
      _fence(pkg)
