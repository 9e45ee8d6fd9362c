"""How the video autoencoders change size, in space and in time.

Time is changed for all frames but the first, so that a clip of one frame is an
image. Where a clip goes on from an earlier chunk (`convolution.past_frames`),
no frame of it is the first.
"""

from typing import Any

from einops import rearrange, repeat
from flax import linen as nn
import jax
import jax.numpy as jnp

from dcjax.models.convolution import (
  FrameConv,
  add_bias,
  causal_conv,
  continues,
  past_frames,
)

Array = jax.Array


class Downsample(nn.Module):
  """Halves h and w, and with `time` also the frames after the first."""

  time: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    x = FrameConv(c, 2, (0, 1), dtype=self.dtype, name='conv')(x)
    return (
      TimeHalving(dtype=self.dtype, name='time_conv')(x) if self.time else x
    )


class TimeHalving(nn.Module):
  """[b 1+2f h w c] -> [b 1+f h w c]: frame 0 passes; a chunk has none."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    shape = (3, 1, 1, c, c)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (c,))
    past = past_frames(self, x, 1)
    if past is None and x.shape[1] == 1:
      return x
    z = x if past is None else jnp.concatenate([past, x], axis=1)
    taps = (z[:, 0:-1:2], z[:, 1::2], z[:, 2::2])
    y = sum(
      jnp.einsum('bfhwc,co->bfhwo', tap, k[0, 0].astype(x.dtype))
      for tap, k in zip(taps, kernel, strict=True)
    )
    y = add_bias(y, bias)
    return y if past is not None else jnp.concatenate([x[:, :1], y], axis=1)


class Upsample(nn.Module):
  """Doubles h and w, and with `time` first the frames after the first."""

  features: int
  time: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.time:
      x = TimeDoubling(dtype=self.dtype, name='time_conv')(x)
    x = repeat(x, 'b f h w c -> b f (h 2) (w 2) c')
    return FrameConv(self.features, dtype=self.dtype, name='conv')(x)


class TimeDoubling(nn.Module):
  """[b 1+f h w c] -> [b 1+2f h w c]: frame 0 passes; a chunk has none."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    shape = (3, 1, 1, c, 2 * c)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (2 * c,))
    begins = not continues(self)
    later = x[:, 1:] if begins else x
    past = past_frames(self, later, 2)
    if not later.shape[1]:
      return x
    y = add_bias(causal_conv(later, kernel, past), bias)
    y = rearrange(y, 'b f h w (two c) -> b (f two) h w c', two=2)
    return jnp.concatenate([x[:, :1], y], axis=1) if begins else y


def average_down(
  x: Array, features: int, time: bool, space: bool, *, begins: bool = True
) -> Array:
  """Neighbours become channels, and runs of channels their mean.

  Args:
    x: [b f h w c].
    features: width of the result; a divisor of c times the neighbours.
    time: whether pairs of frames are neighbours; the first has none.
    space: whether squares of four pixels are.
    begins: whether x begins with the first frame.
  """
  t, s = 1 + time, 1 + space
  if begins:
    x = jnp.pad(x, ((0, 0), (t - 1, 0), (0, 0), (0, 0), (0, 0)))
  x = rearrange(x, 'b (f t) (h r) (w s) c -> b f h w (c t r s)', t=t, r=s, s=s)
  return rearrange(x, 'b f h w (c g) -> b f h w c g', c=features).mean(-1)


def repeat_up(
  x: Array, features: int, time: bool, *, begins: bool = True
) -> Array:
  """The way back of `average_down`: channels, repeated, become neighbours."""
  t = 1 + time
  x = jnp.repeat(x, features * 4 * t // x.shape[-1], axis=-1)
  x = rearrange(x, 'b f h w (c t r s) -> b (f t) (h r) (w s) c', t=t, r=2, s=2)
  return x[:, t - 1 :] if begins else x
