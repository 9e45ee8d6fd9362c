"""Videos <-> latents: whole clips, or in chunks where a clip is too large.

At full width a clip of 81x480x832 takes 12 GB a layer. The autoencoder is
causal, so it can walk over a clip: the first latent frame alone, then one
latent frame (`scale_factor_temporal` pixel frames) at a time, and all that a
chunk needs of those before it are the last two frames of the input of every
convolution (one where time is halved). That is a pytree, the collection `past`
of `convolution`, so a step is a pure function

    y, past = step(params, past, x)

which is compiled twice, for the first chunk and for all others. The result is
that of the whole clip; memory is that of one chunk, whatever the length.
"""

from collections.abc import Iterable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.models.vae import AnyConfig, AnyVAE
from dcjax.models.wan_vae import denormalize, normalize

Array = jax.Array

# Bytes of one layer at full width, beyond which a clip is taken in chunks.
LARGE = 2**30


def is_large(
  config: AnyConfig, frames: int, height: int, width: int, *, dtype: Any = None
) -> bool:
  """Whether a clip of this size in pixels is taken in chunks.

  Args:
    config: of the autoencoder.
    frames: of the clip.
    height: pixels.
    width: pixels.
    dtype: of the computation; default float32.
  """
  size = jnp.dtype(dtype or jnp.float32).itemsize
  return config.layer_size(frames, height, width) * size > LARGE


def encode(
  params: Any, clip: np.ndarray, vae: AnyVAE, *, chunks: bool | None = None
) -> np.ndarray:
  """A video -> its normalised latents, the mean.

  Args:
    params: of the autoencoder.
    clip: uint8 [f h w 3].
    vae: the autoencoder.
    chunks: whether to walk over the clip; default where it `is_large`.

  Returns:
    float32 [f' h' w' c].

  Raises:
    DcjaxError: the size does not fit.
  """
  if chunks is None:
    chunks = is_large(vae.config, *clip.shape[:3], dtype=vae.dtype)
  if not chunks:
    return np.asarray(_encode(params, clip[None], vae)[0])
  step = vae.config.scale_factor_temporal
  # The first chunk is all that does not fill a step, so that a clip of a wrong
  # length is refused at once.
  first = len(clip) % step or min(len(clip), step)
  starts = range(first, len(clip), step)
  pieces = [clip[:first], *(clip[i : i + step] for i in starts)]
  return _walk(_encode_chunk, params, pieces, vae)


def decode(
  params: Any, latents: Array, vae: AnyVAE, *, chunks: bool | None = None
) -> np.ndarray:
  """Normalised latents -> a video, the inverse of `encode`.

  Args:
    params: of the autoencoder.
    latents: [f' h' w' c].
    vae: the autoencoder.
    chunks: as in `encode`.

  Returns:
    uint8 [f h w 3].
  """
  c = vae.config
  frames, height, width = latents.shape[:3]
  if chunks is None:
    size = (1 + (frames - 1) * c.scale_factor_temporal,)
    size += tuple(c.scale_factor_spatial * x for x in (height, width))
    chunks = is_large(c, *size, dtype=vae.dtype)
  if not chunks:
    return np.asarray(_decode(params, latents[None], vae)[0])
  pieces = (latents[i : i + 1] for i in range(frames))
  return _walk(_decode_chunk, params, pieces, vae)


def _walk(
  step: Any, params: Any, pieces: Iterable[Any], vae: AnyVAE
) -> np.ndarray:
  past, results = None, []
  for piece in pieces:
    y, past = step(params, past, jnp.asarray(piece)[None], vae)
    # Waited for, or a queue of chunks would wait in the device's memory.
    results.append(np.asarray(y[0]))
  return np.concatenate(results)


def step(
  vae: AnyVAE, params: Any, past: Any, x: Array, method: str
) -> tuple[Any, Any]:
  """One chunk.

  Args:
    vae: the autoencoder.
    params: its parameters.
    past: what the step before gave; None for the first.
    x: the input of its `encode` or `decode`. A first chunk of pixels
      has 1 + a multiple of the temporal factor frames, a later one a multiple.
    method: 'encode' or 'decode'.

  Returns:
    (what the method gives, the past of the next step).
  """
  variables = {'params': params} | ({} if past is None else {'past': past})
  y, changed = vae.apply(variables, x, method=method, mutable=['past'])
  return y, changed['past']


@functools.partial(jax.jit, static_argnames='vae', donate_argnames='past')
def _encode_chunk(params, past, video, vae):
  (mean, _), past = step(vae, params, past, _to_float(video), 'encode')
  return normalize(mean, vae.config), past


@functools.partial(jax.jit, static_argnames='vae', donate_argnames='past')
def _decode_chunk(params, past, latents, vae):
  z = denormalize(latents, vae.config)
  x, past = step(vae, params, past, z, 'decode')
  return _to_uint8(x), past


@functools.partial(jax.jit, static_argnames='vae')
def _encode(params, video, vae):
  mean, _ = vae.apply({'params': params}, _to_float(video), method='encode')
  return normalize(mean, vae.config)


@functools.partial(jax.jit, static_argnames='vae')
def _decode(params, latents, vae):
  z = denormalize(latents, vae.config)
  return _to_uint8(vae.apply({'params': params}, z, method='decode'))


def _to_float(video: Array) -> Array:
  return video.astype(jnp.float32) / 127.5 - 1.0


def _to_uint8(x: Array) -> Array:
  return jnp.round((x + 1.0) * 127.5).astype(jnp.uint8)
