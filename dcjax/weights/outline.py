"""A base by its shapes alone: nothing is read but headers, nothing loaded."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dcjax import machine, tree
from dcjax.errors import DcjaxError
from dcjax.models.dit_config import WAN_1_3B, WAN_14B, DiTConfig
from dcjax.models.text import TextConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.weights.base import (
  LARGE_ENCODER,
  Base,
  expected_params,
  load_base,
)
from dcjax.weights.part import loaded_dtype

# Published bases, which need not be here to be planned for.
PUBLISHED = {
  'Wan-AI/Wan2.1-T2V-1.3B-Diffusers': WAN_1_3B,
  'Wan-AI/Wan2.1-T2V-14B-Diffusers': WAN_14B,
}


def outline(name: str, *, dtype: Any = None) -> Base:
  """A base whose parameters are `jax.ShapeDtypeStruct`.

  Args:
    name: as for `load_base`; of the hub, only what is `PUBLISHED`.
    dtype: of the large matrices, as for `load_base`.

  Raises:
    DcjaxError: for a base that is not here, or is broken.
  """
  if Path(name).is_dir() or name == 'world':
    base = load_base(name, weights=False)
    large_encoder = base.on_disk['text_encoder'].nbytes > LARGE_ENCODER
  elif name in PUBLISHED:
    base = Base(name, PUBLISHED[name], VAEConfig(), TextConfig(), None, {})
    large_encoder = True
  else:
    raise DcjaxError(
      f'no base model at {name}; give "world", a folder in diffusers layout, '
      f'or one of {", ".join(PUBLISHED)}'
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
  dit: DiTConfig, vae: VAEConfig, text: TextConfig
) -> dict[str, Any]:
  return tree.flatten(expected_params(dit, vae, text))


def nbytes(shapes: Any) -> int:
  """Bytes of all arrays in a tree of shapes."""
  return sum(
    x.size * getattr(x.dtype, 'itemsize', 8) for x in jax.tree.leaves(shapes)
  )
