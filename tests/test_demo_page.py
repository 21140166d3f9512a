"""The demo's page in a browser, Chromium, driven by Playwright."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.weights import files
from tests.test_upscaler import make_model, photo

pytestmark = pytest.mark.browser

NET = {"num_feat": 4, "num_block": 1, "num_grow_ch": 2, "scale": 4}
# Where to put pictures of the page, for people to look at.
SHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory):
  folder = tmp_path_factory.mktemp("models")
  for seed, name in enumerate("pg"):
    params = make_model(seed, **NET).params
    params["conv_last"]["bias"] += 0.5
    files.write_weights(f"{folder}/{name}.safetensors", params, NET)
  return folder


@contextlib.contextmanager
def serving(folder, *more):
  """Yields the page's address; afterwards, nothing is left of it."""
  command = [sys.executable, "-m", "esrgan_jax", "demo", "--port", "0"]
  temporary = folder / "tmp"
  temporary.mkdir(exist_ok=True)
  with subprocess.Popen(
    [*command, *more],
    cwd=folder,
    env={**os.environ, "TMPDIR": str(temporary)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      line = ""
      for line in process.stdout:
        if found := re.search(r"the page is at (http://\S+)", line):
          break
      else:
        pytest.fail(process.stderr.read())
      yield found[1]
    finally:
      process.send_signal(signal.SIGINT)
      _, err = process.communicate(timeout=120)
  assert process.returncode == 130
  # Gradio tells of requests that were refused.
  assert err.endswith("\ninterrupted\n")
  assert not [*temporary.iterdir()]


@pytest.fixture(scope="module", name="address")
def _address(models):
  with serving(
    models,
    *("--model", "g.safetensors", "--psnr-model", "p.safetensors"),
    *("--max-upload", "1", "--max-pixels", "500000"),
  ) as address:
    yield address


@pytest.fixture(scope="module", name="browser")
def _browser():
  from playwright.sync_api import sync_playwright

  program = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
  )
  assert program, "no Chromium here: apt-get install chromium"
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=program, args=["--no-sandbox"]
    )
    yield browser
    browser.close()


@pytest.fixture(name="page")
def _page(browser, address):
  """The page, whose requests and errors are noted."""
  context = browser.new_context(viewport={"width": 1280, "height": 900})
  page = context.new_page()
  page.set_default_timeout(180_000)
  asked, wrong = [], []
  page.on("request", lambda request: asked.append(request.url))
  page.on("pageerror", lambda error: wrong.append(str(error)))
  page.on(
    "console",
    lambda message: message.type == "error" and wrong.append(message.text),
  )
  page.goto(address)
  page.get_by_text("No picture yet.").wait_for()
  yield page
  context.close()
  outside = [
    url for url in asked if not url.startswith((address, "data:", "blob:"))
  ]
  assert outside == []
  assert [text for text in wrong if "Content Security" in text] == []


def drop(page, path):
  page.set_input_files("#picture input[type=file]", str(path))


def said(page, text):
  """Waits until the page says something, and returns it."""
  page.locator("#said", has_text=text).wait_for()
  return page.locator("#said").inner_text()


def shot(page, name):
  if SHOTS:
    page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def seen(page):
  """What the slider shows, before and after, as arrays."""
  found = []
  for image in page.locator("#slider img").all():
    data = page.request.get(image.get_attribute("src")).body()
    found.append(images.decode_image(data, name="shown").pixels)
  return found


def test_a_file_goes_in_and_the_result_comes_out(page, models, tmp_path):
  picture = tmp_path / "my photo.png"
  large = photo(150, 200, 3, dtype=np.uint8)
  images.write_image(picture, images.Image(large))
  drop(page, picture)
  said(page, "A square of 128 pixels")
  shot(page, "look")
  before, after = seen(page)
  assert before.shape == after.shape == (512, 512, 3)
  command = page.locator("#command").inner_text()
  assert command == (
    "python -m esrgan_jax upscale 'my photo.png' --model g.safetensors"
    " --psnr-model p.safetensors --alpha 0.8"
  )

  page.locator("#overview img").click(position={"x": 5, "y": 5})
  page.wait_for_function(
    "before => document.querySelector('#slider img').src != before",
    arg=page.locator("#slider img").first.get_attribute("src"),
  )
  said(page, "A square of 128 pixels")
  _, corner = seen(page)
  assert (corner != after).any()

  page.locator("#start").click()
  said(page, "800 x 600 pixels")
  shot(page, "whole")
  with page.expect_download() as download:
    page.locator("#download").click()
  assert download.value.suggested_filename == "my photo_x4.png"
  result = tmp_path / "result.png"
  download.value.save_as(result)
  ours = tmp_path / "ours.png"
  subprocess.run(
    [
      *(sys.executable, "-m", "esrgan_jax", "upscale", picture, "-q"),
      *("--model", "g.safetensors", "--psnr-model", "p.safetensors"),
      *("-o", ours),
    ],
    check=True,
    cwd=models,
  )
  a, b = map(images.read_image, (result, ours))
  assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1
  assert a.metadata == b.metadata
  assert b"alpha=0.8" in result.read_bytes()
  page.set_viewport_size({"width": 420, "height": 900})
  shot(page, "narrow")
  assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_alpha_moves_the_result(page, tmp_path):
  picture = tmp_path / "a.png"
  images.write_image(picture, images.Image(photo(20, 28, 3, dtype=np.uint8)))
  drop(page, picture)
  said(page, "A square")
  results = []
  for alpha in ("0", "0.5", "1"):
    page.locator("#alpha input[type=range]").fill(alpha)
    page.locator(
      "#command", has_text=re.compile(rf"--alpha {alpha}(?![.\d])")
    ).wait_for()
    results.append(seen(page)[1].astype(int))
  first, between, last = results
  assert 0 < abs(between - last).mean() < abs(first - last).mean()
  shot(page, "alpha")


def test_another_model_is_chosen(page, tmp_path):
  picture = tmp_path / "a.png"
  images.write_image(picture, images.Image(photo(20, 28, 3, dtype=np.uint8)))
  drop(page, picture)
  said(page, "A square")
  page.locator("#model input").click()
  page.get_by_role("option", name="animevideov3-x2:").click()
  page.locator("#command", has_text="--model animevideov3-x2").wait_for()
  assert not page.locator("#alpha input[type=number]").is_visible()
  assert seen(page)[1].shape == (40, 56, 3)
  page.locator("#model input").click()
  page.get_by_role("option", name="p.safetensors, x4").click()
  page.locator("#command", has_text="--model p.safetensors").wait_for()
  page.locator("#other input").click()
  page.get_by_role("option", name="g.safetensors, x4").click()
  page.locator("#command", has_text="--psnr-model g.safetensors").wait_for()
  assert page.locator("#alpha input[type=number]").is_visible()


def test_a_wrong_file_gets_a_message(page, tmp_path):
  wrong = tmp_path / "<img src=x onerror=alert(1)>.png"
  wrong.write_text("no picture at all " * 99)
  drop(page, wrong)
  text = said(page, "not an image of a known format")
  assert page.locator("#said [role=alert]").count() == 1
  assert page.locator("#said img").count() == 0
  assert "/" not in text.replace("docs/formats.md", "")
  assert not page.locator("#start button, button#start").first.is_enabled()
  shot(page, "wrong")

  # As large as it claims to be: 1000 x 1000.
  large = tmp_path / "large.png"
  PilImage.new("L", (1000, 1000)).save(large)
  page.locator("#picture button[aria-label='Clear']").click()
  said(page, "No picture yet.")
  drop(page, large)
  said(page, "1000 x 1000 pixels are more than")


def test_a_file_that_is_too_long_is_refused(page, tmp_path):
  long = tmp_path / "long.png"
  long.write_bytes(bytes(1_100_000))
  drop(page, long)
  page.get_by_text(re.compile("exceed", re.IGNORECASE)).first.wait_for()
  shot(page, "too_long")
  assert page.locator("#said").inner_text() == "No picture yet."


def test_a_result_that_nobody_wants_is_stopped(page, tmp_path):
  picture = tmp_path / "a.png"
  images.write_image(picture, images.Image(np.zeros((64, 4096, 3), np.uint8)))
  drop(page, picture)
  said(page, "A square")
  page.locator("#model input").click()
  page.get_by_role("option", name="realesrgan-x4plus-anime:").click()
  page.locator(
    "#command", has_text="--model realesrgan-x4plus-anime"
  ).wait_for()
  page.locator("#start").click()
  page.get_by_text("upscaling").first.wait_for()
  shot(page, "progress")
  page.locator("#stop").click()
  said(page, "Stopping, after the tile that it is at.")
  said(page, "Stopped.")


def _status(request):
  try:
    with urllib.request.urlopen(request, timeout=30) as answer:
      return answer.status, answer.read()
  except urllib.error.HTTPError as error:
    with error:
      return error.code, error.read()


def _ask(address, path, **headers):
  return _status(urllib.request.Request(f"{address}{path}", headers=headers))


def test_files_of_the_machine_are_not_served(address, models):
  for path in ("/etc/passwd", f"{models}/p.safetensors", "p.safetensors"):
    status, body = _ask(address, f"gradio_api/file={path}")
    assert status in (403, 404)
    assert b"root:" not in body
    assert len(body) < 1000
  assert _ask(address, "")[0] == 200
  assert _ask(address, "", Host="evil.example")[0] == 403
  assert _ask(address, "", Origin="http://evil.example")[0] == 403
  for page in ("docs", "openapi.json", "monitoring", "gradio_api/mcp"):
    assert _ask(address, page)[0] in (403, 404)


def _upload(address, *contents, **headers):
  """Status of a request as the page's own, with so many files."""
  parts = [
    b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"'
    b"\r\ncontent-type: image/png\r\n\r\n" + content + b"\r\n"
    for content in contents
  ]
  body = b"".join([*parts, b"--x--\r\n"])
  headers = {"content-type": "multipart/form-data; boundary=x", **headers}
  url = f"{address}gradio_api/upload"
  return _status(urllib.request.Request(url, body, headers))[0]


def test_a_name_of_ones_own_and_no_more_than_so_many_uploads(tmp_path):
  with serving(
    tmp_path,
    *("--host", "0.0.0.0", "--name", "pictures.example"),
    *("--max-upload", "1"),
  ) as address:
    address = address.replace("0.0.0.0", "127.0.0.1")
    # As by a proxy, which leaves the names as browsers sent them.
    theirs = {"Host": "pictures.example:8443", "X-Forwarded-Proto": "https"}
    theirs["Origin"] = "https://pictures.example:8443"
    status, config = _ask(address, "config", **theirs)
    assert status == 200
    assert json.loads(config)["root"] == "https://pictures.example:8443"
    assert _ask(address, "", Host="evil.example")[0] == 403
    assert _upload(address, b"picture", **theirs) == 200

    # A thousand files are one request, but not longer than one file may be.
    connection = http.client.HTTPConnection(address.split("/")[2])
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("content-length", "2000001")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    random = np.random.default_rng(0)
    statuses = [
      _upload(address, random.bytes(990_000), random.bytes(900_000))
      for _ in range(17)
    ]
    assert statuses == [*(16 * [200]), 413]
    assert _ask(address, "")[0] == 200


def _queued(address, data):
  """Asks for the first event of the page that takes a picture."""
  _, body = _ask(address, "config")
  config = json.loads(body)
  of_picture = [
    each["id"]
    for each in config["components"]
    if each["props"].get("elem_id") == "picture"
  ]
  (event, *_) = [
    each for each in config["dependencies"] if of_picture[0] in each["inputs"]
  ]
  body = {
    "data": [data, None, *[None] * (len(event["inputs"]) - 2)],
    "fn_index": event["id"],
    "session_hash": "somebody",
  }
  status, _ = _status(
    urllib.request.Request(
      f"{address}gradio_api/queue/join",
      json.dumps(body).encode(),
      {"content-type": "application/json"},
    )
  )
  if status != 200:
    return ""
  said = ""
  with urllib.request.urlopen(
    f"{address}gradio_api/queue/data?session_hash=somebody", timeout=30
  ) as answer:
    for line in answer:
      said += line.decode()
      if "process_completed" in said:
        return said
  return said


def test_a_request_cannot_name_files_or_addresses(address, models):
  asked = []

  import http.server
  import threading

  class Elsewhere(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

  with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for path in (
      f"http://127.0.0.1:{server.server_port}/a.png",
      "file:///etc/passwd",
      "/etc/passwd",
      f"{models}/p.safetensors",
    ):
      found = _queued(
        address, {"path": path, "meta": {"_type": "gradio.FileData"}}
      )
      assert '"success":false' in found.replace(" ", "")
    server.shutdown()
  assert asked == []
