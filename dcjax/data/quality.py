"""What is wrong with a clip, seen in pictures of 32 x 32: simple and fast.

Scene cuts (colour histograms and differences of neighbouring frames), black and
frozen stretches, and near-duplicates among files by difference hashes. These
are hints for a person who looks at the page, not verdicts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SIDE = 32
BINS = 4  # of each colour of a histogram
BLACK = 20.0  # of 255: the brightest twentieth of a black frame is below this
FROZEN = 0.4  # of 255: mean difference of frames that are the same picture
SECONDS = 0.5  # a shorter black or frozen stretch is not worth a word
HASHES = 5  # frames of a file that are hashed
NEAR_BITS = 6  # of 64, in which near-duplicates may differ
NEAR_COLOUR = 12.0  # of 255


class Stretch(NamedTuple):
  """From and to, in seconds."""

  start: float
  end: float


def small(image: np.ndarray) -> np.ndarray:
  """A frame uint8 [h w 3] -> uint8 [32 32 3], each pixel an average."""
  from PIL import Image

  resized = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
  return np.asarray(resized)


def cuts(frames: np.ndarray, times: np.ndarray) -> list[float]:
  """Times of hard cuts, in seconds.

  A cut changes the colours and the picture at once, and far more than the
  frames around it change; a fast motion does that over several frames.

  Args:
    frames: uint8 [n 32 32 3].
    times: [n] seconds.
  """
  if len(frames) < 2:
    return []
  change = _differences(frames) / 255
  histograms = np.stack([_histogram(x) for x in frames])
  colours = np.abs(np.diff(histograms, axis=0)).sum(axis=1) / 2
  found = []
  for i in range(len(change)):
    around = np.concatenate([change[max(0, i - 4) : i], change[i + 1 : i + 5]])
    usual = np.median(around) if len(around) else 0.0
    sudden = change[i] > 0.06 and change[i] > 3 * usual
    if sudden and colours[i] > 0.25:
      found.append(float(times[i + 1]))
  return found


def black(frames: np.ndarray, times: np.ndarray, end: float) -> list[Stretch]:
  """Stretches without light.

  Args:
    frames: uint8 [n 32 32 3].
    times: [n] seconds at which the frames appear.
    end: seconds at which the last one goes.
  """
  return _stretches(_dark(frames), times, np.append(times[1:], end))


def frozen(frames: np.ndarray, times: np.ndarray, end: float) -> list[Stretch]:
  """Stretches in which nothing moves though it is not dark; see `black`."""
  if len(frames) < 2:
    return []
  # Pairs in a row: a slow clip that repeats each of its frames stands still in
  # every second pair only.
  same = (_differences(frames) < FROZEN) & ~_dark(frames)[1:]
  return _stretches(same, times[:-1], np.append(times[2:], end))


def hashes(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Difference hashes of some frames, and those frames.

  Args:
    frames: uint8 [n 32 32 3].

  Returns:
    bool [m 64], whether each of 8 x 9 grey cells is darker than the next; and
    the frames as float32 [m 8 8 3].
  """
  count = min(HASHES, len(frames))
  index = np.linspace(0, len(frames) - 1, count).round().astype(int)
  from PIL import Image

  bits, coarse = [], []
  for frame in frames[index]:
    image = Image.fromarray(frame)
    grey = image.convert('L').resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(grey, np.float32)
    bits.append((grey[:, 1:] > grey[:, :-1]).ravel())
    coarse.append(np.asarray(image.resize((8, 8), Image.Resampling.BOX)))
  return np.stack(bits), np.stack(coarse).astype(np.float32)


def near_duplicates(
  files: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[tuple[int, int]]:
  """Pairs of files, of which most frames of one are nearly in the other.

  Args:
    files: of each what `hashes` gives.
  """
  if not files:
    return []
  bits = np.concatenate([x[0] for x in files])
  colours = np.concatenate([x[1] for x in files])
  owner = np.repeat(np.arange(len(files)), [len(x[0]) for x in files])
  total = np.bincount(owner)
  pairs = []
  for i, (own_bits, own_colours) in enumerate(files):
    later = owner > i
    if not later.any():
      break
    # Flat pictures have few edges to hash, so the colours must agree as well.
    near = (own_bits[:, None] != bits[later]).sum(axis=-1) <= NEAR_BITS
    distance = np.abs(own_colours[:, None] - colours[later])
    near &= distance.mean(axis=(2, 3, 4)) <= NEAR_COLOUR
    theirs = np.bincount(owner[later], near.any(axis=0), len(files)) / total
    for j in np.unique(owner[later]):
      ours = near[:, owner[later] == j].any(axis=1).mean()
      if max(ours, theirs[j]) > 0.5:
        pairs.append((i, int(j)))
  return pairs


def _dark(frames: np.ndarray) -> np.ndarray:
  return np.percentile(frames.max(axis=-1), 95, axis=(1, 2)) < BLACK


def _differences(frames: np.ndarray) -> np.ndarray:
  """Mean absolute difference [n-1] of neighbours, of 255."""
  pairs = zip(frames[1:], frames[:-1], strict=True)
  return np.array(
    [np.abs(a.astype(np.int16) - b).mean() for a, b in pairs], np.float64
  )


def _histogram(frame: np.ndarray) -> np.ndarray:
  """Shares [64] of the pixels in each cell of the colour cube."""
  cells = frame.reshape(-1, 3).astype(np.int64) * BINS // 256
  index = cells @ np.array([BINS * BINS, BINS, 1])
  return np.bincount(index, minlength=BINS**3) / len(index)


def _stretches(
  inside: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> list[Stretch]:
  """Runs of what is inside, each thing from its start to its end."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]])))
  found = [
    Stretch(float(starts[first]), float(ends[after - 1]))
    for first, after in edges.reshape(-1, 2)
  ]
  return [x for x in found if x.end - x.start >= SECONDS]
