"""The video diffusion transformer: one class for Wan 2.1 and the paper's DiT.

  (1)  temb = MLP(sinusoid(1000 t))
  (2)  x = x + g1 SelfAttn( LN(x) (1 + s1) + b1 )
  (3)  x = x + g2 CrossAttn( norm(x), text )
  (4)  x = x + g3 MLP( LN(x) (1 + s3) + b3 )

The presets differ in where (s, b, g) come from and in whether g2 exists: Wan
2.1 adds a learned table of 6 vectors a block to one global projection of temb;
the DiT of Set-and-Sequence (Table 4) has a projection of 7 vectors in every
block.
"""

import math

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from dcjax.models import rope as rope_lib
from dcjax.models.dit_config import DiTConfig
from dcjax.models.layers import (
  MLP,
  AffineNorm,
  Attention,
  Linear,
  layer_norm,
  modulate,
  sinusoid,
)

# What the backward pass keeps of a block: everything, nothing, or products.
REMAT_POLICIES = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
      vectors = rearrange(dense(nn.silu(temb)), 'b (m d) -> b m d', m=c.vectors)
    names = _MODULATION_NAMES[vectors.shape[1]]
    return dict(zip(names, jnp.moveaxis(vectors, 1, 0), strict=True))


_MODULATION_NAMES = {
  6: ('b1', 's1', 'g1', 'b3', 's3', 'g3'),
  7: ('s1', 'b1', 'g1', 'g2', 's3', 'b3', 'g3'),
  9: ('s1', 'b1', 'g1', 's2', 'b2', 'g2', 's3', 'b3', 'g3'),
}


class Block(nn.Module):
  """One transformer block, Eq. (2-4)."""

  config: DiTConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, temb, projected, text, text_mask, rope, key_mask):
    c = self.config
    m = Modulation(c, name='modulation')(temb, projected)

    def attention(name, window=None):
      return Attention(c.heads, c.qk_norm, window, c.eps, self.dtype, name=name)

    def residual(x, y, gate=None):
      y = y.astype(jnp.float32)
      y = y if gate is None else y * gate[:, None]
      return (x.astype(jnp.float32) + y).astype(self.dtype)

    y = modulate(layer_norm(x, c.eps), m['b1'], m['s1']).astype(self.dtype)
    y = attention('self_attn', c.window)(y, rope=rope, mask=key_mask)
    x = residual(x, y, m['g1'])

    if c.cross_affine:
      y = AffineNorm(c.eps, name='cross_norm')(x)
    else:
      y = layer_norm(x, c.eps)
    if 's2' in m:
      y = modulate(y, m['b2'], m['s2'])
    y = attention('cross_attn')(y.astype(self.dtype), text, mask=text_mask)
    x = residual(x, y, m.get('g2'))

    y = modulate(layer_norm(x, c.eps), m['b3'], m['s3']).astype(self.dtype)
    x = residual(x, MLP(c.mlp_width, self.dtype, name='mlp')(y), m['g3'])
    return x, None


class DiT(nn.Module):
  """Predicts the velocity of flow matching for a video and a text.

  Attributes:
    config: the shape.
    dtype: of activations and products; norms, modulation and residual sums are
      float32 whatever it is.
    remat: a key of `REMAT_POLICIES`.
  """

  config: DiTConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = 'none'

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    t: jax.Array,
    text: jax.Array,
    *,
    text_mask: jax.Array | None = None,
    rope: rope_lib.Table | None = None,
    key_mask: jax.Array | None = None,
    x0_hat: jax.Array | None = None,
  ) -> jax.Array:
    """The velocity v(x_t, t, text).

    Args:
      x: [b f h w c] noisy latents.
      t: [b] flow time, 1 is noise.
      text: [b l text_width] features, zero where padded.
      text_mask: [b l] bool, read only if the config masks text.
      rope: table of the tokens; default their integer grid.
      key_mask: [b n] bool, tokens that self-attention may look at.
      x0_hat: [b f h w c] previous estimate of the clean latents, for a model
        with self-conditioning; default zeros.

    Returns:
      [b f h w c] float32.
    """
    c = self.config
    grid = tuple(s // p for s, p in zip(x.shape[1:4], c.patch, strict=True))
    if rope is None:
      rope = rope_lib.table(rope_lib.grid_positions(*grid), c.split)
    if c.self_cond == 'x0_concat':
      x0_hat = jnp.zeros_like(x) if x0_hat is None else x0_hat
      x = jnp.concatenate([x, x0_hat.astype(x.dtype)], axis=-1)

    tokens = self._embed(x)
    temb, projected = self._time(t)
    text = self._text(text.astype(self.dtype))
    tokens, _ = self._blocks()(
      tokens,
      temb,
      projected,
      text,
      text_mask if c.text_mask else None,
      rope,
      key_mask,
    )
    return self._head(tokens, temb, grid)

  def _embed(self, x):
    """[b f h w c] -> tokens [b n d]; a patch is flattened as (c, f, h, w)."""
    c = self.config
    pf, ph, pw = c.patch
    x = rearrange(
      x.astype(self.dtype),
      'b (f pf) (h ph) (w pw) c -> b (f h w) (c pf ph pw)',
      pf=pf,
      ph=ph,
      pw=pw,
    )
    return Linear(
      c.width,
      dtype=self.dtype,
      kernel_init=self._patch_init,
      name='patch',
    )(x)

  def _patch_init(self, key, shape, dtype=jnp.float32):
    """Xavier for the latents; zeros for the estimate of x0 after them."""
    read = self.config.channels * math.prod(self.config.patch)
    kernel = nn.initializers.xavier_uniform()(key, (read, shape[1]), dtype)
    return jnp.pad(kernel, ((0, shape[0] - read), (0, 0)))

  def _time(self, t):
    """temb [b d] and, for a table model, its global projection [b 6 d]."""
    c = self.config
    init = nn.initializers.normal(0.02)

    def linear(width, name):
      return Linear(width, dtype=jnp.float32, kernel_init=init, name=name)

    temb = linear(c.width, 'time_in')(sinusoid(t, c.time_width))
    temb = linear(c.width, 'time_out')(nn.silu(temb))
    if c.modulation != 'table':
      return temb, None
    projected = linear(6 * c.width, 'time_modulation')(nn.silu(temb))
    return temb, rearrange(projected, 'b (m d) -> b m d', m=6)

  def _text(self, text):
    c = self.config
    if not c.text_mlp:
      return text
    init = nn.initializers.normal(0.02)
    text = Linear(c.width, dtype=self.dtype, kernel_init=init, name='text_in')(
      text
    )
    return Linear(c.width, dtype=self.dtype, kernel_init=init, name='text_out')(
      nn.gelu(text)
    )

  def _blocks(self):
    """All blocks as one scanned module: leaves carry a leading layer axis."""
    block = Block
    if self.remat != 'none':
      block = nn.remat(
        Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False
      )
    return nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=self.config.layers,
    )(self.config, self.dtype, name='blocks')

  def _head(self, tokens, temb, grid):
    """Tokens -> [b f h w c]; a patch is unfolded as (f, h, w, c)."""
    c = self.config
    if c.modulation == 'table':
      table = self.param(
        'head_modulation', nn.initializers.normal(c.width**-0.5), (2, c.width)
      )
      vectors = table[None] + temb[:, None]
    else:
      dense = Linear(
        2 * c.width,
        dtype=jnp.float32,
        kernel_init=nn.initializers.zeros,
        name='head_modulation',
      )
      vectors = rearrange(dense(nn.silu(temb)), 'b (m d) -> b m d', m=2)
    y = modulate(layer_norm(tokens, c.eps), vectors[:, 0], vectors[:, 1])
    pf, ph, pw = c.patch
    y = Linear(
      pf * ph * pw * c.channels,
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name='head',
    )(y.astype(self.dtype))
    f, h, w = grid
    return rearrange(
      y.astype(jnp.float32),
      'b (f h w) (pf ph pw c) -> b (f pf) (h ph) (w pw) c',
      f=f,
      h=h,
      w=w,
      pf=pf,
      ph=ph,
      pw=pw,
    )
