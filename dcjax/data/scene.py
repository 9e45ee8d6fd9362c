"""Scenes of the procedural world: what there is to see, as numbers.

A scene is a pure function of a key, so clip i of seed s is
`sample_scene(jax.random.fold_in(jax.random.key(s), i))` on every machine.
"""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from dcjax.data import motions, shapes, textures
from dcjax.errors import DcjaxError

COLORS = tuple(textures.COLORS)
BACKGROUNDS = tuple(textures.BACKGROUNDS)
PATTERNS = textures.PATTERNS
SHAPES = shapes.SHAPES
TRAIN_SHAPES = shapes.TRAIN_SHAPES
DECORATIONS = shapes.ALL_DECORATIONS
MOTIONS = motions.MOTIONS
TRAIN_MOTIONS = motions.TRAIN_MOTIONS
SIZES = ('small', 'medium', 'large')
RADII = (9.0, 12.0, 15.0)
PRESENCES = ('', 'appears late', 'leaves early', 'appears in the middle')
OBJECTS = 2

# By presence: the range of the first and of the last moment on screen.
_SPANS = (
  ((0.0, 0.0), (1.0, 1.0)),
  ((0.3, 0.6), (1.0, 1.0)),
  ((0.0, 0.0), (0.4, 0.7)),
  ((0.2, 0.35), (0.65, 0.8)),
)


class Scene(NamedTuple):
  """Some objects, how they move, and what is behind them.

  Objects have a leading axis o, the first `count` of them are drawn, each over
  those before it. `sample_scene` gives one or two of o = 2.
  Fields may be replaced (`scene._replace(...)`): nothing is derived from
  anything else, except `paint` from `color` and `interval` from `presence`.
  """

  count: Array  # [] int, 1 to o
  shape: Array  # [o] int, index into SHAPES
  color: Array  # [o] int, index into COLORS; -1 if of no named colour
  size: Array  # [o] int, index into SIZES and RADII
  decoration: Array  # [o] int, index into DECORATIONS, 0 is none
  motion: Array  # [o] int, index into MOTIONS, 0 is still
  presence: Array  # [o] int, index into PRESENCES, 0 is the whole clip
  # [o 2] first and last moment on screen, fractions of the clip; or [o s 2],
  # several spans, of which (-1, -1) is none.
  interval: Array
  paint: Array  # [o 2 3] RGB in [0, 1] of the left and right half of the body
  center: Array  # [o 2] (y, x) pixels of 64, the middle of the motion
  phase: Array  # [o] in [0, 1], where in its period a motion starts
  direction: Array  # [o] -1 or 1, of round and zigzagging motions
  rate: Array  # [o] speed of repeating motions, about 1
  background: Array  # [] int, index into BACKGROUNDS
  pattern: Array  # [] int, index into PATTERNS
  period: Array  # [] pixels of 64, of the pattern
  shift: Array  # [2] (y, x) pixels of 64, of the pattern


# Those with an axis o.
OBJECT_FIELDS = (
  'shape',
  'color',
  'size',
  'decoration',
  'motion',
  'presence',
  'interval',
  'paint',
  'center',
  'phase',
  'direction',
  'rate',
)


def is_held_out(color: Array, shape: Array, motion: Array) -> Array:
  """Whether a (colour, shape, motion) is kept from training.

  One in 13 of all triples that move. A still object is never held out:
  images show every shape in every colour. Works on integers and arrays.
  """
  return ((7 * color + 3 * shape + 5 * motion) % 13 == 0) & (motion != 0)


def triples(split: str) -> np.ndarray:
  """[color shape motion] bool: what a split, 'train' or 'test', may show."""
  c, s, m = np.meshgrid(
    np.arange(len(COLORS)),
    np.arange(len(TRAIN_SHAPES)),
    np.arange(len(TRAIN_MOTIONS)),
    indexing='ij',
  )
  kept = is_held_out(c, s, m)
  # A ball that spins looks like one that does not.
  round_ = (s == SHAPES.index('ball')) | (s == SHAPES.index('ring'))
  shows = ~(round_ & (m == MOTIONS.index('spinning')))
  return (kept if split == 'test' else ~kept) & shows


@functools.partial(jax.jit, static_argnames='split')
def sample_scene(
  key: Array,
  *,
  objects: tuple[float, float] = (0.75, 0.25),
  intervals: float = 0.3,
  split: str = 'train',
) -> Scene:
  """Draws a scene.

  Args:
    key: PRNG key.
    objects: chances of one and of two objects.
    intervals: chance of each object to be there for a part of the clip only.
    split: 'train' never shows a held-out triple (`is_held_out`), 'test' shows
      nothing else.

  Returns:
    Scene. Two objects never share a colour or a shape.

  Raises:
    DcjaxError: unknown split.
  """
  if split not in ('train', 'test'):
    raise DcjaxError(f"split is {split!r}, expected 'train' or 'test'")
  what, look, when, where, behind = jax.random.split(key, 5)
  count, color, shape, motion = _sample_kinds(what, objects, split)
  size, decoration = _sample_look(look, count)
  presence, interval = _sample_interval(when, intervals)
  place, phase, direction, rate = jax.random.split(where, 4)
  kind, period, shift = jax.random.split(behind, 3)
  background, pattern = jax.random.split(kind)
  palette = jnp.asarray(tuple(textures.COLORS.values()), jnp.float32)
  return Scene(
    count=count,
    shape=shape,
    color=color,
    size=size,
    decoration=decoration,
    motion=motion,
    presence=presence,
    interval=interval,
    paint=jnp.repeat(palette[color][:, None], 2, 1),
    center=_place(place, count, size, decoration, motion),
    phase=jax.random.uniform(phase, (OBJECTS,)),
    direction=jax.random.rademacher(direction, (OBJECTS,), jnp.float32),
    rate=jax.random.uniform(rate, (OBJECTS,), minval=0.9, maxval=1.1),
    background=jax.random.randint(background, (), 0, len(BACKGROUNDS)),
    pattern=jax.random.randint(pattern, (), 0, len(PATTERNS)),
    period=jax.random.uniform(period, (), minval=11.0, maxval=15.0),
    shift=jax.random.uniform(shift, (2,), minval=0.0, maxval=24.0),
  )


def _sample_kinds(
  key: Array, objects: tuple[float, float], split: str
) -> tuple[Array, Array, Array, Array]:
  """(count [], color [o], shape [o], motion [o])."""
  number, first, second = jax.random.split(key, 3)
  two = jnp.asarray(objects[1] / (objects[0] + objects[1]), jnp.float32)
  count = 1 + jax.random.bernoulli(number, two).astype(jnp.int32)
  allowed = jnp.asarray(triples(split))
  one = _choose(first, allowed)
  color = jnp.arange(allowed.shape[0])[:, None, None] != one[0]
  shape = jnp.arange(allowed.shape[1])[None, :, None] != one[1]
  other = _choose(second, allowed & color & shape)
  kinds = [jnp.stack(pair) for pair in zip(one, other, strict=True)]
  return count, *kinds


def _choose(key: Array, allowed: Array) -> tuple[Array, ...]:
  """A uniformly drawn index of a true element of a boolean array."""
  noise = jax.random.uniform(key, allowed.shape)
  flat = jnp.argmax(jnp.where(allowed, noise, -1.0))
  index = jnp.unravel_index(flat, allowed.shape)
  return tuple(i.astype(jnp.int32) for i in index)


def _sample_look(key: Array, count: Array) -> tuple[Array, Array]:
  """(size [o], decoration [o])."""
  size, decoration, plain = jax.random.split(key, 3)
  # Two large objects would hide one another.
  sizes = jnp.where(count == 2, len(SIZES) - 1, len(SIZES))
  size = jax.random.randint(size, (OBJECTS,), 0, sizes)
  kinds = len(shapes.DECORATIONS)
  decoration = jax.random.randint(decoration, (OBJECTS,), 0, kinds)
  plain = jax.random.bernoulli(plain, 0.4, (OBJECTS,))
  return size, jnp.where(plain, 0, decoration)


def _sample_interval(key: Array, chance: float) -> tuple[Array, Array]:
  """(presence [o], interval [o 2])."""
  part, kind, start, end = jax.random.split(key, 4)
  chance = jnp.asarray(chance, jnp.float32)
  part = jax.random.bernoulli(part, chance, (OBJECTS,))
  kind = jax.random.randint(kind, (OBJECTS,), 1, len(PRESENCES))
  kind = jnp.where(part, kind, 0)
  low, high = jnp.moveaxis(jnp.asarray(_SPANS, jnp.float32)[kind], -1, 0)
  draw = [jax.random.uniform(k, (OBJECTS,)) for k in (start, end)]
  return kind, low + (high - low) * jnp.stack(draw, -1)


def _place(
  key: Array, count: Array, size: Array, decoration: Array, motion: Array
) -> Array:
  """Centres [o 2] that keep objects in the frame and mostly apart."""
  spot, swap, tie = jax.random.split(key, 3)
  last = textures.CANVAS - 1
  growing = _is_any(motion, MOTIONS, 'growing', 'shrinking')
  radius = jnp.asarray(RADII)[size] * jnp.where(growing, motions.LARGEST, 1.0)
  reach = jnp.asarray(motions.REACH, jnp.float32)[motion] + radius[:, None]
  # What stands on top needs room above.
  tall = _is_any(decoration, DECORATIONS, 'with a hat', 'with a halo')
  above = jnp.stack([0.45 * radius * tall, 0 * radius], -1)
  low, high = reach + above + 0.5, last - reach - 0.5
  # Two objects share the canvas along the axis on which they take less room.
  room = reach.sum(0) + jax.random.uniform(tie, (2,))
  axis = (jnp.arange(2) == jnp.argmin(room))[None] & (count == 2)
  first = (jnp.arange(2) == jax.random.randint(swap, (), 0, 2))[:, None]
  high = jnp.where(axis & first, last / 2 - reach, high)
  low = jnp.where(axis & ~first, last / 2 + reach + above, low)
  middle = (low + high) / 2
  spread = jnp.maximum(high - low, 0.0)
  center = middle + spread * jax.random.uniform(
    spot, (2, 2), minval=-0.5, maxval=0.5
  )
  # Rather overlap than leave the frame by more than a third.
  inside = reach - 0.4 * radius[:, None]
  return jnp.clip(center, inside, last - inside)


def _is_any(index: Array, words: tuple[str, ...], *any_of: str) -> Array:
  """Whether an index into words is that of any of some of them."""
  return jnp.isin(index, jnp.asarray([words.index(word) for word in any_of]))
