"""What a judge of S2VTime is: who is where in a video, and like whom.

A judge is a function

  judge(video, fps, item, pictures) -> Verdict

of a video [f h w 3] uint8, its frames a second, the item that it was made of
and the picture of each of its subjects, uint8 [h w 3] or None. The item tells
it what to look for, in words and descriptions, and when a look is worth most:
a judge may search for a subject there alone. Once it is found, the asked
intervals do not decide in which frames it is.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dcjax.evals.items import Item


class Verdict(NamedTuple):
  """What a judge saw of the s subjects of an item; nan where not seen."""

  masks: np.ndarray  # [s f h w] bool, the pixels of each subject
  text: np.ndarray  # [s] agreement of what is seen with the words
  reference: np.ndarray  # [s] agreement with the subject's own picture
  # [s s] of subject s with whom the reference of subject m shows.
  similarity: np.ndarray
  between: np.ndarray  # [s s] of the references among themselves


class Judge(Protocol):
  """See the head of this file."""

  def __call__(
    self,
    video: np.ndarray,
    fps: float,
    item: Item,
    pictures: Sequence[np.ndarray | None],
  ) -> Verdict: ...
