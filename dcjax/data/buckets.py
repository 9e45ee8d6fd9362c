"""Buckets: the few shapes in which files of many sizes and lengths are learnt.

Each shape is a compilation, so there are few. A clip is read at the base's own
rate, hence at its true speed, and cut into windows of the bucket's length; its
picture is scaled to cover the bucket and cropped to the centre.

The shapes are those that lose least. What file i of n frames loses in a bucket
of F frames is

  (1)  cost = (cropped share of the picture) + (1 - F / min(n, F_max))
              + (share of its frames that is left over at the end),

the middle term being motion that no window shows as a whole. Choosing k shapes
that minimise the sum of the files' least costs is the k-median problem; here
greedy, then exchanges of one shape until none helps, then without the shapes
that the others have made idle.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from dcjax.errors import DcjaxError

MAX_ASPECT = 4.0  # of a bucket's sides
# What a further shape must save, in Eq. (1) and on the average of all files.
WORTH = 0.01
_NEVER = 10.0  # the cost of a bucket that cannot hold a file


class Size(NamedTuple):
  """Of a file: frames at the base's rate (1 for a picture), and pixels."""

  frames: int
  height: int
  width: int


class Bucket(NamedTuple):
  """One compiled shape, in frames and pixels."""

  frames: int
  height: int
  width: int

  def __str__(self):
    return f'{self.frames} x {self.height} x {self.width}'


@dataclasses.dataclass(frozen=True)
class Grid:
  """What a base can make, and about how much of it at once.

  Attributes:
    frames: the most; 1 plus a multiple of `time`.
    height: its product with the width is about the area of every bucket.
    width: pixels.
    rows: heights are multiples of this.
    columns: widths are multiples of this.
    time: clips have 1 + k `time` frames, k >= 1.
  """

  frames: int
  height: int
  width: int
  rows: int
  columns: int
  time: int


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a file is learnt, and what it loses there.

  Attributes:
    bucket: its shape.
    windows: samples that the file gives, one after the other.
    lost: frames that are left over at its end.
    cut: share of its picture that is cropped, 0 to 1.
    scale: by how much its picture is enlarged; below 1 it is reduced.
  """

  bucket: Bucket
  windows: int
  lost: int
  cut: float
  scale: float


def choose(sizes: Sequence[Size], grid: Grid, limit: int) -> list[Bucket]:
  """The buckets that lose least, at most `limit`, sorted.

  Raises:
    DcjaxError: there is no file, or the limit is too low for pictures and clips
      together.
  """
  if limit < 1:
    raise DcjaxError(f'data.buckets.max is {limit}; expected 1 or more')
  counts = Counter(sizes)
  stills = {size.frames == 1 for size in counts}
  if len(stills) > limit:
    raise DcjaxError(
      'data.buckets.max is 1, but pictures and clips need one shape each; '
      'expected 2 or more'
    )
  candidates = _candidates(list(counts), grid)
  cost = np.array(
    [[_cost(size, bucket, grid) for bucket in candidates] for size in counts]
  )
  weight = np.array(list(counts.values()), np.float64)
  chosen: list[int] = []
  for _ in range(2):  # the second time fills the places of idle shapes
    chosen = _greedy(chosen, cost, weight, limit)
    chosen = _useful(_exchanged(chosen, cost, weight), cost, weight)
  return sorted(candidates[i] for i in chosen)


def place(
  size: Size, buckets: Sequence[Bucket], grid: Grid, most: int = 0
) -> Place | None:
  """The bucket in which a file loses least, None if it is too short for all.

  Args:
    size: of the file.
    buckets: from `choose`.
    grid: the one they were chosen on.
    most: windows that one file may give; 0 for all.
  """
  best = min(buckets, key=lambda bucket: _cost(size, bucket, grid))
  if not _holds(size, best):
    return None
  windows = size.frames // best.frames
  windows = min(windows, most) if most else windows
  return Place(
    best,
    windows,
    size.frames - windows * best.frames,
    _cut(size, best),
    max(best.height / size.height, best.width / size.width),
  )


def table(places: Sequence[Place]) -> list[tuple[str, ...]]:
  """What each bucket keeps and loses: a head, a row a bucket, the total."""
  head = ('shape', 'files', 'samples', 'cropped', 'frames', 'left over')
  rows = [head]
  for bucket in sorted({x.bucket for x in places}):
    rows.append(_row(str(bucket), [x for x in places if x.bucket == bucket]))
  return rows + [_row('all', places)]


def lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
  """A table as text with aligned columns."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def _row(name: str, places: Sequence[Place]) -> tuple[str, ...]:
  count = len(places)
  used = sum(x.windows * x.bucket.frames for x in places)
  cut = sum(x.cut for x in places) / count if count else 0.0
  return (
    name,
    str(count),
    str(sum(x.windows for x in places)),
    f'{cut:.0%}',
    str(used),
    str(sum(x.lost for x in places)),
  )


# ---- the choice -------------------------------------------------------------


def _holds(size: Size, bucket: Bucket) -> bool:
  """A clip is never learnt as a picture, nor a picture as a clip."""
  if (size.frames == 1) != (bucket.frames == 1):
    return False
  return bucket.frames <= size.frames


def _cut(size: Size, bucket: Bucket) -> float:
  scale = max(bucket.height / size.height, bucket.width / size.width)
  kept = bucket.height * bucket.width / (scale * scale)
  return max(0.0, 1 - kept / (size.height * size.width))


def _cost(size: Size, bucket: Bucket, grid: Grid) -> float:
  """Eq. (1)."""
  if not _holds(size, bucket):
    return _NEVER
  span = bucket.frames / min(size.frames, grid.frames)
  lost = size.frames % bucket.frames / size.frames
  return _cut(size, bucket) + (1 - span) + lost


def _candidates(sizes: Sequence[Size], grid: Grid) -> list[Bucket]:
  """All sides of about the grid's area, all lengths that fit some file."""
  area = grid.height * grid.width
  least = math.sqrt(area / MAX_ASPECT)
  sides = []
  first = max(1, math.ceil(least / grid.rows))
  for row in range(first, max(first, int(area / least / grid.rows)) + 1):
    height = row * grid.rows
    columns = max(1, round(area / height / grid.columns))
    sides.append((height, columns * grid.columns))
  lengths = {_longest(min(size.frames, grid.frames), grid) for size in sizes}
  return [
    Bucket(f, *side) for f in sorted(lengths, reverse=True) for side in sides
  ]


def _longest(frames: int, grid: Grid) -> int:
  return 1 + (frames - 1) // grid.time * grid.time


def _greedy(
  chosen: list[int], cost: np.ndarray, weight: np.ndarray, limit: int
) -> list[int]:
  """Adds the candidate that saves most, while it is worth a compilation."""
  chosen = list(chosen)
  best = cost[:, chosen].min(axis=1, initial=_NEVER)
  while len(chosen) < limit:
    totals = weight @ np.minimum(best[:, None], cost)
    index = int(totals.argmin())
    saved = weight @ best - totals[index]
    if chosen and saved <= WORTH * weight.sum():
      break
    chosen.append(index)
    best = np.minimum(best, cost[:, index])
  return chosen


def _exchanged(
  chosen: list[int], cost: np.ndarray, weight: np.ndarray
) -> list[int]:
  """Replaces one candidate at a time while that lowers the sum."""
  total = weight @ cost[:, chosen].min(axis=1)
  improved = True
  while improved:
    improved = False
    for k in range(len(chosen)):
      rest = chosen[:k] + chosen[k + 1 :]
      best = cost[:, rest].min(axis=1, initial=_NEVER)
      totals = weight @ np.minimum(best[:, None], cost)
      index = int(totals.argmin())
      if totals[index] < total - 1e-9:
        chosen, total, improved = rest + [index], totals[index], True
  return chosen


def _useful(
  chosen: list[int], cost: np.ndarray, weight: np.ndarray
) -> list[int]:
  """Leaves out what saves too little beside the others."""
  total = lambda some: weight @ cost[:, some].min(axis=1, initial=_NEVER)
  for index in list(chosen):
    rest = [i for i in chosen if i != index]
    if rest and total(rest) - total(chosen) <= WORTH * weight.sum():
      chosen = rest
  return chosen
