"""References, word tags and timed captions beside the tokens of a video.

The stream of self-attention (AlcheMinT, Sec. 3.1):

  [ video: f h w ] [ reference 1: h w ] ... [ tag 1: s ] ... [ tag m: s ]

A reference is a picture, encoded as a one-frame video; its tag is the word that
it belongs to, encoded by the text encoder on its own. Both carry the embedding
of the reference's number and the rotation in time of its interval
(`intervals`). Nothing of them is noised, and the loss reads the video only.

Beyond the paper, the tokens of the video may be told who is there: each gets,
for every reference, a learned vector for each of its latent frame's video
frames, as far as the interval covers that frame (`ReferenceConfig.presence`).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dcjax import tree
from dcjax.models import intervals
from dcjax.models import rope as rope_lib
from dcjax.models.dit_config import DiTConfig
from dcjax.models.layers import Linear
from dcjax.models.reference_config import ReferenceConfig


class References(NamedTuple):
  """m references of each video; those that are not valid are hidden."""

  latents: jax.Array  # [b m h w c] clean, normalised
  interval: jax.Array  # [b m 2] latent time
  valid: jax.Array  # [b m] bool
  tags: jax.Array  # [b m s text_width] features of the words
  tag_mask: jax.Array  # [b m s] bool


class Events(NamedTuple):
  """Timed captions: e texts of each video, in order and not overlapping."""

  features: jax.Array  # [b e l text_width]
  mask: jax.Array  # [b e l] bool; all False for an event that is not there
  interval: jax.Array  # [b e 2] latent time


def without_references(references: References, where: jax.Array) -> References:
  """Pictures and words zero in the samples of `where` [b]; times stay."""
  keep = lambda x: jnp.where(
    where.reshape(-1, *(1,) * (x.ndim - 1)), jnp.zeros_like(x), x
  )
  return references._replace(
    latents=keep(references.latents), tags=keep(references.tags)
  )


def always_there(references: References, frames: int) -> References:
  """Intervals that are all of a video of so many latent frames."""
  whole = jnp.asarray([0.0, frames - 1.0], references.interval.dtype)
  return references._replace(
    interval=jnp.broadcast_to(whole, references.interval.shape)
  )


def without_events(events: Events, where: jax.Array) -> Events:
  """No timed captions in the samples of `where` [b]."""
  return events._replace(mask=events.mask & ~where[:, None, None])


class TimedText(NamedTuple):
  """Events as the blocks of the transformer read them."""

  features: jax.Array  # [b el d] after the transformer's text layers
  mask: jax.Array  # [b el] bool
  rope: rope_lib.Table  # [b n e/2] of the video's tokens
  rope_text: rope_lib.Table  # [el e/2]


class ReferenceEmbedding(nn.Module):
  """What is added outside the blocks: index embedding, tag MLP, presence.

  Attributes:
    config: what there is of them.
    dtype: of the tokens.
  """

  config: ReferenceConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    video: jax.Array,
    patches: jax.Array,
    references: References,
    grid: tuple[int, int, int],
  ) -> jax.Array:
    """The whole stream.

    Args:
      video: [b fhw d] tokens.
      patches: [b m hw d] those of the pictures.
      references: with m pictures.
      grid: (f, h, w) of the video's tokens.

    Returns:
      [b (fhw + m hw + m s) d].
    """
    b, m, _, width = patches.shape
    index = self.param(
      'index', nn.initializers.normal(0.02), (self.config.max_references, width)
    )
    index = index[None, :m, None].astype(self.dtype)
    video = self._told_who_is_there(video, references, grid)
    tokens = [video, (patches + index).reshape(b, -1, width)]
    if self.config.tag_tokens:
      tags = references.tags.astype(self.dtype)
      y = Linear(width, dtype=self.dtype, name='tag_in')(tags)
      y = Linear(
        width,
        dtype=self.dtype,
        kernel_init=nn.initializers.zeros,
        name='tag_out',
      )(nn.gelu(y))
      tokens.append((y + index).reshape(b, -1, width))
    return jnp.concatenate(tokens, axis=1)

  def _told_who_is_there(self, video, references, grid):
    """Intervals stay where pictures are hidden, and so does what they say."""
    rows, parts = self.config.max_references, self.config.presence
    if not parts:
      return video
    codes = self.param(
      'presence', nn.initializers.zeros, (rows, parts, video.shape[-1])
    )
    there = intervals.presence(references.interval, grid[0], parts)
    there = there * references.valid[..., None, None]
    told = jnp.einsum('bmfp,mpd->bfd', there, codes[: there.shape[1]])
    told = jnp.repeat(told, grid[1] * grid[2], axis=1)
    return video + told.astype(video.dtype)


def tables(
  config: ReferenceConfig,
  references: References,
  grid: tuple[int, int, int],
  split: tuple[int, int, int],
) -> tuple[rope_lib.Table, rope_lib.Table]:
  """Tables [b n e/2] of the whole stream, for queries and for keys.

  Tags lie on the diagonal beyond the grid (Qwen-Image's MSRoPE): token k of a
  word at h = w = max(height, width) + k.

  Args:
    config: which rotations.
    references: their intervals and the lengths of their tags.
    grid: (f, h, w) of the video's tokens.
    split: channels of a head dealt to each axis.
  """
  video = rope_lib.table(rope_lib.grid_positions(*grid), split)
  beyond = max(grid[1:]) + np.arange(config.tag_tokens)
  places = [
    rope_lib.grid_positions(1, *grid[1:])[:, 1:],
    np.stack([beyond, beyond], axis=-1),
  ]
  return tuple(
    _join(video, config, scheme, references.interval, grid[0], places, split)
    for scheme in (_of_queries(config), config.scheme)
  )


def _of_queries(config: ReferenceConfig) -> str:
  weighted = config.scheme == 'werope' and config.rotate == 'k'
  return 'midrope' if weighted else config.scheme


def _join(video, config, scheme, interval, frames, places, split):
  """The video's table, then those of all references, then of all tags."""
  times, weights = intervals.anchors(
    interval,
    frames,
    scheme=scheme,
    kind=config.anchors,
    border=config.border,
    middle=config.middle,
    edge=config.edge,
    margin=config.margin,
  )
  b, m, _ = times.shape
  parts = [intervals.table(times, weights, at, split) for at in places]
  return rope_lib.Table(
    *(
      jnp.concatenate(
        [jnp.broadcast_to(v, (b, *v.shape))]
        + [x.reshape(b, m * x.shape[2], x.shape[3]) for x in extra],
        axis=1,
      )
      for v, *extra in zip(video, *parts, strict=True)
    )
  )


def key_mask(
  config: ReferenceConfig, references: References, grid: tuple[int, int, int]
) -> jax.Array:
  """Which tokens of the stream are there, [b n] bool."""
  f, h, w = grid
  valid = references.valid
  masks = [
    jnp.ones((len(valid), f * h * w), bool),
    jnp.repeat(valid, h * w, axis=1),
  ]
  if config.tag_tokens:
    tags = references.tag_mask & valid[..., None]
    masks.append(tags.reshape(len(valid), -1))
  return jnp.concatenate(masks, axis=1)


def timed_text(
  config: ReferenceConfig,
  events: Events,
  features: jax.Array,
  grid: tuple[int, int, int],
  head_dim: int,
) -> TimedText:
  """Events on stretched time, for one head of `head_dim` channels.

  Args:
    config: length of an event.
    events: the timed captions.
    features: [b e l d], theirs after the transformer's text layers.
    grid: (f, h, w) of the video's tokens.
    head_dim: all of it is rotated by time.
  """
  b, e, l, d = features.shape
  f, h, w = grid
  valid = events.mask.any(axis=-1)
  times = intervals.stretch(
    jnp.arange(f, dtype=jnp.float32),
    events.interval,
    valid,
    config.event_length,
  )
  centers = config.event_length * (np.repeat(np.arange(e), l) + 0.5)
  queries = jnp.repeat(times, h * w, axis=1)
  return TimedText(
    features=features.reshape(b, e * l, d),
    mask=events.mask.reshape(b, e * l),
    rope=rope_lib.table(queries[..., None], (head_dim,)),
    rope_text=rope_lib.table(centers[:, None], (head_dim,)),
  )


# The parameters that all this adds to a transformer's.
ADDED = r'^reference/|^blocks/timed_attn/'


def attach(
  params: tree.Tree, dit: DiTConfig, config: ReferenceConfig, key: jax.Array
) -> dict[str, Any]:
  """A transformer's parameters with fresh ones for references and events.

  The branch of timed captions starts as a copy of the cross-attention with
  nothing coming out of it: without references the model is the base model.

  Args:
    params: of the transformer.
    dit: its shape.
    config: what is added.
    key: draws the index embedding and the first tag layer.
  """
  one = References(
    latents=jnp.zeros((1, 1, 1, 1, dit.channels)),
    interval=jnp.zeros((1, 1, 2)),
    valid=jnp.ones((1, 1), bool),
    tags=jnp.zeros((1, 1, max(config.tag_tokens, 1), dit.text_width)),
    tag_mask=jnp.ones((1, 1, max(config.tag_tokens, 1)), bool),
  )
  token = jnp.zeros((1, 1, dit.width))
  embedding = ReferenceEmbedding(config, jnp.float32)
  drawn = embedding.init(key, token, token[:, None], one, (1, 1, 1))
  added = {'reference': drawn['params']}
  if config.event_length:
    branch = {
      name: jnp.array(x, jnp.float32)
      for name, x in tree.flatten(params['blocks']['cross_attn']).items()
      if 'lora/' not in name
    }
    branch |= {
      name: jnp.zeros_like(x)
      for name, x in branch.items()
      if name.startswith('o/')
    }
    added['blocks'] = {'timed_attn': tree.unflatten(branch)}
  return tree.combine(params, added)
