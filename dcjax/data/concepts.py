"""Held-out dynamic concepts of the procedural world, for personalisation.

Everything about a concept is kept from training: its shape, its two colours,
its decoration and its way of moving. So what a personalised base makes of it
was learnt from the one clip.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.data import motions, shapes, textures
from dcjax.data.render import FRAMES, render, to_uint8
from dcjax.data.scene import (
  BACKGROUNDS,
  DECORATIONS,
  MOTIONS,
  SHAPES,
  Scene,
  sample_scene,
)
from dcjax.errors import DcjaxError

# (left half, right half, background): each tone is at least 0.35 from every
# colour of the palette, and at least 0.4 from the other tone and from the
# background, as distances in RGB.
_LOOKS = (
  ((1.00, 0.00, 0.60), (0.60, 1.00, 0.55), 'grey'),
  ((0.55, 1.00, 0.00), (0.00, 0.00, 0.70), 'cream'),
  ((0.65, 0.75, 1.00), (0.00, 0.40, 0.00), 'brown'),
  ((0.60, 1.00, 0.55), (0.30, 0.00, 1.00), 'teal'),
  ((1.00, 0.15, 1.00), (0.65, 0.75, 1.00), 'navy'),
  ((0.00, 0.40, 0.00), (0.55, 1.00, 0.00), 'maroon'),
  ((0.00, 1.00, 0.55), (1.00, 0.00, 0.60), 'olive'),
)


class Concept(NamedTuple):
  """A concept, its one clip and the prompts that go with it."""

  video: np.ndarray  # [17 64 64 3] uint8
  mask: np.ndarray  # [17 64 64] bool, the pixels of the concept
  track: np.ndarray  # [17 2] (y, x) of its centre, in pixels
  appearance: str  # prompt of the look, with [v]
  motion: str  # prompt of the motion, with [u]
  shape: str
  decoration: str
  moves: str
  background: str
  paint: np.ndarray  # [2 3] RGB in [0, 1] of the left and right half
  scene: Scene  # render(scene) draws the clip


def concept(index: int) -> Concept:
  """The concept of a number; the first 18 differ in shape, motion or extras.

  Args:
    index: 0 or more.

  Raises:
    DcjaxError: negative index.
  """
  if index < 0:
    raise DcjaxError(f'concept index is {index}, expected 0 or more')
  shape = shapes.NOVEL_SHAPES[index % 3]
  moves = motions.NOVEL_MOTIONS[(index + index // 3) % 3]
  decoration = shapes.NOVEL_DECORATIONS[index % 2]
  left, right, ground = _LOOKS[index % len(_LOOKS)]
  paint = np.asarray([left, right], np.float32)
  scene = _scene(index, shape, moves, decoration, paint, ground)
  clip = render(scene, FRAMES)
  return Concept(
    video=to_uint8(clip.video),
    mask=np.asarray(clip.mask[0]),
    track=np.asarray(clip.track[0]),
    appearance=f'a [v] thing on a plain {ground} background.',
    motion='the thing is [u] moving.',
    shape=shape,
    decoration=decoration,
    moves=moves,
    background=ground,
    paint=paint,
    scene=scene,
  )


def _scene(
  index: int,
  shape: str,
  moves: str,
  decoration: str,
  paint: np.ndarray,
  ground: str,
) -> Scene:
  key = jax.random.fold_in(jax.random.key(0), index)
  scene = sample_scene(key, objects=(1.0, 0.0), intervals=0.0)
  pair = lambda value: jnp.full((2,), value, jnp.int32)
  middle = (textures.CANVAS - 1) / 2
  # What floats above or stands below moves the middle of the whole.
  lift = 3.0 if decoration == 'with a halo' else -3.0
  return scene._replace(
    count=jnp.asarray(1),
    shape=pair(SHAPES.index(shape)),
    color=pair(-1),
    size=pair(2),
    decoration=pair(DECORATIONS.index(decoration)),
    motion=pair(MOTIONS.index(moves)),
    paint=jnp.broadcast_to(jnp.asarray(paint), (2, 2, 3)),
    center=jnp.broadcast_to(jnp.asarray([middle + lift, middle]), (2, 2)),
    background=jnp.asarray(BACKGROUNDS.index(ground)),
    pattern=jnp.asarray(0),
  )
