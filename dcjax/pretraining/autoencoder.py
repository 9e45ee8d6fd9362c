"""Trains a video autoencoder from nothing on the procedural world.

The loss is that of the first stage of `dcjax.pretrain`, in the same trainer.
What comes out is the folder `base/vae`, which `config.parts.vae` of a
pretraining takes, and pictures of what is lost.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from dcjax import (
  machine,
  pretrain,
  pretrain_objective,
  processes,
  sharding,
  start,
  train,
)
from dcjax import stage as stage_lib
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.models import vae as vae_lib
from dcjax.weights import base as base_lib
from dcjax.weights import networks

STAGE = 'autoencoder'
# Samples that no step sees, and how many of them are looked at.
HELD_OUT, LOOKED_AT = 2**30, 8


def run(config: ConfigDict, workdir: str) -> None:
  """The `pretrain_autoencoder` task of the command line."""
  stage = stage_lib.from_config(STAGE, config[STAGE].to_dict())
  if stage.objective != STAGE or not stage.mix:
    raise DcjaxError(
      f'config.{STAGE} has objective {stage.objective!r} and mix '
      f'{stage.mix!r}; expected {STAGE} and (frames, samples) pairs'
    )
  shape = vae_lib.config_of(config.vae.to_dict())
  machine.write_config(Path(workdir), config, base={'name': config.name})
  # This generator compiles several times faster than the default one.
  key = jax.random.key(config.seed, impl='unsafe_rbg')
  make = jax.jit(lambda key: {'vae': networks.init(shape, key)})
  rules = start.rules(config)
  model = vae_lib.build(shape, jnp.dtype(config.dtype), remat=config.remat)
  objective = pretrain_objective.autoencoder(
    model, seed=config.seed, kl_weight=config.kl_weight
  )
  seen = {
    str(frames): np.arange(LOOKED_AT, dtype=np.int32) + HELD_OUT
    for frames, _ in stage.mix
  }
  params, _ = train.fit(
    stage,
    objective,
    sharding.create(make, key, rules=rules),
    pretrain.Indices(stage.mix),
    train.Loop(
      workdir=str(workdir),
      seed=config.seed,
      log_every=config.log_every,
      save_every=config.save_every,
      eval_every=config.eval_every,
      identity=_identity(config, shape, stage),
      rules=rules,
    ),
    held_out=seen,
  )
  _keep(config, shape, objective, params, seen, Path(workdir))


def _identity(
  config: ConfigDict, shape: vae_lib.AnyConfig, stage: stage_lib.Stage
) -> dict[str, Any]:
  return {
    'stage': repr(stage),
    'vae': repr(shape),
    'seed': config.seed,
    'kl_weight': config.kl_weight,
    'dtype': config.dtype,
  }


def _keep(
  config: ConfigDict,
  shape: vae_lib.AnyConfig,
  objective: Any,
  params: dict[str, Any],
  seen: dict[str, np.ndarray],
  workdir: Path,
) -> None:
  """Writes the folder, with the statistics, and the reconstructions."""
  params = sharding.fetch(params)
  if not processes.is_main():
    return
  measured = pretrain.with_statistics(shape, params['vae'])
  base_lib.save_part(
    workdir / 'base', 'vae', measured, params['vae'], dtype=config.save_dtype
  )
  for frames, indices in seen.items():
    path = workdir / f'reconstruction_{frames}_frames.mp4'
    pair = _pairs(objective, shape, int(frames), params, indices)
    if len(pair) == 1:
      path = path.with_suffix('.png')
    video_lib.write_video(path, pair, config.fps)
    print(f'looked at: {path}')
  print(f'autoencoder: {workdir / "base" / "vae"}')


def _pairs(
  objective: Any,
  shape: vae_lib.AnyConfig,
  frames: int,
  params: dict[str, Any],
  indices: np.ndarray,
) -> np.ndarray:
  """uint8 [f 2h nw 3]: clips in a row, above what is left of each."""

  @functools.partial(jax.jit, static_argnums=2)
  def both(params, indices, frames):
    x = objective.videos(indices, frames)
    y = vae_lib.build(shape).apply({'params': params['vae']}, x)
    return jnp.stack([x, jnp.clip(y, -1.0, 1.0)])

  both_rows = np.asarray(both(params, jnp.asarray(indices), frames))
  picture = np.concatenate(np.concatenate(both_rows, axis=2), axis=2)
  return np.round((picture + 1.0) * 127.5).astype(np.uint8)
