"""Annotated clips as training data: encoded once, and cached.

A clip is seen in several views: other references of it, turned, coloured and
cut in other ways. All views are made beforehand, so that a step reads numbers
only.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from dcjax import text_features
from dcjax.alchemint import encoding
from dcjax.data import prompts as prompts_lib
from dcjax.data.subjects import AnnotatedClip
from dcjax.models.reference_config import ReferenceConfig
from dcjax.weights.base import Base


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes that all examples are padded to.

  Attributes:
    text: l, tokens of a caption.
    references: m.
    tag: s, tokens of a word; 0 leaves the words out.
    events: e; 0 leaves them out.
    event: l, tokens of an event.
  """

  text: int
  references: int
  tag: int
  events: int
  event: int


class Samples:
  """All views of all clips, as a source for `pipeline.loader`.

  An example is a batch of `objective.subjects` without its leading axis.

  Args:
    clips: of `encode`.
    features: {text: [n d]}.
    shape: that everything is padded to.
    emphasis: extra weight of the loss where a subject is.
  """

  def __init__(
    self,
    clips: Sequence[dict[str, Any]],
    features: dict[str, np.ndarray],
    shape: Shape,
    emphasis: float,
  ):
    self._clips, self._features = clips, features
    self._shape, self._emphasis = shape, emphasis
    self._width = next(iter(features.values())).shape[-1]
    self._views = min(len(clip['views']) for clip in clips) if clips else 0

  def __len__(self):
    return len(self._clips) * self._views

  def __getitem__(self, index: int) -> dict[str, Any]:
    view, place = divmod(int(index), len(self._clips))
    clip = self._clips[place]
    view = clip['views'][view]
    weight = 1.0 + self._emphasis * view['cover'].astype(np.float32)
    features, mask = self._text(view['caption'], self._shape.text)
    example = {
      'latents': view['latents'].astype(np.float32),
      'weight': weight / weight.mean(),
      'features': features,
      'mask': mask,
      'references': self._references(view),
    }
    if self._shape.events:
      example['events'] = self._events(view)
    return example

  def _references(self, view: dict[str, Any]) -> dict[str, np.ndarray]:
    cast = view['references'][: self._shape.references]
    # Words are told apart by what they say, not by their end.
    rows = [self._text(x['word'], self._shape.tag, end=False) for x in cast]
    pad = lambda rows, like: _pad(rows, self._shape.references, like)
    _, h, w, c = view['latents'].shape
    return {
      'latents': pad([x['latents'] for x in cast], np.zeros((h, w, c))).astype(
        np.float32
      ),
      'interval': pad([x['interval'] for x in cast], np.zeros(2, np.float32)),
      'valid': np.arange(self._shape.references) < len(cast),
      'tags': pad(
        [x for x, _ in rows],
        np.zeros((self._shape.tag, self._width), np.float32),
      ),
      'tag_mask': pad([x for _, x in rows], np.zeros(self._shape.tag, bool)),
    }

  def _events(self, view: dict[str, Any]) -> dict[str, np.ndarray]:
    told = view['events'][: self._shape.events]
    rows = [self._text(x['text'], self._shape.event) for x in told]
    pad = lambda rows, like: _pad(rows, self._shape.events, like)
    return {
      'features': pad(
        [x for x, _ in rows],
        np.zeros((self._shape.event, self._width), np.float32),
      ),
      'mask': pad([x for _, x in rows], np.zeros(self._shape.event, bool)),
      'interval': pad([x['interval'] for x in told], np.zeros(2, np.float32)),
    }

  def _text(
    self, text: str, length: int, *, end: bool = True
  ) -> tuple[np.ndarray, np.ndarray]:
    """(features [l d], mask [l]) of a text, with its end token or without."""
    rows = self._features[text]
    rows = rows[: length if end else min(length, len(rows) - 1)]
    n = len(rows)
    padded = np.pad(rows.astype(np.float32), ((0, length - n), (0, 0)))
    return padded, np.arange(length) < n

  def stacked(self) -> dict[str, Any]:
    """The first view of every clip as one batch."""
    examples = [self[i] for i in range(len(self._clips))]
    return jax.tree.map(lambda *x: np.stack(x), *examples)


def _pad(rows: Sequence[Any], count: int, like: np.ndarray) -> np.ndarray:
  return np.stack([*rows, *[like] * (count - len(rows))])


def encode(
  base: Base,
  source: Sequence[AnnotatedClip],
  data: ConfigDict,
  config: ReferenceConfig,
  cache: Path,
  *,
  seed: int,
  views: int,
) -> Samples:
  """Latents and text features of all views of all clips of a source.

  Args:
    base: whose size, length and encoders are used.
    source: annotated clips.
    data: the config's `data`.
    config: whether there are words and events.
    cache: folder. Where a job has several processes and all see it, each clip
      is encoded by one of them.
    seed: of the views.
    views: of each clip.

  Raises:
    DcjaxError: a clip is shorter than the base's, or breaks a rule of
      `data.subjects`.
  """
  clips = encoding.ClipEncoder(base, source, data, cache, (seed, views)).clips()
  if not config.event_length:
    for clip in clips:
      clip['views'] = [_in_one_text(view) for view in clip['views']]
  shape = Shape(
    text=base.format.text_length,
    references=data.max_references,
    tag=config.tag_tokens,
    events=data.max_events if config.event_length else 0,
    event=data.event_tokens,
  )
  features = text_rows(base, _texts(clips))
  return Samples(clips, features, shape, data.emphasis)


def _in_one_text(view: dict[str, Any]) -> dict[str, Any]:
  """The caption goes on with timed captions that it does not hold (MinT)."""
  caption = view['caption']
  for event in view['events']:
    if event['text'] not in caption:
      caption = prompts_lib.join(caption, event['text'])
  return view | {'caption': caption}


def _texts(clips: Sequence[dict[str, Any]]) -> Iterable[str]:
  for clip in clips:
    for view in clip['views']:
      yield view['caption']
      yield from (x['word'] for x in view['references'])
      yield from (x['text'] for x in view['events'])


def text_rows(base: Base, texts: Iterable[str]) -> dict[str, np.ndarray]:
  """{text: features [n d]} without padding."""
  unique, length = list(dict.fromkeys(texts)), base.format.text_length
  # Padded, the texts of a whole dataset would not fit into memory. The encoder
  # cuts these into the same batches as all at once.
  count = max(1, text_features.TOKENS // length)
  # All that are new by one reading of a large encoder.
  text_features.remember(base, unique, {})
  found = {}
  for i in range(0, len(unique), count):
    part = unique[i : i + count]
    encoded = prompts_lib.encode(base.tokenizer, part, length, {})
    rows = np.asarray(
      text_features.text_features(base, encoded.ids, encoded.mask)
    )
    for text, row, n in zip(part, rows, encoded.mask.sum(1), strict=True):
      found[text] = row[:n].astype(encoding.STORED)
  return found
