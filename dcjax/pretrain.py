"""Trains a base from nothing on the procedural world, and saves its folder."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import json
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import (
  machine,
  pretrain_objective,
  processes,
  sharding,
  start,
  tracking,
  train,
)
from dcjax import stage as stage_lib
from dcjax.data import tokenizer as tokenizer_lib
from dcjax.data import world
from dcjax.errors import DcjaxError
from dcjax.models import vae as vae_lib
from dcjax.models.dit import DiT
from dcjax.models.dit_config import DiTConfig
from dcjax.models.text import TextConfig, UMT5Encoder
from dcjax.weights import base as base_lib
from dcjax.weights import location, networks

# Batches and clips of a batch that the statistics of latents are taken over.
MEASURED = (16, 16)
# Frames of the bank that are encoded at once.
ENCODED = 2048


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
      str(frames): np.asarray(sharding.local_rows(n), np.int32) + self._step * n
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
  stages = stage_lib.several(config)
  timings = tracking.Timings(workdir)
  try:
    _train(config, stages, workdir, timings)
  finally:
    # Of a command that is told to go, too.
    hours = timings.write()['total'] / 3600.0
  if processes.is_main():
    _record(config, workdir, hours)


def _train(
  config: Any,
  stages: Sequence[stage_lib.Stage],
  workdir: str,
  timings: tracking.Timings,
) -> None:
  """The stages, one after the other; the base is kept after each."""
  base, bank = _start(config), None
  for place, stage in enumerate(stages):
    if stage.objective == 'world' and config.bank and bank is None:
      bank = _encode_bank(base, config)
    params, timing = train.fit(
      stage,
      _objective(base, stage, config),
      base.params,
      Indices(stage.mix),
      train.Loop(
        workdir=workdir,
        seed=config.seed,
        log_every=config.log_every,
        save_every=config.save_every,
        preview_every=config.preview_every,
        identity=_identity(config, stages[: place + 1]),
        rules=start.rules(config),
      ),
      context=bank if stage.objective == 'world' else None,
      preview=lambda step, now: _keep(base, now, config, workdir),
    )
    base = dataclasses.replace(base, params=params)
    if stage.objective == 'autoencoder' and not config.init:
      measured = with_statistics(base.vae, sharding.fetch(params['vae']))
      base = dataclasses.replace(base, vae=measured)
    timings.add(stage.name, dataclasses.asdict(timing))
    _keep(base, base.params, config, workdir)


def _identity(config: Any, stages: Sequence[stage_lib.Stage]) -> dict[str, Any]:
  """What a run must share to go on from the checkpoints of the last stage."""
  keys = (
    'init',
    'seed',
    'dtype',
    'bank',
    'kl_weight',
    'emphasis',
    'format',
    'dit',
    'vae',
    'text',
  )
  plain = machine.plain(config)
  return {'stages': [repr(stage) for stage in stages]} | {
    key: plain[key] for key in keys
  }


def _start(config: Any) -> base_lib.Base:
  """A fresh base, or the one in the folder `config.init`."""
  if config.init:
    return base_lib.load_base(config.init)
  dit = DiTConfig(**config.dit.to_dict())
  vae = vae_lib.config_of(config.vae.to_dict())
  tokenizer = tokenizer_lib.build_word_tokenizer(
    world.VOCABULARY, length=config.format.text_length
  )
  text = TextConfig(vocab_size=len(tokenizer), **config.text.to_dict())
  # This generator compiles several times faster than the default one.
  key = jax.random.key(config.seed, impl='unsafe_rbg')
  return base_lib.Base(
    name='world',
    dit=dit,
    vae=vae,
    text=text,
    tokenizer=tokenizer,
    params=networks.init_params(dit, vae, text, key),
    format=base_lib.Format(**config.format.to_dict()),
    shift=config.shift,
  )


def _objective(base, stage, config):
  dtype = jnp.dtype(config.dtype)
  vae = vae_lib.build(base.vae, dtype)
  if stage.objective == 'autoencoder':
    return pretrain_objective.autoencoder(
      vae, seed=config.seed, kl_weight=config.kl_weight
    )
  if stage.objective == 'world':
    words = (*world.VOCABULARY, '.', '<unk>', '<extra_id_0>', '<extra_id_1>')
    return pretrain_objective.flow(
      DiT(base.dit, dtype, config.remat),
      vae,
      UMT5Encoder(base.text, dtype),
      tokenizer_lib.word_ids(base.tokenizer, words),
      stage,
      seed=config.seed,
      length=base.format.text_length,
      emphasis=config.emphasis,
    )
  raise DcjaxError(
    f'stage {stage.name!r}: objective {stage.objective!r} does not pretrain; '
    'use autoencoder or world'
  )


def _keep(base, params, config, workdir) -> None:
  """Saves the base as it is now: a long run can be tried before it ends."""
  base_lib.save_base(
    dataclasses.replace(base, params=params),
    Path(workdir) / 'base',
    dtype=config.save_dtype,
  )


def _encode_bank(base: base_lib.Base, config: Any) -> dict[str, Any]:
  """{frames: (scenes, latents, cover)}, encoded once for all steps."""
  dtype = jnp.dtype(config.dtype)
  vae = vae_lib.build(base.vae, dtype)

  @functools.partial(jax.jit, static_argnums=2)
  def encode(params, indices, frames):
    seed = jax.random.key(config.seed)
    keys = pretrain_objective.scene_keys(seed, frames, indices)
    scenes, *arrays = pretrain_objective.encode_scenes(
      vae, params, keys, frames
    )
    return scenes, *(x.astype(dtype) for x in arrays)

  params, bank = jax.device_put(base.params['vae']), {}
  for frames, samples in config.bank:
    began, chunk = time.monotonic(), min(samples, max(1, ENCODED // frames))
    parts = [
      encode(params, jnp.arange(start, start + chunk), frames)
      for start in range(0, samples - chunk + 1, chunk)
    ]
    bank[str(frames)] = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    jax.block_until_ready(bank)
    seconds = time.monotonic() - began
    # Whole chunks only, as another size would be compiled for itself.
    kept = len(parts) * chunk
    print(f'bank: {kept} scenes of {frames} frames in {seconds:.0f} s')
  return bank


def with_statistics(
  config: vae_lib.AnyConfig, params: Any
) -> vae_lib.AnyConfig:
  """An autoencoder's config with mean and deviation of its latents."""
  vae = vae_lib.build(config)

  @jax.jit
  def latents(params, keys):
    scenes = jax.vmap(world.sample_scene)(keys)
    video = jax.vmap(lambda s: world.render(s).video)(scenes)
    return vae.apply({'params': params}, 2.0 * video - 1.0, method='encode')[0]

  z = np.concatenate(
    [
      np.asarray(latents(params, keys))
      for keys in jax.random.split(jax.random.key(1), MEASURED)
    ]
  )
  axes = (0, 1, 2, 3)
  return dataclasses.replace(
    config,
    latents_mean=tuple(round(float(x), 4) for x in z.mean(axes)),
    latents_std=tuple(round(float(x), 4) for x in z.std(axes)),
  )


def _record(config: Any, workdir: str, hours: float) -> None:
  """Says, beside the weights, how they came about: all runs that made them."""
  folder, runs, metrics = Path(workdir) / 'base', [], ''
  before = location.find(config.init) if config.init else None
  if before and (before / 'training.json').exists():
    runs = json.loads((before / 'training.json').read_text())['runs']
    metrics = (before / 'metrics.jsonl').read_text()
  run = {
    'config': machine.plain(config),
    'hours': round(hours, 3),
    'machine': machine.describe(),
  }
  text = json.dumps({'runs': [*runs, run]}, indent=1)
  (folder / 'training.json').write_text(text + '\n')
  metrics += (Path(workdir) / 'metrics.jsonl').read_text()
  (folder / 'metrics.jsonl').write_text(metrics)
