"""Items of S2VTime in the procedural world: nothing to download, exact truth.

Held-out objects (triples of colour, shape and motion that training never shows)
that are on screen for 4 to 14 of the 17 frames of a clip. Captions are the
world's own and never say when. Kinds:

  one         one subject
  two         two of different shapes and colours
  same_class  two of one shape, 'a small star and a large star': colours are not
              said, so only the pictures tell them apart
  again       one subject with two intervals

Of seven scenes one is asked for three times, with a short, a medium and a long
interval about one midpoint (`group`): a third of the items. Asked times lie
midway between two frames, so that a drawn clip can meet them exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dcjax.data import appearances
from dcjax.data.appearances import Said
from dcjax.data.render import FPS, SIZE
from dcjax.data.scene import Scene
from dcjax.errors import DcjaxError
from dcjax.evals import world_scenes
from dcjax.evals.items import Item, Reference, lane
from dcjax.evals.world_scenes import FRAMES, SECONDS, Span, seconds

KINDS = ('one', 'two', 'one', 'same_class')  # in turn
SHORTEST, LONGEST = 4, 14  # frames
# Lengths in frames about one midpoint, each the least and the largest.
LENGTHS = {'short': (5, 5), 'medium': (7, 9), 'long': (11, 13)}
_MIDDLES = (7, 9)  # frames between which all of them fit
# Of so many scenes one is asked for three times.
_CYCLE = 7


class Drawn(NamedTuple):
  """An item with what it was made of."""

  item: Item
  scene: Scene  # without intervals
  spans: tuple[tuple[Span, ...], ...]  # of each object, frames


def make(
  count: int,
  *,
  seed: int = 0,
  again: int = 0,
  kinds: Sequence[str] = KINDS,
) -> list[Drawn]:
  """Draws items; the same ones for the same seed, whatever the count.

  Args:
    count: items of the kinds one, two and same_class.
    seed: of the scenes and the intervals.
    again: further items of the kind again.
    kinds: of the `count` items, in turn.

  Raises:
    DcjaxError: a count is negative, both are 0, or a kind is unknown.
  """
  if min(count, again) < 0 or count + again == 0:
    raise DcjaxError(
      f'{count} items and {again} that come back; expected 1 or more'
    )
  unknown = [x for x in kinds if x not in KINDS]
  if unknown or not kinds:
    raise DcjaxError(
      f'kinds of items are {list(kinds)}; expected some of '
      f'{", ".join(dict.fromkeys(KINDS))} (`again` has a count of its own)'
    )
  drawn: list[Drawn] = []
  scene = 0
  while len(drawn) < count:
    rng = np.random.default_rng((seed, scene))
    cycle, place = divmod(scene, _CYCLE)
    if place == 0:
      drawn += _grouped(kinds[cycle % len(kinds)], scene, rng)
    else:
      turn = cycle * (_CYCLE - 1) + place - 1
      drawn.append(_single(kinds[turn % len(kinds)], scene, rng))
    scene += 1
  drawn = drawn[:count]
  for i in range(again):
    drawn.append(_single('again', i, np.random.default_rng((seed, i, 1))))
  return drawn


def _single(kind: str, index: int, rng: np.random.Generator) -> Drawn:
  scene = world_scenes.sample(kind, rng)
  if kind == 'again':
    spans = (_two_spans(rng),)
  else:
    spans = tuple((_span(rng),) for _ in range(scene.count))
  return _drawn(f'{kind}_{index:03d}', kind, scene, spans, rng)


def _grouped(kind: str, index: int, rng: np.random.Generator) -> list[Drawn]:
  """One scene three times: the first subject for longer and longer."""
  scene = world_scenes.sample(kind, rng)
  middle = int(rng.integers(_MIDDLES[0], _MIDDLES[1] + 1))
  other = tuple((_span(rng),) for _ in range(scene.count - 1))
  name, state, drawn = f'{kind}_{index:03d}', rng.bit_generator.state, []
  for word, (low, high) in LENGTHS.items():
    half = int(rng.integers(low // 2, high // 2 + 1))
    spans = (((middle - half, middle + half),), *other)
    same = np.random.default_rng()
    same.bit_generator.state = state  # so that the captions are the same
    drawn.append(_drawn(f'{name}_{word}', kind, scene, spans, same, name))
  return drawn


def _span(rng: np.random.Generator) -> Span:
  length = int(rng.integers(SHORTEST, LONGEST + 1))
  first = int(rng.integers(0, FRAMES - length + 1))
  return first, first + length - 1


def _two_spans(rng: np.random.Generator) -> tuple[Span, Span]:
  """Two spans of 4 or 5 frames, at least 5 frames apart."""
  lengths = rng.integers(4, 6, 2)
  gap = int(rng.integers(5, FRAMES - lengths.sum() + 1))
  first = int(rng.integers(0, FRAMES - lengths.sum() - gap + 1))
  middle = first + int(lengths[0])
  return (first, middle - 1), (middle + gap, middle + gap + int(lengths[1]) - 1)


# ---- words -------------------------------------------------------------------


def _drawn(
  name: str,
  kind: str,
  scene: Scene,
  spans: Sequence[Sequence[Span]],
  rng: np.random.Generator,
  group: str = '',
) -> Drawn:
  """The item of a scene; `rng` decides what its caption says."""
  pair = kind == 'same_class'
  said = Said(
    size=pair,
    color=not pair and rng.random() < 0.5,
    decoration=not pair and rng.random() < 1 / 3,
    background=True,
  )
  times = [[seconds(span) for span in of] for of in spans]
  words = appearances.names(scene, said)
  moves = appearances.sentences(scene, said)
  looks = appearances.names(scene, said._replace(size=False, color=True))
  item = Item(
    id=name,
    prompt=appearances.caption(scene, said),
    seconds=SECONDS,
    size=(SIZE, SIZE),
    fps=float(FPS),
    references=tuple(
      Reference(f'images/{group or name}_{o}.png', word, *time, _a(look))
      for o, (word, look) in enumerate(zip(words, looks, strict=True))
      for time in times[o]
    ),
    events=lane(
      (text, time) for text, of in zip(moves, times, strict=True) for time in of
    ),
    kind=kind,
    group=group,
  )
  return Drawn(item, scene, tuple(tuple(x) for x in spans))


def _a(phrase: str) -> str:
  return f'an {phrase}' if phrase[0] in 'aeiou' else f'a {phrase}'


# ---- pictures ----------------------------------------------------------------


def pictures(drawn: Drawn) -> list[np.ndarray]:
  """Of each object its picture alone on white, uint8 [h w 3]."""
  objects = range(int(drawn.scene.count))
  return [world_scenes.picture(drawn.scene, o) for o in objects]


def video(drawn: Drawn) -> np.ndarray:
  """The clip that the item asks for, drawn: uint8 [f h w 3]."""
  return world_scenes.video(drawn.scene, drawn.spans)
