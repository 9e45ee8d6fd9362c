"""Annotated clips as training data: encoded once, and cached.

A clip is seen in several views: other references of it, turned, coloured and
cut in other ways. All views are made beforehand, so that a step reads numbers
only.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from dcjax import latents as latents_lib
from dcjax import sampling, text_features
from dcjax.data import cache as cache_lib
from dcjax.data import casting, coverage
from dcjax.data import prompts as prompts_lib
from dcjax.data.subjects import AnnotatedClip
from dcjax.errors import DcjaxError
from dcjax.models import intervals
from dcjax.models.reference_config import ReferenceConfig
from dcjax.weights.base import Base

# Of what is cached: latents are of about unit variance.
_STORED = np.float16


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
    cache: folder.
    seed: of the views.
    views: of each clip.

  Raises:
    DcjaxError: a clip is shorter than the base's, or breaks a rule of
      `data.subjects`.
  """
  clips = []
  for i in range(len(source)):
    clip = _encode_clip(base, source, i, data, cache, seed, views)
    if not config.event_length:
      clip['views'] = [_in_one_text(view) for view in clip['views']]
    clips.append(clip)
    if (i + 1) % 64 == 0 or i + 1 == len(source):
      print(f'encoded {i + 1} of {len(source)} clips', flush=True)
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
      found[text] = row[:n].astype(_STORED)
  return found


def _encode_clip(base, source, index, data, cache, seed, views):
  """{'views': [...]} of one clip, from the cache if it was encoded before."""
  f = base.format
  how = {
    'frames': f.frames,
    'fps': f.fps,
    'size': [f.height, f.width],
    'max_references': data.max_references,
    'window': data.window,
    'gap': data.gap,
  }
  clip = source[index]
  key = {
    'base': base.fingerprint,
    'types': latents_lib.types_of(base)['vae'],
    'clip': clip,
    'how': how,
    'views': [seed, index, views],
  }
  stored = cache_lib.cached(
    cache, key, lambda: _compute(base, clip, how, (seed, index), views)
  )
  return _unpack(stored)


def _compute(base, clip, how, seed, views) -> dict[str, np.ndarray]:
  """Arrays and, as bytes of JSON, what is not an array."""
  arrays, about, windows = {}, [], {}
  for view in range(views):
    rng = np.random.default_rng((*seed, view))
    try:
      sample = casting.cast(clip, rng, **how)
    except DcjaxError as error:
      raise DcjaxError(f'clip {seed[1]}: {error}') from error
    window = sample.clip.tobytes()
    # Views of one window share its latents.
    if window not in windows:
      windows[window] = len(windows)
      latents = sampling.encode_video(base, sample.clip[None])
      arrays[f'latents/{windows[window]}'] = latents[0].astype(_STORED)
      arrays[f'cover/{windows[window]}'] = _cover(base, sample.cover, latents)
    if sample.references:
      images = np.stack([x.image for x in sample.references])[:, None]
      encoded = sampling.encode_video(base, images)[:, 0]
      arrays[f'references/{view}'] = encoded.astype(_STORED)
    about.append(_describe(base, sample, windows[window]))
  text = json.dumps(about).encode()
  return {**arrays, 'about': np.frombuffer(text, np.uint8)}


def _cover(base, cover, latents) -> np.ndarray:
  """How much of each latent pixel's place is a subject's, [f h w 1]."""
  _, _, h, w, _ = latents.shape
  mask = cover[None].astype(np.float32)
  time = base.vae.scale_factor_temporal
  return coverage.on_latents(mask, h, w, time)[0, ..., None].astype(_STORED)


def _describe(base, sample, window) -> dict[str, Any]:
  """What of a view is not an array; intervals in latent time."""
  f, stride = base.format, base.vae.scale_factor_temporal
  frames = (f.frames - 1) // stride + 1

  def interval(x):
    seconds = np.asarray([x.start, x.end], np.float64)
    return intervals.latent_time(seconds, f.fps, stride, frames).tolist()

  return {
    'window': window,
    'caption': sample.caption,
    'references': [
      {'word': x.word, 'interval': interval(x)} for x in sample.references
    ],
    'events': [
      {'text': x.text, 'interval': interval(x)} for x in sample.events
    ],
  }


def _unpack(stored: dict[str, np.ndarray]) -> dict[str, Any]:
  views = json.loads(stored['about'].tobytes())
  for i, view in enumerate(views):
    window = view.pop('window')
    view['latents'] = stored[f'latents/{window}']
    view['cover'] = stored[f'cover/{window}']
    for j, reference in enumerate(view['references']):
      reference['latents'] = stored[f'references/{i}'][j]
    for x in (*view['references'], *view['events']):
      x['interval'] = np.asarray(x['interval'], np.float32)
  return {'views': views}
