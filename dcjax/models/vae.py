"""The video autoencoders that a base may have, behind one face.

`encode`, `decode` and `__call__` are alike, and so are of their configs
`z_dim`, the scale factors, the statistics and `latent_shape`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp

from dcjax.errors import DcjaxError
from dcjax.models import autoencoder_config
from dcjax.models.autoencoder import Autoencoder
from dcjax.models.autoencoder_config import AutoencoderConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.models.wan_vae import WanVAE

AnyConfig = VAEConfig | AutoencoderConfig
AnyVAE = WanVAE | Autoencoder


def build(
  config: AnyConfig, dtype: Any = jnp.float32, *, remat: bool = False
) -> AnyVAE:
  """The autoencoder of a config; `dtype` and `remat` are its attributes."""
  kind = Autoencoder if isinstance(config, AutoencoderConfig) else WanVAE
  return kind(config, dtype, remat)


def config_of(options: Mapping[str, Any]) -> AnyConfig:
  """A config for training from nothing, its latents not normalised yet.

  Args:
    options: fields of `VAEConfig`, or with `kind` 'causal' those of
      `AutoencoderConfig`.

  Raises:
    DcjaxError: an option is unknown or impossible.
  """
  options = dict(options)
  kind = options.pop('kind', 'wan')
  if kind not in ('wan', 'causal'):
    raise DcjaxError(f'config.vae.kind is {kind!r}; use wan or causal')
  cls = VAEConfig if kind == 'wan' else AutoencoderConfig
  fields = [field.name for field in dataclasses.fields(cls)]
  unknown = sorted(set(options) - set(fields))
  if unknown:
    raise DcjaxError(
      f'config.vae.{unknown[0]} is not an option; use one of '
      f'{", ".join(fields)}'
    )
  z = options.get('z_dim', cls.z_dim)
  return cls(
    **{'latents_mean': (0.0,) * z, 'latents_std': (1.0,) * z, **options}
  )


def config_from_json(raw: Any) -> AnyConfig:
  """The content of `vae/config.json`, by the class that it names.

  Raises:
    DcjaxError: for another class, or an impossible value.
  """
  name = raw.get('_class_name') if isinstance(raw, Mapping) else None
  if name == autoencoder_config.CLASS:
    return AutoencoderConfig.from_json(raw)
  if name in (None, 'AutoencoderKLWan'):
    return VAEConfig.from_json(raw)
  raise DcjaxError(
    f'the autoencoder is a {name}; only AutoencoderKLWan and '
    f'{autoencoder_config.CLASS} are supported'
  )
