"""A training of AlcheMinT by its shapes, and how it samples a storyboard."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dcjax import flow, lora, sampling, timed_plan, timed_sampling
from dcjax.alchemint import objective as objective_lib
from dcjax.alchemint import run as run_lib
from dcjax.models.dit import DiT
from dcjax.models.reference import Events, References
from dcjax.models.reference_config import ReferenceConfig
from dcjax.planning import flops
from dcjax.planning.program import Passes, Shape
from dcjax.planning.programs import Run
from dcjax.planning.shapes import (
  floats,
  latents,
  null_text,
  params_of,
  shares_of,
  words,
)
from dcjax.timed_conditions import Told
from dcjax.weights import reference as reference_lib
from dcjax.weights.base import Base


def outline(base: Base, config: ConfigDict) -> Run:
  """The shapes of a job of `alchemint.run`."""
  job = run_lib.Training(base, config, '')
  base = job.base
  references = job.references
  params = params_of(base, lambda loaded: _with_references(loaded, job))
  shape, length = latents(base), base.format.text_length
  m = config.data.max_references
  events = config.data.max_events if references.event_length else 0
  beside = m * (flops.tokens(base.dit, (1, *shape[1:])) + references.tag_tokens)
  timed = events * config.data.event_tokens

  def batch(stage):
    n = stage.batch
    samples = {
      'latents': floats(n, *shape),
      'weight': floats(n, *shape[:3], 1),
      'features': floats(n, length, base.text.d_model),
      'mask': Shape((n, length), jnp.bool_),
      'sample': Shape((n,), jnp.int32),
      'references': _references(base, references, n, m)._asdict(),
    }
    if events:
      told = _events(base, n, events, config.data.event_tokens)
      samples['events'] = told._asdict()
    return samples

  def what(stage):
    tokens = flops.tokens(base.dit, shape)
    return words(config, stage, f'clips of {tokens} + {beside} tokens')

  return Run(
    base,
    config,
    (job.stage,),
    params,
    {'null': null_text(base)},
    batch,
    lambda stage: objective_lib.subjects(
      DiT(base.dit, sampling.working_dtype(), config.remat, references),
      stage,
      drop=tuple(config.drop),
      drop_events=config.drop_events,
    ),
    lambda stage: flops.step(
      base.dit,
      stage,
      params,
      shape,
      length,
      remat=config.remat,
      beside=beside,
      timed=timed,
    ),
    lambda stage: [(stage.batch, flops.tokens(base.dit, shape) + beside)],
    what,
    lambda: _timed_sampling(base, references, params, m, timed),
    (1 + m + events, length),
  )


def _with_references(base: Base, job: run_lib.Training) -> dict[str, Any]:
  """Those of `Training.params`, with nothing read."""
  keys = jax.random.split(jax.random.key(0), 2)
  c = job.config
  fresh = reference_lib.fresh(base, job.references, keys[0])
  transformer = fresh.params['transformer']
  if c.lora.rank:
    transformer = lora.attach(
      transformer, c.lora.targets, c.lora.rank, keys[1], side=c.lora.side
    )
  return {'transformer': transformer}


def _references(
  base: Base, config: ReferenceConfig, n: int, m: int
) -> References:
  _, h, w, c = latents(base, 1)
  s = config.tag_tokens
  return References(
    latents=floats(n, m, h, w, c),
    interval=floats(n, m, 2),
    valid=Shape((n, m), jnp.bool_),
    tags=floats(n, m, s, base.text.d_model),
    tag_mask=Shape((n, m, s), jnp.bool_),
  )


def _events(base: Base, n: int, events: int, tokens: int) -> Events:
  return Events(
    features=floats(n, events, tokens, base.text.d_model),
    mask=Shape((n, events, tokens), jnp.bool_),
    interval=floats(n, events, 2),
  )


def _timed_sampling(
  base: Base, config: ReferenceConfig, params: Any, m: int, timed: int
) -> dict[str, Any]:
  """The program that samples one storyboard with m references."""
  own, shape, length = timed_plan.defaults(base), latents(base), 0
  length = base.format.text_length
  weights = timed_plan.coefficients(own['guidance'])
  text = floats(1, length, base.dit.text_width)
  mask = Shape((1, length), jnp.bool_)
  told = Told(
    text=text,
    mask=mask,
    null=text,
    null_mask=mask,
    references=_references(base, config, 1, m),
    events=_events(base, 1, 1, timed) if timed else None,
    gate=None,
  )
  passes, steps = len(flow.active(weights)), own['steps']
  beside = m * (flops.tokens(base.dit, (1, *shape[1:])) + config.tag_tokens)
  once = flops.forward(base.dit, shape, length, beside=beside, timed=timed)
  return {
    'what': f'a storyboard of {m} references, {base.format.frames} frames, '
    f'{steps} steps of {passes} passes',
    'jitted': jax.jit(
      lambda variables, noise, told: timed_sampling.generate(
        variables,
        noise,
        told,
        dit=DiT(base.dit, sampling.working_dtype(), reference=config),
        sampler=own['sampler'],
        steps=steps,
        shift=float(own['shift']),
        coefficients=weights,
      )
    ),
    'arguments': ({'params': params['transformer']}, floats(1, *shape), told),
    'work': once.times(steps * passes).total,
    'runs': 1,
    'passes': Passes(
      passes // shares_of(passes), flops.tokens(base.dit, shape) + beside, steps
    ),
    'shares': shares_of(passes),
  }
