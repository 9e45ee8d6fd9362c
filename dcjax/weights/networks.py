"""The three networks of a base by their configs: shapes, values, names."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from dcjax import tree
from dcjax.models import vae as vae_lib
from dcjax.models.dit import DiT
from dcjax.models.dit_config import DiTConfig
from dcjax.models.text import UMT5Encoder
from dcjax.models.text_config import TextConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.weights import names


def expected_params(
  dit: DiTConfig, vae: vae_lib.AnyConfig, text: TextConfig
) -> dict[str, Any]:
  """Shapes of all parameters, as a tree of `jax.ShapeDtypeStruct`."""
  return {
    'transformer': _transformer(dit),
    'vae': _vae(vae),
    'text_encoder': _text_encoder(text),
  }


def _shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(dims, dtype)


def _shapes(module: nn.Module, *inputs: Any) -> dict[str, Any]:
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']


def _transformer(dit: DiTConfig) -> dict[str, Any]:
  latents = _shape(1, *dit.patch, dit.channels)
  return _shapes(DiT(dit), latents, _shape(1), _shape(1, 2, dit.text_width))


def _vae(vae: vae_lib.AnyConfig) -> dict[str, Any]:
  space = vae.scale_factor_spatial
  return _shapes(vae_lib.build(vae), _shape(1, 1, space, space, 3))


def _text_encoder(text: TextConfig) -> dict[str, Any]:
  ids, mask = _shape(1, 2, dtype=jnp.int32), _shape(1, 2, dtype=bool)
  return _shapes(UMT5Encoder(text), ids, mask)


def init_params(
  dit: DiTConfig, vae: vae_lib.AnyConfig, text: TextConfig, key: jax.Array
) -> dict[str, Any]:
  """Fresh parameters of the same tree, for training from scratch."""
  return jax.jit(_init_params, static_argnums=(0, 1, 2))(dit, vae, text, key)


def _init_params(dit, vae, text, key):
  keys = jax.random.split(key, 3)
  space = vae.scale_factor_spatial
  x = jnp.zeros((1, *dit.patch, dit.channels))
  features = jnp.zeros((1, 2, dit.text_width))
  ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
  pixels = jnp.zeros((1, 1, space, space, 3))
  trees = {
    'transformer': DiT(dit).init(keys[0], x, jnp.zeros((1,)), features),
    'vae': vae_lib.build(vae).init(keys[1], pixels),
    'text_encoder': UMT5Encoder(text).init(keys[2], ids, mask),
  }
  return {part: variables['params'] for part, variables in trees.items()}


def tables(
  dit: DiTConfig, vae: vae_lib.AnyConfig, text: TextConfig
) -> dict[str, names.Table]:
  """The name tables of the three networks."""
  return {
    'transformer': (
      names.transformer_table(dit)
      if dit.is_wan
      else own_table(_transformer(dit))
    ),
    'vae': (
      names.vae_table(vae)
      if isinstance(vae, VAEConfig)
      else own_table(_vae(vae))
    ),
    'text_encoder': names.text_table(text),
  }


def own_table(expected: tree.Tree) -> names.Table:
  """Names of a network that is published nowhere else: ours, with dots.

  Layers that are scanned stay one tensor.
  """
  return {
    n: names.Entry((n.replace('/', '.'),)) for n in tree.flatten(expected)
  }
