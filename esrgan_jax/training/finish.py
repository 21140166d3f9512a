"""The end of a training run: models, evaluation, interpolation, report."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import rich.table
from etils import epath

from esrgan_jax import console, distributed
from esrgan_jax.evaluation import evaluator, measures
from esrgan_jax.interpolate import interpolate_params
from esrgan_jax.report import page as report
from esrgan_jax.training import lineage
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import files

__all__ = ["export", "finish"]


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
  run.drop_data()
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
    _evaluate(run, models, mix)
  return _report(run)


def _evaluate(
  run: run_lib.Run,
  models: Mapping[str, tuple[Any, float]],
  mix: Callable[..., Any] | None,
) -> None:
  """Measures the models, and those in between, and shows what they do.

  All processes measure, and fail together; what the first one does alone fails
  by itself.
  """
  config = run.config
  with run.tolerating("the final evaluation"):
    more = []
    if mix and config.phases.gan.perceptual_weight:
      perceptual = measures.find("perceptual")
      more = [dataclasses.replace(perceptual, function=run.perceptual())]
    measure = run.make_evaluator(measures=more)
    found, alphas = {"bicubic": measure.bicubic()}, {}

    def add(name: str, params: Any, alpha: float) -> None:
      # The others are not to blame, and have been trained.
      with run.tolerating(f"the final evaluation of {name}"):
        found[name], alphas[name] = measure(params, model=name), alpha

    for name, (params, alpha) in models.items():
      add(name, params, alpha)
    for alpha in config.interpolation_alphas if mix else ():
      if all(alpha != known for _, known in models.values()):
        add(f"alpha {alpha:g}", mix(alpha=alpha), alpha)
    found = dict(zip(found, _comparable(found.values()), strict=True))
    by_alpha = {alpha: found[name] for name, alpha in alphas.items()}
    shown = [found[name] for name in ("bicubic", *models) if name in found]
    with run.tolerating("writing the final evaluation"):
      _write(run, shown, by_alpha if mix else {})
  run.write_samples("final", {k: v[0] for k, v in models.items()})


def _comparable(
  evaluations: Collection[evaluator.Evaluation],
) -> list[evaluator.Evaluation]:
  """Keeps scores of images that were measured each time: some may vanish."""
  names = [{score.name for score in each.scores} for each in evaluations]
  common = set.intersection(*names)
  if not common:
    raise ValueError("no image could be read for all models")
  return [
    dataclasses.replace(
      each, scores=tuple(s for s in each.scores if s.name in common)
    )
    for each in evaluations
  ]


def _write(
  run: run_lib.Run,
  evaluations: Sequence[evaluator.Evaluation],
  by_alpha: Mapping[float, evaluator.Evaluation],
) -> None:
  """Writes `evaluation.json` and `interpolation.json`, and prints the means."""
  if jax.process_index() == 0:
    evaluator.write_evaluations(run.workdir / "evaluation.json", evaluations)
  if by_alpha:
    rows = [
      {"alpha": alpha, **by_alpha[alpha].to_json()["means"]}
      for alpha in sorted(by_alpha)
    ]
    run.write("interpolation.json", json.dumps({"rows": rows}, indent=1) + "\n")
  _show_table(run, evaluations)


@jax.jit
def _mix(psnr_params: Any, gan_params: Any, alpha: jax.Array) -> Any:
  """One program for all alphas, not several for each shape of a leaf."""
  return interpolate_params(psnr_params, gan_params, alpha=alpha)


def export(
  run: run_lib.Run,
  name: str,
  params: Any,
  alpha: float,
  *,
  origin: Mapping[str, Any] | None = None,
) -> None:
  """Writes a model for this package, chaiNNer, ComfyUI and spandrel.

  Args:
    run: The run.
    name: The file's name, without suffix.
    params: The generator's parameters.
    alpha: How far it is from phase one's model to phase two's, for the record.
    origin: What it was begun from, as of `lineage.origin`, if anything.
  """
  if jax.process_index():
    return
  params = run_lib.on_host(params)
  with tempfile.TemporaryDirectory() as folder:
    path = files.write_weights(
      os.path.join(folder, "model.safetensors"),
      params,
      {**run.config.generator, "scale": run.config.scale},
      metadata={
        "alpha": f"{alpha:g}",
        "phase": name,
        "trained_by": "esrgan_jax",
        **lineage.metadata(params, origin),
      },
    )
    run.write(f"models/{name}.safetensors", path.read_bytes())


def _show_table(run: run_lib.Run, evaluations: Sequence[Any]) -> None:
  """Prints the means."""
  if not run.console:
    return
  table = rich.table.Table(box=None, pad_edge=False)
  table.add_column("model")
  columns = list(map(measures.looks_of, evaluations[0].means))
  for column in columns:
    table.add_column(column.heading, justify="right")
  for each in evaluations:
    cells = [column.show(each.means[column.name]) for column in columns]
    table.add_row(console.line(each.model), *cells)
  run.console.print(table)
  run.say(evaluations[0].protocol)


def _report(run: run_lib.Run) -> epath.Path:
  """Has the first process write the report; the others wait for it.

  Failures of any process become those of all: they end with one status.
  """
  path = run.workdir / "report.html"
  if jax.process_index() == 0:
    with run.tolerating("the report"):
      report.write_report(run.workdir)
      run.say(f"report: {path}")
  everyones = map(json.loads, distributed.gather(json.dumps(run.failures)))
  run.failures[:] = dict.fromkeys(itertools.chain.from_iterable(everyones))
  return path
