"""What `--help` says, of every command: enough for a person, and true."""

import argparse
import re
import subprocess
import sys

import pytest

from esrgan_jax import __main__, __version__, main
from esrgan_jax.data import prepare
from tests.training_runs import ROOT

COMMANDS = [*__main__._COMMANDS]
STATUSES = ["0", "1", "2", "130"]


def _help(program, *arguments, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  with pytest.raises(SystemExit) as stop:
    program([*arguments, "--help"])
  assert stop.value.code == 0
  return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys, monkeypatch):
  text = _help(__main__.main, name, capsys=capsys, monkeypatch=monkeypatch)
  assert text.startswith(f"usage: python -m esrgan_jax {name}")
  # Alternatives of the usage are what argparse does not break.
  usage, _, rest = text.partition("\n\n")
  assert "[-h]" in usage
  assert max(map(len, rest.splitlines())) <= 80
  (statuses,) = re.findall(r"^exit status:\n((?:  .*\n?)+)\Z", text, re.M)
  assert re.findall(r"^  (\d+) ", statuses, re.M) == STATUSES


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_explained(name):
  parser = __main__._parser(name)
  (commands,) = [
    each
    for each in parser._actions
    if isinstance(each, argparse._SubParsersAction)
  ]
  for action in commands.choices[name]._actions:
    said = action.help or ""
    assert len(said) > 8, action
    # A default that is no matter of course is told.
    if action.default not in (None, False, [], argparse.SUPPRESS):
      assert "default" in said, action


def test_the_list_of_commands(capsys, monkeypatch):
  text = _help(__main__.main, capsys=capsys, monkeypatch=monkeypatch)
  for name, summary in __main__._COMMANDS.items():
    assert re.search(rf"^    {name}\s+{re.escape(summary[:30])}", text, re.M)
  assert "python -m esrgan_jax.main --config=" in text
  assert "exit status:" in text


def test_training_explains_itself(capsys, monkeypatch):
  text = _help(main.main, capsys=capsys, monkeypatch=monkeypatch)
  assert text.startswith("usage: python -m esrgan_jax.main")
  assert max(map(len, text.splitlines())) <= 80
  statuses = text[text.index("exit status:") :]
  found = re.findall(r"^  (\d+) ", statuses, re.M)
  assert found == ["0", "1", "2", "143", "130"]


def test_preparing_data_explains_itself(capsys, monkeypatch):
  text = _help(prepare.main, capsys=capsys, monkeypatch=monkeypatch)
  assert re.findall(r"^  (\d+) ", text[text.index("exit status:") :], re.M) == [
    *STATUSES
  ]


def test_a_mistake_is_told_in_a_line_without_all_options(capsys):
  with pytest.raises(SystemExit) as stop:
    __main__.main(["upscale", "a.png", "--quality", "101"])
  assert stop.value.code == 2
  line, hint = capsys.readouterr().err.splitlines()
  assert line == "error: argument --quality: 101 is no whole number, 1 to 100"
  assert hint == "`python -m esrgan_jax upscale --help` explains the arguments"


def test_the_version(capsys):
  with pytest.raises(SystemExit) as stop:
    __main__.main(["--version"])
  assert stop.value.code == 0
  assert capsys.readouterr().out == f"esrgan_jax {__version__}\n"


def _status(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "esrgan_jax", *arguments],
    check=False,
    capture_output=True,
    cwd=ROOT,
  ).returncode


def test_exit_statuses_are_what_they_say(tmp_path):
  assert _status("models") == 0
  assert _status("upscale", str(tmp_path / "nothing.png")) == 1
  assert _status("upscale", "a.png", "--no-such-option") == 2
  assert _status() == 2
