"""Encoded clips -> batches of pictures and clips together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dcjax.data import latent_records, pipeline
from dcjax.data.latent_records import Encoded, Records
from dcjax.data.pipeline import Example, Mixed
from dcjax.errors import DcjaxError
from dcjax.stage import Stage

# Held-out samples of one length that are looked at.
LOOKED_AT = 8

Shape = tuple[int, int, int]


class Samples:
  """Samples of one shape, as a source for `pipeline.bucketed`.

  An example is {'latents' [f h w c], 'features' [l d], 'mask' [l]}.

  Args:
    records: of latents with f frames or more; the first f are taken.
    frames: f.
    length: l.
  """

  def __init__(self, records: Sequence[Records], frames: int, length: int):
    self._records, self._frames, self._length = records, frames, length

  def __len__(self) -> int:
    return sum(map(len, self._records))

  def __getitem__(self, index: int) -> Example:
    for records in self._records:
      if index < len(records):
        return self._example(records[index])
      index -= len(records)
    raise IndexError(f'there are only {len(self)} samples')

  def _example(self, record: Encoded) -> Example:
    features = record.features[: self._length].astype(np.float32)
    n = len(features)
    return {
      'latents': record.latents[: self._frames].astype(np.float32),
      'features': np.pad(features, ((0, self._length - n), (0, 0))),
      'mask': np.arange(self._length) < n,
    }


def sources(
  folder: Path,
  split: str,
  frames: int,
  *,
  time: int,
  length: int,
  first_frames: bool,
) -> list[Samples]:
  """The samples of one length, one source for each shape of a picture.

  Args:
    folder: of `latent_records`.
    split: of it.
    frames: of pixels; 1 for pictures.
    time: frames of a latent frame.
    length: tokens of a caption.
    first_frames: whether the first frame of a clip is a picture, too.
  """
  latent = 1 + (frames - 1) // time
  several: dict[tuple[int, int], list[Records]] = {}
  for (f, h, w), records in latent_records.read(folder, split).items():
    if f == latent or (f > latent and (latent > 1 or first_frames)):
      several.setdefault((h, w), []).append(records)
  return [Samples(several[side], latent, length) for side in sorted(several)]


def joint(folder: Path, stage: Stage, seed: int, **options: Any) -> Mixed:
  """The batches of a stage, whose `mix` says how many samples of which length.

  Args:
    folder: of `latent_records`.
    stage: to train.
    seed: of the order.
    **options: of `sources`.

  Raises:
    DcjaxError: there is no sample of some length, or the mesh cannot share a
      part of the batch out.
  """
  parts = {}
  for frames, samples in stage.mix:
    found = sources(folder, 'train', frames, **options)
    if not found:
      raise DcjaxError(
        f'stage {stage.name!r} wants samples of {frames} frames, and {folder} '
        'has none of that length; give longer clips, pictures '
        '(data.stills), or data.first_frames'
      )
    parts[str(frames)] = pipeline.bucketed(
      found, batch=samples, seed=seed + frames
    )
  return Mixed(parts)


def held_out(folder: Path, stage: Stage, **options: Any) -> Any:
  """{frames: some samples of one shape}, or None if nothing is held out."""
  found = {}
  for frames, _ in stage.mix:
    several = sources(folder, 'held_out', frames, **options)
    if several:
      most = max(several, key=len)
      some = [most[i] for i in range(min(len(most), LOOKED_AT))]
      found[str(frames)] = jax.tree.map(lambda *x: np.stack(x), *some)
  return found or None


def null_text(folder: Path, length: int) -> dict[str, np.ndarray]:
  """The empty prompt: 'features' [1 l d] and 'mask' [1 l]."""
  features = latent_records.read_null(folder).astype(np.float32)
  n = len(features)
  return {
    'features': np.pad(features, ((0, length - n), (0, 0)))[None],
    'mask': np.arange(length)[None] < n,
  }
