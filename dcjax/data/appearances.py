"""Scenes of the procedural world in which objects come, go and return.

Drawn with numpy, one scene after another: unlike `scene.sample_scene` they hold
up to three objects, two of which may be of one shape, and each object has
presence spans of its own. What is said of a scene tells nothing of its spans:
they are drawn apart from everything else.
"""

from typing import NamedTuple

import numpy as np

from dcjax.data import motions, shapes, textures
from dcjax.data import scene as scenes
from dcjax.data.scene import DECORATIONS, MOTIONS, SHAPES, SIZES, Scene

OBJECTS = 3
COUNTS = (0.35, 0.45, 0.20)  # chances of one, two and three objects
PAIRS = 0.35  # of two objects: that they are of one shape
ALWAYS, RETURNS = 0.2, 0.1  # chances of an object

# Of the clip: 0.5 to 3.4 of 4 seconds, 0.25 to 1.7 of 2.
SHORTEST, LONGEST = 0.125, 0.85
# Of an object that returns; an occluder may hide some of the gap's end.
GAP = (0.25, 0.45)
# Spans may reach over an end of the clip and are pushed back: so that some
# objects are there from the first frame, or to the last.
_OVER = 0.125
_CANDIDATES = 32
_RESIZING = (MOTIONS.index('growing'), MOTIONS.index('shrinking'))


class Said(NamedTuple):
  """What a caption mentions, of all objects or of none."""

  size: bool
  color: bool
  decoration: bool
  background: bool


class Appearances(NamedTuple):
  """A scene with o = 3 objects and s = 2 spans each, and how to tell it.

  Attributes:
    scene: numpy arrays; the spans are fractions of the clip.
    said: what the caption mentions.
    portraits: the objects alone: Scene with a leading axis o and one object.
  """

  scene: Scene
  said: Said
  portraits: Scene


def draw(rng: np.random.Generator, *, split: str) -> Appearances:
  """Draws a scene.

  Args:
    rng: what it depends on.
    split: of `scene.triples`: what is shown.
  """
  count = 1 + int(rng.choice(OBJECTS, p=COUNTS))
  pair = count == 2 and rng.random() < PAIRS
  color, shape, motion = _kinds(rng, scenes.triples(split), pair)
  size, decoration = _look(rng, count, pair)
  palette = np.asarray(tuple(textures.COLORS.values()), np.float32)
  spans = np.stack([_spans(rng) for _ in range(OBJECTS)])
  scene = Scene(
    count=np.int32(count),
    shape=shape,
    color=color,
    size=size,
    decoration=decoration,
    motion=motion,
    presence=np.zeros(OBJECTS, np.int32),
    interval=spans.astype(np.float32),
    paint=np.repeat(palette[color][:, None], 2, 1),
    center=_place(rng, count, size, decoration, motion),
    phase=rng.random(OBJECTS, np.float32),
    direction=rng.choice(np.float32([-1, 1]), OBJECTS),
    rate=rng.uniform(0.9, 1.1, OBJECTS).astype(np.float32),
    background=np.int32(rng.integers(len(scenes.BACKGROUNDS))),
    pattern=np.int32(rng.integers(len(scenes.PATTERNS))),
    period=np.float32(rng.uniform(11.0, 15.0)),
    shift=rng.uniform(0.0, 24.0, 2).astype(np.float32),
  )
  return Appearances(scene, _said(rng, count, pair), portraits(scene, rng))


def portraits(scene: Scene, rng: np.random.Generator) -> Scene:
  """Every object of a scene alone, somewhere else, to be drawn at frame 0.

  What spins is turned somehow, all else is upright and of its usual size.

  Args:
    scene: with o objects.
    rng: of the places and angles.

  Returns:
    Scene with a leading axis o, and one object that is always there.
  """
  o = len(scene.shape)
  spins = scene.motion == MOTIONS.index('spinning')
  radius = np.asarray(scenes.RADII, np.float32)[scene.size][:, None]
  above = 0.45 * radius * _is_tall(scene.decoration)[:, None]
  low = 1.2 * radius + np.concatenate([above, 0 * radius], 1)
  high = textures.CANVAS - 1 - 1.2 * radius
  one = lambda x: np.asarray(x)[:, None]
  every = lambda x: np.repeat(np.asarray(x)[None], o, 0)
  return Scene(
    count=np.ones(o, np.int32),
    shape=one(scene.shape),
    color=one(scene.color),
    size=one(scene.size),
    decoration=one(scene.decoration),
    motion=one(np.where(spins, scene.motion, 0).astype(np.int32)),
    presence=np.zeros((o, 1), np.int32),
    interval=np.repeat(np.float32([[[0, 1]]]), o, 0),
    paint=one(scene.paint),
    center=one((low + (high - low) * rng.random((o, 2))).astype(np.float32)),
    phase=rng.random((o, 1), np.float32),
    direction=one(scene.direction),
    rate=one(scene.rate),
    background=every(scene.background),
    pattern=every(scene.pattern),
    period=every(scene.period),
    shift=every(scene.shift),
  )


def _kinds(
  rng: np.random.Generator, allowed: np.ndarray, pair: bool
) -> tuple[np.ndarray, ...]:
  """(color [o], shape [o], motion [o]); no colour twice."""
  drawn = []
  if pair:
    # Or the small one might become the large one.
    allowed = allowed.copy()
    allowed[:, :, _RESIZING] = False
  for o in range(OBJECTS):
    left = allowed.copy()
    for color, shape, motion in drawn:
      left[color] = False
      if pair and o == 1:
        left[:, np.arange(left.shape[1]) != shape] = False
        left[:, :, motion] = False
      else:
        left[:, shape] = False
    places = np.flatnonzero(left)
    drawn.append(np.unravel_index(rng.choice(places), left.shape))
  return tuple(np.asarray(x, np.int32) for x in zip(*drawn, strict=True))


def _look(
  rng: np.random.Generator, count: int, pair: bool
) -> tuple[np.ndarray, np.ndarray]:
  """(size [o], decoration [o])."""
  kinds = len(shapes.DECORATIONS)
  if pair:
    # One small and one large; also told apart by what they wear.
    size = np.append(rng.permutation([0, len(SIZES) - 1]), 0)
    decoration = rng.permutation(kinds)[:OBJECTS]
  else:
    # Several large objects would hide one another.
    size = rng.integers(len(SIZES) - (count > 1), size=OBJECTS)
    decoration = rng.integers(kinds, size=OBJECTS)
    decoration = np.where(rng.random(OBJECTS) < 0.4, 0, decoration)
  return size.astype(np.int32), decoration.astype(np.int32)


def _spans(rng: np.random.Generator) -> np.ndarray:
  """[s 2] fractions of the clip; (-1, -1) is no span."""
  kind = rng.random()
  none = (-1.0, -1.0)
  if kind < ALWAYS:
    return np.asarray([(0.0, 1.0), none])
  if kind < ALWAYS + RETURNS:
    gap = rng.uniform(*GAP)
    both = rng.uniform(2 * SHORTEST, 1.0 - gap)
    first = rng.uniform(SHORTEST, both - SHORTEST)
    start = rng.uniform(0.0, 1.0 - gap - both)
    back = start + first + gap
    return np.asarray([(start, start + first), (back, back + both - first)])
  length = rng.uniform(SHORTEST, LONGEST)
  start = rng.uniform(-_OVER, 1.0 - length + _OVER)
  start = np.clip(start, 0.0, 1.0 - length)
  return np.asarray([(start, start + length), none])


def _place(
  rng: np.random.Generator,
  count: int,
  size: np.ndarray,
  decoration: np.ndarray,
  motion: np.ndarray,
) -> np.ndarray:
  """Centres [o 2]: in the frame, and the best of some draws for overlap."""
  last = textures.CANVAS - 1
  radius = np.asarray(scenes.RADII)[size]
  radius = radius * np.where(np.isin(motion, _RESIZING), motions.LARGEST, 1.0)
  reach = np.asarray(motions.REACH)[motion] + radius[:, None]
  above = 0.45 * radius * _is_tall(decoration)
  low = reach + np.stack([above, 0 * above], -1) + 0.5
  high = last - reach - 0.5
  middle, room = (low + high) / 2, np.maximum(high - low, 0.0)
  spot = rng.uniform(-0.5, 0.5, (_CANDIDATES, OBJECTS, 2))
  center = np.clip(
    middle + room * spot,
    reach - 0.4 * radius[:, None],
    last - reach + 0.4 * radius[:, None],
  )
  best = np.argmin(_overlap(center[:, :count], reach[:count]))
  return center[best].astype(np.float32)


def _overlap(center: np.ndarray, reach: np.ndarray) -> np.ndarray:
  """Summed overlap [n] of the boxes that objects sweep: centres [n o 2]."""
  total = np.zeros(len(center))
  for i in range(len(reach)):
    for j in range(i):
      apart = np.abs(center[:, i] - center[:, j])
      both = np.clip(reach[i] + reach[j] - apart, 0.0, None)
      total += both.prod(-1)
  return total


def _is_tall(decoration: np.ndarray) -> np.ndarray:
  """Whether it stands out at the top."""
  return decoration == DECORATIONS.index('with a hat')


def _said(rng: np.random.Generator, count: int, pair: bool) -> Said:
  draw = rng.random(4)
  return Said(
    # The size is what tells a pair apart, and nothing else may.
    size=pair or (count < 3 and draw[0] < 0.1),
    color=not pair and draw[1] < 0.5,
    decoration=not pair and count < 3 and draw[2] < 1 / 3,
    background=draw[3] < 0.9,
  )


def names(scene: Scene, said: Said) -> tuple[str, ...]:
  """What each drawn object is called, without an article."""
  found = []
  for o in range(int(scene.count)):
    words = (
      SIZES[scene.size[o]] if said.size else '',
      scenes.COLORS[scene.color[o]] if said.color else '',
      SHAPES[scene.shape[o]],
    )
    found.append(' '.join(x for x in words if x))
  return tuple(found)


def sentences(scene: Scene, said: Said) -> tuple[str, ...]:
  """One sentence an object: how it moves."""
  called = [SHAPES[x] for x in scene.shape[: int(scene.count)]]
  if len(set(called)) < len(called):
    called = names(scene, said)
  return tuple(
    f'the {name} is {MOTIONS[motion]}.'
    for name, motion in zip(called, scene.motion, strict=False)
  )


def caption(scene: Scene, said: Said) -> str:
  """What there is, and how it moves; never when."""
  things = []
  for o, name in enumerate(names(scene, said)):
    article = 'an' if name.startswith('orange') else 'a'
    worn = DECORATIONS[scene.decoration[o]] if said.decoration else ''
    things.append(' '.join(x for x in (article, name, worn) if x))
  static = ' and '.join(things)
  if said.background:
    pattern = scenes.PATTERNS[scene.pattern]
    ground = scenes.BACKGROUNDS[scene.background]
    static = f'{static} on a {pattern} {ground} background'
  return ' '.join([f'{static}.', *sentences(scene, said)])
