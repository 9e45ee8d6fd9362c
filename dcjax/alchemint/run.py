"""Annotated clips in, references with intervals out (AlcheMinT, Sec. 4).

    clips -> views -> latents (cached) -> one stage -> reference/

The base's transformer, with its added parameters, is trained by one stage. What
its `train` matches is what the paper fine-tunes: all of it, or a LoRA and what
is added.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dcjax import lora, machine, sampling, start, tracking, train, tree
from dcjax import stage as stage_lib
from dcjax.alchemint import dataset
from dcjax.alchemint import objective as objective_lib
from dcjax.data import pipeline, subjects, timeline
from dcjax.data.subjects import AnnotatedClip
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT
from dcjax.models.reference_config import ReferenceConfig
from dcjax.stage import Stage
from dcjax.weights import reference as reference_lib
from dcjax.weights.base import Base

STAGE = 'subjects'


def run(config: ConfigDict, workdir: str) -> None:
  """The `alchemint` task of the command line."""
  base = start.load(config)
  Training(base, config, workdir).run()


class Training:
  """One run in one folder.

  Args:
    base: to start from.
    config: of `recipes.alchemint`.
    workdir: where everything is kept.
  """

  def __init__(
    self, base: Base, config: ConfigDict, workdir: str | os.PathLike
  ):
    self.config, self.workdir = config, Path(workdir)
    self.base = start.adapted(base, config)
    self.references = ReferenceConfig(**config.references.to_dict())
    self.stage = stage_lib.from_config(STAGE, config[STAGE].to_dict())
    self.stage.check_data(STAGE)
    _check(config, self.stage, self.references)

  def run(self) -> Path:
    """Trains, and writes the `reference` folder, which it gives."""
    timings = tracking.Timings(self.workdir)
    params = self.params()
    _check_trained(params, self.stage.train)
    loop = self._loop()
    train.refuse_other_run(self.stage, loop)
    start.write_config(self.base, self.config, self.workdir)
    learnt, spare = self.sources()
    samples = self._encode(learnt, self.config.data.views)
    held_out = self._encode(spare, 1).stacked() if len(spare) else None
    params, timing = train.fit(
      self.stage,
      self.objective(),
      params,
      pipeline.loader(samples, batch=self.stage.batch, seed=self.config.seed),
      loop,
      context={'null': sampling.null_text(self.base)},
      held_out=held_out,
      preview=lambda step, now: self._save(now),
    )
    timings.add(STAGE, dataclasses.asdict(timing))
    timings.write()
    folder = self._save(params)
    record(folder, self.config, self.stage.steps, self.workdir)
    print(f'references: {folder}')
    return folder

  def params(self) -> dict[str, Any]:
    """The transformer with what is added, and LoRA leaves if there are any."""
    c = self.config
    keys = jax.random.split(jax.random.key(c.seed), 2)
    if c.init:
      base = reference_lib.equip(self.base, c.init)
      base = reference_lib.with_presence(base, self.references.presence)
      _check_same(base.reference, self.references, c.init)
    else:
      base = reference_lib.fresh(self.base, self.references, keys[0])
    transformer = base.params['transformer']
    if c.lora.rank:
      transformer = lora.attach(
        transformer, c.lora.targets, c.lora.rank, keys[1], side=c.lora.side
      )
    return {'transformer': transformer}

  def objective(self) -> Any:
    """What the stage minimises."""
    c = self.config
    dit = DiT(self.base.dit, sampling.working_dtype(), c.remat, self.references)
    return objective_lib.subjects(
      dit, self.stage, drop=tuple(c.drop), drop_events=c.drop_events
    )

  def sources(self) -> tuple[Sequence[AnnotatedClip], Sequence[AnnotatedClip]]:
    """Clips to learn from, and clips for the held-out loss."""
    data = self.config.data
    if data.path:
      return subjects.Dataset(data.path), ()
    frames = self.base.format.frames
    return (
      timeline.World(data.clips, seed=self.config.seed, frames=frames),
      timeline.World(
        data.held_out, seed=self.config.seed, frames=frames, split='test'
      ),
    )

  def _encode(
    self, source: Sequence[AnnotatedClip], views: int
  ) -> dataset.Samples:
    return dataset.encode(
      self.base,
      source,
      self.config.data,
      self.references,
      Path(self.config.data.cache or self.workdir / 'cache'),
      seed=self.config.seed,
      views=views,
    )

  def _loop(self) -> train.Loop:
    c = self.config
    plain = machine.plain(c)
    data = {k: v for k, v in plain['data'].items() if k != 'cache'}
    return start.loop(
      self.base,
      c,
      self.workdir,
      {
        'stage': repr(self.stage),
        'references': repr(self.references),
        'data': data,
        'drop': [plain['drop'], plain['drop_events']],
        'init': c.init,
      },
    )

  def _save(self, params: Mapping[str, Any]) -> Path:
    """Writes what was added or trained, beside the run's checkpoints."""
    folder = self.workdir / 'reference'
    trained, _ = tree.partition(params, self._kept())
    reference_lib.save(
      folder, self.base, self.references, trained['transformer']
    )
    return folder

  def _kept(self) -> str:
    """Names of what the folder must hold: added leaves and trained ones."""
    return rf'^transformer/(reference|blocks/timed_attn)/|{self.stage.train}'


def record(folder: Path, config: ConfigDict, steps: int, workdir: Path) -> None:
  """Says, beside the weights, how they came about: all runs that made them.

  Args:
    folder: of the weights.
    config: of the last run.
    steps: that it made.
    workdir: of the last run, with its metrics.
  """
  runs, metrics = [], ''
  before = Path(config.init) if config.init else None
  if before and (before / 'training.json').exists():
    runs = json.loads((before / 'training.json').read_text())['runs']
    metrics = (before / 'metrics.jsonl').read_text()
  run = {
    'config': machine.plain(config),
    'steps': steps,
    'machine': machine.describe(),
  }
  text = json.dumps({'runs': [*runs, run]}, indent=1)
  (folder / 'training.json').write_text(text + '\n')
  metrics += (workdir / 'metrics.jsonl').read_text()
  (folder / 'metrics.jsonl').write_text(metrics)


def _check_same(
  found: ReferenceConfig, wanted: ReferenceConfig, folder: str
) -> None:
  if found != wanted:
    raise DcjaxError(
      f'config.init: {folder} was trained with {found}, and config.references '
      f'asks for {wanted}'
    )


def _check_trained(params: tree.Tree, train: str) -> None:
  """Refuses a pattern that matches nothing, or leaves out a LoRA."""
  trained = set(tree.match(params, train))
  left = [
    name
    for name in tree.names(params)
    if name.endswith('/lora/b1') and name not in trained
  ]
  if left:
    raise DcjaxError(
      f'config.lora.rank is not 0, but config.{STAGE}.train does not match its '
      f'leaf {left[0]}; add |lora/(a1|b1)$'
    )


def _check(
  config: ConfigDict, stage: Stage, references: ReferenceConfig
) -> None:
  """Refuses impossible values of the parts that check nothing themselves."""
  start.check_remat(config)
  if stage.objective != STAGE:
    raise DcjaxError(
      f'config.{STAGE}.objective is {stage.objective!r}; references are '
      f'trained with {STAGE} alone'
    )
  least = {
    'data.clips': 1,
    'data.views': 1,
    'data.held_out': 0,
    'data.max_references': 1,
    'data.max_events': 1,
    'data.event_tokens': 1,
    'data.emphasis': 0,
    'data.gap': 0,
    'lora.rank': 0,
  }
  start.check_least(config, least)
  if config.data.max_references > references.max_references:
    raise DcjaxError(
      f'config.data.max_references is {config.data.max_references}; expected '
      f'at most config.references.max_references, {references.max_references}'
    )
  drop = tuple(config.drop)
  if len(drop) != 3 or not (min(drop) >= 0 and sum(drop) < 1):
    raise DcjaxError(
      f'config.drop is {drop}; expected three probabilities, of hiding text, '
      'references and both, whose sum is below 1'
    )
  if not 0 <= config.drop_events <= 1:
    raise DcjaxError(
      f'config.drop_events is {config.drop_events}; expected 0 to 1'
    )
