"""What is printed of strangers' text: the text, and nothing it would do."""

import io

import pytest
import rich.console
import rich.progress
import rich.table

from esrgan_jax import console
from tests.hostile_names import NAMES, harmless


def _printed(print_, kind=console.Console, **options):
  file = io.StringIO()
  print_(kind(**{"file": file, "width": 300} | options))
  return file.getvalue()


@pytest.mark.parametrize("name", [*NAMES, "a[/b]", "[link=http://x]b[/link]"])
def test_a_name_is_a_line(name):
  text = _printed(lambda out: out.print(name))
  assert text.count("\n") == 1
  assert harmless(text)
  assert _printed(lambda out: out.print(f"{name}", 1)) == text[:-1] + " 1\n"
  # At a terminal, in a table and in bars, on any console.
  options = {"kind": rich.console.Console, "force_terminal": True}
  table = rich.table.Table("name", box=None)
  table.add_row(console.line(name))
  assert text.strip() in _printed(lambda out: out.print(table), **options)
  column = console.TextColumn("{task.description} {task.fields[x]}")
  task = rich.progress.Task(0, name, 1, 0, lambda: 0.0, fields={"x": name})
  shown = _printed(lambda out: out.print(column.render(task)), **options)
  assert shown.split() == (text + text).split()


def test_a_message_of_ours_keeps_its_lines():
  message = "2 left out:\n  a[/b]\x1b[31m\n  c"
  shown = _printed(lambda out: out.print(console.lines(message)))
  assert shown == "2 left out:\n  a[/b]\\x1b[31m\n  c\n"


def test_on_a_terminal_lines_break_between_words():
  def shown(message, **options):
    text = _printed(lambda out: out.print(message), width=20, **options)
    return text.splitlines()

  message = (
    "error: a.png: not an image of 写真写真 or\n  /a/long/path/without/spaces"
  )
  assert len(shown(message)) == 1
  broken = shown(console.lines(message), force_terminal=True)
  assert broken == [
    "error: a.png: not an",
    "image of 写真写真 or",
    "  /a/long/path/without/spaces",
  ]
  assert shown("  a fairly long line that", force_terminal=True) == [
    "  a fairly long line",
    "  that",
  ]
  assert shown("", force_terminal=True) == [""]


def test_what_the_stream_cannot_encode_is_escaped(monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), "ascii")
  monkeypatch.setattr("sys.stdout", stream)
  console.make_console().print("写真.png")
  stream.flush()
  assert stream.buffer.getvalue() == b"\\u5199\\u771f.png\n"


def test_a_download_shows_the_model_as_it_was_named(monkeypatch, capsys):
  monkeypatch.setenv("FORCE_COLOR", "1")
  with console.fetch_progress("a[/b]\x1b]0;\x07", quiet=False) as progress:
    progress(1, 2)
  assert "fetching a[/b]\\x1b]0;\\x07" in capsys.readouterr().err
