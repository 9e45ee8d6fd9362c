"""What no model scores: the two baselines that every table of S2VTime needs.

A subject that never leaves the screen, and one that comes and goes at random
times. Both in closed form, so that they stand beside any set of intervals.
"""

from collections.abc import Sequence
import math

import numpy as np

from dcjax.evals import timing
from dcjax.evals.timing import Interval, Timing

_NAN = float('nan')


def always_present(
  asked: Sequence[Interval], frames: int, fps: float, seconds: float
) -> tuple[list[Timing], float]:
  """(Timing of each interval, frame IoU) of a subject that never leaves."""
  present = np.ones(frames, bool)
  wanted = timing.asked_frames(asked, frames, fps)
  return timing.score(present, asked, fps, seconds), timing.frame_iou(
    present, wanted
  )


def random_interval(
  asked: Sequence[Interval], frames: int, fps: float, seconds: float
) -> tuple[list[Timing], float]:
  """Expected scores of an interval between two independent uniform times.

  In closed form. One such interval is drawn for each asked one.

  Returns:
    (Timing of each asked interval, with nan as start and end; the expected
    frame IoU with all of them, of one such interval).
  """
  timing.check(asked, seconds)
  rows = [
    Timing(
      iou=_random_iou(s / seconds, e / seconds),
      l2=_random_l2(s / seconds, e / seconds),
      detected=1.0,
      start=_NAN,
      end=_NAN,
    )
    for s, e in asked
  ]
  return rows, _random_frame_iou(timing.asked_frames(asked, frames, fps))


def _random_iou(s: float, e: float) -> float:
  """E t-IoU of [min, max] of two uniform numbers with [s, e] in [0, 1].

  The sum of four integrals over 2 da db, of a and b both inside, one of them
  inside, and none.
  """
  length = e - s
  xlogx = lambda x: x * math.log(x) if x > 0 else 0.0
  inside = length**2 / 3
  one = length**2 * (math.log(e / length) + math.log((1 - s) / length))
  none = 2 * length * (xlogx(length) - xlogx(1 - s) - xlogx(e))
  return inside + one + none


def _random_l2(s: float, e: float) -> float:
  """E t-L2 of the same: a mean distance from a point to a triangle's points.

  From a point, the integral of the distance over a triangle with an edge at
  height h between the angles u and v is h^3/6 [sec tan + asinh tan] from u to
  v, and the triangle 0 <= a <= b <= 1 is the union of three such.
  """
  corners = np.array([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
  total = 0.0
  for i in range(3):
    p, q = corners[i] - (s, e), corners[(i + 1) % 3] - (s, e)
    along = (q - p) / np.hypot(*(q - p))
    height = abs(p[0] * along[1] - p[1] * along[0])
    if height > 1e-12:
      part = lambda x, h=height: (
        (x / h) * math.hypot(1, x / h) + math.asinh(x / h)
      )
      total += height**3 / 6 * (part(float(q @ along)) - part(float(p @ along)))
  # The triangle has area 1/2, and the mean of two squares a half.
  return 2 * total / math.sqrt(2)


def _random_frame_iou(wanted: np.ndarray) -> float:
  """E frame IoU of the same with frames [f]; 0 where no instant is covered."""
  n = len(wanted) - 1
  if n < 1:
    return float(wanted.any())
  # Its ends fall between frames p and p + 1, and between q and q + 1.
  first, last = np.meshgrid(np.arange(n) + 1, np.arange(n), indexing='ij')
  count = np.concatenate([[0], np.cumsum(wanted)])
  shown = last - first + 1
  both = count[last + 1] - count[first]
  either = np.maximum(shown + wanted.sum() - both, 1)
  chance = np.where(last >= first, 2.0, 0.0) / n**2
  return float((chance * both / either).sum())
