"""UMT5 encoder: token ids -> text features.

T5 1.1 (Raffel et al. 2020; Shazeer 2020 for the gated MLP) as changed by UMT5
(Chung et al. 2023): the relative position bias is owned by every layer. No
biases, no attention scale, RMS norm before each part. Wan2.1 reads the output
of UMT5-XXL: 24 layers, d 4096.

Parameters (the leading axis of `layers` is the layer):
  embedding                                 [vocabulary d]
  layers/attn_norm/scale                    [layer d]
  layers/attn/{q,k,v,o}/kernel              [layer d k*e], o [layer k*e d]
  layers/attn/position_bias                 [layer buckets k]
  layers/mlp_norm/scale                     [layer d]
  layers/mlp/{gate,up,down}/kernel          [layer d ff], down [layer ff d]
  norm/scale                                [d]
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from dcjax.errors import DcjaxError


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of a UMT5 encoder, in the spelling of transformers' UMT5Config.

  Attributes:
    vocab_size: rows of the embedding.
    d_model: width d of the features.
    d_kv: head dim e; num_heads * d_kv need not be d_model.
    d_ff: hidden width of the gated MLP.
    num_layers: encoder layers.
    num_heads: attention heads k.
    relative_attention_num_buckets: rows of a layer's position bias.
    relative_attention_max_distance: tokens; farther ones share a bucket.
    layer_norm_epsilon: of the RMS norms.
  """

  vocab_size: int = 256384
  d_model: int = 4096
  d_kv: int = 64
  d_ff: int = 10240
  num_layers: int = 24
  num_heads: int = 64
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  layer_norm_epsilon: float = 1e-6

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      number = (int, float) if field.type is float else int
      if isinstance(value, bool) or not isinstance(value, number) or value <= 0:
        raise DcjaxError(
          f'text encoder: {field.name} is {value!r}, expected a positive '
          f'{field.type.__name__}'
        )
    buckets = self.relative_attention_num_buckets
    if buckets % 4 or self.relative_attention_max_distance <= buckets // 4:
      raise DcjaxError(
        'text encoder: relative_attention_num_buckets must be a multiple of 4 '
        'and relative_attention_max_distance more than a quarter of it, got '
        f'{buckets} and {self.relative_attention_max_distance}'
      )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> 'TextConfig':
    """Reads the content of a UMT5 `config.json`.

    Keys that do not change an encoder's features (dropout, the decoder) are
    ignored; absent ones take UMT5Config's defaults.

    Raises:
      DcjaxError: it is another architecture or MLP, or a size is impossible.
    """
    kind = config.get('model_type', 'umt5')
    if kind != 'umt5':
      raise DcjaxError(
        f'text encoder: model_type {kind!r} is not supported, expected umt5'
      )
    mlp = config.get('feed_forward_proj', _UMT5['feed_forward_proj'])
    if mlp != _UMT5['feed_forward_proj']:
      raise DcjaxError(
        f'text encoder: feed_forward_proj {mlp!r} is not supported, expected '
        f'{_UMT5["feed_forward_proj"]}'
      )
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: config.get(name, _UMT5[name]) for name in names})

  def to_json(self) -> dict[str, Any]:
    """A `config.json` that UMT5EncoderModel reads."""
    return {
      'architectures': ['UMT5EncoderModel'],
      'model_type': 'umt5',
      **dataclasses.asdict(self),
      'dropout_rate': 0.0,
      'eos_token_id': 1,
      'feed_forward_proj': _UMT5['feed_forward_proj'],
      'pad_token_id': 0,
      'tie_word_embeddings': True,
    }


_UMT5 = {
  'vocab_size': 250112,
  'd_model': 512,
  'd_kv': 64,
  'd_ff': 1024,
  'num_layers': 8,
  'num_heads': 6,
  'relative_attention_num_buckets': 32,
  'relative_attention_max_distance': 128,
  'layer_norm_epsilon': 1e-6,
  'feed_forward_proj': 'gated-gelu',
}


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
  """The encoder; `__call__` is `encode(embed(ids), mask)`.

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
    x, _ = self.layers(x, hidden[:, None, None, :], jnp.asarray(buckets))
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

  `hidden` [b 1 1 l] is 0 for tokens and the lowest number for padding;
  `buckets` [l l] is from `position_buckets`.
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
    table = self.param(
      'position_bias',
      nn.initializers.normal(c.d_model**-0.5),
      (c.relative_attention_num_buckets, c.num_heads),
    )
    bias = rearrange(
      jnp.take(table, buckets, axis=0), 'i j k -> 1 k i j'
    ).astype(jnp.float32)
    scores = jnp.einsum(
      'bkie,bkje->bkij', q, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores + bias + hidden, axis=-1)
    y = jnp.einsum('bkij,bkje->bkie', weights.astype(self.dtype), v)
    y = rearrange(y, 'b k l e -> (b l) (k e)')
    y = _dense(c.d_model, inner**-0.5, self.dtype, 'o')(y)
    return rearrange(y, '(b l) d -> b l d', b=b).astype(jnp.float32)


class MLP(nn.Module):
  """down(gelu(gate x) * up x), with the tanh form of GELU."""

  config: TextConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    rows = rearrange(x, 'b l d -> (b l) d')
    gate = _dense(c.d_ff, c.d_model**-0.5, self.dtype, 'gate')(rows)
    up = _dense(c.d_ff, c.d_model**-0.5, self.dtype, 'up')(rows)
    y = jax.nn.gelu(gate, approximate=True) * up
    y = _dense(c.d_model, c.d_ff**-0.5, self.dtype, 'down')(y)
    return y.reshape(x.shape).astype(jnp.float32)


def _dense(features: int, std: float, dtype: DTypeLike, name: str) -> nn.Dense:
  return nn.Dense(
    features,
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.normal(std),
    name=name,
  )
