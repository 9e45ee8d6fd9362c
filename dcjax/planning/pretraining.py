"""A pretraining on captioned clips by its shapes."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dcjax import start
from dcjax.errors import DcjaxError
from dcjax.planning import flops
from dcjax.planning.program import Shape
from dcjax.planning.programs import Run
from dcjax.planning.shapes import floats, null_text, words
from dcjax.pretraining import run as run_lib
from dcjax.stage import Stage
from dcjax.weights import networks
from dcjax.weights import outline as outline_lib
from dcjax.weights.base import Base
from dcjax.weights.folder import Format


def base_of(config: ConfigDict) -> Base:
  """What is trained, and the networks that it reads; these need not be here.

  Raises:
    DcjaxError: a folder is given that is broken, or the transformer is of no
      known shape.
  """
  dit = run_lib.dit_of(config)
  if all(config.parts.values()):
    base = run_lib.frozen(config)
  elif config.dit.preset in outline_lib.KNOWN:
    known = outline_lib.KNOWN[config.dit.preset]
    base = dataclasses.replace(
      known,
      name=config.name,
      dit=dit,
      format=Format(**config.format.to_dict()),
    )
  else:
    raise DcjaxError(
      'give the frozen networks, config.parts.vae and config.parts.text_encoder'
    )
  # Masters are float32, whatever is computed with.
  shapes = jax.tree.map(
    lambda x: Shape(x.shape, jnp.float32), networks.shapes(dit)
  )
  return dataclasses.replace(base, params={'transformer': shapes})


def outline(base: Base, config: ConfigDict) -> Run:
  """The shapes of a job of `pretraining.run`: its stages.

  Clips are encoded once, before; that is not planned.
  """
  start.check_remat(config)
  f, stages = base.format, run_lib.stages_of(config)
  params, length = {'transformer': base.params['transformer']}, f.text_length

  def sizes(stage):
    """[(frames, samples, latents [f h w c])] of the losses of a step."""
    return [
      (frames, n, base.latent_shape(frames, f.height, f.width))
      for frames, n in stage.mix
    ]

  def batch(stage):
    return {
      str(frames): {
        'latents': floats(n, *shape),
        'features': floats(n, length, base.text.d_model),
        'mask': Shape((n, length), jnp.bool_),
        'sample': Shape((n,), jnp.int32),
      }
      for frames, n, shape in sizes(stage)
    }

  def work(stage):
    steps = [
      flops.step(
        base.dit,
        dataclasses.replace(stage, batch=n, mix=()),
        params,
        shape,
        length,
        remat=config.remat,
      )
      for _, n, shape in sizes(stage)
    ]
    return flops.Step(
      sum(x.model for x in steps), sum(x.executed for x in steps)
    )

  def parts(stage: Stage) -> list[tuple[int, int]]:
    found = [(n, flops.tokens(base.dit, s)) for _, n, s in sizes(stage)]
    return sorted(found, reverse=True)

  def what(stage: Stage) -> str:
    mix = ' + '.join(f'{n} of {frames} frames' for frames, n in stage.mix)
    return words(config, stage, f'samples ({mix})')

  return Run(
    base,
    config,
    stages,
    params,
    {'null': null_text(base)},
    batch,
    lambda stage: run_lib.objective(base, config, stage),
    work,
    parts,
    what,
    clips=False,
  )
