"""How references and timed captions enter a transformer."""

import dataclasses
import math

from dcjax.errors import DcjaxError
from dcjax.models import intervals


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
  """How references and timed captions enter a transformer.

  Attributes:
    scheme: 'werope', 'midrope' or 'norope', see `intervals.anchors`.
    anchors: outer anchors of WeRoPE.
    border: what becomes of them at the ends of the video.
    middle: weight of the middle anchor.
    edge: weight of the outer ones.
    margin: latent frames, for the anchors of that name.
    rotate: 'qk', the weighted table for queries and keys of a reference; 'k',
      for its keys alone, while its queries have MidRoPE.
    max_references: rows of the index embedding.
    tag_tokens: s, tokens of a word; 0 leaves the tags out.
    event_length: L of ReRoPE; 0 leaves the branch of timed captions out.
    presence: video frames of a latent frame of which the video's tokens are
      told who is there; 0 leaves them untold, as the paper does.
  """

  scheme: str = 'werope'
  anchors: str = 'outside'
  border: str = 'absorb'
  middle: float = 5 / 3
  edge: float = -1 / 3
  margin: float = 3.0
  rotate: str = 'qk'
  max_references: int = 16
  tag_tokens: int = 8
  event_length: float = 8.0
  presence: int = 0

  def __post_init__(self):
    for key, names in _CHOICES.items():
      if getattr(self, key) not in names:
        raise DcjaxError(
          f'references.{key} is {getattr(self, key)!r}; use one of '
          f'{", ".join(names)}'
        )
    for key, least in _LEAST.items():
      if not getattr(self, key) >= least:  # nan is no number either
        raise DcjaxError(
          f'references.{key} is {getattr(self, key)}; expected {least} or more'
        )

    for key in ('middle', 'edge'):
      if not math.isfinite(getattr(self, key)):
        raise DcjaxError(
          f'references.{key} is {getattr(self, key)}; expected a number'
        )


_CHOICES = {
  'scheme': intervals.SCHEMES,
  'anchors': intervals.ANCHORS,
  'border': intervals.BORDERS,
  'rotate': ('qk', 'k'),
}
_LEAST = {
  'max_references': 1,
  'tag_tokens': 0,
  'event_length': 0,
  'margin': 0,
  'presence': 0,
}
