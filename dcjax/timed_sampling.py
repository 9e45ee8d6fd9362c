"""Storyboards -> videos: who is on screen, and when (AlcheMinT, Sec. 3).

The flow is guided by several passes that are told more or less of a storyboard,
Eq. (7) of `flow`; the intervals of the references are told to all of them.
"""

from collections.abc import Sequence
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import flow, lora, mesh, timed_plan
from dcjax import latents as latents_lib
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT
from dcjax.models.reference import (
  always_there,
  without_events,
  without_references,
)
from dcjax.storyboard import Storyboard
from dcjax.timed_conditions import Told, tell
from dcjax.timed_plan import Changes
from dcjax.weights import reference as reference_lib
from dcjax.weights.base import Base


def sample(
  base: Base,
  stories: Sequence[Storyboard],
  *,
  references: Base | str | os.PathLike | None = None,
  changes: Changes | None = None,
  negative: str = '',
  noise: Any = None,
  sampler: str | None = None,
  dtype: Any = None,
) -> np.ndarray:
  """Makes the videos of storyboards as one batch.

  Each is the same as alone: the noise is that of its own seed.

  Args:
    base: the model, without what references need.
    stories: of one length, size, guidance and set of concepts.
    references: what it needs, as a folder or as the base that
      `weights.reference.equip` makes; default the base's own folder.
    changes: what stands above the storyboards.
    negative: prompt of the passes without text.
    noise: [n f h w c] latents instead of drawn ones.
    sampler: a key of `flow.SAMPLERS`; default that of `defaults`.
    dtype: of activations.

  Returns:
    uint8 [n f h w 3].

  Raises:
    DcjaxError: a storyboard cannot be made, before anything is compiled.
  """
  stories = [timed_plan.resolve(base, story, changes) for story in stories]
  timed_plan.check_alike(stories)
  for story in stories:
    story.check_files()
  equipped = _equipped(base, references)
  sampler = sampler or timed_plan.defaults(base)['sampler']
  flow.check_sampler(sampler)
  size = (timed_plan.frames_of(base, stories[0]), *stories[0].size)
  if noise is not None:
    noise = _as_noise(base, noise, (len(stories), *base.latent_shape(*size)))
  transformer, told = tell(base, equipped, stories, negative)
  if noise is None:
    drawn = [latents_lib.draw_noise(base, 1, x.seed, *size) for x in stories]
    noise = jnp.concatenate(drawn)
  weights = timed_plan.coefficients(stories[0].guidance)
  if told.references is None:
    weights = flow.without_references(weights)
  latents = generate(
    {'params': transformer},
    noise,
    told,
    dit=DiT(
      base.dit,
      dtype or latents_lib.working_dtype(),
      reference=equipped.reference,
    ),
    sampler=sampler,
    steps=stories[0].steps,
    shift=float(stories[0].shift),
    coefficients=weights,
  )
  return latents_lib.decode(base, latents)


def _as_noise(base: Base, noise: Any, shape: tuple[int, ...]) -> jax.Array:
  noise = latents_lib.as_batch(base, noise, shape[0])
  if noise.shape != shape:
    raise DcjaxError(
      f'noise is {list(noise.shape)}, but the storyboard is of {list(shape)}'
    )
  return noise


def _equipped(base: Base, references: Any) -> Base:
  """The base with what references and events need."""
  if isinstance(references, Base):
    return references
  if base.reference is not None:
    return base
  return reference_lib.equip(base, references)


def of_pass(told: Told, name: str, frames: int) -> tuple:
  """(text, mask, references, events) of one of `flow.PASSES`.

  Without references their pictures and words are zero and their intervals stay,
  as in training; without text it is the null prompt and there are no events.

  Args:
    told: of the videos.
    name: of the pass.
    frames: T, latent frames of a video.
  """
  text, mask = told.text, told.mask
  references, events = told.references, told.events
  everywhere = jnp.ones((len(text),), bool)
  if name in ('references', 'none'):
    text, mask = told.null, told.null_mask
    if events is not None:
      events = without_events(events, everywhere)
  if name in ('text', 'none') and references is not None:
    references = without_references(references, everywhere)
  if name == 'always' and references is not None:
    references = always_there(references, frames)
  return text, mask, references, events


@functools.partial(
  jax.jit, static_argnames=('dit', 'sampler', 'steps', 'shift', 'coefficients')
)
def generate(
  variables: Any,
  noise: jax.Array,
  told: Told,
  *,
  dit: DiT,
  sampler: str,
  steps: int,
  shift: float,
  coefficients: flow.Coefficients,
) -> jax.Array:
  """Integrates the flow that is guided by Eq. (7) of `flow`.

  Args:
    variables: of the transformer, with or without LoRA leaves.
    noise: [b f h w c].
    told: of the b videos.
    dit: the transformer.
    sampler: a key of `flow.SAMPLERS`.
    steps: of it.
    shift: of its times.
    coefficients: a pass whose coefficient is 0 is not computed.

  Returns:
    Latents [b f h w c], normalised, float32.
  """
  passes = [flow.PASSES[i] for i in flow.active(coefficients)]
  repeat = lambda a: jnp.concatenate([a] * len(passes))
  text, mask, references, events = jax.tree.map(
    lambda *x: jnp.concatenate(x),
    *(of_pass(told, name, noise.shape[1]) for name in passes),
  )
  gate = None if told.gate is None else repeat(told.gate)
  apply = lora.with_lora(dit.apply, gate)

  def velocity(x, t, x0_hat):
    v = apply(
      variables,
      repeat(x),
      repeat(t),
      text,
      text_mask=mask,
      x0_hat=repeat(x0_hat),
      references=references,
      events=events,
    )
    return flow.weigh(v.reshape(len(passes), *x.shape), coefficients)

  # Callers look at the videos one by one, in every process.
  return mesh.everywhere(
    flow.solve(sampler, velocity, noise, steps=steps, shift=shift)
  )
