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
from esrgan_jax.report import curves
from esrgan_jax.report import page as report
from esrgan_jax.steps import state as state_lib
from esrgan_jax.training import lineage
from esrgan_jax.training import phases as phases_lib
from esrgan_jax.training import run as run_lib
from esrgan_jax.weights import files, workdir

__all__ = ["Model", "export", "finish"]


@dataclasses.dataclass(frozen=True)
class Model:
  """A generator of this training.

  Attributes:
    name: Its phase, or what it was begun from.
    variables: Its parameters, averaged, and other collections.
    alpha: How far it is from the first model to the last, 0 to 1; None where
      it does not lie in between.
    title: What tables call it, if not so.
  """

  name: str
  variables: Mapping[str, Any]
  alpha: float | None = None
  title: str = ""


def finish(
  run: run_lib.Run, models: Sequence[Model], *, perceptual: bool = False
) -> epath.Path:
  """Exports the model in between, evaluates all, and writes the report.

  Args:
    run: The run.
    models: Those of its phases, one after another; before them, of a single
      phase, what it was begun from. In between is between the first and the
      last.
    perceptual: Whether to measure the perceptual distance as well.

  Returns:
    Path of the report. What failed is in `run.failures`.
  """
  run.drop_data()
  # What follows runs on this process's devices, or on none.
  models = [
    dataclasses.replace(each, variables=run_lib.on_host(each.variables))
    for each in models
  ]
  mix = None
  if len(models) > 1:
    first, last = models[0].variables, models[-1].variables
    mix = functools.partial(_mix, first, last)
    alpha = run.config.export_alpha
    mixed = Model(f"{workdir.MIXED}{alpha:g}", mix(alpha=alpha), alpha)
    export(run, mixed)
    models.append(mixed)
  if run.eval_source is not None:
    _evaluate(run, models, mix, perceptual=perceptual and mix is not None)
  return _report(run)


def _evaluate(
  run: run_lib.Run,
  models: Sequence[Model],
  mix: Callable[..., Any] | None,
  *,
  perceptual: bool,
) -> None:
  """Measures the models, and those in between, and shows what they do.

  All processes measure, and fail together; what the first one does alone fails
  by itself.
  """
  config = run.config
  with run.tolerating("the final evaluation"):
    more = []
    if mix and "lpips" not in (config.eval.best, *config.eval.measures):
      more = measures.present("lpips")
    if perceptual:
      looks = measures.find("perceptual")
      more.append(dataclasses.replace(looks, function=run.perceptual()))
    measure = run.make_evaluator(measures=more)
    found, alphas = {"bicubic": measure.bicubic()}, {}

    def add(name: str, variables: Any, alpha: float | None) -> None:
      # The others are not to blame, and have been trained.
      with run.tolerating(f"the final evaluation of {name}"):
        params, collections = state_lib.split(variables)
        found[name] = measure(params, collections, model=name)
        alphas[name] = alpha

    for each in models:
      add(each.title or each.name, each.variables, each.alpha)
    known = [each.alpha for each in models]
    for alpha in config.interpolation_alphas if mix else ():
      if alpha not in known:
        add(f"alpha {alpha:g}", mix(alpha=alpha), alpha)
    found = dict(zip(found, _comparable(found.values()), strict=True))
    by_alpha = {
      alpha: found[name] for name, alpha in alphas.items() if alpha is not None
    }
    names = ("bicubic", *(each.title or each.name for each in models))
    shown = [found[name] for name in names if name in found]
    with run.tolerating("writing the final evaluation"):
      _write(run, shown, by_alpha if mix else {})
  run.write_samples("final", {each.name: each.variables for each in models})


def _comparable(
  evaluations: Collection[evaluator.Evaluation],
) -> list[evaluator.Evaluation]:
  """Keeps what was measured each time: images may vanish, measures fail."""
  names = [{score.name for score in each.scores} for each in evaluations]
  common = set.intersection(*names)
  if not common:
    raise ValueError("no image could be read for all models")
  taken = set.intersection(*(set(each.means) for each in evaluations))
  return [
    dataclasses.replace(
      each,
      scores=tuple(
        evaluator.Score(
          score.name, {k: v for k, v in score.values.items() if k in taken}
        )
        for score in each.scores
        if score.name in common
      ),
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
def _mix(first: Any, last: Any, alpha: jax.Array) -> Any:
  """One program for all alphas, not several for each shape of a leaf."""
  return interpolate_params(first, last, alpha=alpha)


def export(
  run: run_lib.Run,
  model: Model,
  *,
  origin: Mapping[str, Any] | None = None,
) -> None:
  """Writes a model for this package, chaiNNer, ComfyUI and spandrel.

  Args:
    run: The run.
    model: The model, which gives the file its name.
    origin: What it was begun from, as of `lineage.origin`, if anything.
  """
  if jax.process_index():
    return
  params, collections = state_lib.split(run_lib.on_host(model.variables))
  notes = {} if model.alpha is None else {"alpha": f"{model.alpha:g}"}
  with tempfile.TemporaryDirectory() as folder:
    path = files.write_weights(
      os.path.join(folder, "model.safetensors"),
      params,
      run.network,
      metadata={
        **notes,
        "phase": model.name,
        "trained_by": "esrgan_jax",
        **lineage.metadata(params, origin),
      },
      collections=collections,
    )
    run.write(f"models/{model.name}.safetensors", path.read_bytes())


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
  """Has the first process write the report and its curves; the others wait.

  Failures of any process become those of all: they end with one status.
  """
  path = run.workdir / "report.html"
  if jax.process_index() == 0:
    titles = {name: phases_lib.title(run.config, name) for name in run.order}
    with run.tolerating("the curves"):
      curves.write_curves(run.workdir, titles=titles)
    with run.tolerating("the report"):
      report.write_report(run.workdir, titles=titles)
      run.say(f"report: {path}")
  everyones = map(json.loads, distributed.gather(json.dumps(run.failures)))
  run.failures[:] = dict.fromkeys(itertools.chain.from_iterable(everyones))
  return path
