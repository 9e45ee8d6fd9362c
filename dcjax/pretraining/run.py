"""Pretrains a video transformer on captioned clips and pictures.

    clips -> latents and text features (once) -> stages -> a base folder

The stages are those of a config, each with the lengths that it mixes: pictures
and clips of 17 frames first, of 121 in the end. Autoencoder and text encoder
are frozen, and taken from other folders. What trains on the procedural world
without anything on disk is `dcjax.pretrain`.
"""

import dataclasses
import functools
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from dcjax import (
  machine,
  pretrain_objective,
  processes,
  sharding,
  start,
  train,
)
from dcjax import stage as stage_lib
from dcjax.data import cache, latent_records
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT
from dcjax.models.dit_config import PRESETS, DiTConfig
from dcjax.pretraining import batches, encoding
from dcjax.stage import Stage
from dcjax.weights import base as base_lib
from dcjax.weights import folder as folder_lib
from dcjax.weights import networks
from dcjax.weights.base import Base


def run(config: ConfigDict, workdir: str) -> None:
  """The `pretrain_clips` task of the command line."""
  start.check_remat(config)
  for key in ('path', 'latents'):
    processes.check_folder(f'config.data.{key}', str(config.data[key]))
  stages = stages_of(config)
  base = frozen(config)
  latents = encoded(base, config, stages, Path(workdir))
  if not stages:
    print(f'encoded: {latents}')
    return
  machine.write_config(
    Path(workdir), config, base={'name': base.name, 'latents': str(latents)}
  )
  params, began = initial(config, base), time.monotonic()
  for place in range(len(stages)):
    params = _train(
      config, base, stages[: place + 1], params, latents, Path(workdir)
    )
  keep(base, params, config, Path(workdir))
  hours = (time.monotonic() - began) / 3600.0
  print(f'base: {Path(workdir) / "base"}, after {hours:.2f} hours')


def stages_of(config: ConfigDict) -> tuple[Stage, ...]:
  """The stages of the config.

  Raises:
    DcjaxError: an option is impossible, or a stage has no mix.
  """
  stages = stage_lib.several(config, least=0)
  for stage in stages:
    if stage.data != 'latents' or stage.objective != 'flow' or not stage.mix:
      raise DcjaxError(
        f'config.{stage.name} has data {stage.data!r}, objective '
        f'{stage.objective!r} and mix {stage.mix!r}; expected latents, flow '
        'and (frames, samples) pairs'
      )
    for _, samples in stage.mix:
      if samples % stage.accumulate:
        raise DcjaxError(
          f'config.{stage.name}.accumulate is {stage.accumulate}; expected a '
          f'divisor of every number of samples in its mix, {stage.mix}'
        )
  return stages


def dit_of(config: ConfigDict) -> DiTConfig:
  """The shape of the transformer: a preset, with what `config.dit` changes."""
  changes = {k: v for k, v in config.dit.to_dict().items() if v}
  name = changes.pop('preset', '')
  if name not in PRESETS:
    raise DcjaxError(
      f'config.dit.preset is {name!r}; use one of {", ".join(PRESETS)}'
    )
  changed = dataclasses.replace(PRESETS[name], **changes)
  return DiTConfig.from_json(changed.to_json())


def frozen(config: ConfigDict) -> Base:
  """The base without a transformer, its other networks on disk.

  Raises:
    DcjaxError: a folder is missing, or the networks do not fit each other.
  """
  for key in ('vae', 'text_encoder'):
    if not config.parts[key]:
      raise DcjaxError(
        f'give the frozen {key}: --config.parts.{key}=FOLDER, a base, or a '
        f'folder with {key}/config.json and its safetensors'
      )
  dit = dit_of(config)
  vae, vae_part = base_lib.load_part(config.parts.vae, 'vae', dtype=jnp.float32)
  text, text_part = base_lib.load_part(
    config.parts.text_encoder, 'text_encoder'
  )
  fits = {
    'latent channels of the autoencoder': (vae.z_dim, dit.channels),
    'channels of the text encoder': (text.d_model, dit.text_width),
  }
  for what, (there, read) in fits.items():
    if there != read:
      raise DcjaxError(f'the transformer reads {read} {what}, not {there}')
  return Base(
    name=config.name,
    dit=dit,
    vae=vae,
    text=text,
    tokenizer=base_lib.tokenizer_of(config.parts.text_encoder),
    params={},
    format=folder_lib.Format(**config.format.to_dict()),
    shift=config.shift,
    on_disk={'vae': vae_part, 'text_encoder': text_part},
  )


def encoded(
  base: Base, config: ConfigDict, stages: tuple[Stage, ...], workdir: Path
) -> Path:
  """The folder of latents, complete."""
  folder = processes.shared(config.data.latents or workdir / 'latents')
  lengths = [n for stage in stages for n, _ in stage.mix]
  data = config.data.to_dict()
  how = encoding.plan(base, data, lengths or [base.format.frames])
  clips = encoding.source(data, max(x.frames for x in how.buckets), config.seed)
  encoding.chunks(len(clips), how)  # or there are too few of them
  index = encoding.identity(base, data, how, clips=len(clips), seed=config.seed)
  latent_records.claim(folder, index)
  process = (jax.process_index(), jax.process_count())
  encoding.encode(base, clips, folder, how, process=process)
  _wait_for_all('latents')
  skipped = latent_records.skipped(folder)
  if skipped:
    print(f'{len(skipped)} clips gave no sample: see {folder}/*/*/skipped.json')
  return folder


def _wait_for_all(name: str) -> None:
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def initial(config: ConfigDict, base: Base) -> dict[str, Any]:
  """Float32 parameters of the transformer, born where they are to lie."""
  rules = start.rules(config)
  if config.init:
    loaded = base_lib.load_base(
      config.init,
      weights=False,
      dtype=jnp.float32,
      sharding=sharding.placement(rules),
    )
    if loaded.dit != base.dit:
      raise DcjaxError(f'{config.init} is a transformer of another shape')
    return {'transformer': loaded.part('transformer')}
  # This generator compiles several times faster than the default one.
  key = jax.random.key(config.seed, impl='unsafe_rbg')
  make = lambda key: {'transformer': networks.init(base.dit, key)}
  return sharding.create(jax.jit(make), key, rules=rules)


def objective(base: Base, config: ConfigDict, stage: Stage) -> Any:
  """What a stage minimises."""
  dit = DiT(base.dit, jnp.dtype(config.dtype), config.remat)
  return pretrain_objective.joint(dit, stage)


def _train(
  config: ConfigDict,
  base: Base,
  stages: tuple[Stage, ...],
  params: dict[str, Any],
  latents: Path,
  workdir: Path,
) -> dict[str, Any]:
  """The parameters after the last of the stages."""
  stage, length = stages[-1], base.format.text_length
  options = {
    'time': base.vae.scale_factor_temporal,
    'length': length,
    'first_frames': config.data.first_frames,
  }
  loop = train.Loop(
    workdir=str(workdir),
    seed=config.seed,
    log_every=config.log_every,
    save_every=config.save_every,
    eval_every=config.eval_every,
    preview_every=config.preview_every,
    identity=identity(config, base, stages, latents),
    rules=start.rules(config),
  )
  params, _ = train.fit(
    stage,
    objective(base, config, stage),
    params,
    batches.joint(latents, stage, config.seed, **options),
    loop,
    context={'null': batches.null_text(latents, length)},
    held_out=batches.held_out(latents, stage, **options),
    preview=lambda step, now: keep(base, now, config, workdir),
  )
  return params


def identity(
  config: ConfigDict, base: Base, stages: tuple[Stage, ...], latents: Path
) -> dict[str, Any]:
  """What a run must share to go on from the checkpoints of the last stage."""
  data = machine.plain(config.data)
  return {
    'stages': [repr(stage) for stage in stages],
    'dit': repr(base.dit),
    'autoencoder': base.on_disk['vae'].digest[:16],
    'text_encoder': base.on_disk['text_encoder'].digest[:16],
    'data': {key: x for key, x in data.items() if key != 'latents'},
    'latents': cache.content_hash(latents / 'index.json')[:16],
    'init': config.init,
    'seed': config.seed,
    'dtype': config.dtype,
  }


def keep(
  base: Base, params: dict[str, Any], config: ConfigDict, workdir: Path
) -> None:
  """Saves the base as it is now: a long run can be tried before it ends."""
  # All processes help to collect what is spread over their devices.
  collect = functools.partial(_fetched, dtype=jnp.dtype(config.save_dtype))
  fetched = jax.tree.map(collect, params['transformer'])
  if processes.is_main():
    base_lib.save_base(
      dataclasses.replace(base, params={'transformer': fetched}),
      workdir / 'base',
      dtype=config.save_dtype,
    )


def _fetched(x: jax.Array, dtype: Any) -> np.ndarray:
  # In the stored type, and leaf by leaf: the whole may not fit a device.
  return sharding.fetch(x.astype(dtype))
