"""The encoders of UMT5 and T5: token ids -> text features.

T5 (Raffel et al. 2020) has no biases, no attention scale and an RMS norm before
each part; its relative position bias is one for all layers. T5 1.1 has a gated
MLP (Shazeer 2020), and UMT5 (Chung et al. 2023) gives every layer its own bias.
Wan2.1 reads the output of UMT5-XXL: 24 layers, d 4096. The DiT of
Set-and-Sequence reads 1024 channels, which are T5's.

Parameters (the leading axis of `layers` is the layer):
  embedding                                 [vocabulary d]
  layers/attn_norm/scale                    [layer d]
  layers/attn/{q,k,v,o}/kernel              [layer d k*e], o [layer k*e d]
  layers/attn/position_bias                 [layer buckets k], UMT5
  position_bias                             [buckets k], T5
  layers/mlp_norm/scale                     [layer d]
  layers/mlp/{gate,up,down}/kernel          [layer d ff], down [layer ff d]
  norm/scale                                [d]

An MLP that is not gated has no gate.
"""

from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from dcjax.models.text_config import TextConfig


def position_buckets(
  length: int, *, buckets: int, max_distance: int
) -> np.ndarray:
  """Bucket of key j as seen from query i, int [l l].

  Raffel et al. 2020, section 2.1, with the sizes of the published code.
  Half of the buckets are for keys after the query. In each half, the first half
  is one bucket a distance; the rest grow logarithmically up to `max_distance`.
  """
  place = np.arange(length)
  offset = place[None, :] - place[:, None]
  half = buckets // 2
  exact = half // 2
  distance = np.abs(offset)
  # In float32, as in the published code: the rounding decides the bucket where
  # a distance falls on an edge.
  ratio = np.log(np.maximum(distance, exact).astype(np.float32) / exact)
  ratio = ratio / np.float32(np.log(max_distance / exact)) * (half - exact)
  far = np.minimum(exact + ratio.astype(np.int32), half - 1)
  return np.where(distance < exact, distance, far) + half * (offset > 0)


class UMT5Encoder(nn.Module):
  """The encoder, of UMT5 or T5; `__call__` is `encode(embed(ids), mask)`.

  The residual stream, the norms and the softmax are float32 whatever `dtype`.

  Attributes:
    config: sizes.
    dtype: of the matrix products.
  """

  config: TextConfig
  dtype: DTypeLike = jnp.float32

  def setup(self):
    c = self.config
    self.embedding = self.param(
      'embedding', nn.initializers.normal(1.0), (c.vocab_size, c.d_model)
    )
    self.layers = nn.scan(
      Layer,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=c.num_layers,
    )(c, self.dtype)
    self.norm = nn.RMSNorm(c.layer_norm_epsilon, dtype=jnp.float32)
    if c.shares_bias:
      self.position_bias = self.param('position_bias', *_bias_table(c))

  def __call__(self, ids: Array, mask: Array) -> Array:
    """Features of token ids.

    Args:
      ids: [b l] int32, below `config.vocab_size`.
      mask: [b l] bool, True for tokens, False for padding, which nothing
        attends to.

    Returns:
      [b l d] float32. The rows of padding hold something too; it is the caller
      who drops them.
    """
    return self.encode(self.embed(ids), mask)

  def embed(self, ids: Array) -> Array:
    """Input rows [b l d], apart so that learned vectors can replace some."""
    # The rows are converted and not the table, which is 4 GB in UMT5-XXL.
    return jnp.take(self.embedding, ids, axis=0).astype(jnp.float32)

  def encode(self, x: Array, mask: Array) -> Array:
    """Features [b l d] of input rows x [b l d]; `mask` as in `__call__`."""
    c = self.config
    buckets = position_buckets(
      x.shape[1],
      buckets=c.relative_attention_num_buckets,
      max_distance=c.relative_attention_max_distance,
    )
    hidden = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    hidden, buckets = hidden[:, None, None, :], jnp.asarray(buckets)
    if c.shares_bias:
      hidden = hidden + _bias(self.position_bias, buckets)
    x, _ = self.layers(x, hidden, buckets)
    return self.norm(x)


class Layer(nn.Module):
  """Attention and MLP, each behind a norm and added to the stream [b l d]."""

  config: TextConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Array,
    hidden: Array,
    buckets: Array,
  ) -> tuple[Array, None]:
    c = self.config

    def norm(name):
      return nn.RMSNorm(c.layer_norm_epsilon, dtype=jnp.float32, name=name)

    attention = Attention(c, self.dtype, name='attn')
    x = x + attention(norm('attn_norm')(x), hidden, buckets)
    x = x + MLP(c, self.dtype, name='mlp')(norm('mlp_norm')(x))
    return x, None


class Attention(nn.Module):
  """softmax(q k + bias) v; T5 has the scale 1/sqrt(e) in the init of q.

  `hidden` [b 1 1 l] is 0 for tokens and the lowest number for padding; with the
  bias that layers share it is [b k l l]. `buckets` [l l] is from
  `position_buckets`.
  """

  config: TextConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Array,
    hidden: Array,
    buckets: Array,
  ) -> Array:
    c = self.config
    b, inner = x.shape[0], c.num_heads * c.d_kv
    # One row a token: XLA on CPU multiplies matrices faster than 3-D arrays.
    rows = rearrange(x, 'b l d -> (b l) d')

    def heads(name, std):
      y = _dense(inner, std, self.dtype, name)(rows)
      return rearrange(y, '(b l) (k e) -> b k l e', b=b, k=c.num_heads)

    q = heads('q', (c.d_model * c.d_kv) ** -0.5)
    k = heads('k', c.d_model**-0.5)
    v = heads('v', c.d_model**-0.5)
    scores = jnp.einsum(
      'bkie,bkje->bkij', q, k, preferred_element_type=jnp.float32
    )
    if not c.shares_bias:
      scores = scores + _bias(
        self.param('position_bias', *_bias_table(c)), buckets
      )
    weights = jax.nn.softmax(scores + hidden, axis=-1)
    y = jnp.einsum('bkij,bkje->bkie', weights.astype(self.dtype), v)
    y = rearrange(y, 'b k l e -> (b l) (k e)')
    y = _dense(c.d_model, inner**-0.5, self.dtype, 'o')(y)
    return rearrange(y, '(b l) d -> b l d', b=b).astype(jnp.float32)


class MLP(nn.Module):
  """down(gelu(gate x) * up x), GELU in its tanh form; or down(relu(up x))."""

  config: TextConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    rows = rearrange(x, 'b l d -> (b l) d')
    y = _dense(c.d_ff, c.d_model**-0.5, self.dtype, 'up')(rows)
    if c.gated:
      gate = _dense(c.d_ff, c.d_model**-0.5, self.dtype, 'gate')(rows)
      y = jax.nn.gelu(gate, approximate=True) * y
    else:
      y = nn.relu(y)
    y = _dense(c.d_model, c.d_ff**-0.5, self.dtype, 'down')(y)
    return y.reshape(x.shape).astype(jnp.float32)


def _bias_table(c: TextConfig) -> tuple[Any, tuple[int, int]]:
  """Initial values and shape of a position bias."""
  shape = (c.relative_attention_num_buckets, c.num_heads)
  return nn.initializers.normal(c.d_model**-0.5), shape


def _bias(table: Array, buckets: Array) -> Array:
  """[1 k l l] float32."""
  bias = jnp.take(table, buckets, axis=0).astype(jnp.float32)
  return rearrange(bias, 'i j k -> 1 k i j')


def _dense(features: int, std: float, dtype: DTypeLike, name: str) -> nn.Dense:
  return nn.Dense(
    features,
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.normal(std),
    name=name,
  )
