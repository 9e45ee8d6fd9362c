"""Means with their 95% intervals, drawn from the values themselves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_NAN = float('nan')


class Mean(NamedTuple):
  """A mean with its 95% interval; `n` values, nans apart."""

  mean: float
  low: float
  high: float
  n: int


def mean(
  values: Sequence[float],
  groups: Sequence[object] | None = None,
  *,
  seed: int = 0,
  draws: int = 2000,
  level: float = 0.95,
) -> Mean:
  """A mean with its percentile bootstrap interval.

  Args:
    values: numbers; nans are left out.
    groups: what each belongs to, such as its video: whole groups are drawn, as
      the values of one are not independent. None: each is its own.
    seed: of the draws; the same one gives the same interval.
    draws: how many.
    level: of the interval.

  Returns:
    Mean; all nan without values.
  """
  values = np.asarray(values, np.float64)
  keep = ~np.isnan(values)
  if not keep.any():
    return Mean(_NAN, _NAN, _NAN, 0)
  groups = np.arange(len(values)) if groups is None else np.asarray(groups)
  _, index = np.unique(groups[keep], return_inverse=True)
  total = np.bincount(index, values[keep])
  count = np.bincount(index)
  rng = np.random.default_rng(seed)
  drawn = rng.integers(0, len(total), (draws, len(total)))
  means = total[drawn].sum(1) / count[drawn].sum(1)
  tail = (1 - level) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  center = total.sum() / count.sum()
  return Mean(float(center), float(low), float(high), int(keep.sum()))
