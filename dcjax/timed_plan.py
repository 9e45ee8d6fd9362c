"""What a base makes of a storyboard: lengths, times and numbers in full."""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from dcjax import flow
from dcjax.errors import DcjaxError
from dcjax.models import intervals
from dcjax.storyboard import Guidance, Storyboard
from dcjax.weights.base import Base

# Seconds: what ends as near to the end of the video ends with it.
_SAME = 1e-6


class Changes(NamedTuple):
  """What a caller says otherwise than the storyboards; None: as they say."""

  frames: int | None = None
  height: int | None = None
  width: int | None = None
  seed: int | None = None
  steps: int | None = None
  shift: float | None = None
  guidance: Guidance | None = None


def defaults(base: Base) -> dict[str, Any]:
  """Steps, shift, guidance and sampler of storyboards that do not say.

  The embedded base has its own, chosen by what docs/results.md shows; others
  those of AlcheMinT, with the guidance of three weights that is Wan's 5 where
  there are no references, or Video Alchemist's 8 and 3 for what is not Wan.
  """
  if base.name == 'world':
    return {
      'steps': base.format.steps,
      'shift': base.shift,
      'guidance': Guidance(
        text=base.format.guidance - 1.0, reference=5.0, time=2.0
      ),
      'sampler': 'unipc',
    }
  return {
    'steps': 40,
    'shift': 5.66,
    'guidance': Guidance(4.0, 1.5) if base.dit.is_wan else Guidance(8.0, 3.0),
    'sampler': 'euler',
  }


def resolve(
  base: Base, story: Storyboard, changes: Changes | None = None
) -> Storyboard:
  """The storyboard with the base's values where it has none.

  Raises:
    DcjaxError: the base cannot make that length or size, or an interval is
      outside the video.
  """
  f, own, changes = base.format, defaults(base), changes or Changes()
  fps = _first(story.fps, f.fps)
  seconds = _first(story.seconds, (f.frames - 1) / fps)
  if changes.frames is not None:
    seconds = (changes.frames - 1) / fps
  height, width = _first(story.size, (f.height, f.width))
  new = dataclasses.replace(
    story,
    fps=fps,
    seconds=seconds,
    size=(_first(changes.height, height), _first(changes.width, width)),
    seed=_first(changes.seed, story.seed),
    **{
      key: _first(getattr(changes, key), getattr(story, key), own[key])
      for key in ('steps', 'shift', 'guidance')
    },
    references=[_ending(x, seconds) for x in story.references],
    concepts=[_ending(x, seconds) for x in story.concepts],
  )
  frames = frames_of(base, new)
  base.latent_shape(frames, *new.size)
  return _lasting(new, (frames - 1) / fps)


def _lasting(story: Storyboard, seconds: float) -> Storyboard:
  """For as long as its frames last: 1.333 s are 1 1/3 s.

  Who is there to the end of the one is there to the end of the other.
  """
  last = min(story.seconds, seconds) - _SAME
  to_the_end = lambda x: dataclasses.replace(
    x, end=seconds if x.end >= last else x.end
  )
  lists = {
    key: [to_the_end(x) for x in getattr(story, key)]
    for key in ('references', 'concepts', 'events')
  }
  return dataclasses.replace(story, seconds=seconds, **lists)


def _first(*values: Any) -> Any:
  """The first that is said."""
  return next(x for x in values if x is not None)


def _ending(x: Any, seconds: float) -> Any:
  return dataclasses.replace(x, end=seconds if x.end is None else x.end)


def frames_of(base: Base, story: Storyboard) -> int:
  """Frames of a resolved storyboard: 1 + seconds fps.

  Raises:
    DcjaxError: the base cannot make that many.
  """
  stride = base.vae.scale_factor_temporal
  steps = min(story.seconds * story.fps / stride, 1e9)
  if round(steps) < 1 or abs(steps - round(steps)) > 0.01:
    could = [n * stride / story.fps for n in (int(steps), int(steps) + 1) if n]
    raise DcjaxError(
      f'{base.name} cannot make {story.seconds:g} s at {story.fps:g} frames a '
      f'second, as it makes 1 + {stride}k frames; take '
      f'{" or ".join(f"{x:g}" for x in could)} s'
    )
  return 1 + stride * round(steps)


def coefficients(guidance: Guidance) -> flow.Coefficients:
  """Guidance of a storyboard as the coefficients of Eq. (7) of `flow`."""
  g = guidance
  if g.form == 'instruct_pix2pix':
    found = flow.instruct_pix2pix(g.reference, g.text)
  elif g.form == 'video_alchemist':
    found = flow.video_alchemist(g.text, g.reference)
  else:
    found = flow.three_weight(g.text, g.reference, g.both)
  return flow.in_time(found, g.time)


def latent_time(base: Base, story: Storyboard, seconds: Any) -> np.ndarray:
  """Seconds of a resolved storyboard -> latent time, of the same shape."""
  stride = base.vae.scale_factor_temporal
  frames = (frames_of(base, story) - 1) // stride + 1
  seconds = np.asarray(seconds, np.float32)
  return intervals.latent_time(seconds, story.fps, stride, frames)


def check_alike(stories: Sequence[Storyboard]) -> None:
  """Raises DcjaxError if storyboards do not fit into one batch."""
  if not stories:
    raise DcjaxError('no storyboards to sample, expected at least one')
  for key in ('seconds', 'size', 'fps', 'steps', 'shift', 'guidance'):
    values = list(dict.fromkeys(getattr(x, key) for x in stories))
    if len(values) > 1:
      raise DcjaxError(
        f'storyboards of one batch differ in {key}: {values[0]} and '
        f'{values[1]}; sample them apart'
      )
  same = ('file', 'identity', 'motion', 'timing')
  casts = {
    tuple(tuple(getattr(c, k) for k in same) for c in x.concepts)
    for x in stories
  }
  if len(casts) > 1:
    raise DcjaxError(
      'storyboards of one batch have different concepts; sample them apart'
    )
