"""Trains a base from nothing on the procedural world, and saves its folder."""

from collections.abc import Iterator
import dataclasses
import json
from pathlib import Path
import platform
import time
from typing import Any

from dcjax import objective as objective_lib
from dcjax import train
from dcjax.data import tokenizer as tokenizer_lib
from dcjax.data import world
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT, DiTConfig
from dcjax.models.text import TextConfig, UMT5Encoder
from dcjax.models.vae_config import VAEConfig
from dcjax.models.wan_vae import WanVAE
from dcjax.stage import Optimizer, Stage
from dcjax.weights import base as base_lib
import jax
import jax.numpy as jnp
import numpy as np


class Indices:
  """Batches of sample indices: all that the procedural world needs to know.

  Args:
    mix: (frames, samples) pairs.
  """

  def __init__(self, mix: tuple[tuple[int, int], ...]):
    self._mix, self._step = mix, 0

  def __iter__(self) -> Iterator:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = {
      str(frames): np.arange(n, dtype=np.int32) + self._step * n
      for frames, n in self._mix
    }
    self._step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    return {'next_index': self._step}

  def set_state(self, state: dict[str, int]) -> None:
    self._step = state['next_index']


def run(config: Any, workdir: str) -> None:
  """Runs the config's stages and writes `workdir/base`."""
  base = _start(config)
  hours = 0.0
  for options in config.stages:
    began = time.monotonic()
    options = options.to_dict()
    mix = tuple(tuple(pair) for pair in options.pop('mix'))
    stage = Stage(
      **options
      | {'optimizer': Optimizer(**options['optimizer'])}
      | {'batch': sum(n for _, n in mix)}
    )
    params, _ = train.fit(
      stage,
      _objective(base, stage, config),
      base.params,
      Indices(mix),
      train.Loop(
        workdir=workdir,
        seed=config.seed,
        log_every=config.log_every,
        save_every=config.save_every,
        identity={'stage': repr(stage), 'init': config.init},
      ),
    )
    base = dataclasses.replace(base, params=params)
    if stage.objective == 'autoencoder':
      base = dataclasses.replace(base, vae=_with_statistics(base))
    hours += (time.monotonic() - began) / 3600.0
    base_lib.save_base(base, Path(workdir) / 'base', dtype=config.save_dtype)
  _record(config, workdir, hours)


def _start(config: Any) -> base_lib.Base:
  """A fresh base, or the one in the folder `config.init`."""
  if config.init:
    return base_lib.load_base(config.init)
  dit = DiTConfig(**config.dit.to_dict())
  vae = VAEConfig(
    **config.vae.to_dict(),
    latents_mean=(0.0,) * config.vae.z_dim,
    latents_std=(1.0,) * config.vae.z_dim,
  )
  tokenizer = tokenizer_lib.build_word_tokenizer(
    world.VOCABULARY, length=config.format.text_length
  )
  text = TextConfig(vocab_size=len(tokenizer), **config.text.to_dict())
  return base_lib.Base(
    name='world',
    dit=dit,
    vae=vae,
    text=text,
    tokenizer=tokenizer,
    params=base_lib.init_params(dit, vae, text, jax.random.key(config.seed)),
    format=base_lib.Format(**config.format.to_dict()),
    shift=config.shift,
  )


def _objective(base, stage, config):
  dtype = jnp.dtype(config.dtype)
  vae = WanVAE(base.vae, dtype)
  if stage.objective == 'autoencoder':
    return objective_lib.autoencoder(
      vae, seed=config.seed, kl_weight=config.kl_weight
    )
  if stage.objective == 'world':
    words = (*world.VOCABULARY, '.', '<unk>', '<extra_id_0>', '<extra_id_1>')
    return objective_lib.pretrain(
      DiT(base.dit, dtype, config.remat),
      vae,
      UMT5Encoder(base.text, dtype),
      tokenizer_lib.word_ids(base.tokenizer, words),
      stage,
      seed=config.seed,
      length=base.format.text_length,
    )
  raise DcjaxError(
    f'stage {stage.name!r}: objective {stage.objective!r} does not pretrain; '
    'use autoencoder or world'
  )


def _with_statistics(base: base_lib.Base) -> VAEConfig:
  """The autoencoder's config with mean and deviation of its latents."""
  vae = WanVAE(base.vae)

  @jax.jit
  def latents(params, keys):
    scenes = jax.vmap(world.sample_scene)(keys)
    video = jax.vmap(lambda s: world.render(s).video)(scenes)
    return vae.apply({'params': params}, 2.0 * video - 1.0, method='encode')[0]

  z = np.concatenate(
    [
      np.asarray(latents(base.params['vae'], keys))
      for keys in jax.random.split(jax.random.key(1), (16, 16))
    ]
  )
  axes = (0, 1, 2, 3)
  return dataclasses.replace(
    base.vae,
    latents_mean=tuple(round(float(x), 4) for x in z.mean(axes)),
    latents_std=tuple(round(float(x), 4) for x in z.std(axes)),
  )


def _record(config: Any, workdir: str, hours: float) -> None:
  """Says, beside the weights, how they came about."""
  device = jax.devices()[0]
  record = {
    'config': json.loads(config.to_json_best_effort()),
    'hours': round(hours, 3),
    'device': f'{device.platform} {device.device_kind}',
    'host': platform.machine(),
    'jax': jax.__version__,
  }
  path = Path(workdir) / 'base' / 'training.json'
  path.write_text(json.dumps(record, indent=2) + '\n')
