"""A base by its shapes alone: nothing is read but headers, nothing loaded."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dcjax import machine, tree
from dcjax.errors import DcjaxError
from dcjax.models.autoencoder_config import AutoencoderConfig
from dcjax.models.dit_config import SNAP_DIT_11B, WAN_1_3B, WAN_14B, DiTConfig
from dcjax.models.text_config import T5_11B, TextConfig
from dcjax.models.vae import AnyConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.weights.base import LARGE_ENCODER, Base, load_base
from dcjax.weights.folder import Format
from dcjax.weights.networks import expected_params
from dcjax.weights.part import loaded_dtype


def _known(name: str, dit: DiTConfig, **options: Any) -> Base:
  return Base(name, dit, tokenizer=None, params={}, **options)


# Bases that need not be here to be planned for: those of Wan are published, and
# that of Set-and-Sequence (its Table 4, with the T5 of 1024 channels that it is
# taken to read) can be trained (`configs/pretrain.py`).
KNOWN = {
  name: _known(name, dit, vae=VAEConfig(), text=TextConfig())
  for name, dit in (
    ('Wan-AI/Wan2.1-T2V-1.3B-Diffusers', WAN_1_3B),
    ('Wan-AI/Wan2.1-T2V-14B-Diffusers', WAN_14B),
  )
}
KNOWN['snap_dit_11b'] = _known(
  'snap_dit_11b',
  SNAP_DIT_11B,
  vae=AutoencoderConfig(),
  text=T5_11B,
  format=Format(frames=121, height=576, width=1024, fps=24.0),
)


def outline(name: str, *, dtype: Any = None) -> Base:
  """A base whose parameters are `jax.ShapeDtypeStruct`.

  Args:
    name: as for `load_base`; beside folders, those of `KNOWN`.
    dtype: of the large matrices, as for `load_base`.

  Raises:
    DcjaxError: for a base that is not here, or is broken.
  """
  if Path(name).is_dir() or name == 'world':
    base = load_base(name, weights=False)
    large_encoder = base.on_disk['text_encoder'].nbytes > LARGE_ENCODER
  elif name in KNOWN:
    base, large_encoder = KNOWN[name], True
  else:
    raise DcjaxError(
      f'no base model at {name}; give "world", a folder in diffusers layout, '
      f'or one of {", ".join(KNOWN)}'
    )
  usual = jnp.float32 if machine.backend() == 'cpu' else jnp.bfloat16
  dtypes = dict.fromkeys(('transformer', 'vae'), dtype or usual)
  dtypes['text_encoder'] = dtype or (jnp.bfloat16 if large_encoder else usual)
  shapes = {
    name: jax.ShapeDtypeStruct(
      x.shape, loaded_dtype(name, dtypes[name.partition('/')[0]])
    )
    for name, x in _expected(base.dit, base.vae, base.text).items()
  }
  return dataclasses.replace(base, params=tree.unflatten(shapes))


@functools.cache
def _expected(
  dit: DiTConfig, vae: AnyConfig, text: TextConfig
) -> dict[str, Any]:
  return tree.flatten(expected_params(dit, vae, text))


def nbytes(shapes: Any) -> int:
  """Bytes of all arrays in a tree of shapes."""
  return sum(
    x.size * getattr(x.dtype, 'itemsize', 8) for x in jax.tree.leaves(shapes)
  )
