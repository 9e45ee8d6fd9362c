"""What a sampler begins and ends with: noise, features of texts, latents."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import machine, sharding, storyboard_rules
from dcjax.data import prompts as prompts_lib
from dcjax.errors import DcjaxError
from dcjax.models import vae as vae_lib
from dcjax.models import vae_chunks
from dcjax.text_features import text_features
from dcjax.weights.base import Base


def working_dtype() -> jnp.dtype:
  """Of activations: bfloat16 on accelerators; XLA:CPU is faster in float32."""
  cpu = machine.backend() == 'cpu'
  return jnp.dtype(jnp.float32 if cpu else jnp.bfloat16)


def types_of(base: Base) -> dict[str, Any]:
  """Types of each network's parameters, of which a fingerprint says nothing."""
  read = {
    name: sorted({str(x.dtype) for x in jax.tree.leaves(params)})
    for name, params in base.params.items()
  }
  left = {name: str(jnp.dtype(x.dtype)) for name, x in base.on_disk.items()}
  return read | left


def as_batch(base: Base, noise: Any, n: int) -> jax.Array:
  """Noise of n videos as float32 [n f h w c]; DcjaxError if it is not."""
  noise = jnp.asarray(noise, jnp.float32)
  if noise.ndim == 4 and n == 1:
    noise = noise[None]
  dit = base.dit
  if (
    noise.ndim != 5
    or (len(noise), noise.shape[-1]) != (n, dit.channels)
    or any(x % p for x, p in zip(noise.shape[1:4], dit.patch, strict=True))
  ):
    raise DcjaxError(
      f'noise is {list(noise.shape)}; expected [{n} f h w {dit.channels}] with '
      f'f, h, w in multiples of {", ".join(map(str, dit.patch))}'
    )
  return noise


def draw_noise(
  base: Base, n: int, seed: int, frames: int, height: int, width: int
) -> jax.Array:
  """n noises [n f h w c]; the i-th depends on the seed and i alone.

  Raises:
    DcjaxError: the base cannot make that size, or the seed is out of range.
  """
  storyboard_rules.check_seed(seed, 'seed')
  shape = base.latent_shape(frames, height, width)
  key = jax.random.key(seed)
  draw = lambda i: jax.random.normal(jax.random.fold_in(key, i), shape)
  return jax.vmap(draw)(jnp.arange(n))


def encode_prompts(
  base: Base, prompts: Sequence[str], tokens: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
  """Features [b l d], zero where padded, with learned words; and mask [b l]."""
  encoded = prompts_lib.encode(
    base.tokenizer,
    prompts,
    base.format.text_length,
    prompts_lib.sizes_of(tokens),
  )
  features = text_features(base, encoded.ids, encoded.mask)
  return (
    prompts_lib.place(features, tokens, jnp.asarray(encoded.slots)),
    jnp.asarray(encoded.mask),
  )


def null_text(base: Base) -> dict[str, jax.Array]:
  """The empty prompt: 'features' [1 l d] and 'mask' [1 l]."""
  features, mask = encode_prompts(base, [''], {})
  return {'features': features, 'mask': mask}


def encode_video(base: Base, video: np.ndarray) -> np.ndarray:
  """Videos uint8 [b f h w 3] -> normalised latents [b f h w c], the mean."""
  vae, params = vae_lib.build(base.vae), base.params['vae']
  # One at a time: memory stays that of one clip, or of a chunk of a large one.
  return np.stack([vae_chunks.encode(params, clip, vae) for clip in video])


def copies(base: Base) -> list[Base]:
  """The base, its autoencoder on each device of the mesh that is here.

  For `side_by_side`: no other device takes part in what a copy encodes. All
  processes call it. Without a mesh it is the base as it is.
  """
  if not sharding.spread():
    return [base]
  vae = sharding.fetch(base.params['vae'])
  return [
    dataclasses.replace(base, params={'vae': jax.device_put(vae, device)})
    for device in jax.sharding.get_mesh().local_devices
  ]


def side_by_side(
  work: Callable[[Base, int], Any],
  bases: Sequence[Base],
  numbers: Sequence[int],
) -> Iterator[Any]:
  """`work(base, number)` of all numbers, in order, on all devices at once.

  Args:
    work: called in threads, where there is no mesh.
    bases: of `copies`.
    numbers: of what is to be done.

  Raises:
    Exception: of the first number whose work raises; no other is begun then.
  """
  pool = concurrent.futures.ThreadPoolExecutor(len(bases))
  try:
    yield from pool.map(work, itertools.cycle(bases), numbers)
  finally:
    pool.shutdown(cancel_futures=True)


def decode(base: Base, latents: Any) -> np.ndarray:
  """Normalised latents [b f h w c] -> videos uint8 [b f h w 3]."""
  vae, params = vae_lib.build(base.vae), base.params['vae']
  return np.stack([vae_chunks.decode(params, z, vae) for z in latents])
