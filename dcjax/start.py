"""What a personalisation starts from: its base, parameters and objectives."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dcjax import flow, lora, machine, sampling, sharding, train
from dcjax import objective as objective_lib
from dcjax.errors import DcjaxError
from dcjax.models.dit import REMAT_POLICIES, DiT
from dcjax.stage import Stage
from dcjax.weights.base import Base, load_base


def check_numbers(config: ConfigDict) -> None:
  """Refuses what is impossible in parts that check nothing themselves."""
  check_least(config, {'tokens.vectors': 1, 'prior.videos': 0})
  check_sample(config)


def check_sample(config: ConfigDict) -> None:
  """Refuses impossible options of the samples that a run shows."""
  check_least(config, {'sample.steps': 0})
  if config.sample.sampler:
    flow.check_sampler(config.sample.sampler)


def check_least(config: ConfigDict, least: Mapping[str, float]) -> None:
  """Raises DcjaxError if a number of the config is below its bound.

  Args:
    config: of a run.
    least: {'part.key': bound}.
  """
  for name, least_value in least.items():
    part, key = name.split('.')
    if not config[part][key] >= least_value:  # nan is no number either
      raise DcjaxError(
        f'config.{name} is {config[part][key]}; expected {least_value} or more'
      )


def check_remat(config: ConfigDict) -> None:
  """Raises DcjaxError if `remat` names no policy."""
  if config.remat not in REMAT_POLICIES:
    raise DcjaxError(
      f'config.remat is {config.remat!r}; use one of '
      f'{", ".join(REMAT_POLICIES)}'
    )


def base_dtype(config: ConfigDict) -> Any:
  """That of the frozen base's large matrices; None leaves it to the machine."""
  if config.base_dtype not in ('', 'bfloat16', 'float32'):
    raise DcjaxError(
      f'config.base_dtype is {config.base_dtype!r}; use bfloat16, float32, or '
      'nothing for what suits the machine'
    )
  return jnp.dtype(config.base_dtype) if config.base_dtype else None


def _loaded_dtype(base: Base) -> Any:
  return base.params['transformer']['head']['kernel'].dtype


def rules(config: ConfigDict) -> tuple[sharding.Rule, ...]:
  """Where parameters lie on a mesh."""
  return sharding.check_rules(config.mesh.rules if 'mesh' in config else ())


def load(config: ConfigDict) -> Base:
  """The config's base, its parameters where they are to lie."""
  return load_base(
    config.base,
    dtype=base_dtype(config),
    sharding=sharding.placement(rules(config)),
  )


def adapted(base: Base, config: ConfigDict) -> Base:
  """The base as a run uses it: at the config's format and time shift."""
  if config.shift < 0:
    raise DcjaxError(
      f'config.shift is {config.shift}; expected a positive number, or 0 for '
      'that of the base'
    )
  wanted = base_dtype(config)
  loaded = _loaded_dtype(base)
  if wanted is not None and wanted != loaded:
    raise DcjaxError(
      f'config.base_dtype is {wanted}, but the base was loaded in {loaded}; '
      f'use load_base(name, dtype="{wanted}")'
    )
  base = base.with_format(**config.format)
  return dataclasses.replace(base, shift=config.shift or base.shift)


def initial_params(base: Base, config: ConfigDict) -> dict[str, Any]:
  """The transformer with LoRA leaves, and any learned words at zero."""
  shape = (config.tokens.vectors, base.dit.text_width)
  tokens = {name: jnp.zeros(shape) for name in words(config)}
  return {'transformer': with_lora(base, config), 'tokens': tokens}


def with_lora(base: Base, config: ConfigDict) -> dict[str, Any]:
  """The base's transformer with fresh LoRA leaves."""
  return lora.attach(
    base.params['transformer'],
    config.lora.targets,
    config.lora.rank,
    jax.random.fold_in(jax.random.key(config.seed), 1),
    side=config.lora.side,
  )


def words(config: ConfigDict) -> dict[str, int]:
  """{name: vectors} of the learned words."""
  names = ('v', 'u') if config.train_tokens else ()
  return dict.fromkeys(names, config.tokens.vectors)


def objective(
  base: Base, config: ConfigDict, stage: Stage
) -> objective_lib.Objective:
  """What a stage minimises: the flow loss."""
  if stage.objective != 'flow':
    raise DcjaxError(
      f'config.{stage.name}.objective is {stage.objective!r}; a LoRA is '
      'trained with flow alone'
    )
  check_remat(config)
  dit = DiT(base.dit, sampling.working_dtype(), config.remat)
  return objective_lib.personalize(dit, stage)


def loop(
  base: Base, config: ConfigDict, workdir: Path, identity: Mapping[str, Any]
) -> train.Loop:
  """How a run is kept.

  Args:
    base: as the run uses it.
    config: of the run.
    workdir: its folder.
    identity: what a run must share to resume these checkpoints, beside base,
      its dtype, LoRA and seed.
  """
  return train.Loop(
    workdir=str(workdir),
    seed=config.seed,
    log_every=config.log_every,
    save_every=config.save_every,
    eval_every=config.eval_every,
    preview_every=config.preview_every,
    rules=rules(config),
    identity={
      **identity,
      'base': base.fingerprint,
      # The fingerprint is that of the same base in another dtype.
      'base_dtype': str(_loaded_dtype(base)),
      'lora': machine.plain(config.lora),
      'seed': config.seed,
    },
  )


def write_config(base: Base, config: ConfigDict, workdir: Path) -> None:
  """Writes the run's config.json."""
  about = {'name': base.name, 'fingerprint': base.fingerprint}
  machine.write_config(workdir, config, base=about)
