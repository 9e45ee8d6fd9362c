"""One video in, a concept out: Set-and-Sequence and every baseline of its form.

    video -> latents (cached) -> stages -> concept.safetensors -> report.html

A method is a list of stages in the config. This module fetches what the stages
need and keeps what they make.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from dcjax import (
  gallery,
  machine,
  recipes,
  sampling,
  start,
  text_features,
  tracking,
  train,
  tree,
)
from dcjax import material as material_lib
from dcjax import stage as stage_lib
from dcjax.concept import Concept
from dcjax.data import cache, pipeline
from dcjax.data import prompts as prompts_lib
from dcjax.errors import DcjaxError
from dcjax.material import Material, Prior
from dcjax.stage import Stage
from dcjax.weights.base import Base, load_base
from dcjax.weights.location import ASSETS

# The sample clip of the embedded base: a video and its two prompts.
SAMPLE = ASSETS / 'world' / 'sample.mp4'
# Prompts for another video on the embedded base, in words that it knows.
PLAIN_PROMPTS = {
  'appearance': 'a [v] thing.',
  'motion': 'the thing is [u] moving.',
}


def personalize(
  base: Base | str,
  video: str | os.PathLike,
  *,
  appearance: str,
  motion: str,
  workdir: str | os.PathLike,
  **options: Any,
) -> Concept:
  """Teaches a base the look and the motion of one video.

  The same as `python -m dcjax.main --config=configs/set_seq.py`, with the same
  defaults; on a base of Wan's form, its flow times.

  Args:
    base: a loaded base, or its name.
    video: path of the clip.
    appearance: prompt of stage *set*, with one `[v]`: who, and where.
    motion: prompt of the action, with one `[u]`.
    workdir: folder of the run; giving it again resumes the run.
    **options: other keys of the config, with '__' for the dot: `seed=1`,
      `sequence__steps=400`.

  Raises:
    DcjaxError: for a prompt, video or option that cannot be used.
  """
  base = base if isinstance(base, Base) else load_base(base)
  config = recipes.personalize('world' if base.name == 'world' else 'paper')
  values = {
    'data.video': str(video),
    'prompts.appearance': appearance,
    'prompts.motion': motion,
  } | {key.replace('__', '.'): value for key, value in options.items()}
  config.lock()  # else an unknown option would be added, and change nothing
  try:
    if base.dit.is_wan:
      for name in config.stages:
        shift = options.get('shift') or base.shift
        recipes.draw_times_as_wan(config[name], shift)
    config.update_from_flattened_dict(values)
  except (KeyError, TypeError) as error:
    raise DcjaxError(f'not an option of this recipe: {error}') from error
  return Personalization(base, config, workdir).run()


def run(config: ConfigDict, workdir: str) -> None:
  """The `personalize` task of the command line."""
  base = start.load(config)
  Personalization(base, config, workdir).run()


class Personalization:
  """One run in one folder.

  Args:
    base: the frozen model.
    config: of `recipes.personalize`.
    workdir: where everything is kept.
  """

  def __init__(
    self, base: Base, config: ConfigDict, workdir: str | os.PathLike
  ):
    self.config, self.workdir = config, Path(workdir)
    start.check_numbers(config)
    self.base = base = start.adapted(base, config)
    self.words = start.words(config)
    self.video, self.appearance, self.motion = _what_to_learn(base, config)
    self.full = prompts_lib.join(self.appearance, self.motion)
    self.scenes = gallery.scenes(
      base, config.edits, self.words, appearance=self.appearance, full=self.full
    )
    self.stages = stage_lib.several(config)
    for stage in self.stages:
      stage.check_data('frames', 'clip')
    self.gallery = gallery.Gallery(
      base,
      config,
      self.workdir,
      appearance=self.appearance,
      full=self.full,
    )

  def run(self) -> Concept:
    """All stages, the concept file and the report."""
    timings = tracking.Timings(self.workdir)
    # What can be refused is refused before anything takes long.
    params = start.initial_params(self.base, self.config)
    objectives = {
      stage.name: start.objective(self.base, self.config, stage)
      for stage in self.stages
    }
    material = material_lib.prepare(
      self.base, self.video, self.config.data.fps or None, self._cache
    )
    for stage in self.stages:
      tree.match(params, stage.train)
      train.refuse_other_run(stage, self._loop(stage, material))
    start.write_config(self.base, self.config, self.workdir)
    self._remember_prompts()
    prior = self._prior()
    context = self._context(prior)
    for stage in self.stages:
      params, timing = train.fit(
        stage,
        objectives[stage.name],
        params,
        self._batches(stage, material, prior),
        self._loop(stage, material),
        context=context,
        held_out=_held_out(stage, material),
        preview=lambda step, now, stage=stage: self._preview(stage, step, now),
      )
      timings.add(stage.name, dataclasses.asdict(timing))
    concept = Concept.from_params(
      params, self.base, self._meta(), material.stills
    )
    concept.save(self.workdir / 'concept.safetensors')
    self._report(concept, material, timings)
    return concept

  # ---- what the stages need ------------------------------------------------

  @property
  def _cache(self) -> Path:
    return self.workdir / 'cache'

  @property
  def _prior_videos(self) -> int:
    wanted = any(stage.prior for stage in self.stages)
    return self.config.prior.videos if wanted else 0

  @property
  def _sampled(self) -> dict[str, Any]:
    """How the prior is sampled, if there is one: it is trained on."""
    return self.gallery.sample_options() if self._prior_videos else {}

  def _prior(self) -> Prior | None:
    if not self._prior_videos:
      return None
    return material_lib.sample_prior(
      self.base,
      noun=self.config.prior.noun,
      videos=self._prior_videos,
      seed=self.config.seed,
      folder=self._cache,
      **self._sampled,
    )

  def _remember_prompts(self) -> None:
    """Has a large text encoder done, and gone, before anything is trained."""
    if 'text_encoder' not in self.base.on_disk:
      return
    texts = ['', self.appearance, self.full, *self.scenes.values()]
    c = self.config
    for static, dynamic in material_lib.prior_prompts(
      self.base, c.prior.noun, self._prior_videos, c.seed
    ):
      texts += [static, prompts_lib.join(static, dynamic)]
    text_features.remember(self.base, list(dict.fromkeys(texts)), self.words)

  def _context(self, prior: Prior | None) -> dict[str, jax.Array]:
    """Features of all prompts: the concept's two, then two a prior video."""
    texts = [self.appearance, self.full]
    for static, dynamic in prior.prompts if prior else ():
      texts += [static, prompts_lib.join(static, dynamic)]
    encoded = prompts_lib.encode(
      self.base.tokenizer,
      texts,
      self.base.format.text_length,
      self.words,
    )
    context = {
      'features': sampling.text_features(self.base, encoded.ids, encoded.mask),
      'mask': jnp.asarray(encoded.mask),
      'slots': jnp.asarray(encoded.slots),
    }
    if any(stage.prompt_drop for stage in self.stages):
      context['null'] = sampling.null_text(self.base)
    return context

  def _batches(
    self, stage: Stage, material: Material, prior: Prior | None
  ) -> pipeline.Loader:
    """Concept samples, and as many prior samples beside them if asked for."""
    still, seed = stage.data == 'frames', self.config.seed
    if still:
      source = pipeline.frames(material.frames, prompt=np.int32(0))
    else:
      source = pipeline.clips(material.latents, prompt=np.int32(1))
    concept = pipeline.loader(source, batch=stage.batch, seed=seed)
    if prior is None or not stage.prior:
      return concept
    # Prompts 2, 4, ... are the static ones, 3, 5, ... the whole ones.
    texts = [
      {'prompt': np.int32(2 + 2 * i + (not still))}
      for i in range(len(prior.prompts))
    ]
    samples = pipeline.prior(prior.frames if still else prior.latents, texts)
    return pipeline.mix(
      concept, pipeline.loader(samples, batch=stage.batch, seed=seed + 1)
    )

  def _loop(self, stage: Stage, material: Material) -> train.Loop:
    c = self.config
    return start.loop(
      self.base,
      c,
      self.workdir,
      {
        'stages': [repr(s) for s in self.stages[: self._place(stage) + 1]],
        'clip': cache.content_hash(material.clip.frames)[:16],
        'prompts': [self.appearance, self.motion],
        'tokens': machine.plain(c.tokens) if self.words else None,
        'prior': machine.plain(c.prior) | self._sampled,
        'shift': self.base.shift,
      },
    )

  def _place(self, stage: Stage) -> int:
    return [s.name for s in self.stages].index(stage.name)

  # ---- what they leave -----------------------------------------------------

  def _meta(self) -> dict[str, Any]:
    return {
      'prompts': {'appearance': self.appearance, 'motion': self.motion},
      'rank': self.config.lora.rank,
      'stages': [repr(stage) for stage in self.stages],
      'seed': self.config.seed,
    }

  def _preview(
    self, stage: Stage, step: int, params: Mapping[str, Any]
  ) -> None:
    concept = Concept.from_params(params, self.base, self._meta())
    self.gallery.preview(stage, step, concept)

  def _report(
    self, concept: Concept, material: Material, timings: tracking.Timings
  ) -> None:
    panels = self.gallery.show(concept, material.clip, self.scenes)
    path = self.gallery.write_report(
      Path(self.video).stem,
      panels,
      self.stages,
      prompts={'appearance': self.appearance, 'motion': self.motion},
      timings=timings.write(),
    )
    print(f'concept: {self.workdir / "concept.safetensors"}')
    print(f'report:  {path}')


def _held_out(stage: Stage, material: Material) -> dict[str, jax.Array]:
  """Frames that no stage sees; for a clip, noise that no step sees."""
  if stage.data == 'frames':
    spare = material.held_out if len(material.held_out) else material.frames
    latents, prompt = spare[:4], 0
  else:
    latents, prompt = material.latents[None], 1
  return {
    'latents': jnp.asarray(latents),
    'prompt': jnp.full((len(latents),), prompt, jnp.int32),
  }


def _what_to_learn(base: Base, config: ConfigDict) -> tuple[str, str, str]:
  """(video path, appearance prompt, motion prompt), checked."""
  if not config.data.video and base.name != 'world':
    raise DcjaxError('give a video: --config.data.video=FILE')
  video = config.data.video or str(SAMPLE)
  appearance, motion = config.prompts.appearance, config.prompts.motion
  if not config.data.video:
    defaults = json.loads(SAMPLE.with_suffix('.json').read_text())
  elif base.name == 'world':
    defaults = PLAIN_PROMPTS
  else:
    defaults = {'appearance': '', 'motion': ''}
  if not config.train_tokens:
    defaults = {k: prompts_lib.without_words(x) for k, x in defaults.items()}
  appearance = appearance or defaults['appearance']
  motion = motion or defaults['motion']
  if config.train_tokens:
    prompts_lib.check_training_prompts(appearance, motion)
  else:
    prompts_lib.check_plain_prompts(appearance, motion)
  return video, appearance, motion
