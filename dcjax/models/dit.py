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

import dataclasses
import math
from typing import Any

from einops import rearrange
import flax.linen as nn
import jax
import jax.numpy as jnp

from dcjax.errors import DcjaxError
from dcjax.models import rope as rope_lib
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


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Shape of a video DiT.

  Attributes:
    width: d.
    layers: number of blocks.
    heads: k; head dim e = width / heads.
    mlp_width: hidden width of the MLP.
    channels: latent channels c, in and out.
    text_width: channels of the text features.
    patch: latent pixels of a token along (f, h, w).
    modulation: 'table', 6 vectors from a global projection plus a learned table
      in each block; 'block', `vectors` from a projection in each block.
    vectors: modulation vectors of a block: 6; 7 adds a gate on cross-attention;
      9 adds its shift and scale as well.
    text_mlp: text features pass a two-layer MLP before the blocks.
    text_mask: padded text is hidden from cross-attention (Wan shows zeros).
    cross_affine: the norm before cross-attention has scale and bias.
    qk_norm: 'full' or 'head'.
    rope_split: channels of a head dealt to the axes (f, h, w).
    window: half width of the self-attention window in tokens, or None.
    self_cond: 'x0_concat' appends the previous estimate of x0 to the input
      channels (METHOD of bit diffusion); None if the base has none.
    time_width: width of the sinusoid.
    eps: of all norms.
  """

  width: int
  layers: int
  heads: int
  mlp_width: int
  channels: int
  text_width: int
  patch: tuple[int, int, int] = (1, 2, 2)
  modulation: str = 'table'
  vectors: int = 6
  text_mlp: bool = True
  text_mask: bool = False
  cross_affine: bool = True
  qk_norm: str = 'full'
  rope_split: tuple[int, int, int] | None = None
  window: int | None = None
  self_cond: str | None = None
  time_width: int = 256
  eps: float = 1e-6

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def split(self) -> tuple[int, int, int]:
    return self.rope_split or rope_lib.wan_split(self.head_dim)

  @classmethod
  def from_json(cls, config: dict[str, Any]) -> 'DiTConfig':
    """Reads the `transformer/config.json` of a diffusers Wan folder."""
    unsupported = {
      'image_dim': None,
      'added_kv_proj_dim': None,
      'pos_embed_seq_len': None,
      'qk_norm': 'rms_norm_across_heads',
      'cross_attn_norm': True,
    }
    for key, value in unsupported.items():
      if config.get(key, value) != value:
        raise DcjaxError(
          f'transformer/config.json: {key}={config[key]!r} is not supported; '
          f'a Wan 2.1 text-to-video transformer has {key}={value!r}'
        )
    wrong = [key for key in _SIZES if not _is_size(config.get(key))]
    patch = config.get('patch_size')
    if not (isinstance(patch, list | tuple) and len(patch) == 3):
      wrong.append('patch_size')
    if wrong:
      raise DcjaxError(
        f'transformer/config.json: {", ".join(wrong)} should be positive '
        'numbers (patch_size: three)'
      )
    if config['in_channels'] != config['out_channels']:
      raise DcjaxError(
        'transformer/config.json: in_channels and out_channels differ '
        f'({config["in_channels"]}, {config["out_channels"]}); only '
        'text-to-video transformers are supported'
      )
    return cls(
      width=config['num_attention_heads'] * config['attention_head_dim'],
      layers=config['num_layers'],
      heads=config['num_attention_heads'],
      mlp_width=config['ffn_dim'],
      channels=config['in_channels'],
      text_width=config['text_dim'],
      patch=tuple(config['patch_size']),
      time_width=config['freq_dim'],
      eps=config['eps'],
    )

  def to_json(self) -> dict[str, Any]:
    """The inverse of `from_json`, for a transformer of Wan's form."""
    return {
      '_class_name': 'WanTransformer3DModel',
      'added_kv_proj_dim': None,
      'attention_head_dim': self.head_dim,
      'cross_attn_norm': self.cross_affine,
      'eps': self.eps,
      'ffn_dim': self.mlp_width,
      'freq_dim': self.time_width,
      'image_dim': None,
      'in_channels': self.channels,
      'num_attention_heads': self.heads,
      'num_layers': self.layers,
      'out_channels': self.channels,
      'patch_size': list(self.patch),
      'pos_embed_seq_len': None,
      'qk_norm': 'rms_norm_across_heads',
      'rope_max_seq_len': 1024,
      'text_dim': self.text_width,
    }


_SIZES = (
  *('num_attention_heads', 'attention_head_dim', 'num_layers', 'ffn_dim'),
  *('in_channels', 'out_channels', 'text_dim', 'freq_dim', 'eps'),
)


def _is_size(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and value > 0


WAN_1_3B = DiTConfig(
  width=1536,
  layers=30,
  heads=12,
  mlp_width=8960,
  channels=16,
  text_width=4096,
)
WAN_14B = dataclasses.replace(
  WAN_1_3B, width=5120, layers=40, heads=40, mlp_width=13824
)
SNAP_DIT_11B = DiTConfig(
  width=4096,
  layers=32,
  heads=32,
  mlp_width=4 * 4096,
  channels=32,
  text_width=1024,
  modulation='block',
  vectors=7,
  text_mlp=False,
  text_mask=True,
  cross_affine=False,
  qk_norm='head',
  rope_split=rope_lib.paper_split(128),
  window=3072,
  self_cond='x0_concat',
)
PRESETS = {
  'wan_t2v_1_3b': WAN_1_3B,
  'wan_t2v_14b': WAN_14B,
  'snap_dit_11b': SNAP_DIT_11B,
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
