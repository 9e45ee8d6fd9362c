"""What the jobs that can be planned consist of: one function a task.

Each gives the shapes of what its job trains, loads and samples, by the very
functions that the job calls.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from dcjax import stage as stage_lib
from dcjax import start
from dcjax.errors import DcjaxError
from dcjax.finetuning import run as finetuning_run
from dcjax.planning import alchemint, flops, pretraining
from dcjax.planning.program import Shape
from dcjax.planning.programs import Run
from dcjax.planning.shapes import (
  floats,
  latents,
  latents_of,
  null_text,
  params_of,
  sampling_of,
  words,
)
from dcjax.weights import outline as outline_lib
from dcjax.weights.base import Base

# Scenes of a report, its reconstruction and what the prior takes are sampled
# alike; a report shows about this many.
SCENES = 5


def base_of(config: ConfigDict) -> Base:
  """The base of a job, by its shapes.

  Raises:
    DcjaxError: for one that is not here, or is broken.
  """
  if config.task == 'pretrain_clips':
    return pretraining.base_of(config)
  return outline_lib.outline(config.base, dtype=start.base_dtype(config))


def outline(base: Base, config: ConfigDict) -> Run:
  """The shapes of a job.

  Args:
    base: from `base_of`.
    config: of the job; its `task` is a key of `TASKS`.

  Raises:
    DcjaxError: for what the job itself would refuse.
  """
  return TASKS[config.task](base, config)


# ---- Set-and-Sequence --------------------------------------------------------


def _personalize(base: Base, config: ConfigDict) -> Run:
  start.check_numbers(config)
  base = start.adapted(base, config)
  stages = stage_lib.several(config)
  for stage in stages:
    stage.check_data('frames', 'clip')
  params = params_of(base, lambda loaded: start.initial_params(loaded, config))
  prior = bool(config.prior.videos and any(s.prior for s in stages))
  videos = config.prior.videos if prior else 0
  length = base.format.text_length
  rows = (2 + 2 * videos, length)
  context = {
    'features': floats(*rows, base.text.d_model),
    'mask': Shape(rows, jnp.bool_),
    'slots': Shape(rows, jnp.int32),
  }

  def batch(stage):
    samples = {
      'latents': floats(stage.batch, *latents_of(base, stage)),
      'prompt': Shape((stage.batch,), jnp.int32),
      'sample': Shape((stage.batch,), jnp.int32),
    }
    if prior and stage.prior:
      return {'concept': samples, 'prior': samples}
    return samples

  def parts(stage):
    tokens = flops.tokens(base.dit, latents_of(base, stage))
    return [(stage.batch, tokens)] * (2 if prior and stage.prior else 1)

  def what(stage):
    kind = 'stills' if stage.data == 'frames' else 'clips'
    tokens = flops.tokens(base.dit, latents_of(base, stage))
    times = 2 if prior and stage.prior else 1
    return words(config, stage, f'{kind} of {tokens} tokens', times)

  return Run(
    base,
    config,
    stages,
    params,
    context,
    batch,
    lambda stage: start.objective(base, config, stage),
    lambda stage: flops.step(
      base.dit,
      stage,
      params,
      latents_of(base, stage),
      length,
      remat=config.remat,
      prior=bool(prior and stage.prior),
    ),
    parts,
    what,
    lambda: sampling_of(base, config, params, SCENES + videos),
    rows,
  )


# ---- a LoRA of captioned files -----------------------------------------------


def _finetune(base: Base, config: ConfigDict) -> Run:
  job = finetuning_run.Finetuning(base, config, '')
  base = job.base
  params = params_of(
    base, lambda loaded: {'transformer': start.with_lora(loaded, config)}
  )
  shape, length = latents(base), base.format.text_length

  def batch(stage):
    return {
      'latents': floats(stage.batch, *shape),
      'features': floats(stage.batch, length, base.text.d_model),
      'mask': Shape((stage.batch, length), jnp.bool_),
      'sample': Shape((stage.batch,), jnp.int32),
    }

  tokens = flops.tokens(base.dit, shape)
  return Run(
    base,
    config,
    (job.stage,),
    params,
    {'null': null_text(base)},
    batch,
    lambda stage: job.objective(),
    lambda stage: flops.step(
      base.dit, stage, params, shape, length, remat=config.remat
    ),
    lambda stage: [(stage.batch, tokens)],
    lambda stage: words(config, stage, f'clips of {tokens} tokens'),
    lambda: sampling_of(base, config, params, SCENES),
    (SCENES, length),
  )


TASKS: dict[str, Callable[[Base, ConfigDict], Run]] = {
  'personalize': _personalize,
  'lora': _finetune,
  'alchemint': alchemint.outline,
  'pretrain_clips': pretraining.outline,
}


def check(task: Any, place: str) -> None:
  """Raises DcjaxError for a task that cannot be planned."""
  if task not in TASKS:
    raise DcjaxError(
      f'{place} is a job of task {task!r}; only those of configs/set_seq.py, '
      'lora.py, alchemint.py and pretrain.py can be planned'
    )
