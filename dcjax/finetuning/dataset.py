"""Captioned files as training data: encoded once, and cached.

Results are kept by the content of the files, so a file that is renamed, or a
caption that is changed, costs nothing anew but its own features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from dcjax import latents as latents_lib
from dcjax import sampling, text_features
from dcjax.data import cache as cache_lib
from dcjax.data import prompts as prompts_lib
from dcjax.data import windows
from dcjax.data.buckets import Bucket
from dcjax.errors import DcjaxError
from dcjax.finetuning.survey import Entry, Survey
from dcjax.weights.base import Base


class Samples:
  """The samples of one bucket, as a source for `pipeline.bucketed`.

  An example is {'latents' [f h w c], 'features' [l d], 'mask' [l]}, and
  'weight' [f h w 1] if any file of the run has a mask.

  Args:
    length: l; the features are kept without their padding.
    weighted: whether examples have a weight.
  """

  def __init__(self, length: int, weighted: bool):
    self._length, self._weighted = length, weighted
    self._samples: list[tuple[np.ndarray, np.ndarray, Any]] = []

  def add(
    self, latents: np.ndarray, features: np.ndarray, weight: np.ndarray | None
  ) -> None:
    """One sample: [f h w c], [n d], [f h w 1]."""
    self._samples.append((latents, features, weight))

  def __len__(self):
    return len(self._samples)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    latents, features, weight = self._samples[index]
    n = len(features)
    example = {
      'latents': latents,
      'features': np.pad(features, ((0, self._length - n), (0, 0))),
      'mask': np.arange(self._length) < n,
    }
    if self._weighted:
      if weight is None:
        weight = np.ones((*latents.shape[:-1], 1), np.float32)
      example['weight'] = weight
    return example

  def stacked(self) -> dict[str, np.ndarray]:
    """All of them as one batch."""
    return jax.tree.map(lambda *x: np.stack(x), *self)


def encode(
  base: Base,
  found: Survey,
  entries: Sequence[Entry],
  data: ConfigDict,
  cache: Path,
) -> list[Samples]:
  """Latents, text features and weights of some files, one source a bucket.

  Buckets without a sample among these files are left out.

  Raises:
    DcjaxError: a file cannot be read any more, or a mask is black.
  """
  length = base.format.text_length
  weighted = any(x.item.mask for x in found.entries)
  features = {
    caption: _features(base, caption, cache)
    for caption in dict.fromkeys(x.item.caption for x in entries)
  }
  sources: dict[Bucket, Samples] = {}
  for entry in entries:
    latents = _latents(base, entry, found.fps, cache)
    weights = [None] * len(latents)
    if entry.item.mask:
      weights = _weights(entry, found, latents.shape, data, cache)
    bucket = entry.place.bucket
    source = sources.setdefault(bucket, Samples(length, weighted))
    for sample, weight in zip(latents, weights, strict=True):
      source.add(sample, features[entry.item.caption], weight)
  return [sources[bucket] for bucket in sorted(sources)]


def _features(base: Base, caption: str, cache: Path) -> np.ndarray:
  """[n d] of the text encoder, without padding."""
  encoded = prompts_lib.encode(
    base.tokenizer, caption, base.format.text_length, {}
  )
  n = int(encoded.mask.sum())

  def compute():
    features = text_features.text_features(base, encoded.ids, encoded.mask)
    return {'features': np.asarray(features)[0, :n]}

  types = latents_lib.types_of(base)['text_encoder']
  key = {'base': base.fingerprint, 'types': types, 'ids': encoded.ids}
  return cache_lib.cached(cache, key, compute)['features']


def _latents(base: Base, entry: Entry, fps: float, cache: Path) -> np.ndarray:
  """[n f h w c] of the windows of a file."""

  def compute():
    print(f'encoding {entry.item.name}', flush=True)
    clips = windows.windows(entry.item.path, entry.place, fps)
    encoded = [sampling.encode_video(base, clip[None])[0] for clip in clips]
    return {'latents': np.stack(encoded)}

  types = latents_lib.types_of(base)['vae']
  key = _key(entry, fps) | {'base': base.fingerprint, 'types': types}
  return cache_lib.cached(cache, key, compute)['latents']


def _weights(
  entry: Entry,
  found: Survey,
  shape: tuple[int, ...],
  data: ConfigDict,
  cache: Path,
) -> np.ndarray:
  """[n f h w 1] of the windows' masks."""
  _, _, h, w, _ = shape

  def compute():
    try:
      several = [
        windows.loss_weight(
          mask,
          h,
          w,
          found.grid.time,
          outside=data.mask.outside,
          over_time=data.mask.time,
        )
        for mask in windows.masks(entry.item.mask, entry.place, found.fps)
      ]
    except DcjaxError as error:
      raise DcjaxError(f'{entry.item.mask}: {error}') from error
    return {'weight': np.stack(several)}

  mask = data.mask.to_dict()
  key = _key(entry, found.fps) | {'mask': mask, 'latents': list(shape)}
  return cache_lib.cached(cache, key, compute)['weight']


def _key(entry: Entry, fps: float) -> dict[str, Any]:
  windows_made = [list(entry.place.bucket), entry.place.windows]
  return {'file': entry.digest, 'windows': windows_made, 'fps': fps}
