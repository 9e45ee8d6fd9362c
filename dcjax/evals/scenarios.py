"""Items of S2VTime with real subjects, from templates: no model is needed.

One or two subjects do something at a place, each for a part of five seconds.
Kinds are those of the world: `one`, `two`, and `same_class`, a small and a big
one of the same animal or thing whose looks only the pictures tell. Of seven
scenes one is asked for with three lengths about one midpoint (`group`), which
is a third of the items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dcjax.errors import DcjaxError
from dcjax.evals.items import Interval, Item, Reference, lane

SECONDS, FPS, SIZE = 5.0, 16.0, (480, 832)
KINDS = ('one', 'two', 'one', 'same_class')  # in turn
LENGTHS = (1.0, 3.0)  # seconds, the least and the largest
EXTENDED = (0.5, 4.5)  # subjects that come and go
# Seconds about one midpoint, which is this far from both ends.
_ABOUT = {'short': (0.6, 1.0), 'medium': (1.4, 2.0), 'long': (2.6, 3.6)}
_FROM_ENDS = 1.9
_CYCLE = 7  # of so many scenes one is asked for three times
_GRID = 0.05  # seconds that times are rounded to


class Entity(NamedTuple):
  """Something that can be on screen, and what tells one from another."""

  word: str
  looks: tuple[str, ...]  # '{}' is the word
  actions: tuple[str, ...]


ENTITIES = (
  Entity(
    'dog',
    (
      'a beagle {} with a red collar',
      'a fluffy white {} with black ears',
      'a grey {} with pale blue eyes and a green scarf',
    ),
    ('runs in circles', 'sniffs at the ground', 'wags its tail'),
  ),
  Entity(
    'cat',
    (
      'an orange tabby {} with a white belly',
      'a black {} with yellow eyes',
      'a long-haired grey {} with a blue bow',
    ),
    ('stretches its back', 'licks its paw', 'walks slowly forward'),
  ),
  Entity(
    'horse',
    (
      'a chestnut {} with a white blaze',
      'a dappled grey {} with a dark mane',
      'a black {} with a braided mane',
    ),
    ('shakes its mane', 'trots along', 'lowers its head'),
  ),
  Entity(
    'parrot',
    (
      'a scarlet {} with blue wing tips',
      'a lime green {} with an orange beak',
      'a white {} with a yellow crest',
    ),
    ('flaps its wings', 'turns its head', 'hops to the side'),
  ),
  Entity(
    'rabbit',
    (
      'a brown {} with one folded ear',
      'a snow-white {} with pink eyes',
      'a black and white spotted {}',
    ),
    ('hops forward', 'twitches its nose', 'sits up'),
  ),
  Entity(
    'robot',
    (
      'a rusty tin {} with round green eyes',
      'a glossy white {} with a blue visor',
      'a yellow {} with caterpillar tracks',
    ),
    ('waves an arm', 'rolls forward', 'turns its head'),
  ),
  Entity(
    'toy car',
    (
      'a red wooden {} with white wheels',
      'a chrome {} with blue flames on its doors',
      'a mint green {} with a surfboard on its roof',
    ),
    ('rolls across', 'spins around', 'drives in a curve'),
  ),
  Entity(
    'balloon',
    (
      'a heart-shaped pink {} on a string',
      'a round {} with yellow and blue stripes',
      'a silver {} shaped like a star',
    ),
    ('floats upwards', 'sways gently', 'drifts sideways'),
  ),
  Entity(
    'kite',
    (
      'a diamond-shaped rainbow {} with a long tail',
      'a {} that looks like a green dragon',
      'a black and red {} shaped like a bird',
    ),
    ('dances in the air', 'dives and rises', 'glides past'),
  ),
  Entity(
    'penguin',
    (
      'a {} chick with fluffy grey down',
      'a {} with a bright orange beak and a knitted scarf',
      'a {} with yellow crest feathers',
    ),
    ('waddles along', 'flaps its flippers', 'looks around'),
  ),
  Entity(
    'bicycle',
    (
      'a turquoise {} with a wicker basket',
      'a folding {} with an orange frame',
      'a black racing {} with white tyres',
    ),
    ('rolls past', 'leans over slowly', 'coasts downhill'),
  ),
  Entity(
    'butterfly',
    (
      'an iridescent blue {}',
      'a {} with orange wings and black veins',
      'a pale yellow {} with round spots',
    ),
    ('flutters about', 'opens its wings', 'circles upwards'),
  ),
)

PLACES = (
  'in a sunny garden',
  'on a wooden pier by a lake',
  'in a bright living room',
  'on a snowy meadow',
  'on a sandy beach at sunset',
  'in an empty parking lot',
  'in a forest clearing',
  'on a flat roof above a city',
  'in a greenhouse full of plants',
  'on a cobbled market square',
)


def make(count: int, *, seed: int = 0, extended: bool = False) -> list[Item]:
  """Draws items; the same ones for the same seed, whatever the count.

  Args:
    count: how many.
    seed: of everything that is drawn.
    extended: subjects come and go, for 0.5 to 4.5 s instead of 1 to 3 s.

  Returns:
    Items whose pictures are named but not drawn.

  Raises:
    DcjaxError: count below 1.
  """
  if count < 1:
    raise DcjaxError(f'{count} items; expected 1 or more')
  items: list[Item] = []
  scene = 0
  while len(items) < count:
    rng = np.random.default_rng((seed, scene, int(extended)))
    cycle, place = divmod(scene, _CYCLE)
    turn = cycle if place == 0 else cycle * (_CYCLE - 1) + place - 1
    kind = KINDS[turn % len(KINDS)]
    items += _scene(kind, scene, rng, place == 0, extended)
    scene += 1
  return items[:count]


def _scene(
  kind: str, index: int, rng: np.random.Generator, grouped: bool, extended: bool
) -> list[Item]:
  """One item, or three whose first subject stays longer and longer."""
  cast = _cast(kind, rng)
  where = PLACES[rng.integers(len(PLACES))]
  lengths = EXTENDED if extended else LENGTHS
  spans = [_span(rng, *lengths) for _ in cast]
  name = f'{kind}_{index:03d}'
  if not grouped:
    return [_item(name, '', kind, cast, where, spans)]
  middle = _round(rng.uniform(_FROM_ENDS, SECONDS - _FROM_ENDS))
  items = []
  for length, (low, high) in _ABOUT.items():
    half = _round(rng.uniform(low, high) / 2)
    spans[0] = (round(middle - half, 3), round(middle + half, 3))
    items.append(_item(f'{name}_{length}', name, kind, cast, where, spans))
  return items


class _Role(NamedTuple):
  word: str
  look: str
  does: str


def _cast(kind: str, rng: np.random.Generator) -> list[_Role]:
  if kind == 'same_class':
    entity = ENTITIES[rng.integers(len(ENTITIES))]
    looks = rng.permutation(entity.looks)[:2]
    actions = rng.permutation(entity.actions)[:2]
    sizes = rng.permutation(['small', 'large'])
    return [
      _Role(f'{size} {entity.word}', look.format(entity.word), does)
      for size, look, does in zip(sizes, looks, actions, strict=True)
    ]
  chosen = rng.permutation(len(ENTITIES))[: 2 if kind == 'two' else 1]
  return [
    _Role(
      ENTITIES[i].word,
      str(rng.choice(ENTITIES[i].looks)).format(ENTITIES[i].word),
      str(rng.choice(ENTITIES[i].actions)),
    )
    for i in chosen
  ]


def _span(rng: np.random.Generator, low: float, high: float) -> Interval:
  length = _round(rng.uniform(low, high))
  start = _round(rng.uniform(0, SECONDS - length))
  return start, round(min(start + length, SECONDS), 3)


def _round(seconds: float) -> float:
  return round(round(seconds / _GRID) * _GRID, 3)


def _item(
  name: str,
  group: str,
  kind: str,
  cast: Sequence[_Role],
  where: str,
  spans: Sequence[Interval],
) -> Item:
  things = ' and '.join(f'a {role.word}' for role in cast)
  acts = [f'the {role.word} {role.does}.' for role in cast]
  prompt = ' '.join([f'{things} {where}.', *acts, 'the camera stands still.'])
  return Item(
    id=name,
    prompt=prompt,
    seconds=SECONDS,
    size=SIZE,
    fps=FPS,
    references=tuple(
      Reference(
        f'images/{group or name}_{n}.png', role.word, *span, str(role.look)
      )
      for n, (role, span) in enumerate(zip(cast, spans, strict=True))
    ),
    events=lane(zip(acts, spans, strict=True)),
    kind=kind,
    group=group,
  )
