"""Items with one midpoint: does what was asked for longer come out longer?

Who knows the midpoints alone cannot tell, and has a half of them right.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
import itertools
import math
from typing import Any

import numpy as np

from dcjax.evals.items import Item

# What a pair counts, by how the subject that was asked for longer came out
# beside the other; 'unseen' if one of the two was never seen.
ORDER = {'longer': 1.0, 'equal': 0.5, 'shorter': 0.0, 'unseen': 0.0}


def outcomes(
  items: Sequence[Item], lengths: Mapping[str, float]
) -> Iterator[tuple[Item, str]]:
  """(one of two, key of `ORDER`) for each pair of items of one group.

  Args:
    items: of a benchmark; those without a group are in no pair.
    lengths: {id: seconds} for which its first subject was seen; nan if never.
  """
  groups: dict[str, list[Item]] = defaultdict(list)
  for item in items:
    if item.group:
      groups[item.group].append(item)
  for members in groups.values():
    for a, b in itertools.combinations(sorted(members, key=_asked), 2):
      yield a, _outcome(lengths[b.id] - lengths[a.id])


def counts(
  items: Sequence[Item], found: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
  """How many pairs came out how: {key of `ORDER`: pairs}.

  Args:
    items: of the benchmark.
    found: 'items' of a record of `scoring.score`.
  """
  lengths = {}
  for item, x in zip(items, found, strict=True):
    first = x['subjects'][0]['intervals'][0]
    lengths[item.id] = first['end'] - first['start']
  found = [outcome for _, outcome in outcomes(items, lengths)]
  return {name: found.count(name) for name in ORDER}


def _asked(item: Item) -> float:
  start, end = item.subjects[0].intervals[0]
  return end - start


def _outcome(longer: float) -> str:
  if math.isnan(longer):
    return 'unseen'
  return ('shorter', 'equal', 'longer')[int(np.sign(round(longer, 6))) + 1]
