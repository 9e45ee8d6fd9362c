"""Prompts and storyboards -> videos: one function for both."""

from collections.abc import Sequence
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import flow, lora, mesh, timed_sampling
from dcjax.concept import Concept, join
from dcjax.data import prompts as prompts_lib
from dcjax.errors import DcjaxError
from dcjax.latents import (
  as_batch,
  decode,
  draw_noise,
  encode_prompts,
  encode_video,
  null_text,
  working_dtype,
)
from dcjax.models.dit import DiT
from dcjax.storyboard import Guidance, Storyboard
from dcjax.text_features import remember, text_features
from dcjax.timed_plan import Changes
from dcjax.weights.base import Base

# What callers find here beside `sample` and `generate`.
__all__ = [
  'decode',
  'draw_noise',
  'encode_prompts',
  'encode_video',
  'generate',
  'null_text',
  'sample',
  'text_features',
  'working_dtype',
]


def sample(
  base: Base,
  prompt: str | Storyboard | Sequence[str] | Sequence[Storyboard],
  *,
  concepts: Sequence[Concept] = (),
  references: Base | str | os.PathLike | None = None,
  negative: str = '',
  seed: int | None = None,
  noise: np.ndarray | None = None,
  frames: int | None = None,
  height: int | None = None,
  width: int | None = None,
  steps: int | None = None,
  guidance: float | Guidance | None = None,
  shift: float | None = None,
  sampler: str | None = None,
  dtype: Any = None,
) -> np.ndarray:
  """Makes a video of a prompt or storyboard, or one of each of several.

  Args:
    base: the model.
    prompt: may hold the learned words of the concepts, such as `[v]` and `[u]`.
      Or a storyboard, or several of one shape.
    concepts: put in together; the words of several are numbered in order:
      [v1] [u1] [v2] [u2] ... A storyboard holds its own.
    references: for storyboards, folder of trained added parameters, or the base
      that `weights.reference.equip` makes of them; default the base's own.
    negative: prompt of the unguided pass; may hold learned words too.
    seed: of the noise; several prompts get several noises from it. Default 0,
      or that of the storyboard.
    noise: [f h w c] latents (or [n f h w c]) instead of drawn ones; it then
      gives the size of the video.
    frames: 1 + a multiple of the base's temporal factor; default the base's.
    height: pixels; default the base's.
    width: pixels; default the base's.
    steps: of the sampler; default the base's.
    guidance: scale g of Eq. (6) of `flow`; default the base's. For storyboards
      a `storyboard.Guidance`; default their own.
    shift: time shift, Eq. (5) of `flow`; default the base's.
    sampler: 'unipc', 'euler' or 'diffusers_euler'; default unipc, see
      `timed_plan.defaults` for storyboards.
    dtype: of activations; default float32 on a CPU, else bfloat16.

  Returns:
    uint8 [f h w 3], or [n f h w 3] for a sequence.

  Raises:
    DcjaxError: it cannot be made, or something given would not be read.
  """
  single = isinstance(prompt, str | Storyboard)
  many = [prompt] if single else list(prompt)
  timed = any(isinstance(x, Storyboard) for x in many)
  _refuse_unread(timed, concepts, references, guidance)
  if timed:
    videos = timed_sampling.sample(
      base,
      many,
      references=references,
      changes=Changes(frames, height, width, seed, steps, shift, guidance),
      negative=negative,
      noise=noise,
      sampler=sampler,
      dtype=dtype,
    )
    return videos[0] if single else videos
  f = base.format
  steps = f.steps if steps is None else steps
  shift = base.shift if shift is None else shift
  guidance = f.guidance if guidance is None else guidance
  sampler = sampler or 'unipc'
  _check(steps, shift, guidance, sampler)
  if noise is None:
    size = (frames or f.frames, height or f.height, width or f.width)
    noise = draw_noise(base, len(many), seed or 0, *size)
  noise = as_batch(base, noise, len(many))
  transformer, tokens = base.params['transformer'], {}
  if concepts:
    transformer, tokens = join(concepts).put_into(base, transformer)
  remember(base, [*many, negative], prompts_lib.sizes_of(tokens))
  text, mask = encode_prompts(base, many, tokens)
  null, null_mask = encode_prompts(base, [negative] * len(many), tokens)
  latents = generate(
    {'params': transformer},
    noise,
    jnp.concatenate([text, null]),
    jnp.concatenate([mask, null_mask]),
    dit=DiT(base.dit, dtype or working_dtype()),
    sampler=sampler,
    steps=steps,
    shift=float(shift),
    guidance=float(guidance),
  )
  videos = decode(base, latents)
  return videos[0] if single else videos


def _refuse_unread(
  timed: bool, concepts: Any, references: Any, guidance: Any
) -> None:
  """Refuses what is not read with storyboards, or with prompts."""
  if timed and (concepts or isinstance(guidance, float | int)):
    raise DcjaxError(
      'concepts of a storyboard stand in it, and its guidance has several '
      'scales; leave them out of the call'
    )
  if references is not None and not timed:
    raise DcjaxError(
      'references are of storyboards and not read with a prompt; leave them '
      'out of the call, or give a Storyboard'
    )


def _check(steps: int, shift: float, guidance: Any, sampler: str) -> None:
  """Refuses what no video would come of, or NaN."""
  flow.check_sampler(sampler)
  if steps < 1:
    raise DcjaxError(f'steps is {steps}; a sampler takes at least 1')
  if not 0 < shift < math.inf:
    raise DcjaxError(f'shift is {shift}; expected a number above 0')
  if isinstance(guidance, Guidance) or not math.isfinite(guidance):
    raise DcjaxError(
      f'guidance is {guidance}; expected the one number of a prompt'
    )


@functools.partial(
  jax.jit, static_argnames=('dit', 'sampler', 'steps', 'shift', 'guidance')
)
def generate(
  variables: Any,
  noise: jax.Array,
  text: jax.Array,
  mask: jax.Array,
  *,
  dit: DiT,
  sampler: str,
  steps: int,
  shift: float,
  guidance: float,
) -> jax.Array:
  """Integrates the guided flow.

  Args:
    variables: of the transformer, with or without LoRA leaves.
    noise: [b f h w c].
    text: [2b l d], features of the prompts, then of the negative prompts.
    mask: [2b l] bool.
    dit: the transformer.
    sampler: a key of `flow.SAMPLERS`.
    steps: of it.
    shift: of its times.
    guidance: 1 leaves the negative pass out.

  Returns:
    Latents [b f h w c], normalised, float32.
  """
  n = noise.shape[0]
  apply = lora.with_lora(dit.apply)

  def velocity(x, t, x0_hat):
    if guidance == 1.0:
      return apply(variables, x, t, text[:n], text_mask=mask[:n], x0_hat=x0_hat)
    twice = lambda a: jnp.concatenate([a, a])
    v = apply(
      variables, twice(x), twice(t), text, text_mask=mask, x0_hat=twice(x0_hat)
    )
    return flow.guide(v[:n], v[n:], guidance)

  # Callers look at the videos one by one, in every process.
  return mesh.everywhere(
    flow.solve(sampler, velocity, noise, steps=steps, shift=shift)
  )
