"""The pages: their commands and snippets run, and their links lead somewhere.

`tests/pages.py` collects them; what runs where is in its `WHERE`. Here files of
the test's own stand for those that the pages speak of, and small models for
large ones: the code is the same.
"""

import functools
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import __main__, images, main
from esrgan_jax.data import prepare
from esrgan_jax.models import registry
from esrgan_jax.training import config as config_lib
from esrgan_jax.training import phases
from esrgan_jax.weights import zoo
from tests import file_server, pages, promises, training_runs
from tests import weight_builders as build
from tests.training_runs import ROOT

PAGES = pages.pages()
_SMALL = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}


def _snippets(page, *languages):
  return [
    snippet
    for snippet in pages.snippets(page)
    if snippet.language in languages and not snippet.why
  ]


def _commands(page, *kinds):
  return [
    (snippet, words)
    for snippet in _snippets(page, "sh", "inline")
    for words in pages.commands(snippet)
    if pages.kind(words) in kinds
  ]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_no_text_is_run_or_says_why_not(page):
  for snippet in pages.snippets(page):
    place = snippet.place
    assert snippet.language in (*pages.LANGUAGES, "inline"), place
    if snippet.language == "python" and not snippet.why:
      compile(snippet.text, place, "exec")
    for words in pages.commands(snippet):
      if not snippet.why:
        assert pages.WHERE[pages.kind(words)], f"{place}: who runs {words}?"


@pytest.fixture(name="own_names")
def _own_names():
  """What a page's plugins register is gone afterwards."""
  networks, kinds = {*registry.generators()}, {*phases.kinds()}
  yield
  for name in {*registry.generators()} - networks:
    registry.unregister(name)
  for name in {*phases.kinds()} - kinds:
    phases.unregister_kind(name)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("own_names")
def test_commands_are_understood(page, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  _write_files(page)
  for name in ("configs", "examples", "launch"):
    pathlib.Path(name).symlink_to(ROOT / name)
  for snippet in pages.snippets(page):
    for words in pages.commands(snippet):
      try:
        _understand(words, whole=not snippet.why)
      except (SystemExit, Exception) as error:
        raise AssertionError(
          f"{snippet.place}: {words}: {capsys.readouterr().err or error}"
        ) from error


def _understand(words, *, whole):
  kind = pages.kind(words)
  if kind in ("command", "demo", "export"):
    words = [word for word in words[3:] if word not in "<>"]
    if "--help" in words:
      return
    __main__._parser(words[0]).parse_args(words)
  elif kind == "training":
    _, flags = _flags(words)
    if "config" not in flags:
      return
    config = config_lib.read_config(flags["config"])
    given = [(k[7:], v) for k, v in flags.items() if k.startswith("config.")]
    config_lib.override(config, given)
    if whole:
      config_lib.complete(config)
  elif kind == "fetching":
    options = inspect.getsource(prepare)
    assert all(
      f'"{word.partition("=")[0]}"' in options
      for word in words[3:]
      if word.startswith("--")
    )
  elif kind in ("benchmark", "tests"):
    module = words[2]
    if module == "pytest":
      return
    path = ROOT / f"{module.replace('.', '/')}.py"
    sources = path.read_text() + (ROOT / "benchmarks/train.py").read_text()
    for word in words[3:]:
      if word.startswith("--"):
        assert f'"{word.partition("=")[0]}"' in sources, word
  elif kind == "installation" and words[0] == "pip":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
      if match := re.search(r"\[([\w,-]+)\]$", word):
        for extra in match[1].split(","):
          assert extra in project["optional-dependencies"], extra


def _flags(words):
  """What a training's command gives, by name, and its words before."""
  start = 3 if words[1] == "-m" else 2
  given, rest = {}, iter(words[start:])
  for word in rest:
    key, equals, value = word.removeprefix("--").partition("=")
    given[key] = value if equals else next(rest)
  return words[:start], given


def test_keys_that_pages_name_are_there():
  keys = {f"{key}." for key in promises.config_keys()}
  found = 0
  for page in PAGES:
    for key in re.findall(r"`(?:--)?config\.([a-z_.]+)[=`]", pages.read(page)):
      if key not in ("json", "py", "yaml"):
        found += 1
        named = f"{key.removesuffix('.')}."
        assert any(each.startswith(named) for each in keys), f"{page}: {key}"
  assert found > 50


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  for target in pages.links(page):
    if target.startswith(("http://", "https://", "mailto:")):
      continue
    path, _, anchor = target.partition("#")
    found = (ROOT / page).parent / path if path else ROOT / page
    assert found.exists(), f"{page}: {target}"
    if anchor:
      name = str(found.resolve().relative_to(ROOT))
      assert anchor in pages.anchors(name), f"{page}: {target}"


def test_each_program_is_on_its_page():
  listed = pages.read("docs/benchmarks.md")
  for path in ROOT.glob("benchmarks/*.py"):
    if "__main__" in path.read_text():
      assert f"`python -m benchmarks.{path.stem}" in listed, path.stem
  listed = pages.read("launch/README.md")
  for path in ROOT.glob("launch/*.*"):
    assert path.name == "README.md" or f"`{path.name}`" in listed, path.name


def test_the_check_of_addresses_finds_what_is_missing():
  assert any("arxiv.org" in address for address in pages.external())
  with file_server.serving() as server:
    assert pages.ask(server.url) == ""
    server.mode = "404"
    assert "404" in pages.ask(server.url)


# Their blocks, run.


def _write_files(page):
  """Writes the blocks that begin with a file's name, such as `# toy.py`."""
  for snippet in pages.snippets(page):
    if name := _name(snippet):
      pathlib.Path(name).write_text(snippet.text)


def _name(snippet):
  first = snippet.text.partition("\n")[0]
  match = re.fullmatch(r"# ([\w./]+\.py)", first)
  return match[1] if match and snippet.language == "python" else None


@functools.cache
def _stand_ins():
  """A folder with the files that the pages speak of."""
  run = os.environ["ESRGAN_JAX_TEST_RUN"]
  folder = pathlib.Path(run, f"pages_{os.getpid()}")
  random = np.random.default_rng(0)

  def save(*names, size=(24, 28), channels=3):
    for name in names:
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = random.integers(0, 256, (*size, channels), np.uint8)
      PilImage.fromarray(pixels).save(path)

  save("photo.jpg", "photo.png", "input.jpg", "scan.tif", "huge.tif", "LR.png")
  save("texture.png", "panorama.jpg", size=(24, 24))
  save("logo.png", channels=4)
  save("holiday/a.jpg", "holiday/trip/b.png")
  hr = (96, 112)
  save("HR.png", size=hr)
  for name in ("photos", "others", "PHOTOS", "OTHERS", "FOLDER"):
    save(f"{name}/1.png", f"{name}/2.png", size=hr)
  save("photos/2024/05/3.jpg", size=hr)
  for name in ("1", "2"):
    save(f"HR/{name}.png", f"OTHER_HR/{name}.png", size=(512, 520))
    save(f"LR/{name}.png", f"OTHER_LR/{name}.png", size=(128, 130))
    save(f"DIV2K_valid_HR/{name}.png", size=(512, 520))
    save(f"set5/{name}_HR.png", size=(640, 640))
    save(f"set5/{name}_LR.png", size=(160, 160))
  save("Set5/HR/img_003.png", size=hr)
  save("Set5/LRbicx4/img_003.png")
  frames = [images.Image(np.full((5, 6, 3), v, np.uint8)) for v in (9, 99)]
  images.write_frames(folder / "moving.gif", frames, durations=[40, 70])
  for seed, name in enumerate(("my", "A", "B", "psnr", "interp_08", "MODEL")):
    state = build.random_state(_SMALL, seed=seed)
    (folder / f"{name}.pth").write_bytes(build.zip_pth(state))
  for name in ("configs", "launch", "examples"):
    (folder / name).symlink_to(ROOT / name)
  return folder


@pytest.fixture(name="place")
def _place(tmp_path, monkeypatch):
  """A copy of that folder, to work in."""
  place = tmp_path / "place"
  shutil.copytree(_stand_ins(), place, symlinks=True)
  monkeypatch.chdir(place)
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("ESRGAN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  before = jax.config.jax_compilation_cache_dir
  yield place
  jax.config.update("jax_compilation_cache_dir", before)


def _workdirs(page):
  """Copies of a small training stand for those that a page names."""
  for name in set(re.findall(r"\bruns/[\w-]+", pages.read(page))):
    if not pathlib.Path(name).exists():
      shutil.copytree(training_runs.trained()[0] / "run", name)


# Models that are not small, not here, or another network's file.
_LARGE = {
  "realesrgan-x4plus",
  "realesrgan-x4plus-anime",
  "MODEL",
  "gen.pth.tar",
  "pre-trained/generator.h5",
  *(row.model.name for row in zoo.models() if row.model.package is None),
}


def _smaller(words):
  """A command, with a small model in the place of a large one."""
  if "--denoise" not in words:  # Of those that have it, small ones are made.
    words = ["my.pth" if word in _LARGE else word for word in words]
  if words[0] == "upscale":
    if not {"--model", "-m"} & {*words}:
      words += ["--model", "my.pth"]
    if not {"--dry-run", "--skip-existing", "--overwrite"} & {*words}:
      words += ["--overwrite"]
  if words[0] in ("augment", "degrade"):
    words += (
      ["--size=32", "--count=1"] if words[0] == "degrade" else ["--size=32"]
    )
  return words


def _files():
  return [path for path in pathlib.Path().rglob("*") if path.is_file()]


_SHORTER = {
  "load()": 'load("realesrgan-x4plus-anime")',
  'load("realesrgan-x4plus")': 'load("realesrgan-x4plus-anime")',
  "num_block=23": "num_block=6",
  # docs/tutorials/in_research_code.md.
  "RRDBNet()": "RRDBNet(num_feat=8, num_block=1, num_grow_ch=4)",
  "(input_size=128)": "(num_feat=4, input_size=32)",
  "(16, 128, 128, 3)": "(8, 32, 32, 3)",
  "state, 1000": "state, 2",
  '{"conv5_4": 1.0}': '{"conv1_2": 1.0}',
  # docs/degradation.md.
  "(8, 128, 128, 3)": "(8, 32, 32, 3)",
}


def _execute(snippet, names):
  code = snippet.text
  for text, shorter in _SHORTER.items():
    code = code.replace(text, shorter)
  exec(compile(code, snippet.place, "exec"), names)


# A test of its own runs these, beside what it asserts of them.
_ELSEWHERE = {
  "CONTRIBUTING.md": "tests/test_contributing.py",
  "docs/upscale.md": "tests/test_upscale_page.py",
}
_PROGRAMS = ("docs/export.md",)  # Which read what is exported.
_LONG = {  # To compile; or how long has not been measured.
  "docs/compiling.md",
  "docs/consistency.md",
  "docs/degradation.md",
  "docs/errors.md",
  "docs/folders.md",
  "docs/generator.md",
  "docs/gigapixel.md",
  "docs/index.md",
  "docs/realesrgan.md",
  "docs/tutorials/in_research_code.md",
}


def _tier(page):
  """What wants a training, or takes long to compile, waits for a release."""
  is_long = page in _LONG or "runs/" in pages.read(page)
  return pytest.mark.release if is_long else pytest.mark.slow


_RUN = [
  pytest.param(page, marks=_tier(page))
  for page in PAGES
  if page not in (*_ELSEWHERE, *_PROGRAMS)
  and (_snippets(page, "python") or _commands(page, "command"))
]


@pytest.mark.parametrize("page", _RUN)
def test_a_page_runs(page, place, monkeypatch):
  _write_files(page)
  _workdirs(page)
  if "--denoise" in pages.read(page):
    (place.parent / "cache").mkdir(exist_ok=True)
    general = build.write_general(place.parent / "cache")
    made = {model.name for model in general}
    rest = (row.model for row in zoo.models() if row.model.name not in made)
    monkeypatch.setattr(zoo, "_MODELS", (*general, *rest))
  names = {"__name__": page}
  for snippet in _snippets(page, "python", "sh", "inline"):
    if snippet.language == "python" and not _name(snippet):
      _execute(snippet, names)
    for words in pages.commands(snippet):
      # Those take an extra and PyTorch: tests/test_video_clips.py and
      # tests/test_unet_discriminator.py have them.
      elsewhere = {"clip.mp4", "--discriminator"} & {*words}
      if pages.kind(words) == "command" and not elsewhere:
        _do(words[3:])
  if page in _CHECKS:
    _CHECKS[page](names)


def _do(words):
  """Runs a command and looks at what it made."""
  before = {path: path.stat().st_mtime_ns for path in _files()}
  assert __main__.main(_smaller(words)) == 0, words
  made = [p for p in _files() if p.stat().st_mtime_ns != before.get(p)]
  if {"-o", "upscale", "convert"} & {*words}:
    assert made or {"--skip-existing", "--dry-run"} & {*words}, words
  for path in made:
    if images.is_image_suffix(path):
      assert all(f.pixels.size for f in images.read_frames(path))


def _check_readme(names):
  assert names["large"].shape == (192, 256, 3)
  assert names["large"].dtype == np.uint8
  expected = np.rint(np.clip(names["sr"], 0, 1) * 255)
  assert np.abs(names["large"] - expected).max() <= 1


def _check_generator(names):
  """It is exported for every size."""
  lr = np.zeros((1, 5, 7, 3), np.float32)
  sr = names["exported"].call({"params": names["model"].params}, lr)
  assert sr.shape == (1, 20, 28, 3)


def _check_compiling(names):
  folder = jax.config.jax_compilation_cache_dir
  assert folder == os.path.expanduser("~/.cache/my_programs")
  lr = np.zeros((1, 8, 8, 3), np.float32)
  assert names["upscale"](names["variables"], lr).shape == (1, 32, 32, 3)


def _check_frames(_):
  frames = images.read_frames("moving_x4.webp")
  assert frames.durations == (40, 70)
  assert [frame.pixels.shape for frame in frames] == [(20, 24, 3)] * 2


def _check_realesrgan(names):
  assert int(names["state"].step) == 1
  assert float(names["metrics"]["skipped"]) == 0


def _check_research(names):
  assert names["large"].shape == (120, 200, 3)
  assert pathlib.Path("mine.safetensors").exists()
  # Both phases on all devices.
  assert len(names["mesh"].devices) == 8
  assert int(names["state"].step) == 2
  assert float(names["metrics"]["skipped"]) == 0
  assert names["state"].params["conv_last"]["bias"].sharding.mesh.size == 8
  image = np.zeros((5, 6, 3), np.uint8)
  assert names["model"].upscale(image).shape == (20, 24, 3)


_CHECKS = {
  "README.md": _check_readme,
  "docs/compiling.md": _check_compiling,
  "docs/frames.md": _check_frames,
  "docs/generator.md": _check_generator,
  "docs/realesrgan.md": _check_realesrgan,
  "docs/tutorials/in_research_code.md": _check_research,
}


@pytest.mark.runtimes
@pytest.mark.slow
@pytest.mark.parametrize(
  "page", [page for page in PAGES if _commands(page, "export")]
)
def test_what_a_page_exports(page, place):
  _write_files(page)
  _workdirs(page)
  names = {}
  for snippet in _snippets(page, "python", "sh", "inline"):
    if page in _PROGRAMS and snippet.language == "python":
      _execute(snippet, names)
    for words in pages.commands(snippet):
      if pages.kind(words) == "export":
        words = [
          "realesrgan-x4plus-anime" if word == "realesrgan-x4plus" else word
          for word in words[3:]
        ]
        out = words[words.index("-o") + 1]
        if not pathlib.Path(out).exists() or "--check" in words:
          assert __main__.main(words) == 0, words
        assert pathlib.Path(out).exists()
  if names:
    lr = np.random.default_rng(0).random((2, 19, 20, 3), np.float32)
    variables = {"params": names["model"].params}
    np.testing.assert_allclose(
      names["network"].call(variables, lr), names["program"].call(lr), atol=1e-5
    )
    psnr = names["measure"].call(lr, lr * np.float32(0.5))
    np.testing.assert_allclose(psnr, names["luma"](lr, lr * 0.5), rtol=1e-5)


_TRAININGS = {}
for _page in PAGES:
  for _, _words in _commands(_page, "training"):
    if "--config" in " ".join(_words):
      _TRAININGS.setdefault(" ".join(_words[1:]), (_page, _words))


@pytest.mark.release
@pytest.mark.parametrize("command", _TRAININGS)
def test_a_training_of_a_page_is_one(command, place, capsys):
  page, words = _TRAININGS[command]
  _write_files(page)
  words, given = _flags(words)
  config = config_lib.read_config(given["config"])
  config_lib.override(config, [("data.sources", "sample_photos")])
  config = config_lib.complete(config)
  flags = training_runs.SMALLER | given
  if config.data.eval.startswith("div2k"):
    flags.setdefault("config.data.eval", "others")
  if "init_from" in command or config.init_from:
    for field in ("num_feat", "num_block", "num_grow_ch"):
      flags[f"config.generator.{field}"] = _SMALL[field]
    flags["config.init_from"] = "my.pth"
  if "CenteredRRDBNet" in command:
    del flags["config.init_from"]
  flags.pop("config.init_discriminator", None)
  flags["config.phases.distill.teacher"] = "my.pth"
  if "distill" not in config.phase_order and "distill" not in command:
    del flags["config.phases.distill.teacher"]
  if "num_conv" in config.generator or "SRVGGNetCompact" in command:
    flags["config.generator.num_conv"] = 1
    flags.pop("config.generator.num_block")
  for key, value in [*flags.items()]:
    _, network, field = f"{key}..".split(".")[:3]
    if (
      network in ("generator", "discriminator")
      and f"config.{network}.architecture" not in flags
      and field not in config[network]
    ):
      del flags[key]  # Of a network of another kind.
    if str(value).startswith(("tfds:", "div2k")):
      flags[key] = "others" if key.endswith("eval") else "photos"
  for name, section in config.phases.items():
    key = f"config.phases.{name}.num_train_steps"
    flags[key] = min(section.num_train_steps, 2)
  flags.setdefault("workdir", "runs/it")
  flags = [f"--{key}={value}" for key, value in flags.items()]
  if words[0].startswith("python"):
    assert main.main(flags) == 0, capsys.readouterr().err
  else:
    flags.append("--config.mesh.num_devices=0")
    done = subprocess.run(
      ["bash", *words, *flags],
      env=training_runs.environment(
        JAX_NUM_CPU_DEVICES="1", PYTHON=sys.executable
      ),
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
  (workdir,) = (flag[10:] for flag in flags if flag.startswith("--workdir="))
  assert (pathlib.Path(workdir) / "report.html").exists()
