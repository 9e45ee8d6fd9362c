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

PartConfig = DiTConfig | vae_lib.AnyConfig | TextConfig


def expected_params(
  dit: DiTConfig, vae: vae_lib.AnyConfig, text: TextConfig
) -> dict[str, Any]:
  """Shapes of all parameters, as a tree of `jax.ShapeDtypeStruct`."""
  return {
    part: shapes(config) for part, config in _parts(dit, vae, text).items()
  }


def tables(
  dit: DiTConfig, vae: vae_lib.AnyConfig, text: TextConfig
) -> dict[str, names.Table]:
  """The name tables of the three networks."""
  return {
    part: table(config) for part, config in _parts(dit, vae, text).items()
  }


def init_params(
  dit: DiTConfig, vae: vae_lib.AnyConfig, text: TextConfig, key: jax.Array
) -> dict[str, Any]:
  """Fresh parameters of the same tree, for training from scratch."""
  return jax.jit(_init_params, static_argnums=(0, 1, 2))(dit, vae, text, key)


def init(config: PartConfig, key: jax.Array) -> dict[str, Any]:
  """Fresh parameters of one network; to be traced."""
  module, inputs = _example(config)
  arrays = [jnp.zeros(x.shape, x.dtype) for x in inputs]
  return module.init(key, *arrays)['params']


def shapes(config: PartConfig) -> dict[str, Any]:
  """Shapes of the parameters of one network."""
  module, inputs = _example(config)
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']


def table(config: PartConfig) -> names.Table:
  """The name table of one network.

  What is published nowhere else has our names, with dots; its scanned layers
  stay one tensor.
  """
  if isinstance(config, TextConfig):
    return names.text_table(config)
  if isinstance(config, VAEConfig):
    return names.vae_table(config)
  if isinstance(config, DiTConfig) and config.is_wan:
    return names.transformer_table(config)
  return {
    name: names.Entry((name.replace('/', '.'),))
    for name in tree.flatten(shapes(config))
  }


def _parts(
  dit: DiTConfig, vae: vae_lib.AnyConfig, text: TextConfig
) -> dict[str, PartConfig]:
  return {'transformer': dit, 'vae': vae, 'text_encoder': text}


def _init_params(dit, vae, text, key):
  parts = _parts(dit, vae, text)
  keys = jax.random.split(key, len(parts))
  return {
    part: init(config, key)
    for (part, config), key in zip(parts.items(), keys, strict=True)
  }


def _example(config: PartConfig) -> tuple[nn.Module, tuple[Any, ...]]:
  """A network, and the shapes of inputs that make all its parameters."""

  def shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)

  if isinstance(config, DiTConfig):
    latents = shape(1, *config.patch, config.channels)
    return DiT(config), (latents, shape(1), shape(1, 2, config.text_width))
  if isinstance(config, TextConfig):
    ids, mask = shape(1, 2, dtype=jnp.int32), shape(1, 2, dtype=bool)
    return UMT5Encoder(config), (ids, mask)
  side = config.scale_factor_spatial
  return vae_lib.build(config), (shape(1, 1, side, side, 3),)
