"""One block of the video transformer, and what modulates it.

  (1)  x = x + g1 SelfAttn( LN(x) (1 + s1) + b1 )
  (2)  x = x + g2 ( CrossAttn( norm(x), text ) + CrossAttn( norm(x), events ) )
  (3)  x = x + g3 MLP( LN(x) (1 + s3) + b3 )

The second term of Eq. (2) is there for timed captions only.
"""

from einops import rearrange
import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dcjax import mesh
from dcjax.models.dit_config import DiTConfig
from dcjax.models.layers import (
  MLP,
  AffineNorm,
  Attention,
  Linear,
  layer_norm,
  modulate,
)


class Modulation(nn.Module):
  """Shift, scale and gate vectors of one block, float32."""

  config: DiTConfig

  @nn.compact
  def __call__(self, temb: jax.Array, projected: jax.Array | None) -> dict:
    """temb [b d]; projected [b 6 d] of the global projection, if any."""
    c = self.config
    if c.modulation == 'table':
      table = self.param(
        'table', nn.initializers.normal(c.width**-0.5), (6, c.width)
      )
      vectors = table[None] + projected
    else:
      dense = Linear(
        c.vectors * c.width,
        kernel_init=nn.initializers.zeros,
        dtype=jnp.float32,
        name='dense',
      )
      vectors = checkpoint_name(dense(nn.silu(temb)), 'product')
      vectors = rearrange(vectors, 'b (m d) -> b m d', m=c.vectors)
    names = _MODULATION_NAMES[vectors.shape[1]]
    return dict(zip(names, jnp.moveaxis(vectors, 1, 0), strict=True))


_MODULATION_NAMES = {
  6: ('b1', 's1', 'g1', 'b3', 's3', 'g3'),
  7: ('s1', 'b1', 'g1', 'g2', 's3', 'b3', 'g3'),
  9: ('s1', 'b1', 'g1', 's2', 'b2', 'g2', 's3', 'b3', 'g3'),
}


class Block(nn.Module):
  """One transformer block, Eq. (1-3); the last `tail` tokens are no video."""

  config: DiTConfig
  dtype: jnp.dtype
  tail: int = 0

  @nn.compact
  def __call__(
    self,
    x,
    temb,
    projected,
    text,
    text_mask,
    rope,
    key_mask,
    rope_keys=None,
    timed=None,
  ):
    c = self.config
    m = Modulation(c, name='modulation')(temb, projected)

    def attention(name, window=None):
      return Attention(
        c.heads, c.qk_norm, window, c.eps, self.dtype, self.tail, name=name
      )

    def residual(x, y, gate=None):
      y = y.astype(jnp.float32)
      y = y if gate is None else y * gate[:, None]
      x = (x.astype(jnp.float32) + y).astype(self.dtype)
      return checkpoint_name(x, 'stream')

    y = modulate(layer_norm(x, c.eps), m['b1'], m['s1']).astype(self.dtype)
    y = attention('self_attn', c.window)(
      y, rope=rope, rope_keys=rope_keys, mask=key_mask
    )
    x = residual(x, y, m['g1'])

    if c.cross_affine:
      y = AffineNorm(c.eps, name='cross_norm')(x)
    else:
      y = layer_norm(x, c.eps)
    if 's2' in m:
      y = modulate(y, m['b2'], m['s2'])
    y = y.astype(self.dtype)
    told = attention('cross_attn')(y, text, mask=text_mask)
    if timed is not None:
      told = told + self._timed(attention('timed_attn'), y, timed)
    x = residual(x, told, m.get('g2'))

    y = modulate(layer_norm(x, c.eps), m['b3'], m['s3']).astype(self.dtype)
    x = residual(x, MLP(c.mlp_width, self.dtype, name='mlp')(y), m['g3'])
    return mesh.tokens(x), None

  def _timed(self, attention, y, timed):
    """What timed captions tell the video's tokens; nothing to the others."""
    video = y[:, : y.shape[1] - self.tail]
    told = attention(
      video,
      timed.features,
      rope=timed.rope,
      rope_keys=timed.rope_text,
      mask=timed.mask,
    )
    told = jnp.where(timed.mask.any(axis=-1)[:, None, None], told, 0.0)
    return jnp.pad(told, ((0, 0), (0, self.tail), (0, 0)))
