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

from dcjax import mesh
from dcjax.models import reference as reference_lib
from dcjax.models import rope as rope_lib
from dcjax.models.block import Block
from dcjax.models.dit_config import DiTConfig
from dcjax.models.layers import Linear, layer_norm, modulate, sinusoid
from dcjax.models.reference import Events, ReferenceEmbedding, References
from dcjax.models.reference_config import ReferenceConfig


def _keeping(*names):
  """Keeps what has one of these names, and what cuDNN's attention makes.

  Its logarithms of sums are made where nothing can name them; without them the
  attention of the forward pass would be done again.
  """
  policies = jax.checkpoint_policies
  return policies.save_from_both_policies(
    policies.save_only_these_names(*names),
    lambda primitive, *_, **__: 'dot_product_attention' in primitive.name,
  )


# What the backward pass keeps of a block, and what it computes again:
#
#   none       all, nothing
#   products   9 d + m numbers a token, m the width of the MLP: the stream,
#              attention, what q, k, v and up make; norms, rotations and GELU
#              again, but no product and no attention
#   dots       what linear layers make; attention again
#   attention  5 d a token: the stream and attention; q, k, v and up again
#   full       d a token, what enters; all again
REMAT_POLICIES = {
  'none': None,
  'products': _keeping('stream', 'attention', 'product'),
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'attention': _keeping('stream', 'attention'),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class DiT(nn.Module):
  """Predicts the velocity of flow matching for a video and a text.

  Attributes:
    config: the shape.
    dtype: of activations and products; norms, modulation and residual sums are
      float32 whatever it is.
    remat: a key of `REMAT_POLICIES`.
    reference: how references and timed captions enter, if there are any.
  """

  config: DiTConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = 'none'
  reference: ReferenceConfig | None = None

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
    references: References | None = None,
    events: Events | None = None,
  ) -> jax.Array:
    """The velocity v(x_t, t, text).

    Args:
      x: [b f h w c] noisy latents.
      t: [b] flow time, 1 is noise.
      text: [b l text_width] features, zero where padded.
      text_mask: [b l] bool, read only if the config masks text.
      rope: table of the video's tokens; default their integer grid. With
        references it follows from their intervals.
      key_mask: [b n] bool, tokens that self-attention may look at.
      x0_hat: [b f h w c] previous estimate of the clean latents, for a model
        with self-conditioning; default zeros.
      references: pictures with words and intervals (AlcheMinT, Sec. 3).
      events: timed captions.

    Returns:
      [b f h w c] float32.
    """
    c = self.config
    grid = tuple(s // p for s, p in zip(x.shape[1:4], c.patch, strict=True))
    if c.self_cond == 'x0_concat':
      x0_hat = jnp.zeros_like(x) if x0_hat is None else x0_hat
      x = jnp.concatenate([x, x0_hat.astype(x.dtype)], axis=-1)
    if references is None:
      if rope is None:
        rope = rope_lib.table(rope_lib.grid_positions(*grid), c.split)
      tokens, rope_keys = self._embed(x), None
    else:
      tokens = self._embed_all(x, references, grid)
      rope, rope_keys = reference_lib.tables(
        self.reference, references, grid, c.split
      )
      key_mask = reference_lib.key_mask(self.reference, references, grid)
    n = math.prod(grid)
    temb, projected = self._time(t)
    text, timed = self._texts(text, events, grid)
    tokens, _ = self._blocks(tail=tokens.shape[1] - n)(
      mesh.tokens(tokens),
      temb,
      projected,
      text,
      text_mask if c.text_mask else None,
      rope,
      key_mask,
      rope_keys,
      timed,
    )
    return self._head(tokens[:, :n], temb, grid)

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

  def _embed_all(self, x, references, grid):
    """The stream of video, references and tags: [b n d].

    A patch is one frame deep, so references are embedded as further frames.
    """
    pictures = references.latents.astype(x.dtype)
    # There is no estimate of what is known.
    unknown = x.shape[-1] - pictures.shape[-1]
    pictures = jnp.pad(pictures, ((0, 0),) * 4 + ((0, unknown),))
    tokens = self._embed(jnp.concatenate([x, pictures], axis=1))
    n = math.prod(grid)
    patches = rearrange(
      tokens[:, n:], 'b (m n) d -> b m n d', m=pictures.shape[1]
    )
    embedding = ReferenceEmbedding(self.reference, self.dtype, name='reference')
    return embedding(tokens[:, :n], patches, references, grid)

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

  def _texts(self, text, events, grid):
    """Features of the prompt [b l d] and, if there are any, of the events."""
    text_layers = self._text_layers()
    text = text_layers(text.astype(self.dtype))
    if events is None:
      return text, None
    features = text_layers(events.features.astype(self.dtype))
    return text, reference_lib.timed_text(
      self.reference, events, features, grid, self.config.head_dim
    )

  def _text_layers(self):
    c = self.config
    if not c.text_mlp:
      return lambda text: text
    init = nn.initializers.normal(0.02)
    linear = lambda name: Linear(
      c.width, dtype=self.dtype, kernel_init=init, name=name
    )
    first, second = linear('text_in'), linear('text_out')
    return lambda text: second(nn.gelu(first(text)))

  def _blocks(self, tail):
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
    )(self.config, self.dtype, tail, name='blocks')

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
