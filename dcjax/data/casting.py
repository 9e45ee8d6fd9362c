"""Annotated clips -> training samples: who is in the window, and when.

An interval is a run of frames in which a subject's mask covers more than half a
percent of the picture. Its picture comes from outside the window where there is
one, changed and centred on white (AlcheMinT, Sec. 4).

Frame i of the window is the instant i / fps and stands for half a frame on
either side of it: a run from i to j is the interval (i - 1/2) / fps to
(j + 1/2) / fps, and up to the end of the window if that is its first or last
frame.
"""

from collections.abc import Iterable, Sequence
import dataclasses

import numpy as np

from dcjax.data import augment as augment_lib
from dcjax.data import video as video_lib
from dcjax.data.augment import Change
from dcjax.data.canvas import canvas
from dcjax.data.subjects import AnnotatedClip, TimedText
from dcjax.errors import DcjaxError

AREA = 0.005  # of the picture
WINDOWS = ('random', 'first')


@dataclasses.dataclass(frozen=True)
class Reference:
  """A picture of a subject, and one interval in which it is there.

  Attributes:
    image: uint8 [h w 3], on white.
    word: what it is called, an exact part of the caption.
    start: seconds of the window.
    end: seconds of the window.
  """

  image: np.ndarray
  word: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True)
class Sample:
  """A window of a clip, with what it is conditioned on.

  Attributes:
    clip: uint8 [f h w 3].
    caption: of the whole clip.
    references: in no order.
    events: seconds of the window; sorted, and no two overlap.
    cover: [f h w] bool, where any subject is.
  """

  clip: np.ndarray
  caption: str
  references: tuple[Reference, ...]
  events: tuple[TimedText, ...]
  cover: np.ndarray


def cast(
  clip: AnnotatedClip,
  rng: np.random.Generator,
  *,
  frames: int,
  fps: float,
  size: tuple[int, int],
  max_references: int = 3,
  window: str = 'random',
  gap: float = 0.75,
  changes: Sequence[Change] = augment_lib.ALL,
) -> Sample:
  """Draws a sample.

  Args:
    clip: with its subjects.
    rng: everything random comes from it.
    frames: f, of the window.
    fps: of the window: at each multiple of 1/fps the frame nearest in time.
    size: (height, width); clips of another size are scaled to cover it and
      cropped, their masks alike.
    max_references: at most so many, and at least one if there is any.
    window: 'random', or 'first', which begins with the clip.
    gap: seconds. After a longer absence a subject that returns is another
      reference; a shorter one is bridged.
    changes: of the references' pictures; () leaves them as they are.

  Raises:
    DcjaxError: the clip is shorter than the window, or a number is impossible.
  """
  _check(clip, frames, fps, max_references, window)
  step = clip.fps / fps  # frames of the clip
  reach = (frames - 1) * step
  last = int(len(clip.video) - 1 - reach + 1e-6)
  start = int(rng.integers(last + 1)) if window == 'random' else 0
  taken = np.floor(start + step * np.arange(frames) + 0.5).astype(int)
  taken = np.minimum(taken, len(clip.video) - 1)
  masks = [_fit_mask(x.mask[taken], size) for x in clip.subjects]
  runs = [_runs(_is_seen(mask), fps, gap) for mask in masks]
  outside = np.ones(len(clip.video), bool)
  outside[taken[0] : taken[-1] + 1] = False
  references = []
  for s in _choose([len(x) for x in runs], rng, max_references):
    subject = clip.subjects[s]
    for run in runs[s][:max_references]:
      image = _picture(clip.video, subject.mask, outside, rng, changes, size)
      interval = _seconds(run, frames, fps)
      references.append(Reference(image, subject.word, *interval))
  order = rng.permutation(len(references))
  return Sample(
    clip=_fit(clip.video[taken], size),
    caption=clip.caption,
    references=tuple(references[i] for i in order),
    events=cut_events(clip.events, start / clip.fps, (frames - 1) / fps, fps),
    cover=np.any([np.zeros((frames, *size), bool), *masks], 0),
  )


def _check(
  clip: AnnotatedClip, frames: int, fps: float, max_references: int, window: str
) -> None:
  if window not in WINDOWS:
    raise DcjaxError(f"window is {window!r}, expected 'random' or 'first'")
  if frames < 2 or fps <= 0 or max_references < 1:
    raise DcjaxError(
      f'frames is {frames}, fps {fps} and max_references {max_references}; '
      'expected frames >= 2, fps > 0 and max_references >= 1'
    )
  needed = (frames - 1) * clip.fps / fps + 1
  if len(clip.video) < needed - 1e-6:
    raise DcjaxError(
      f'a clip has {len(clip.video)} frames at {clip.fps:g} a second; '
      f'{frames} frames at {fps:g} a second take {needed:g} of them'
    )


def _is_seen(mask: np.ndarray) -> np.ndarray:
  """[f] bool of [f h w]."""
  return mask.mean((1, 2)) > AREA


def _runs(seen: np.ndarray, fps: float, gap: float) -> list[tuple[int, int]]:
  """(first, last) of each run of true frames; short gaps are bridged."""
  found = []
  for i in np.flatnonzero(seen).tolist():
    # As many frames without it as lie between.
    if found and (i - found[-1][1] - 1) / fps < gap:
      found[-1] = (found[-1][0], i)
    else:
      found.append((i, i))
  return found


def _seconds(
  run: tuple[int, int], frames: int, fps: float
) -> tuple[float, float]:
  first, last = run
  start = 0.0 if first == 0 else (first - 0.5) / fps
  end = (last if last == frames - 1 else last + 0.5) / fps
  return start, end


def _choose(
  counts: Sequence[int], rng: np.random.Generator, most: int
) -> list[int]:
  """Which subjects are given as references, of the number of their runs.

  A subject is given with all of its runs or not at all: with one of two, the
  model would learn that references come when they are not asked to.
  """
  wanted = int(rng.integers(1, max(min(most, sum(counts)), 1) + 1))
  chosen, total = [], 0
  for s in rng.permutation(len(counts)).tolist():
    if counts[s] and total < wanted and total + min(counts[s], most) <= most:
      chosen.append(s)
      total += min(counts[s], most)
  return chosen


def _picture(
  video: np.ndarray,
  mask: np.ndarray,
  outside: np.ndarray,
  rng: np.random.Generator,
  changes: Sequence[Change],
  size: tuple[int, int],
) -> np.ndarray:
  """A subject on a canvas, from outside the window where it is seen there."""
  area = mask.mean((1, 2))
  for where in (outside, ~outside):
    there = where & (area > AREA)
    if there.any():
      break
  # Not while it is half hidden.
  there &= area >= area[there].max() / 2
  frame = int(rng.choice(np.flatnonzero(there)))
  image, cut = augment_lib.augment(video[frame], mask[frame], rng, changes)
  return canvas(image, size, cut)


def _fit(video: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  if video.shape[1:3] == tuple(size):
    return video
  return video_lib.fit(video_lib.Video(video, 1.0), *size).frames


def _fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  if mask.shape[1:] == tuple(size):
    return mask
  grey = np.where(mask, 255, 0).astype(np.uint8)
  return _fit(np.repeat(grey[..., None], 3, -1), size)[..., 0] > 127


def cut_events(
  events: Sequence[TimedText], start: float, seconds: float, fps: float
) -> tuple[TimedText, ...]:
  """Timed captions of a window: sorted, and cut so that none overlap.

  They are cut as by `apart`. What is then shorter than a frame is left out.

  Args:
    events: in seconds of the clip.
    start: seconds of the clip at which the window begins.
    seconds: duration of the window.
    fps: frames a second of the window.
  """
  least = 1.0 / fps
  inside = [
    (max(x.start - start, 0.0), min(x.end - start, seconds), x.text)
    for x in events
  ]
  return tuple(
    TimedText(text, begin, end)
    for begin, end, text in apart(x for x in inside if x[1] - x[0] >= least)
    if end - begin >= least
  )


def apart(
  told: Iterable[tuple[float, float, str]],
) -> list[tuple[float, float, str]]:
  """Timed captions in order of time, cut until no two overlap.

  Two that overlap are cut at the midpoint of what they share. Of one inside
  another, the longer one keeps its longer end.

  Args:
    told: (start, end, text) of each.
  """
  pieces = sorted(told)
  while (i := _first_overlap(pieces)) is not None:
    (a, b, one), (c, d, other) = pieces[i : i + 2]
    cut = (c + min(b, d)) / 2
    if b > d and c - a < b - d:
      pieces[i : i + 2] = (c, cut, other), (cut, b, one)
    else:
      pieces[i : i + 2] = (a, cut, one), (cut, d, other)
    pieces.sort()
  return pieces


def _first_overlap(pieces: Sequence[tuple[float, float, str]]) -> int | None:
  """The first of sorted intervals into which the next one reaches."""
  for i in range(len(pieces) - 1):
    if pieces[i + 1][0] < pieces[i][1]:
      return i
  return None
