"""Captions of the procedural world, as strings and, in graph, as token ids.

Both read the same tables of phrases, so they cannot disagree. A caption is a
static sentence (what there is) and one dynamic sentence an object (what it
does, and when it is there):

  a large red star with eyes on a striped navy background. the star is bouncing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from dcjax.data import scene as scenes
from dcjax.data.scene import Scene
from dcjax.errors import DcjaxError

EOS = 1


class Said(NamedTuple):
  """What a caption mentions; fields are [] bool. False leaves it unsaid."""

  size: Array | bool = True
  color: Array | bool = True
  decoration: Array | bool = True
  background: Array | bool = True
  motion: Array | bool = True  # of every object
  presence: Array | bool = True  # when an object is not there all the time
  shape: Array | bool = True  # False: 'thing', where one object is alone


ALL = Said()
STATIC = Said(motion=False, presence=False)


def sample_said(key: Array, *, still: bool = False) -> Said:
  """Draws what to leave unsaid; `still` for images, which have no motion."""
  chances = Said(
    size=0.8,
    color=0.93,
    decoration=0.9,
    background=0.9,
    motion=0.95,
    presence=1.0,
    shape=0.93,
  )
  keys = jax.random.split(key, len(chances))
  said = [
    jax.random.bernoulli(k, p) for k, p in zip(keys, chances, strict=True)
  ]
  said = Said(*said)
  if still:
    never = jnp.zeros((), bool)
    said = said._replace(motion=never, presence=never)
  return said


# The base never learns words for the novel shapes: they are things.
_NOVEL = len(scenes.SHAPES) - len(scenes.TRAIN_SHAPES)
_NOUNS = ('', *scenes.TRAIN_SHAPES, *('thing',) * _NOVEL, 'thing')
_GROUNDS = (
  '',
  *(
    f'on a {pattern} {color} background'
    for color in scenes.BACKGROUNDS
    for pattern in scenes.PATTERNS
  ),
)
_ARTICLES = ('', 'a', 'an')
_SIZES = ('', *scenes.SIZES)
_COLORS = ('', *scenes.COLORS)
_MOTIONS = ('', *(f'is {motion}' for motion in scenes.MOTIONS))


def _phrases(scene: Scene, said: Said) -> list[tuple[tuple[str, ...], Array]]:
  """The caption as (table of phrases, index) pairs; index 0 says nothing."""
  two = scene.count == 2
  nouns, static, dynamic = [], [], []
  for o in range(scenes.OBJECTS):
    there = 1 if o == 0 else two * 1
    unsaid = jnp.logical_not(said.shape) & jnp.logical_not(two)
    noun = there * jnp.where(unsaid, len(_NOUNS) - 1, 1 + scene.shape[o])
    nouns.append(noun)
    size = there * said.size * (1 + scene.size[o])
    # 'an orange star', but 'a small orange star'.
    color = there * said.color * (1 + scene.color[o])
    vowel = (size == 0) & (color == _COLORS.index('orange'))
    if o > 0:
      static.append((('', 'and'), there))
    static += [
      (_ARTICLES, there * (1 + vowel)),
      (_SIZES, size),
      (_COLORS, color),
      (_NOUNS, noun),
      (scenes.DECORATIONS, there * said.decoration * scene.decoration[o]),
    ]
    moves = there * said.motion * 1
    comes = there * said.presence * scene.presence[o]
    speaks = jnp.maximum(moves, jnp.minimum(comes, 1))
    dynamic += [
      (('', 'the'), speaks),
      (_NOUNS, speaks * noun),
      (_MOTIONS, moves * (1 + scene.motion[o])),
      (('', 'and'), moves * jnp.minimum(comes, 1)),
      (scenes.PRESENCES, comes),
      (('', '.'), speaks),
    ]
  ground = 1 + scene.background * len(scenes.PATTERNS) + scene.pattern
  static += [(_GROUNDS, said.background * ground), (('.',), 0)]
  return static + dynamic


def caption(scene: Scene, said: Said = ALL) -> str:
  """The caption of one scene (not of a batch of them)."""
  with jax.ensure_compile_time_eval():
    phrases = [table[int(i)] for table, i in _phrases(scene, said)]
  return ' '.join(p for p in phrases if p).replace(' .', '.')


def caption_ids(
  scene: Scene, said: Said, word_ids: Mapping[str, int], length: int = 48
) -> tuple[Array, Array]:
  """The tokens of `caption(scene, said)`, without leaving the device.

  Args:
    scene: one scene; use vmap for a batch.
    said: what to mention.
    word_ids: token id of every word of VOCABULARY and of '.'.
    length: number of tokens to pad to, at least 46.

  Returns:
    (ids [l] int32 ending in </s> (1) and padded with 0, mask [l] bool).

  Raises:
    DcjaxError: a word has no id, or `length` is too short.
  """
  if length < LONGEST:
    raise DcjaxError(f'length is {length}, captions need {LONGEST} tokens')
  tokens = []
  for table, index in _phrases(scene, said):
    tokens.append(jnp.asarray(_id_table(table, word_ids))[index])
  tokens = jnp.concatenate([*tokens, jnp.asarray([EOS], jnp.int32)])
  # A stable sort moves the empty places to the end and keeps the order.
  order = jnp.argsort(tokens < 0, stable=True)[:length]
  tokens = tokens[order]
  if tokens.shape[0] < length:
    tokens = jnp.pad(tokens, (0, length - tokens.shape[0]), constant_values=-1)
  mask = tokens >= 0
  return jnp.where(mask, tokens, 0), mask


def _id_table(
  table: tuple[str, ...], word_ids: Mapping[str, int]
) -> np.ndarray:
  """Phrases -> ids [phrase word], -1 where a phrase is shorter."""
  words = [phrase.split() for phrase in table]
  missing = sorted({w for phrase in words for w in phrase} - word_ids.keys())
  if missing:
    raise DcjaxError(f'no token for {", ".join(missing[:8])}')
  ids = np.full((len(table), max(map(len, words))), -1, np.int32)
  for row, phrase in zip(ids, words, strict=True):
    row[: len(phrase)] = [word_ids[word] for word in phrase]
  return ids


def _vocabulary() -> tuple[str, ...]:
  tables = (
    _ARTICLES,
    ('the', 'and', 'is', 'are'),
    _SIZES,
    _COLORS,
    ('', *scenes.TRAIN_SHAPES, 'thing', 'things'),
    scenes.DECORATIONS,
    _GROUNDS,
    _MOTIONS,
    scenes.PRESENCES,
    # Not in captions, but likely in prompts.
    ('it its with without no in on at of to from by while then'.split()),
    ('one two first second both fast slow quickly slowly'.split()),
    ('start end object shape something someone picture video'.split()),
    ('white dark light bright red big tiny very left right'.split()),
  )
  words: dict[str, None] = {}
  for table in tables:
    for phrase in table:
      words.update(dict.fromkeys(phrase.split()))
  return tuple(words)


# Every word that captions use, held-out shapes apart, and a few more.
VOCABULARY = _vocabulary()
# Two objects with everything said: 21 static tokens, 22 dynamic ones, </s>.
LONGEST = 46
