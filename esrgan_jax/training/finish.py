"""The end of a training run: models, evaluation, interpolation, report."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.table
from etils import epath

from esrgan_jax import console
from esrgan_jax.interpolate import interpolate_params
from esrgan_jax.training import evaluator, report
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import files

__all__ = ["export", "finish"]

# Columns of the table: heading, and format.
_COLUMNS = {
  "psnr_y": ("PSNR Y", ".2f"),
  "ssim_y": ("SSIM Y", ".4f"),
  "psnr_rgb": ("PSNR RGB", ".2f"),
  "ssim_rgb": ("SSIM RGB", ".4f"),
  "perceptual": ("perceptual", ".4f"),
}


def finish(run: run_lib.Run, psnr_params: Any, gan_params: Any) -> epath.Path:
  """Exports the model in between, evaluates all, and writes the report.

  Args:
    run: The run.
    psnr_params: Phase one's averaged generator.
    gan_params: Phase two's; None if it has not been asked for.

  Returns:
    Path of the report. What failed is in `run.failures`.
  """
  config = run.config
  # What follows runs on this process's devices, or on none.
  psnr_params, gan_params = map(run_lib.on_host, (psnr_params, gan_params))
  models = {run.start_name or "psnr": (psnr_params, 0.0)}
  mix = None
  if gan_params is not None:
    mix = functools.partial(_mix, psnr_params, gan_params)
    models["gan"] = (gan_params, 1.0)
    mixed = f"interpolated_{config.export_alpha:g}"
    models[mixed] = mix(alpha=config.export_alpha), config.export_alpha
    export(run, mixed, *models[mixed])
  if run.eval_source is not None:
    with run.tolerating("the final evaluation"):
      _evaluate(run, models, mix)
  return _report(run)


def _evaluate(
  run: run_lib.Run,
  models: Mapping[str, tuple[Any, float]],
  mix: Callable[..., Any] | None,
) -> None:
  """Measures all models, and what lies between the two phases'."""
  config = run.config
  distances = {}
  if mix and config.phases.gan.perceptual_weight:
    distances["perceptual"] = run.perceptual()
  measure = run.make_evaluator(distances=distances)
  found = {
    alpha: measure(params, model=name)
    for name, (params, alpha) in models.items()
  }
  evaluations = [measure.bicubic(), *found.values()]
  if jax.process_index() == 0:
    evaluator.write_evaluations(run.workdir / "evaluation.json", evaluations)
  run.write_samples("final", {k: v[0] for k, v in models.items()})
  if mix:
    for alpha in config.interpolation_alphas:
      if alpha not in found:
        found[alpha] = measure(mix(alpha=alpha), model=f"alpha {alpha:g}")
    rows = [
      {"alpha": alpha, **found[alpha].to_json()["means"]}
      for alpha in sorted(found)
    ]
    run.write("interpolation.json", json.dumps({"rows": rows}, indent=1) + "\n")
  _show_table(run, evaluations)


@jax.jit
def _mix(psnr_params: Any, gan_params: Any, alpha: jax.Array) -> Any:
  """One program for all alphas, not several for each shape of a leaf."""
  return interpolate_params(psnr_params, gan_params, alpha=alpha)


def export(run: run_lib.Run, name: str, params: Any, alpha: float) -> None:
  """Writes a model for this package, chaiNNer, ComfyUI and spandrel.

  Args:
    run: The run.
    name: The file's name, without suffix.
    params: The generator's parameters.
    alpha: How far it is from phase one's model to phase two's, for the record.
  """
  if jax.process_index():
    return
  with tempfile.TemporaryDirectory() as folder:
    path = files.write_weights(
      os.path.join(folder, "model.safetensors"),
      run_lib.on_host(params),
      {**run.config.generator, "scale": run.config.scale},
      metadata={
        "alpha": f"{alpha:g}",
        "phase": name,
        "trained_by": "esrgan_jax",
      },
    )
    run.write(f"models/{name}.safetensors", path.read_bytes())


def _show_table(run: run_lib.Run, evaluations: Sequence[Any]) -> None:
  """Prints the means."""
  if not run.console:
    return
  table = rich.table.Table(box=None, pad_edge=False)
  table.add_column("model")
  keys = [k for k in evaluations[0].means if k in _COLUMNS]
  for key in keys:
    table.add_column(_COLUMNS[key][0], justify="right")
  for each in evaluations:
    cells = [f"{each.means[key]:{_COLUMNS[key][1]}}" for key in keys]
    table.add_row(console.line(each.model), *cells)
  run.console.print(table)
  run.say(evaluations[0].protocol)


def _report(run: run_lib.Run) -> epath.Path:
  """Has the first process write the report; the others wait for it."""
  path = run.workdir / "report.html"
  if jax.process_index() == 0:
    with run.tolerating("the report"):
      report.write_report(run.workdir)
      run.say(f"report: {path}")
  run_lib.everywhere(np.zeros(()))
  return path
