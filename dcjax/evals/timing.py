"""Who is on screen when: the numbers of S2VTime (AlcheMinT, Sec. 4).

Pure numpy on two things: the intervals that were asked for, in seconds, and in
which frames each subject was seen.

How frames become time. Frame i of a video at `fps` is the instant i / fps and
stands for the half frame on either side of it. A subject that is seen in frames
i to j is therefore there from (i - 1/2) / fps to (j + 1/2) / fps, and up to the
border of the video if that frame is the first or the last. A perfect rendering
of an interval is off by at most half a frame at each end, by none if the asked
times lie midway between frames, and in the mean it is neither early nor late,
long nor short.

A subject that was never seen has t-IoU 0 and t-L2 1. How often it was seen is
its own number (`detected`), so that no mean hides it.
"""

from collections.abc import Sequence
import itertools
import math
from typing import NamedTuple

import numpy as np

from dcjax.errors import DcjaxError

# A subject is in a frame if its mask covers more of it (METHOD of S2VTime).
AREA = 0.005
# Entry and exit are soft: this much at each end of a gap is not judged.
MARGIN = 0.25  # seconds

Interval = tuple[float, float]  # seconds, start < end
_NAN = float('nan')


class Timing(NamedTuple):
  """Scores of one asked interval; one row of a table."""

  iou: float  # t-IoU in [0, 1]
  l2: float  # t-L2 in [0, 1], RMS of both ends' errors over the duration
  detected: float  # 1 if the subject was seen in any frame of its own, else 0
  start: float  # seconds of the predicted interval, nan if there is none
  end: float


class Reentry(NamedTuple):
  """Scores of the gaps between the asked intervals of one subject."""

  returned: float  # part of the gaps after which it came back
  empty: float  # part of the gaps in which it was never seen


def presence(masks: np.ndarray, area: float = AREA) -> np.ndarray:
  """In which frames a subject is seen.

  Args:
    masks: [... f h w] bool.
    area: part of the frame that a mask must exceed.

  Returns:
    [... f] bool.
  """
  return np.asarray(masks).mean((-2, -1)) > area


def asked_frames(
  intervals: Sequence[Interval], frames: int, fps: float
) -> np.ndarray:
  """[f] bool: the frames whose instants lie in any of the intervals."""
  time = np.arange(frames) / fps
  # Times that were written down with three digits still hit their frame.
  inside = [(s - 1e-3 <= time) & (time <= e + 1e-3) for s, e in intervals]
  return np.any(inside, 0) if inside else np.zeros(frames, bool)


def runs(present: np.ndarray) -> list[tuple[int, int]]:
  """(first, last) of every run of true frames of [f]."""
  padded = np.concatenate([[0], np.asarray(present, np.int8), [0]])
  change = np.flatnonzero(np.diff(padded))
  return [(int(a), int(b) - 1) for a, b in change.reshape(-1, 2)]


def span(
  present: np.ndarray, fps: float, seconds: float | None = None
) -> Interval | None:
  """The predicted interval: from the first to the last frame with the subject.

  Args:
    present: [f] bool.
    fps: frames a second.
    seconds: duration of the video; None: (f - 1) / fps, its last instant.

  Returns:
    Seconds, or None if no frame shows it.
  """
  seen = np.flatnonzero(present)
  if not len(seen):
    return None
  last = len(present) - 1
  seconds = last / fps if seconds is None else seconds
  start = 0.0 if seen[0] == 0 else (seen[0] - 0.5) / fps
  end = seconds if seen[-1] == last else (seen[-1] + 0.5) / fps
  return float(start), float(end)


def t_iou(predicted: Interval | None, asked: Interval) -> float:
  """Overlap over union of two intervals; 0 without a prediction."""
  if predicted is None:
    return 0.0
  both = min(predicted[1], asked[1]) - max(predicted[0], asked[0])
  either = max(predicted[1], asked[1]) - min(predicted[0], asked[0])
  return max(both, 0.0) / either


def t_l2(predicted: Interval | None, asked: Interval, seconds: float) -> float:
  """Root mean square of both ends' errors over the duration, in [0, 1].

  1 without a prediction.
  """
  if predicted is None:
    return 1.0
  start, end = predicted[0] - asked[0], predicted[1] - asked[1]
  return min(math.sqrt((start**2 + end**2) / 2) / seconds, 1.0)


def frame_iou(present: np.ndarray, asked: np.ndarray) -> float:
  """Frames with the subject that were asked for, over frames of either.

  t-IoU punishes a single stray frame as much as a long one; this does not.
  Both are [f] bool. Nan if no frame was asked for and none shows it.
  """
  either = (present | asked).sum()
  return float((present & asked).sum() / either) if either else _NAN


def match(
  present: np.ndarray,
  asked: Sequence[Interval],
  fps: float,
  seconds: float | None = None,
) -> list[Interval | None]:
  """The predicted interval for each interval asked of one subject.

  A run of frames belongs to the asked interval that it meets, or to the nearest
  one. A run that meets several is cut in the middle of the gaps between them.
  What belongs to one asked interval is one prediction, from its first frame to
  its last. With one asked interval that is `span`.

  Args:
    present: [f] bool.
    asked: intervals in order of time, not overlapping.
    fps: frames a second.
    seconds: duration of the video.

  Returns:
    A predicted interval or None for each asked one.

  Raises:
    DcjaxError: intervals that overlap or are out of order.
  """
  check(asked)
  own = [np.zeros(len(present), bool) for _ in asked]
  time = np.arange(len(present)) / fps
  cuts = [(a[1] + b[0]) / 2 for a, b in itertools.pairwise(asked)]
  cell = np.searchsorted(cuts, time, side='right')
  for first, last in runs(present):
    frames = slice(first, last + 1)
    met = [
      n
      for n, interval in enumerate(asked)
      if asked_frames([interval], len(present), fps)[frames].any()
    ]
    if len(met) > 1:
      for n in range(len(asked)):
        own[n][frames] |= cell[frames] == n
    else:
      middle = (time[first] + time[last]) / 2
      away = [max(s - middle, middle - e, 0.0) for s, e in asked]
      own[met[0] if met else int(np.argmin(away))][frames] = True
  return [span(mine, fps, seconds) for mine in own]


def score(
  present: np.ndarray,
  asked: Sequence[Interval],
  fps: float,
  seconds: float | None = None,
) -> list[Timing]:
  """Scores each interval asked of one subject.

  Args:
    present: [f] bool, whether the subject is seen.
    asked: its intervals in seconds, in order of time, not overlapping.
    fps: frames a second.
    seconds: duration of the video; None: (f - 1) / fps.

  Returns:
    A Timing for each asked interval.

  Raises:
    DcjaxError: intervals that overlap or are out of order.
  """
  seconds = (len(present) - 1) / fps if seconds is None else seconds
  rows = []
  predictions = match(present, asked, fps, seconds)
  for predicted, interval in zip(predictions, asked, strict=True):
    start, end = predicted or (_NAN, _NAN)
    rows.append(
      Timing(
        iou=t_iou(predicted, interval),
        l2=t_l2(predicted, interval, seconds),
        detected=float(predicted is not None),
        start=start,
        end=end,
      )
    )
  return rows


def reentry(
  present: np.ndarray,
  asked: Sequence[Interval],
  fps: float,
  margin: float = MARGIN,
) -> Reentry:
  """What happens in the gaps between the asked intervals of one subject.

  A subject returned if frames of the interval before and of the one after show
  it, and a frame of the gap does not. A gap is empty if none of its frames,
  `margin` seconds at both ends apart, shows it. Nan without a gap (or, for
  `empty`, without a gap that has frames to judge).

  Args:
    present: [f] bool.
    asked: intervals in seconds, in order of time, not overlapping.
    fps: frames a second.
    margin: seconds at both ends of a gap that are not judged.
  """
  check(asked)
  returned, empty = [], []
  inside = [
    present[asked_frames([interval], len(present), fps)].any()
    for interval in asked
  ]
  time = np.arange(len(present)) / fps
  for n, (before, after) in enumerate(itertools.pairwise(asked)):
    gap = (time > before[1] + 1e-3) & (time < after[0] - 1e-3)
    left = gap.any() and not present[gap].all()
    returned.append(float(inside[n] and inside[n + 1] and left))
    core = (time > before[1] + margin) & (time < after[0] - margin)
    if core.any():
      empty.append(float(not present[core].any()))
  mean = lambda x: float(np.mean(x)) if x else _NAN
  return Reentry(mean(returned), mean(empty))


def check(asked: Sequence[Interval], seconds: float = math.inf) -> None:
  """Refuses intervals of one subject that make no sense.

  Raises:
    DcjaxError: one is empty, reversed or outside the video, or two overlap.
  """
  for s, e in asked:
    if not (0 <= s < e <= seconds + 1e-6):
      until = '' if seconds == math.inf else f' <= {seconds:g}'
      raise DcjaxError(
        f'interval {s:g} to {e:g} s; expected 0 <= start < end{until}'
      )
  for (_, end), (start, _) in itertools.pairwise(asked):
    if start < end:
      raise DcjaxError(
        'intervals must be in order and apart, but one starts '
        f'at {start:g} s before another ends at {end:g} s'
      )


# ---- who is who --------------------------------------------------------------


def swaps(similarity: np.ndarray) -> np.ndarray:
  """Whether each subject looks most like another subject's reference.

  Args:
    similarity: [s s], of subject s (rows) to the reference of subject m. A row
      of nans is a subject that was not seen.

  Returns:
    [s] of 0 and 1; nan for one that was not seen, and where there is only one
    subject. A tie is no swap.
  """
  similarity = _square(similarity)
  own = np.diagonal(similarity)
  others = _others(similarity)
  wrong = (np.nan_to_num(others, nan=-np.inf) > own).astype(float)
  return np.where(np.isnan(own) | np.isnan(others), _NAN, wrong)


def leaks(
  similarity: np.ndarray, between: np.ndarray | None = None
) -> np.ndarray:
  """How much of another subject's reference is in the look of each subject.

    leak_s = max over m != s of (sim[s, m] - ref[s, m]) / (1 - ref[s, m])

  clipped to [0, 1]: 0 if it looks no more like m than its own reference does,
  1 if it looks like nothing but m.

  Args:
    similarity: [s s], at most 1, of subject s to the reference of subject m.
    between: [s s], of reference s to reference m; None if they have nothing in
      common.

  Returns:
    [s]; nan for one that was not seen, and where there is only one subject.
  """
  similarity = _square(similarity)
  between = np.zeros_like(similarity) if between is None else _square(between)
  excess = (similarity - between) / np.maximum(1 - between, 1e-6)
  return np.clip(_others(excess), 0, 1)


def _others(matrix: np.ndarray) -> np.ndarray:
  """[s] largest of each row [s s] off the diagonal; nan where there is none."""
  off = np.where(np.eye(len(matrix), dtype=bool), -np.inf, matrix)
  best = off.max(1, initial=-np.inf)
  return np.where(np.isneginf(best), _NAN, best)


def _square(matrix: np.ndarray) -> np.ndarray:
  matrix = np.asarray(matrix, np.float64)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
    raise DcjaxError(
      f'similarities of subjects to references are [s s], got {matrix.shape}'
    )
  return matrix
