"""Scenes of the procedural world for S2VTime, their pictures and clips."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.data import motions, shapes, textures
from dcjax.data import scene as scenes
from dcjax.data.render import FPS, SIZE, render, to_uint8
from dcjax.data.scene import (
  BACKGROUNDS,
  MOTIONS,
  OBJECTS,
  PATTERNS,
  RADII,
  SIZES,
  Scene,
)

FRAMES = 17
SECONDS = (FRAMES - 1) / FPS
_PICTURE = 128  # side of the reference pictures
_GROWS = ('growing', 'shrinking')
_BRIGHT = BACKGROUNDS.index('cream')

Span = tuple[int, int]  # first and last frame


def seconds(span: Span) -> tuple[float, float]:
  """The interval that frames stand for, to the borders of the clip."""
  first, last = span
  start = 0.0 if first == 0 else (first - 0.5) / FPS
  return start, SECONDS if last == FRAMES - 1 else (last + 0.5) / FPS


def sample(kind: str, rng: np.random.Generator) -> Scene:
  """A scene of held-out objects of a kind of item, there all the time."""
  count = 1 if kind in ('one', 'again') else OBJECTS
  pair = kind == 'same_class'
  color, shape, motion = _kinds(rng, count, pair)
  if pair:
    size = rng.permutation([0, len(SIZES) - 1])
  else:
    size = rng.integers(0, len(SIZES) - (count - 1), OBJECTS)
  plain = rng.random(OBJECTS) < 0.4
  decoration = rng.integers(0, len(shapes.DECORATIONS), OBJECTS)
  decoration = np.where(plain, 0, decoration)
  palette = np.asarray(tuple(textures.COLORS.values()), np.float32)
  return Scene(
    count=np.int32(count),
    shape=shape,
    color=color,
    size=size.astype(np.int32),
    decoration=decoration.astype(np.int32),
    motion=motion,
    presence=np.zeros(OBJECTS, np.int32),
    interval=np.tile(np.float32([0, 1]), (OBJECTS, 1)),
    paint=np.repeat(palette[color][:, None], 2, 1),
    center=_place(rng, count, size, motion),
    phase=rng.random(OBJECTS, np.float32),
    direction=rng.choice(np.float32([-1, 1]), OBJECTS),
    rate=rng.uniform(0.9, 1.1, OBJECTS).astype(np.float32),
    background=np.int32(rng.integers(len(BACKGROUNDS))),
    pattern=np.int32(rng.integers(len(PATTERNS))),
    period=np.float32(rng.uniform(11, 15)),
    shift=rng.uniform(0, 24, 2).astype(np.float32),
  )


def _kinds(
  rng: np.random.Generator, count: int, pair: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(color [o], shape [o], motion [o]); colours and motions differ."""
  allowed = np.argwhere(scenes.triples('test')).astype(np.int32)
  if pair:  # told apart by size too
    grows = [MOTIONS.index(x) for x in _GROWS]
    allowed = allowed[~np.isin(allowed[:, 2], grows)]
  while True:
    one, other = allowed[rng.integers(len(allowed), size=2)]
    differ = one != other
    if count == 1 or (differ[0] and differ[2] and differ[1] != pair):
      return tuple(np.stack([one, other]).T)


def _place(
  rng: np.random.Generator, count: int, size: np.ndarray, motion: np.ndarray
) -> np.ndarray:
  """Centres [o 2] that keep objects in the frame and mostly apart."""
  last = textures.CANVAS - 1
  grows = np.isin(motion, [MOTIONS.index(x) for x in _GROWS])
  radius = np.asarray(RADII)[size] * np.where(grows, motions.LARGEST, 1)
  reach = np.asarray(motions.REACH)[motion] + radius[:, None]
  low, high = reach + 0.5, last - reach - 0.5
  if count == OBJECTS:
    axis = int(np.argmin(reach.sum(0)))
    first = int(rng.integers(2))
    high[first, axis] = last / 2 - reach[first, axis]
    low[1 - first, axis] = last / 2 + reach[1 - first, axis]
  spread = np.maximum(high - low, 0)
  center = (low + high) / 2 + spread * rng.uniform(-0.5, 0.5, (OBJECTS, 2))
  # Rather overlap than leave the frame.
  inside = reach - 0.4 * radius[:, None]
  return np.clip(center, inside, last - inside).astype(np.float32)


def picture(scene: Scene, o: int) -> np.ndarray:
  """An object alone, at rest in the middle of white: uint8 [h w 3].

  Its opacity is solved from how it looks before black and before cream.
  """
  swap = lambda x: np.stack([x[o], x[o]])
  one = scene._replace(
    count=np.int32(1),
    pattern=np.int32(PATTERNS.index('plain')),
    center=np.full((OBJECTS, 2), (SIZE - 1) / 2, np.float32),
    **{
      name: swap(getattr(scene, name))
      for name in ('shape', 'color', 'size', 'decoration', 'motion', 'paint')
    },
  )
  grounds = [BACKGROUNDS.index('black'), _BRIGHT]
  dark, bright = (
    np.asarray(
      _render(one._replace(background=np.int32(ground)), 1, _PICTURE).video[0]
    )
    for ground in grounds
  )
  low, high = (
    np.asarray(textures.BACKGROUNDS[BACKGROUNDS[i]], np.float32)
    for i in grounds
  )
  through = ((bright - dark) / (high - low)).mean(-1, keepdims=True)
  return to_uint8(np.clip(dark + through * (1 - low), 0, 1))


def video(scene: Scene, spans: Sequence[Sequence[Span]]) -> np.ndarray:
  """A clip with each object in its spans of frames: uint8 [f h w 3]."""
  longest = max(len(of) for of in spans)
  frames = []
  for n in range(longest):
    interval = np.tile(np.float32([0, 1]), (OBJECTS, 1))
    for o, of in enumerate(spans):
      interval[o] = np.divide(seconds(of[min(n, len(of) - 1)]), SECONDS)
    frames.append(_render(scene._replace(interval=interval)).video)
  clip = np.asarray(frames[0])
  for n, later in enumerate(frames[1:]):
    # Subjects that come back do so after the middle of the gap.
    ends, starts = spans[0][n][1], spans[0][n + 1][0]
    half = (ends + starts) // 2
    clip = np.concatenate([clip[:half], np.asarray(later)[half:]])
  return to_uint8(clip)


@functools.cache
def _renderer(frames: int, size: int):
  return jax.jit(lambda scene: render(scene, frames, size))


def _render(scene: Scene, frames: int = FRAMES, size: int = SIZE):
  return _renderer(frames, size)(jax.tree.map(jnp.asarray, scene))
