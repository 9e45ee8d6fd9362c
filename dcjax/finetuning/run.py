"""A folder of captioned clips and pictures in, a LoRA out.

    files -> buckets -> latents (cached) -> one stage -> concept.safetensors

The ordinary way to teach a base a subject, a style or a motion: no learned
words, one LoRA, the captions as they are. Everything else, the trainer, the
loss and the concept file, is that of a personalisation.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dcjax import (
  lora,
  machine,
  sampling,
  start,
  text_features,
  tracking,
  train,
  tree,
)
from dcjax import objective as objective_lib
from dcjax import stage as stage_lib
from dcjax.concept import Concept
from dcjax.data import buckets as buckets_lib
from dcjax.data import cache as cache_lib
from dcjax.data import pipeline
from dcjax.data import prompts as prompts_lib
from dcjax.data.buckets import Bucket
from dcjax.finetuning import dataset
from dcjax.finetuning import survey as survey_lib
from dcjax.finetuning.showcase import Showcase
from dcjax.finetuning.survey import Entry, Survey
from dcjax.weights.base import Base

STAGE = 'train'
PROMPTS = 3  # captions that are sampled if no prompts are given


def run(config: ConfigDict, workdir: str) -> None:
  """The `lora` task of the command line."""
  base = start.load(config)
  Finetuning(base, config, workdir).run()


class Finetuning:
  """One run in one folder.

  Args:
    base: the frozen model.
    config: of `recipes.finetune`.
    workdir: where everything is kept.
  """

  def __init__(
    self, base: Base, config: ConfigDict, workdir: str | os.PathLike
  ):
    self.config, self.workdir = config, Path(workdir)
    self.base = start.adapted(base, config)
    start.check_least(config, {'lora.rank': 1, 'lora.alpha': 0})
    start.check_sample(config)
    self.stage = stage_lib.from_config(STAGE, config[STAGE].to_dict())
    self.stage.check_data('folder')
    # W' = W + alpha / r A B; see `lora` for A and B.
    self.scale = (config.lora.alpha or config.lora.rank) / config.lora.rank

  def run(self) -> Concept:
    """The stage, the concept file and the report."""
    timings = tracking.Timings(self.workdir)
    # What can be refused is refused before anything takes long.
    params = self.params()
    tree.match(params, self.stage.train)
    objective = self.objective()
    survey = survey_lib.read(self.base, self.config.data, cache=self._cache)
    print(*survey_lib.describe(survey), sep='\n', flush=True)
    showcase = self._showcase(survey)
    loop = self._loop(survey)
    train.refuse_other_run(self.stage, loop)
    start.write_config(self.base, self.config, self.workdir)
    captions = [x.item.caption for x in survey.entries]
    text_features.remember(
      self.base, list(dict.fromkeys([*captions, *showcase.prompts, ''])), {}
    )
    learnt, spare = survey_lib.split(survey.entries, self.config.data.held_out)
    print(f'held out: {", ".join(x.item.name for x in spare) or "none"}')
    params, timing = train.fit(
      self.stage,
      objective,
      params,
      self.batches(survey, learnt),
      loop,
      context=self.context(),
      held_out=self._held_out(survey, spare),
      preview=lambda step, now: showcase.preview(
        STAGE, step, self._concept(now, survey)
      ),
    )
    concept = self._concept(params, survey)
    concept.save(self.workdir / 'concept.safetensors')
    timings.add(STAGE, dataclasses.asdict(timing))
    self._report(showcase, concept, survey, learnt, timings)
    return concept

  # ---- what the stage needs ------------------------------------------------

  @property
  def _cache(self) -> Path:
    return self.workdir / 'cache'

  def params(self) -> dict[str, Any]:
    """The transformer with LoRA leaves."""
    return {'transformer': start.with_lora(self.base, self.config)}

  def objective(self) -> objective_lib.Objective:
    """The flow loss under W + alpha / r A B."""
    loss = start.objective(self.base, self.config, self.stage)
    return _weighed(loss, self.scale)

  def context(self) -> dict[str, Any]:
    """The empty prompt, for the captions that are dropped."""
    return {'null': sampling.null_text(self.base)}

  def batches(
    self, survey: Survey, entries: Sequence[Entry]
  ) -> pipeline.Loader:
    """Batches of some files, each of one bucket."""
    sources = dataset.encode(
      self.base, survey, entries, self.config.data, self._cache
    )
    return pipeline.bucketed(
      sources, batch=self.stage.batch, seed=self.config.seed
    )

  def _held_out(self, survey: Survey, entries: Sequence[Entry]) -> Any:
    sources = dataset.encode(
      self.base, survey, entries, self.config.data, self._cache
    )
    return [source.stacked() for source in sources] or None

  def _loop(self, survey: Survey) -> train.Loop:
    c = self.config
    data = [
      (x.digest, x.item.caption, list(x.place.bucket), x.place.windows)
      for x in survey.entries
    ]
    how = machine.plain(c.data)
    return start.loop(
      self.base,
      c,
      self.workdir,
      {
        'stage': repr(self.stage),
        'data': cache_lib.content_hash(data, survey.fps)[:16],
        'use': {key: how[key] for key in ('held_out', 'mask')},
      },
    )

  # ---- what it leaves ------------------------------------------------------

  def _concept(self, params: Mapping[str, Any], survey: Survey) -> Concept:
    c = self.config
    meta = {
      'prompts': {'caption': survey.entries[0].item.caption},
      'trigger': c.data.trigger,
      'rank': c.lora.rank,
      'alpha': c.lora.alpha or c.lora.rank,
      'stages': [repr(self.stage)],
      'seed': c.seed,
    }
    return Concept.from_params(_with_alpha(params, self.scale), self.base, meta)

  def _showcase(self, survey: Survey) -> Showcase:
    """Samples as long as the data are: pictures only of a folder of pictures.

    Raises:
      DcjaxError: a prompt of the config holds a learned word.
    """
    c, grid = self.config, survey.grid
    frames = grid.frames if max(survey.buckets).frames > 1 else 1
    prompts = [
      prompt.replace(c.data.placeholder or '[trigger]', c.data.trigger)
      for prompt in c.prompts
    ]
    for prompt in prompts:
      prompts_lib.parse(prompt, {})
    captions = dict.fromkeys(x.item.caption for x in survey.entries)
    return Showcase(
      self.base,
      c.sample,
      self.workdir,
      prompts=prompts or list(captions)[:PROMPTS],
      shape=Bucket(frames, grid.height, grid.width),
    )

  def _report(
    self,
    showcase: Showcase,
    concept: Concept,
    survey: Survey,
    learnt: Sequence[Entry],
    timings: tracking.Timings,
  ) -> None:
    panels = showcase.panels(concept, learnt, survey.fps)
    trigger = self.config.data.trigger
    page = showcase.write_report(
      Path(self.config.data.path).resolve().stem,
      panels,
      STAGE,
      prompts={'trigger word': trigger} if trigger else {},
      notes=_notes(survey),
      timings=timings.write(),
    )
    print(f'concept: {self.workdir / "concept.safetensors"}')
    print(f'report:  {page}')


def _with_alpha(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
  transformer = lora.scale(params['transformer'], scale, scale)
  return {**params, 'transformer': transformer}


def _weighed(loss: Callable, scale: float) -> objective_lib.Objective:
  """An objective of B, for parameters whose LoRA stands for scale B."""

  def weighed(params, *rest):
    return loss(_with_alpha(params, scale), *rest)

  def evaluate(params, *rest):
    return loss.evaluate_several(_with_alpha(params, scale), *rest)

  weighed.evaluate = evaluate
  return weighed


def _notes(survey: Survey) -> list[str]:
  """The table of the buckets and the files that were skipped, as sentences."""
  head, *rows = buckets_lib.table([x.place for x in survey.entries])
  notes = [
    f'{row[0]}: '
    + ', '.join(
      f'{name} {x}' for name, x in zip(head[1:], row[1:], strict=True)
    )
    for row in rows
  ]
  if len(rows) > 2:  # shapes and their sum
    notes.append('The time of a step holds the compilation of further shapes.')
  return notes + [f'skipped {x.name}: {x.reason}' for x in survey.skipped]
