"""What the transformer is told of a storyboard, as arrays.

Pictures become one-frame latents, words and timed captions text features, and
seconds latent time.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import latents as latents_lib
from dcjax import timed_concepts, timed_plan
from dcjax.concept import Concept
from dcjax.data import canvas
from dcjax.data import prompts as prompts_lib
from dcjax.errors import DcjaxError
from dcjax.models.reference import Events, References
from dcjax.storyboard import Storyboard
from dcjax.text_features import remember
from dcjax.weights.base import Base

# Timed captions have lengths in multiples of this.
_STRIDE = 16


class Told(NamedTuple):
  """What the transformer is told of b videos."""

  text: jax.Array  # [b l d]
  mask: jax.Array  # [b l]
  null: jax.Array  # [b l d]
  null_mask: jax.Array  # [b l]
  references: References | None
  events: Events | None
  gate: jax.Array | None  # [b n g] of the concepts' LoRA


class Picture(NamedTuple):
  """A reference, of a storyboard or of one of its concepts."""

  key: str  # equal for equal pictures
  image: np.ndarray  # uint8 [h w 3]
  word: str
  start: float  # seconds
  end: float
  owner: int | None  # index of the concept


def tell(
  base: Base, equipped: Base, stories: Sequence[Storyboard], negative: str
) -> tuple[dict[str, Any], Told]:
  """(parameters of the transformer, what it is told) of resolved storyboards.

  Raises:
    DcjaxError: there are more references than rows for them, or a picture, word
      or concept cannot be used.
  """
  concepts = timed_concepts.load(stories[0].concepts)
  transformer, tokens = equipped.params['transformer'], {}
  if concepts:
    if base is equipped:
      raise DcjaxError(
        'concepts are put into a base without its references; give the base '
        'as it was loaded, and the other one as references'
      )
    transformer, tokens = timed_concepts.put_into(
      base, transformer, stories[0].concepts, concepts
    )
  events = [_events(story, concepts) for story in stories]
  if any(events) and not equipped.reference.event_length:
    raise DcjaxError(
      'these references were trained without timed captions; leave out events '
      'and concepts with timing "event"'
    )
  prompts = [story.prompt for story in stories]
  texts = [text for row in events for text, _, _ in row]
  sizes = prompts_lib.sizes_of(tokens)
  # What cannot be read is refused before anything is encoded.
  for text in (*prompts, *texts, negative):
    prompts_lib.parse(text, sizes)
  pictures = [_pictures(base, story, concepts) for story in stories]
  _check_count(equipped, pictures)
  words = [x.word for row in pictures for x in row]
  remember(base, [*prompts, *texts, *words, negative], sizes)
  features, mask = latents_lib.encode_prompts(base, prompts, tokens)
  null = latents_lib.encode_prompts(base, [negative] * len(stories), tokens)
  references = _references(base, equipped, stories, pictures)
  return transformer, Told(
    features,
    mask,
    *null,
    references,
    _encode_events(base, stories, events, tokens),
    _gate(base, equipped, stories, pictures) if concepts else None,
  )


def _events(
  story: Storyboard, concepts: Sequence[Concept]
) -> list[tuple[str, float, float]]:
  """Timed captions, with the sentences of concepts, in order of time."""
  names = timed_concepts.numbered(concepts) if concepts else []
  rows = [(x.text, x.start, x.end) for x in story.events]
  for i, x in enumerate(story.concepts):
    if x.timing == 'event':
      text = timed_concepts.sentence(x, concepts[i], names[i], f'concepts[{i}]')
      rows.append((text, x.start, x.end))
  return sorted(rows, key=lambda row: row[1])


def _pictures(
  base: Base, story: Storyboard, concepts: Sequence[Concept]
) -> list[Picture]:
  """All references, those of the concepts last."""
  names = timed_concepts.numbered(concepts) if concepts else []
  for i, x in enumerate(story.concepts):
    timed_concepts.check_prompt(x, names[i], story.prompt, f'concepts[{i}]')
  rows = [
    Picture(
      x.image,
      canvas.load_reference(x.image, story.size),
      x.word,
      x.start,
      x.end,
      None,
    )
    for x in story.references
  ]
  for i, x in enumerate(story.concepts):
    if x.timing == 'reference':
      where = f'concepts[{i}]'
      rows.append(
        Picture(
          x.image or x.file,
          timed_concepts.picture(x, concepts[i], story.size, where),
          timed_concepts.word(x, names[i], story.prompt, where),
          x.start,
          x.end,
          i,
        )
      )
  return rows


def _check_count(equipped: Base, pictures: Sequence[Sequence[Picture]]) -> None:
  most = equipped.reference.max_references
  for row in pictures:
    if len(row) > most:
      raise DcjaxError(
        f'the storyboard has {len(row)} references, with those of its '
        f'concepts; this base takes up to {most}'
      )


def _references(base, equipped, stories, pictures) -> References | None:
  """All references, padded to as many as the fullest storyboard has."""
  count = max(len(row) for row in pictures)
  if not count:
    return None
  images = {x.key: x.image for row in pictures for x in row}
  encoded = {
    key: latents_lib.encode_video(base, image[None, None])[0, 0]
    for key, image in images.items()
  }
  empty = np.zeros_like(next(iter(encoded.values())))
  words = [x.word for row in pictures for x in row]
  tags = _tags(base, words, equipped.reference.tag_tokens)
  nothing = jax.tree.map(np.zeros_like, next(iter(tags.values())))
  rows = []
  for story, row in zip(stories, pictures, strict=True):
    pad = lambda values, like, row=row: np.stack(
      [*values, *[like] * (count - len(row))]
    )
    times = [timed_plan.latent_time(base, story, [x.start, x.end]) for x in row]
    rows.append(
      References(
        latents=pad([encoded[x.key] for x in row], empty),
        interval=pad(times, np.zeros(2, np.float32)),
        valid=np.arange(count) < len(row),
        tags=pad([tags[x.word][0] for x in row], nothing[0]),
        tag_mask=pad([tags[x.word][1] for x in row], nothing[1]),
      )
    )
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)


def _tags(
  base: Base, words: Sequence[str], count: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{word: (features [count d], mask [count])}, without the end token."""
  unique = list(dict.fromkeys(words))
  features, mask = (
    np.asarray(x) for x in latents_lib.encode_prompts(base, unique, {})
  )
  there = np.arange(count) < np.minimum(mask.sum(1) - 1, count)[:, None]
  rows = np.where(there[..., None], features[:, :count], 0.0)
  return dict(zip(unique, zip(rows, there, strict=True), strict=True))


def _encode_events(base, stories, events, tokens) -> Events | None:
  """All timed captions, padded to as many as the fullest storyboard has."""
  count = max(len(row) for row in events)
  if not count:
    return None
  texts = list(dict.fromkeys(text for row in events for text, _, _ in row))
  features, mask = (
    np.asarray(x) for x in latents_lib.encode_prompts(base, texts, tokens)
  )
  # Few lengths, so few compilations.
  longest = int(mask.sum(1).max())
  length = min(-(-longest // _STRIDE) * _STRIDE, mask.shape[1])
  shape = (len(stories), count)
  out = Events(
    np.zeros((*shape, length, features.shape[-1]), features.dtype),
    np.zeros((*shape, length), bool),
    np.zeros((*shape, 2), np.float32),
  )
  for i, (story, row) in enumerate(zip(stories, events, strict=True)):
    for j, (text, start, end) in enumerate(row):
      k = texts.index(text)
      out.features[i, j], out.mask[i, j] = (
        features[k, :length],
        mask[k, :length],
      )
      out.interval[i, j] = timed_plan.latent_time(base, story, [start, end])
  return jax.tree.map(jnp.asarray, out)


def _gate(base, equipped, stories, pictures) -> jax.Array:
  """Of the LoRA of all concepts, [b n g]."""
  story = stories[0]
  f, h, w, _ = base.latent_shape(timed_plan.frames_of(base, story), *story.size)
  _, ph, pw = base.dit.patch
  stride = base.vae.scale_factor_temporal
  fades = np.asarray([[c.fade for c in x.concepts] for x in stories])
  count = max(len(row) for row in pictures)
  owners = [
    [x.owner for x in row] + [None] * (count - len(row)) for row in pictures
  ]
  times = [
    [[c.start, c.end] if c.gate else [0.0, x.seconds] for c in x.concepts]
    for x in stories
  ]
  gate = timed_concepts.gate(
    f,
    timed_plan.latent_time(base, story, times),
    fades * (story.fps / stride),
    stride,
    (h // ph) * (w // pw),
    owners,
    equipped.reference.tag_tokens,
  )
  return jnp.asarray(gate)
