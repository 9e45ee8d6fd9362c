"""Causal video convolution, for the video autoencoders.

A causal convolution of time extent kt is a sum of kt two-dimensional ones, one
a time lag, over all frames at once:

  y[f] = sum_j  K[kt - 1 - j] * x[f - j],   x[f] = 0 for f < 0        (1)

On CPU this is several times faster than a three-dimensional convolution, and
the lags that reach only the zeros before the clip are never computed: an image
costs a third of a frame of a clip.

A clip may come in chunks. A module that sees the past then keeps the last
frames of its input in the Flax collection `past`, if that is mutable, and reads
them from there when the next chunk comes. Without that collection, what it sees
is a whole clip.
"""

from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def conv_frames(
  x: Array,
  kernel: Array,
  *,
  stride: int = 1,
  padding: tuple[int, int] | None = None,
) -> Array:
  """The same 2-D convolution on every frame.

  Args:
    x: [b f h w c].
    kernel: [kh kw c out].
    stride: of both spatial axes.
    padding: zeros before and after both spatial axes; None keeps the size.

  Returns:
    [b f h' w' out] in the type of `x`.
  """
  kernel = kernel.astype(x.dtype)
  if kernel.shape[:2] == (1, 1):
    return jnp.einsum('bfhwc,co->bfhwo', x, kernel[0, 0])
  if padding is None:
    padding = ((kernel.shape[0] - 1) // 2, kernel.shape[0] // 2)
  frames = x.shape[1]
  y = jax.lax.conv_general_dilated(
    rearrange(x, 'b f h w c -> (b f) h w c'),
    kernel,
    window_strides=(stride, stride),
    padding=(padding, padding),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return rearrange(y, '(b f) h w c -> b f h w c', f=frames)


def continues(module: nn.Module) -> bool:
  """Whether the input of a bound module goes on from an earlier chunk."""
  return bool(module.variables.get('past'))


def past_frames(module: nn.Module, x: Array, count: int) -> Array | None:
  """The frames before x, and keeps those before the next chunk.

  Args:
    module: which sees the past, bound.
    x: its input [b f h w c]; may have no frame.
    count: frames that it looks back.

  Returns:
    [b count h w c], or None where a clip begins.
  """
  past = module.get_variable('past', 'frames')
  if module.is_mutable_collection('past') and not module.is_initializing():
    last = x[:, -count:]
    missing = count - last.shape[1]
    if missing and past is None:
      zeros = ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0))
      last = jnp.pad(last, zeros)
    elif missing:
      last = jnp.concatenate([past[:, -missing:], last], axis=1)
    module.put_variable('past', 'frames', last)
  return past


def causal_conv(x: Array, kernel: Array, past: Array | None = None) -> Array:
  """Eq. (1): a convolution that sees the present and the past.

  Args:
    x: [b f h w c].
    kernel: [kt kh kw c out], the present last.
    past: [b kt-1 h w c], the frames before x; None stands for zeros.

  Returns:
    [b f h w out] in the type of `x`.
  """
  extent, frames = kernel.shape[0], x.shape[1]
  y = conv_frames(x, kernel[-1])
  if past is not None:
    x = jnp.concatenate([past.astype(x.dtype), x], axis=1)
    for lag in range(1, extent):
      first = extent - 1 - lag
      y = y + conv_frames(x[:, first : first + frames], kernel[first])
    return y
  for lag in range(1, min(extent, frames)):
    before = conv_frames(x[:, : frames - lag], kernel[extent - 1 - lag])
    y = y + jnp.pad(before, ((0, 0), (lag, 0), (0, 0), (0, 0), (0, 0)))
  return y


class CausalConv(nn.Module):
  """`causal_conv` with a bias: [b f h w c] -> [b f h w features].

  Attributes:
    features: width of the output.
    extent: (kt, kh, kw).
    dtype: type of the computation; parameters are float32.
  """

  features: int
  extent: tuple[int, int, int] = (3, 3, 3)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (*self.extent, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, extent = x.astype(self.dtype), self.extent[0]
    past = past_frames(self, x, extent - 1) if extent > 1 else None
    return add_bias(causal_conv(x, kernel, past), bias)


class FrameConv(nn.Module):
  """`conv_frames`, 3x3, with a bias: [b f h w c] -> [b f h' w' features].

  Attributes:
    features: width of the output.
    stride: of both spatial axes.
    padding: zeros before and after both spatial axes; None keeps the size.
    dtype: type of the computation; parameters are float32.
  """

  features: int
  stride: int = 1
  padding: tuple[int, int] | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (3, 3, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = conv_frames(
      x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding
    )
    return add_bias(y, bias)


def add_bias(x: Array, bias: Array) -> Array:
  """[b f h w c] + [c], in the type of `x`."""
  return x + bias.astype(x.dtype)[None, None, None, None]
