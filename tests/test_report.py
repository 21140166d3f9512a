"""The report: complete, alone, and there whatever is missing."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import PIL.Image
import pytest

from esrgan_jax.evaluation import evaluator
from esrgan_jax.report import chart, curves
from esrgan_jax.report.metric_log import MetricLog
from esrgan_jax.report.page import write_report


@pytest.fixture
def workdir(tmp_path):
  folder = tmp_path / "a<b"
  (folder / "samples").mkdir(parents=True)
  config = {"scale": 4, "generator": {"num_feat": 24, "num_block": 2}}
  (folder / "config.json").write_text(json.dumps(config))
  for phase in ("psnr", "gan"):
    with MetricLog(folder / phase, tensorboard=False) as log:
      for step in (10, 20, 30):
        log.write(step, {"g/loss": 1 / step, "d/real": 0.5, "d/fake": -0.5})
        log.write(step, {"eval/psnr_y": 20 + step / 10})
  evaluations = [
    evaluator.Evaluation(
      name, 4, 4, (evaluator.Score("x.png", {"psnr_y": psnr, "ssim_y": 0.8}),)
    )
    for name, psnr in (("bicubic", 28.0), ("psnr", 28.75))
  ]
  evaluator.write_evaluations(folder / "evaluation.json", evaluations)
  rows = [
    {
      "alpha": alpha,
      "psnr_y": 28 - alpha,
      "ssim_y": 0.8,
      "perceptual": 1 - alpha,
    }
    for alpha in (0.0, 0.5, 1.0)
  ]
  content = json.dumps({"rows": rows})
  (folder / "interpolation.json").write_text(content)
  for name in ("psnr_0000090", "psnr_0000100", "final"):
    picture = PIL.Image.fromarray(np.full((8, 9, 3), len(name), np.uint8))
    picture.save(folder / "samples" / f"{name}.png")
  return folder


class Checker(html.parser.HTMLParser):
  """Collects tags and refuses those that are not closed."""

  VOID = ("meta", "img", "br", "line", "path", "circle")

  def __init__(self):
    super().__init__()
    self.open, self.tags = [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def parse(page):
  checker = Checker()
  checker.feed(page)
  assert checker.open == []
  return checker.tags


def test_report_shows_all_and_stands_alone(workdir):
  path = write_report(workdir)
  page = path.read_text()
  tags = parse(page)
  assert "<h1>a&lt;b</h1>" in page
  for text in (
    "RRDBNet 24/2",
    "30 steps of GAN",
    "28.75 dB",
    "(+0.75)",
    "Phase one: PSNR",
    "Phase two: GAN",
    "Perceptual distance over PSNR",
    "Discriminator logits",
    "&quot;num_block&quot;: 2",
    "x.png",
  ):
    assert text in page, text
  names = [tag for tag, _ in tags]
  assert "script" not in names
  assert "link" not in names
  for _, attributes in tags:
    for key in ("src", "href"):
      assert attributes.get(key, "data:image/png").startswith("data:image/")
  assert not re.search(r"url\(|@import|https?://", page)
  # Of each kind of sample the newest: final, psnr_0000100.
  assert [a["alt"] for tag, a in tags if tag == "img"] == [
    "final",
    "psnr 0000100",
  ]
  assert [p.name for p in workdir.glob(".*")] == []


@pytest.mark.parametrize(
  "missing",
  ["config.json", "evaluation.json", "interpolation.json", "samples", "psnr"],
)
def test_report_does_without_what_is_missing_or_damaged(workdir, missing):
  whole = write_report(workdir).read_text()
  target = workdir / missing
  target.rename(workdir / "gone")
  assert len(write_report(workdir).read_text()) < len(whole)
  target.write_text("{")
  parse(write_report(workdir).read_text())


def test_pictures_of_a_phase_that_is_no_more_are_left_out(workdir):
  def shown():
    return re.findall('alt="(.*?)"', write_report(workdir).read_text())

  path = workdir / "config.json"
  before = json.loads(path.read_text())
  path.write_text(json.dumps({**before, "phase_order": ["gan"]}))
  assert shown() == ["final"]
  path.write_text(json.dumps({**before, "phase_order": ["gan", "psnr"]}))
  assert shown() == ["final", "psnr 0000100"]
  for name in ("psnr2_0000020", "psnr2_0000030"):
    copy = (workdir / "samples" / "final.png").read_bytes()
    (workdir / "samples" / f"{name}.png").write_bytes(copy)
  path.unlink()
  assert shown() == ["final", "psnr2 0000030", "psnr 0000100"]


def test_a_damaged_picture_is_left_out(workdir):
  (workdir / "samples" / "final.png").write_bytes(b"no picture")
  tags = parse(write_report(workdir).read_text())
  assert [a["alt"] for t, a in tags if t == "img"] == ["psnr 0000100"]


def test_large_pictures_become_smaller(workdir):
  noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), np.uint8)
  PIL.Image.fromarray(noise).save(workdir / "samples" / "final.png")
  page = write_report(workdir).read_text()
  assert "data:image/jpeg;base64," in page
  size = (workdir / "samples" / "final.png").stat().st_size
  assert len(page) < size


def test_curves_are_files_that_others_read(workdir):
  written = curves.write_curves(workdir, titles={"gan": "GAN & more"})
  names = [path.name for path in written]
  page = write_report(workdir).read_text()
  # Each of the page's, twice, and nothing else.
  assert len(names) == len({*names}) == 2 * page.count("<svg")
  assert sorted(path.name for path in (workdir / "curves").iterdir()) == sorted(
    names
  )
  for name in (
    "psnr_psnr_y",
    "psnr_generator_loss",
    "gan_discriminator_logits",
    "perceptual_distance_over_psnr",
    "ssim_y_over_alpha",
  ):
    svg = ET.parse(workdir / "curves" / f"{name}.svg").getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    _, _, width, height = map(int, svg.get("viewBox").split())
    with PIL.Image.open(workdir / "curves" / f"{name}.png") as picture:
      assert picture.size == (2 * width, 2 * height)
      seen = np.asarray(picture.convert("RGB")).astype(int)
    # The line is blue where SVG has its first point, and nowhere else so far.
    group = svg.find("{*}g")
    x, y = points(group, "{*}path")[0]
    top = height - chart.HEIGHT
    near = seen[int(2 * (y + top)) - 3 :, max(int(2 * x) - 3, 0) :][:7, :7]
    blue = near[..., 2] - near[..., 0]
    assert blue.max() > 80, name
    assert (seen[2 * top :, :80, 2] - seen[2 * top :, :80, 0]).max() < 80
  text = (workdir / "curves/gan_discriminator_logits.svg").read_text()
  assert "GAN &amp; more: Discriminator logits" in text
  assert ">real</text>" in text
  assert ">fake</text>" in text
  assert not re.search(r"url\(|@import|<script|href", text)


def test_what_other_losses_log_has_a_curve_too(tmp_path):
  with MetricLog(tmp_path / "psnr", tensorboard=False) as log:
    for step in (1, 2):
      log.write(step, {"d/penalty": step, "g/total_variation": 1, "skipped": 0})
  assert [path.name for path in curves.write_curves(tmp_path)] == [
    "psnr_discriminator_penalty.svg",
    "psnr_discriminator_penalty.png",
    "psnr_generator_total_variation.svg",
    "psnr_generator_total_variation.png",
  ]
  assert "Discriminator penalty" in write_report(tmp_path).read_text()


def test_losses_below_zero_are_all_drawn(tmp_path):
  """A critic's: without logarithms then, which have no place for them."""
  log = [{"step": n, "g/loss": v} for n, v in enumerate((0.5, -2.0, 0.1), 1)]
  page = curves.of_phase("GAN", log)
  svg = re.search("<svg.*?</svg>", page)[0]
  (_, a), (_, b), (_, c) = points(svg)
  assert a < c < b  # SVG's y goes down.
  # In steps of values, where logarithms would be in steps of factors.
  assert (b - a) / (b - c) == pytest.approx(2.5 / 2.1, abs=0.01)
  for entry in log:
    entry["g/loss"] = abs(entry["g/loss"])
  (_, a), (_, b), (_, c) = points(
    re.search("<svg.*?</svg>", curves.of_phase("GAN", log))[0]
  )
  assert (c - b) / (c - a) == pytest.approx(
    np.log10(2 / 0.1) / np.log10(0.5 / 0.1), abs=0.01
  )


@pytest.mark.parametrize("rises", [True, False])
def test_words_lie_beside_their_line(rises):
  x, y = [1.0, 2.0, 4.0, 8.0, 8.5], [1.0, 2.0, 3.0, 4.0, 5.0]
  line = chart.Line("models", x, y if rises else y[::-1])
  planned = chart.plan([line], x_label="x", marks=list("abcde"))
  words = [text for text in planned.texts if text.is_mark]
  assert {text.anchor for text in words} == {"start", "end"}
  for text, (across, down) in zip(words, planned.strokes[0], strict=True):
    is_left, is_above = text.x < across, text.y < down
    assert (is_left == is_above) == rises
    assert (text.anchor == "end") == is_left


def test_words_do_not_lie_over_others():
  x, y = [0.0, 0.001, 0.5, 0.999, 1.0], [0.0, 0.001, 0.5, 0.999, 1.0]
  planned = chart.plan(
    [chart.Line("models", x, y)], x_label="x", marks=["0", "0.1", "b", "c", "1"]
  )
  # The ends stay, and every point does.
  assert [text.words for text in planned.texts if text.is_mark] == list("0b1")
  assert len(planned.dots) == 5


def test_no_folder_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
    write_report(tmp_path / "nowhere")


def points(svg, name="path"):
  svg = ET.fromstring(svg) if isinstance(svg, str) else svg
  path = svg.find(name).get("d")
  return [
    tuple(map(float, p.split())) for p in re.findall(r"[\d.]+ [\d.]+", path)
  ]


def test_chart_goes_up_where_values_do():
  svg = chart.draw_chart(
    [chart.Line("a", [0, 1, 2], [1.0, 3.0, 2.0])], x_label="step"
  )
  (x0, y0), (x1, y1), (x2, y2) = points(svg)
  assert x0 < x1 < x2
  assert y1 < y2 < y0  # SVG's y goes down.
  assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)


def test_chart_leaves_gaps_and_logarithms_what_it_can():
  line = chart.Line("a", [0, 1, 2, 3], [1.0, None, 0.1, 0.01])
  svg = chart.draw_chart([line], x_label="step", log=True)
  assert ET.fromstring(svg).find("path").get("d").count("M") == 2
  # Even steps for even factors.
  _, (_, a), (_, b) = points(svg)
  assert b > a
  none = chart.Line("a", [0, 1], [0.0, -1.0])
  assert chart.draw_chart([none], x_label="step", log=True) == ""


def test_chart_thins_long_lines_by_means():
  line = chart.Line("a", list(range(3000)), [float(i % 2) for i in range(3000)])
  found = points(chart.draw_chart([line], x_label="step"))
  assert len(found) == 300
  assert len({y for _, y in found}) == 1


@pytest.mark.parametrize(
  ("low", "high"), [(0, 1), (27.1, 28.6), (-3, 1e5), (1e-5, 2e-4), (5, 5.001)]
)
def test_ticks_are_few_even_and_inside(low, high):
  found = chart.ticks(low, high)
  assert 2 <= len(found) <= 8
  assert low - 1e-9 <= found[0] <= found[-1] <= high + 1e-9
  assert np.ptp(np.diff(found)) <= 1e-9 * (high - low) + 1e-12


def test_the_plane_is_of_the_best_distance_that_was_measured():
  rows = [
    {
      "alpha": a,
      "psnr_y": 30.0 - a,
      "perceptual": 1.0 - a,
      "lpips": 0.5 - a / 9,
    }
    for a in (0.0, 0.5, 1.0)
  ]
  page = curves.trade_off({"rows": rows})
  assert "LPIPS over PSNR, by alpha" in page
  assert "LPIPS over alpha" in page
  for row in rows:
    del row["lpips"]
  assert "Perceptual distance over PSNR" in curves.trade_off({"rows": rows})
