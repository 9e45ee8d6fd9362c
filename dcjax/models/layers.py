"""Layers of the video transformer, in the order in which a block uses them."""

import math

from einops import rearrange
import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dcjax import mesh
from dcjax.models import rope as rope_lib
from dcjax.models.attention import attend


class Linear(nn.Module):
  """y = x W + b over the last axis: the only layer that LoRA extends.

  Leading axes are folded into one: XLA:CPU multiplies two plain matrices
  several times faster than it contracts a batched one. Parameters keep the
  dtype in which they were loaded; the product is computed in `dtype`.
  """

  features: int
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (width, self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    # What lies on several devices by its tokens cannot be folded there.
    folded = x.reshape(-1, width) if mesh.size('context') == 1 else x
    y = folded.astype(self.dtype) @ kernel.astype(self.dtype)
    y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y.reshape(*x.shape[:-1], self.features)


def sinusoid(t: jax.Array, width: int) -> jax.Array:
  """Embeds 1000 t, t [b] in [0, 1], as [cos | sin] of `width`/2 frequencies."""
  half = width // 2
  freqs = jnp.exp(-math.log(10000.0) * jnp.arange(half) / half)
  angles = 1000.0 * t.astype(jnp.float32)[:, None] * freqs[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
  """Normalises the last axis in float32, without scale and bias."""
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  var = jnp.square(x - mean).mean(-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(var + eps)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  """adaLN: x [b n d], shift and scale [b d]."""
  return x * (1.0 + scale[:, None]) + shift[:, None]


class AffineNorm(nn.Module):
  """Layer norm with learned scale and bias, float32 inside."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    y = layer_norm(x, self.eps)
    lead = (1,) * (y.ndim - 1)
    return y * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)


class RMSNorm(nn.Module):
  """Root-mean-square norm of the last axis with a learned scale."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
    return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Attention(nn.Module):
  """Multi-head attention with QK-normalisation; cross-attention if given text.

  Attributes:
    heads: number of heads k.
    qk_norm: 'full', one RMS norm over all heads (Wan); 'head', one over each
      head's channels with a scale that heads share (the paper's DiT).
    window: half width of the attention window in tokens, or None.
    eps: of the norms.
    dtype: of the products.
    tail: as many last tokens are exempt from the window.
  """

  heads: int
  qk_norm: str
  window: int | None
  eps: float
  dtype: jnp.dtype
  tail: int = 0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    source: jax.Array | None = None,
    *,
    rope: rope_lib.Table | None = None,
    rope_keys: rope_lib.Table | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """x [b n d]; source [b l d'] (default x); mask [b l] of the keys.

    The keys are rotated by `rope_keys`, which defaults to `rope`.
    """
    width = x.shape[-1]
    cross = source is not None
    source = source if cross else x
    linear = lambda name: Linear(width, dtype=self.dtype, name=name)
    # The backward pass reads these three; nothing reads what `o` makes.
    q = checkpoint_name(linear('q')(x), 'product')
    k = checkpoint_name(linear('k')(source), 'product')
    v = checkpoint_name(linear('v')(source), 'product')
    q, k = self._norm(q, 'norm_q'), self._norm(k, 'norm_k')
    v = self._heads(v)
    if rope is not None:
      rope_keys = rope if rope_keys is None else rope_keys
      q, k = rope_lib.rotate(q, rope), rope_lib.rotate(k, rope_keys)
    out = attend(
      q, k, v, mask=mask, window=self.window, tail=self.tail, cross=cross
    )
    out = rearrange(out, 'b n k e -> b n (k e)')
    return linear('o')(out)

  def _heads(self, x):
    return rearrange(x, 'b n (k e) -> b n k e', k=self.heads)

  def _norm(self, x, name):
    """Normalises and splits into heads, in the order that `qk_norm` asks."""
    norm = RMSNorm(self.eps, name=name)
    return (
      self._heads(norm(x)) if self.qk_norm == 'full' else norm(self._heads(x))
    )


class MLP(nn.Module):
  """Linear, GELU (tanh), Linear."""

  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    x = Linear(self.hidden, dtype=self.dtype, name='up')(x)
    x = checkpoint_name(x, 'product')
    return Linear(width, dtype=self.dtype, name='down')(nn.gelu(x))
