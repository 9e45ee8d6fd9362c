"""Annotated clips: who is on screen where and when, and what it is called.

A source of them is random access: `len(source)`, `source[i]`. On disk they are
a TFDS dataset of ArrayRecord files (docs/dataset.md), written and read without
TensorFlow.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import os
from pathlib import Path
import re
import tempfile
from typing import Any

import numpy as np

from dcjax.data.clip_bytes import (
  ENCODINGS,
  MAX_MASK_PIXELS,
  decode_mask,
  decode_video,
  encode_mask,
)
from dcjax.errors import DcjaxError

MAX_SUBJECTS = 15
VERSION = '1.0.0'  # of the format on disk
_SHARD = 256  # clips a file
_TOLERANCE = 1e-3  # seconds


@dataclasses.dataclass(frozen=True)
class Subject:
  """Something that a clip shows.

  Attributes:
    word: what it is called, an exact part of the clip's caption.
    mask: [f h w] bool, its visible pixels in every frame.
  """

  word: str
  mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class TimedText:
  """What happens from `start` to `end`, in seconds of the clip."""

  text: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True)
class AnnotatedClip:
  """A clip, and all that is known of it.

  Attributes:
    video: uint8 [f h w 3].
    fps: frames a second; frame i is the instant i / fps.
    caption: one text of the whole clip.
    subjects: in any order; may be empty.
    events: timed captions, in any order; may overlap.
  """

  video: np.ndarray
  fps: float
  caption: str
  subjects: tuple[Subject, ...]
  events: tuple[TimedText, ...]


class Dataset:
  """Annotated clips on disk, as `write` leaves them: a TFDS ArrayRecord folder.

  Clips are decoded when they are asked for, and checked by `check`.

  Args:
    folder: with `dataset_info.json`.
    split: one of the folder's.

  Raises:
    DcjaxError: there is no such dataset, or its features are not `features`.
  """

  def __init__(self, folder: str | os.PathLike, split: str = 'train'):
    import tensorflow_datasets as tfds

    self._folder = Path(folder)
    if not (self._folder / 'dataset_info.json').is_file():
      raise DcjaxError(
        f'{folder} holds no dataset of annotated clips: expected a folder with '
        'dataset_info.json'
      )
    try:
      builder = tfds.builder_from_directory(self._folder)
    # What broken JSON raises is told nowhere.
    except Exception as error:
      raise DcjaxError(
        f'{folder} is not a dataset that TFDS can read: {_first_line(error)}'
      ) from error
    _check_features(builder.info.features, self._folder)
    if split not in builder.info.splits:
      known = ', '.join(builder.info.splits) or 'none'
      raise DcjaxError(f'{folder} has no split {split!r}; it has: {known}')
    self._source = builder.as_data_source(split)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> AnnotatedClip:
    if not 0 <= index < len(self):
      raise IndexError(f'clip {index} of {len(self)}')
    where = f'{self._folder}: clip {index}'
    try:
      example = self._source[int(index)]
    except Exception as error:  # array_record and TFDS raise what they like
      raise DcjaxError(
        f'{where} cannot be read, its file is cut off or altered: '
        f'{_first_line(error)}'
      ) from error
    clip = _from_example(example, where)
    check(clip, where)
    return clip


def write(
  folder: str | os.PathLike,
  clips: Iterable[AnnotatedClip],
  *,
  split: str = 'train',
  encoding: str = 'mp4',
) -> int:
  """Writes a dataset; the folder appears whole or not at all.

  Args:
    folder: a new one.
    clips: taken one by one, so that they need not fit in memory.
    split: its name.
    encoding: 'mp4', H.264 that looks lossless, or 'webp', which is lossless.

  Returns:
    The number of clips.

  Raises:
    DcjaxError: the folder exists, the encoding is unknown, a clip breaks a rule
      of `check`, there is no clip, or the disk refuses.
  """
  folder = Path(folder)
  if folder.exists():
    raise DcjaxError(f'{folder} exists already; expected a new folder')
  if encoding not in ENCODINGS:
    raise DcjaxError(
      f'encoding is {encoding!r}, expected one of {", ".join(ENCODINGS)}'
    )
  if not re.fullmatch(r'\w+', split):
    raise DcjaxError(f'split is {split!r}, expected letters, digits and _')
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=folder.parent, prefix='.tmp-'
    ) as temporary:
      count = _write(Path(temporary, 'data'), clips, split, encoding)
      os.replace(Path(temporary, 'data'), folder)
  except OSError as error:
    raise DcjaxError(
      f'cannot write {folder}: {error.strerror or error}'
    ) from error
  return count


def features() -> Any:
  """The TFDS features of an annotated clip (docs/dataset.md)."""
  import tensorflow_datasets as tfds

  raw = lambda: tfds.features.Tensor(shape=(), dtype=np.object_)
  return tfds.features.FeaturesDict(
    {
      'video': raw(),
      'frames': np.int64,
      'height': np.int64,
      'width': np.int64,
      'fps': np.float64,
      'caption': tfds.features.Text(),
      'events': tfds.features.Sequence(
        {'text': tfds.features.Text(), 'start': np.float64, 'end': np.float64}
      ),
      'subjects': tfds.features.Sequence(
        {'word': tfds.features.Text(), 'mask': raw()}
      ),
    }
  )


def check(clip: AnnotatedClip, where: str = 'the clip') -> None:
  """Refuses what cannot be trained on.

  Args:
    clip: to look at.
    where: how messages call it.

  Raises:
    DcjaxError: the video is not uint8 [f h w 3]; a rate or time is impossible;
      a word is empty, said twice, or no part of the caption; a mask is not as
      large as the video; an event lies outside of it; there are too many
      subjects.
  """
  video = clip.video
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
    raise DcjaxError(
      f'{where}: its video is {video.dtype} {list(video.shape)}, expected '
      'uint8 [f h w 3]'
    )
  if not video.size:
    raise DcjaxError(f'{where}: its video is empty, {list(video.shape)}')
  if not (math.isfinite(clip.fps) and clip.fps > 0):
    raise DcjaxError(f'{where}: fps is {clip.fps}, expected a number above 0')
  if len(clip.subjects) > MAX_SUBJECTS:
    raise DcjaxError(
      f'{where} has {len(clip.subjects)} subjects, expected at most '
      f'{MAX_SUBJECTS}'
    )
  _check_subjects(clip, where)
  seconds = len(video) / clip.fps
  for event in clip.events:
    if not event.text.strip():
      raise DcjaxError(f'{where}: an event has no text')
    # A NaN fails too.
    if not 0 <= event.start < event.end <= seconds + _TOLERANCE:
      raise DcjaxError(
        f'{where}: the event {event.text!r} is from {event.start:g} to '
        f'{event.end:g} s, expected 0 <= start < end <= {seconds:g}'
      )


def _check_subjects(clip: AnnotatedClip, where: str) -> None:
  words = [x.word for x in clip.subjects]
  for subject in clip.subjects:
    word, mask = subject.word, subject.mask
    if not word.strip() or word not in clip.caption:
      raise DcjaxError(
        f'{where}: {word!r} is not a part of its caption, {clip.caption!r}'
      )
    if words.count(word) > 1:
      raise DcjaxError(
        f'{where}: two subjects are called {word!r}; expected a word of its '
        'own for each'
      )
    if mask.dtype != bool or mask.shape != clip.video.shape[:3]:
      raise DcjaxError(
        f'{where}: the mask of {word!r} is {mask.dtype} {list(mask.shape)}, '
        f'expected bool {list(clip.video.shape[:3])}'
      )


def _check_features(found: Any, folder: Path) -> None:
  expected = set(features())
  if set(found) != expected:
    names = lambda x: ', '.join(sorted(x)) or 'none'
    raise DcjaxError(
      f'{folder} is another kind of dataset; missing features: '
      f'{names(expected - set(found))}; unknown: {names(set(found) - expected)}'
    )


def _write(
  folder: Path, clips: Iterable[AnnotatedClip], split: str, encoding: str
) -> int:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.dataset_info import DatasetIdentity

  folder.mkdir()
  identity = DatasetIdentity(
    name='annotated_clips',
    version=tfds.core.Version(VERSION),
    data_dir=str(folder),
    module_name='',
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    features=features(),
    description='Clips with masks, words and timed captions of their subjects.',
  )
  writer = tfds.core.SequentialWriter(
    info, max_examples_per_shard=_SHARD, file_format='array_record'
  )
  writer.initialize_splits([split])
  count = 0
  for count, clip in enumerate(clips, 1):
    where = f'clip {count - 1}'
    check(clip, where)
    example = _to_example(clip, encoding, where)
    writer.add_examples({split: [example]})
  if not count:
    raise DcjaxError('there are no clips to write')
  writer.close_all()
  return count


def _to_example(
  clip: AnnotatedClip, encoding: str, where: str
) -> dict[str, Any]:
  f, h, w, _ = clip.video.shape
  if f * h * w > MAX_MASK_PIXELS and clip.subjects:
    raise DcjaxError(
      f'{where} is too long for its masks, {f} frames of {h}x{w}; cut it at '
      f'{MAX_MASK_PIXELS // (h * w)} frames'
    )
  return {
    'video': ENCODINGS[encoding](clip.video, clip.fps),
    'frames': f,
    'height': h,
    'width': w,
    'fps': float(clip.fps),
    'caption': clip.caption,
    'events': [dataclasses.asdict(x) for x in clip.events],
    'subjects': [
      {'word': x.word, 'mask': encode_mask(x.mask)} for x in clip.subjects
    ],
  }


def _from_example(example: Mapping[str, Any], where: str) -> AnnotatedClip:
  f, h, w = (int(example[x]) for x in ('frames', 'height', 'width'))
  events, subjects = example['events'], example['subjects']
  # Times are stored with seven digits.
  times = [[round(float(x), 6) for x in events[k]] for k in ('start', 'end')]
  return AnnotatedClip(
    video=decode_video(example['video'], (f, h, w), where),
    fps=float(example['fps']),
    caption=_text(example['caption']),
    subjects=tuple(
      Subject(_text(word), decode_mask(mask, (f, h, w), where))
      for word, mask in zip(subjects['word'], subjects['mask'], strict=True)
    ),
    events=tuple(
      TimedText(_text(text), start, end)
      for text, start, end in zip(events['text'], *times, strict=True)
    ),
  )


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), type(error).__name__)
