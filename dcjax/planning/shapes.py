"""Shapes that the outlines of several tasks have in common."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dcjax import material, mesh, sampling, step
from dcjax.models.dit import DiT
from dcjax.planning import flops
from dcjax.planning.program import Passes, Shape
from dcjax.stage import Stage
from dcjax.weights.base import Base


def floats(*shape: int) -> Shape:
  """A float32 array."""
  return Shape(shape, jnp.float32)


def params_of(base: Base, make: Callable[[Base], Any]) -> dict[str, Any]:
  """Shapes of the parameters that a job makes of a loaded base."""

  def made(transformer):
    return make(dataclasses.replace(base, params={'transformer': transformer}))

  return jax.eval_shape(made, base.params['transformer'])


def latents(base: Base, frames: int = 0) -> tuple[int, ...]:
  """[f h w c] of a sample."""
  f = base.format
  return base.latent_shape(frames or f.frames, f.height, f.width)


def latents_of(base: Base, stage: Stage) -> tuple[int, ...]:
  """[f h w c] of a sample of a stage: a still, or a whole clip."""
  return latents(base, 1 if stage.data == 'frames' else 0)


def words(config: ConfigDict, stage: Stage, of: str, times: int = 1) -> str:
  """What a device does in a step: microbatches, samples of each, of what."""
  shares = mesh.size(*mesh.ROWS)
  parts = step.microbatches(stage, shares)
  micro = times * stage.batch // (shares * parts)
  return f'{parts} x {micro} {of}, remat {config.remat}'


def null_text(base: Base) -> dict[str, Any]:
  """The null prompt's features."""
  length = base.format.text_length
  features = floats(1, length, base.text.d_model)
  return {'features': features, 'mask': Shape((1, length), jnp.bool_)}


def sampling_of(
  base: Base, config: ConfigDict, params: Any, videos: int
) -> dict[str, Any]:
  """The program that samples prompts."""
  f, shape = base.format, latents(base)
  n = max(1, min(material.videos_at_once(base, shape), videos))
  steps, guidance = config.sample.steps or f.steps, config.sample.guidance
  guidance = float(guidance or f.guidance)
  rows = (2 * n, f.text_length)
  passes = 1 if guidance == 1.0 else 2
  once = flops.forward(base.dit, shape, f.text_length)
  return {
    'what': f'{n} x {f.frames} frames at once, {steps} steps, guidance '
    f'{guidance:g}',
    'jitted': jax.jit(
      lambda variables, noise, text, mask: sampling.generate(
        variables,
        noise,
        text,
        mask,
        dit=DiT(base.dit, sampling.working_dtype()),
        sampler='unipc',
        steps=steps,
        shift=float(base.shift),
        guidance=guidance,
      )
    ),
    'arguments': (
      {'params': params['transformer']},
      floats(n, *shape),
      floats(*rows, base.dit.text_width),
      Shape(rows, jnp.bool_),
    ),
    'work': once.times(n * steps * passes).total,
    'runs': -(-videos // n),
    'passes': Passes(
      n * passes // shares_of(n * passes),
      flops.tokens(base.dit, shape),
      steps,
    ),
    'shares': shares_of(n * passes),
  }


def shares_of(samples: int) -> int:
  """Shares that the current mesh makes of samples, see `mesh.rows`."""
  return mesh.size(*mesh.ROWS) if mesh.rows(samples) else 1
