"""What one head of attention can read of an interval from its rotations.

  python benchmarks/rotations.py
  python benchmarks/rotations.py --frames=21 --channels=44

Nothing is trained but a reader. A query of latent frame t and a key that was
rotated for an interval make the logit

  sum over frequencies w of  a_w Re(e^(-iwt) z_w) + b_w Im(e^(-iwt) z_w)

where z_w are the rotations of the interval, summed with their weights, and the
contents of the two are free in each pair of channels: a_w and b_w are any
numbers. So the best a and b, by logistic regression over many intervals, say
how much of each scheme one head can make use of, at once for all intervals.
What large numbers read, small ones may not: so they are held down by more or by
less. A model has more heads, and has to find these numbers first.
"""

import argparse
from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import numpy as np
import record

from dcjax.data import timeline
from dcjax.errors import DcjaxError
from dcjax.models import intervals, rope

# Row -> options of `intervals.anchors`.
SCHEMES: dict[str, dict[str, Any]] = {
  'no rotation': {'scheme': 'norope'},  # the interval is not told
  'midrope': {'scheme': 'midrope'},
  'werope, absorbed': {'border': 'absorb'},
  'werope, kept': {'border': 'keep'},
  'weights 3 and -1, kept': {'border': 'keep', 'middle': 3.0, 'edge': -1.0},
  'as printed, kept': {'kind': 'printed', 'border': 'keep'},
  'ends, kept': {'kind': 'ends', 'border': 'keep'},
  'margin, absorbed': {'kind': 'margin', 'border': 'absorb'},
  'margin, kept': {'kind': 'margin', 'border': 'keep'},
}
# Latent frames, and channels of a head that are rotated by time.
LENGTHS = {'world, 2 s': (5, 12), 'wan, 5 s': (21, 44), 'snap, 5 s': (31, 64)}


class Reader(NamedTuple):
  """A logit [..] = features [.. f] @ weights + bias; present above 0."""

  weights: np.ndarray
  bias: float

  def __call__(self, features: np.ndarray) -> np.ndarray:
    return features @ self.weights + self.bias


@functools.cache
def draw(n: int, seed: int) -> np.ndarray:
  """Intervals [n 2] of subjects of the world's clips, fractions of a clip."""
  clips, found = timeline.World(n, seed=seed), []
  for i in range(n):
    scene = clips.appearances(i).scene
    spans = scene.interval[: scene.count].reshape(-1, 2)
    found += [span for span in spans if span[0] >= 0]
    if len(found) >= n:
      break
  return np.asarray(found[:n], np.float64)


def features(
  interval: np.ndarray, frames: int, channels: int, options: dict[str, Any]
) -> np.ndarray:
  """[n t 2f]: real and imaginary parts of each frequency, for each frame."""
  at, weights = intervals.anchors(interval, frames, **options)
  split = (channels,)
  turned = rope.table(np.asarray(at)[..., None], split)
  cos, sin = (
    (np.asarray(x) * np.asarray(weights)[..., None]).sum(1) for x in turned
  )
  query = rope.table(np.arange(frames)[:, None], split)
  c, s = (np.asarray(x)[None] for x in query)
  cos, sin = cos[:, None], sin[:, None]
  return np.concatenate([c * cos + s * sin, c * sin - s * cos], axis=-1)


def present(span: np.ndarray, frames: int) -> np.ndarray:
  """Whether half a latent frame or more is in an interval, [n t] bool."""
  times, interval = np.arange(frames), span * (frames - 1)
  return (times >= interval[:, :1] - 0.5) & (times <= interval[:, 1:] + 0.5)


def fit(x: np.ndarray, y: np.ndarray, decay: float) -> Reader:
  """Logistic regression of y [m] on x [m f], by Newton's method."""
  x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
  penalty = np.r_[np.full(x.shape[1] - 1, decay), 0.0]
  weights = np.zeros(x.shape[1])
  for _ in range(50):
    p = 1 / (1 + np.exp(-(x @ weights)))
    slope = x.T @ (p - y) / len(y) + penalty * weights
    curve = (x * (p * (1 - p))[:, None]).T @ x / len(y) + np.diag(penalty)
    step = np.linalg.solve(curve, slope)
    weights -= step
    if np.abs(step).max() < 1e-6:
      break
  return Reader(weights[:-1], float(weights[-1]))


def iou(said: np.ndarray, true: np.ndarray) -> np.ndarray:
  """[n] of frames [n t]."""
  return (said & true).sum(1) / np.maximum((said | true).sum(1), 1)


def order(read: Callable[[np.ndarray], np.ndarray], seed: int) -> float:
  """How often the longer of two intervals with one middle has more frames.

  Pairs as those of S2VTime: a third of the clip and two thirds, inside of it.
  As many frames of both count half.
  """
  rng = np.random.default_rng(seed)
  middle, counts = rng.uniform(0.43, 0.57, 1000), []
  for least, most in ((0.25, 0.35), (0.65, 0.8)):
    half = rng.uniform(least, most, 1000) / 2
    about = np.stack([middle - half, middle + half], axis=1)
    counts.append((read(about) > 0).sum(1))
  short, long = counts
  return float(((long > short) + 0.5 * (long == short)).mean())


def measure(
  frames: int,
  channels: int,
  options: dict[str, Any],
  decay: float,
  count: int,
  seed: int,
) -> dict[str, float]:
  """A reader of some intervals, on others."""
  last = frames - 1
  seen, new = draw(count, seed), draw(count, seed + 1)
  x, y = features(seen * last, frames, channels, options), present(seen, frames)
  reader = fit(x.reshape(-1, x.shape[-1]), y.ravel(), decay)
  # A frame counts as present above the threshold that suits the first ones.
  logits = reader(x)
  best = max(np.linspace(-2, 2, 41), key=lambda t: iou(logits > t, y).mean())
  reader = reader._replace(bias=reader.bias - best)
  read = lambda span: reader(features(span * last, frames, channels, options))
  found = iou(read(new) > 0, present(new, frames))
  inside = (new[:, 0] > 0) & (new[:, 1] < 1)
  return {
    'IoU': float(found.mean()),
    'inside': float(found[inside].mean()),
    'at a border': float(found[~inside].mean()),
    'order': order(read, seed + 2),
    'largest': float(np.abs(reader.weights).max()),
  }


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--frames', type=int, default=0, help='latent frames')
  parser.add_argument(
    '--channels', type=int, default=44, help='of a head, rotated by time'
  )
  parser.add_argument('--count', type=int, default=3000, help='intervals')
  parser.add_argument(
    '--decay', type=float, nargs='+', default=[1e-2, 1e-4], help='of a and b'
  )
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  if args.frames and (args.frames < 2 or args.channels % 2):
    raise DcjaxError(
      f'--frames={args.frames} --channels={args.channels}; expected 2 or more '
      'frames and an even number of channels'
    )
  lengths = LENGTHS
  if args.frames:
    lengths = {f'{args.frames} frames': (args.frames, args.channels)}
  found: dict[str, Any] = {}
  for name, (frames, channels) in lengths.items():
    found[name] = {}
    for decay in args.decay:
      print(f'{name}: {frames} latent frames, {channels} channels, {decay:g}')
      found[name][f'{decay:g}'] = rows = {}
      for row, options in SCHEMES.items():
        rows[row] = measure(
          frames, channels, options, decay, args.count, args.seed
        )
        cells = rows[row].items()
        print(f'  {row:24}' + '  '.join(f'{k} {x:.3f}' for k, x in cells))
  path = record.write('rotations', {'rows': found} | vars(args))
  print(f'\n{path}')


if __name__ == '__main__':
  record.run(main)
