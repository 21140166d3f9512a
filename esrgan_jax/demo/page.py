"""The demo's page, which Gradio draws, and what serves it."""

import contextlib
import html
import threading
from typing import Any

from esrgan_jax.demo import guard
from esrgan_jax.demo.studio import SIDE, Choice, Studio

__all__ = ["make_app"]

# Those who wait for their turn; more are told that there are too many.
_MOST_WAITING = 16
# What lies in the folder, uploaded and made, in the largest uploads.
_MOST_UPLOADS = 32
# Files that nobody has asked for since, and how often they are looked for, in
# seconds.
_FORGOTTEN, _LOOKING = 3600, 600

_HEAD = """
<h1>esrgan_jax</h1>
<p>Drop a picture, and compare. Detail is invented: results are not for
diagnosis, evidence or measurement. Nothing leaves the machine that this page
comes from.</p>
"""
_STYLE = """
.said {padding: 0.5em 0.8em; border-radius: 6px; border: 1px solid #8888}
.said.wrong {border: 2px solid #c0392b}
.command {overflow-x: auto; white-space: pre; padding: 0.4em 0; font-size: 90%}
"""


class _Stopped(Exception):  # noqa: N818
  """Somebody does not want the result any more."""


class _Runs:
  """What goes on, by the page that asked for it, so that it can be stopped."""

  def __init__(self):
    self._stops: dict[str | None, threading.Event] = {}

  @contextlib.contextmanager
  def running(self, request, progress):
    """Yields what a studio reports to."""
    stop = self._stops[request.session_hash] = threading.Event()

    def report(share, what):
      if stop.is_set():
        raise _Stopped
      progress(share, desc=what)

    try:
      yield report
    finally:
      self._stops.pop(request.session_hash, None)

  def stop(self, session):
    """Ends what a page has asked for; returns whether there was something."""
    if stop := self._stops.get(session):
      stop.set()
    return stop is not None


def make_app(studio: Studio, *, max_upload: int, hosts: set[str] | None) -> Any:
  """Returns the page as an application of ASGI.

  Nothing is shared, counted or fetched elsewhere, and pictures are decoded by
  `studio` alone. Set `GRADIO_TEMP_DIR` to its folder before Gradio is imported.

  Args:
    studio: What upscales.
    max_upload: Most bytes of a picture's file.
    hosts: Names by which pages may ask for it; None for any.
  """
  import fastapi
  import gradio as gr

  page = _page(gr, studio)
  page.queue(
    max_size=_MOST_WAITING, default_concurrency_limit=1, api_open=False
  )
  for block in page.blocks.values():
    guard.refuse_addresses(block)
  font = gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")
  mono = gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")
  app = gr.mount_gradio_app(
    # Without pages of the API, which fetch their scripts elsewhere.
    fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
    page,
    "/",
    app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
    footer_links=[],
    run_history=False,
    max_file_size=max_upload,
    ssr_mode=False,
    enable_monitoring=False,
    pwa=False,
    mcp_server=False,
    theme=gr.themes.Default(font=font, font_mono=mono),
    css=_STYLE,
  )
  return guard.Guard(
    app,
    hosts,
    max_upload=max_upload,
    quota=_MOST_UPLOADS * max_upload,
    folder=studio.folder,
  )


def _page(gr, studio):
  runs = _Runs()
  first = studio.first
  with gr.Blocks(
    analytics_enabled=False,
    title="esrgan_jax",
    delete_cache=(_LOOKING, _FORGOTTEN),
    fill_width=True,
  ) as page:
    gr.HTML(_HEAD)
    with gr.Row():
      with gr.Column(scale=1, min_width=320):
        picture = gr.File(label="Picture", height=140, elem_id="picture")
        overview = gr.Image(
          label="Click where to look",
          interactive=False,
          visible=False,
          buttons=[],
          elem_id="overview",
        )
        model = gr.Dropdown(
          [(each.label, name) for name, each in studio.offers.items()],
          value=first.model,
          label="Model",
          elem_id="model",
        )
        other = gr.Dropdown(elem_id="other", **_partners(studio, first))
        alpha = gr.Slider(
          0,
          1,
          first.alpha,
          step=0.05,
          label="alpha",
          info="share of the model; less is more of the other one",
          visible=first.other is not None,
          elem_id="alpha",
        )
        denoise = gr.Slider(
          0,
          1,
          1,
          step=0.05,
          label="Strength of denoising",
          info="1 takes noise away, 0 keeps it",
          visible=studio.offers[first.model].denoises,
          elem_id="denoise",
        )
        with gr.Row():
          start = gr.Button(
            "Upscale the whole picture",
            variant="primary",
            interactive=False,
            elem_id="start",
          )
          stop = gr.Button("Stop", scale=0, min_width=80, elem_id="stop")
      with gr.Column(scale=2, min_width=320):
        said = gr.HTML(_said("No picture yet."), elem_id="said")
        slider = gr.ImageSlider(
          label="Before and after",
          interactive=False,
          max_height=900,
          buttons=["fullscreen"],
          elem_id="slider",
        )
        download = gr.DownloadButton(
          "Download", visible=False, elem_id="download"
        )
        command = gr.HTML(elem_id="command")
    where = gr.State((0.5, 0.5))
    chosen = [picture, where, model, other, alpha, denoise]
    shown = [overview, slider, said, download, command, start]

    def choice_of(model, other, alpha, denoise):
      if other:
        return Choice(model, other, alpha)
      denoises = studio.offers[model].denoises
      return Choice(model, denoise=denoise if denoises else None)

    def told(text, *, wrong=False, **changes):
      """Returns values of `shown`: those that are not named stay."""
      names = ["overview", "slider", "said", "download", "command", "start"]
      changes["said"] = _said(text, wrong=wrong)
      return [changes.get(name, gr.skip()) for name in names]

    def answer(text, *, overview=None, pair=None, command="", wrong=False):
      """Returns values of `shown`: nothing of what was there stays."""
      if command:
        command = f'<code class="command">{html.escape(command)}</code>'
      return told(
        text,
        wrong=wrong,
        overview=gr.Image(overview, visible=overview is not None),
        slider=pair,
        download=gr.DownloadButton(visible=False),
        command=command,
        start=gr.Button(interactive=overview is not None),
      )

    def look(
      path,
      where,
      model,
      other,
      alpha,
      denoise,
      request: gr.Request,
      progress=gr.Progress(),  # noqa: B008
    ):
      if path is None:
        return answer("No picture yet.")
      choice = choice_of(model, other, alpha, denoise)
      try:
        with runs.running(request, progress) as report:
          found = studio.look(path, choice, at=where, report=report)
      except _Stopped:
        return told("Stopped.")
      except Exception as error:
        return answer(studio.explain(error, path), wrong=True)
      text = f"A square of {SIDE} pixels of the picture at most."
      return answer(
        " ".join([text, *map(_sentence, found.notes)]),
        overview=found.overview,
        pair=(str(found.before), str(found.after)),
        command=studio.command(path, choice),
      )

    def whole(
      path,
      _,
      model,
      other,
      alpha,
      denoise,
      request: gr.Request,
      progress=gr.Progress(),  # noqa: B008
    ):
      choice = choice_of(model, other, alpha, denoise)
      try:
        with runs.running(request, progress) as report:
          result = studio.upscale(path, choice, report=report)
      except _Stopped:
        return told("Stopped.")
      except Exception as error:
        return told(studio.explain(error, path), wrong=True)
      pair = result.before and (str(result.before), str(result.after))
      return told(
        " ".join([f"{result.facts}.", *map(_sentence, result.notes)]),
        slider=pair or gr.skip(),
        download=gr.DownloadButton(
          f"Download {result.file.name}", str(result.file), visible=True
        ),
      )

    def choose(model):
      """Shows what can be chosen of a model."""
      return (
        gr.Dropdown(**_partners(studio, Choice(model))),
        gr.Slider(visible=False),
        gr.Slider(value=1, visible=studio.offers[model].denoises),
      )

    def point(path, event: gr.SelectData):
      try:
        return studio.point(path, *event.index)
      except Exception:  # Told when it is looked at.
        return (0.5, 0.5)

    def halt(request: gr.Request):
      if runs.stop(request.session_hash):
        return _said("Stopping, after the tile that it is at.")
      return gr.skip()

    def leave(request: gr.Request):
      runs.stop(request.session_hash)

    options = {
      "inputs": chosen,
      "outputs": shown,
      "concurrency_id": "model",
      "api_visibility": "private",
      "show_progress_on": slider,
    }
    latest = {"trigger_mode": "always_last", **options}
    quiet = {"api_visibility": "private", "show_progress": "hidden"}

    middle = gr.on(
      [picture.upload, picture.clear], lambda: (0.5, 0.5), None, where, **quiet
    )
    middle.then(look, **options)
    overview.select(point, picture, where, **quiet).then(look, **options)
    chose = model.input(choose, model, [other, alpha, denoise], **quiet)
    chose.then(look, **options)
    mixed = other.input(
      lambda name: gr.Slider(visible=bool(name)), other, alpha, **quiet
    )
    mixed.then(look, **options)
    alpha.input(look, **latest)
    denoise.input(look, **latest)
    start.click(whole, **options)
    stop.click(halt, None, said, queue=False, **quiet)
    page.unload(leave)
  return page


def _partners(studio, choice):
  """Returns what the list of models to mix with is like."""
  found = studio.partners(choice.model)
  nothing = "nothing" if found else "nothing: no other of its structure is here"
  labels = [(studio.offers[name].label, name) for name in found]
  return {
    "choices": [(nothing, ""), *labels],
    "value": choice.other or "",
    "label": "Mixed with",
    "info": "another model of the same structure",
    "interactive": bool(found),
  }


def _said(text, *, wrong=False):
  """Returns a message, in which nothing is markup."""
  kind = 'wrong" role="alert' if wrong else '" role="status'
  return f'<div class="said {kind}">{html.escape(text)}</div>'


def _sentence(note):
  return f"{note[:1].upper()}{note[1:]}."
