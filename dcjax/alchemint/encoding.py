"""Annotated clips -> latents of their views, once for all runs.

In a job of several processes each takes its share of the clips, on all its
devices, and reads those of the others from the cache, a folder that all see.
"""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import latents as latents_lib
from dcjax import processes
from dcjax.data import cache as cache_lib
from dcjax.data import casting, coverage
from dcjax.data.subjects import AnnotatedClip
from dcjax.errors import DcjaxError
from dcjax.models import intervals
from dcjax.weights.base import Base

# Of what is cached: latents are of about unit variance.
STORED = np.float16


class ClipEncoder:
  """Encodes the clips of a source, or reads them from the cache.

  Args:
    base: with its autoencoder.
    source: annotated clips.
    data: the config's `data`.
    cache: folder.
    views: (their seed, how many of each clip).
  """

  def __init__(
    self,
    base: Base,
    source: Sequence[AnnotatedClip],
    data: ConfigDict,
    cache: Path,
    views: tuple[int, int],
  ):
    f = base.format
    self._source, self._views = source, views
    self._cache = processes.shared(cache)
    self._how = {
      'frames': f.frames,
      'fps': f.fps,
      'size': [f.height, f.width],
      'max_references': data.max_references,
      'window': data.window,
      'gap': data.gap,
    }
    self._key = {
      'base': base.fingerprint,
      'types': latents_lib.types_of(base)['vae'],
      'how': self._how,
    }
    self._bases = latents_lib.copies(base)

  def clips(self) -> list[dict[str, Any]]:
    """[{'views': [...]}] of all clips; each process encodes its share first."""
    total = len(self._source)
    mine = processes.share(total)
    count = mine.step
    keys = np.zeros((-(-total // count), 32), np.uint8)
    found = {}
    work = latents_lib.side_by_side(self._clip, self._bases, mine)
    try:
      for i, (key, clip) in zip(mine, work, strict=True):
        keys[len(found)] = np.frombuffer(bytes.fromhex(key), np.uint8)
        found[i] = clip
        if len(found) % 64 == 0 or len(found) == len(mine):
          print(f'encoded {len(found)} of {len(mine)} clips', flush=True)
    except DcjaxError:
      if processes.alone():
        raise
      # No file has this clip, so that all processes meet it below, and say so.
    keys = processes.gathered(keys)

    def of_others(base, i):
      key = keys[i % count, i // count]
      # Without one, its process has come to a clip that it could not encode.
      return self._clip(base, i, key.tobytes().hex() if key.any() else '')[1]

    rest = [i for i in range(total) if i not in found]
    work = latents_lib.side_by_side(of_others, self._bases, rest)
    found |= zip(rest, work, strict=True)
    return [found[i] for i in range(total)]

  def _clip(
    self, base: Base, index: int, key: str = ''
  ) -> tuple[str, dict[str, Any]]:
    """(its key in the cache, {'views': [...]}) of one clip.

    Args:
      base: one of the copies.
      index: of the clip.
      key: if it is known, so that the clip need not be read.
    """
    seed, views = self._views
    read = None if key else self._source[index]
    key = key or cache_lib.content_hash(
      self._key | {'clip': read, 'views': [seed, index, views]}
    )

    def compute():
      clip = self._source[index] if read is None else read
      return _compute(base, clip, self._how, (seed, index), views)

    return key, _unpack(cache_lib.kept(self._cache, key, compute))


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
      latents = latents_lib.encode_video(base, sample.clip[None])
      arrays[f'latents/{windows[window]}'] = latents[0].astype(STORED)
      arrays[f'cover/{windows[window]}'] = _cover(base, sample.cover, latents)
    if sample.references:
      images = np.stack([x.image for x in sample.references])[:, None]
      encoded = latents_lib.encode_video(base, images)[:, 0]
      arrays[f'references/{view}'] = encoded.astype(STORED)
    about.append(_describe(base, sample, windows[window]))
  text = json.dumps(about).encode()
  return {**arrays, 'about': np.frombuffer(text, np.uint8)}


def _cover(base, cover, latents) -> np.ndarray:
  """How much of each latent pixel's place is a subject's, [f h w 1]."""
  _, _, h, w, _ = latents.shape
  mask = cover[None].astype(np.float32)
  time = base.vae.scale_factor_temporal
  return coverage.on_latents(mask, h, w, time)[0, ..., None].astype(STORED)


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
