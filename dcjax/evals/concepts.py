"""What a personalised base shows of a concept of the world.

No number mixes two questions: whether the concept is there, how alike it is
where it is there, how it moves, what is behind it. Each is met by some failure
(an empty scene has the right background), so all are read together, and beside
what the same scene scores when it is drawn, and when it is drawn and decoded
from its latents (`wanted`).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dcjax.data import textures
from dcjax.data.concepts import Concept
from dcjax.data.render import render, to_uint8
from dcjax.data.scene import (
  BACKGROUNDS,
  COLORS,
  DECORATIONS,
  MOTIONS,
  PATTERNS,
  SHAPES,
  SIZES,
  TRAIN_SHAPES,
)
from dcjax.errors import DcjaxError
from dcjax.evals import oracle, sighting, templates
from dcjax.evals.reading import TRAVELLING
from dcjax.evals.sighting import Finder, Sighting

# An axis moves if its standard deviation is above this, in pixels of 64.
_MOVES = 1.5
# What trembles by less, as generated objects do, is at rest.
_RESTS = 0.5
_SHIFTS = 2  # frames, either way
# A track is judged if more than this part of the frames shows the object.
_SEEN = 0.5
_NAN = float('nan')
_WORDS = {
  'background': BACKGROUNDS,
  'pattern': PATTERNS,
  'motion': MOTIONS,
  'shape': SHAPES,
  'decoration': DECORATIONS,
  'size': SIZES,
}


class Following(NamedTuple):
  """How a track follows another; nan if too few frames show the object."""

  correlation: float  # Pearson over the frames, mean of the axes that move
  shifted: float  # the best of it over shifts of up to 2 frames
  extent: float  # standard deviation over that of the reference


def score(
  video: np.ndarray,
  finder: Finder,
  *,
  background: str | None = None,
  pattern: str = 'plain',
  motion: str | None = None,
  same: bool = False,
) -> dict[str, float]:
  """Everything that one clip of a concept is judged by.

  Args:
    video: [f h w 3] uint8, f as in the concept's clip.
    finder: of the concept.
    background: that the prompt asks for, a word of BACKGROUNDS.
    pattern: that the prompt asks for.
    motion: that the prompt asks for, a word of MOTIONS; None: the learnt one.
    same: whether the clip should be the concept's own, so that pixels may be
      compared.

  Returns:
    Of `look`. For the learnt motion, correlation, shifted and extent of
    `follow`; for any, `action`, 1 if the track is nearest to that motion
    (`moves_as`), else 0. With a background, its own and its pattern's
    `adherence`, and `kept`: adherence where most frames show the concept, else
    0. With `same`, mse of pixels in [0, 1], mse_pm1 of pixels in [-1, 1], and
    mse_empty, what the scene without its object would score: an object in the
    wrong place scores worse than that. Nan where there is nothing to judge.

  Raises:
    DcjaxError: the video has another size or length than the concept's clip.
  """
  concept, found = finder.concept, finder.find(video)
  scores = look(found)
  if motion is None:
    scores |= follow(found.track, finder.track)._asdict()
  moved = moves_as(found.track)
  asked = MOTIONS.index(motion or concept.moves)
  scores['action'] = _NAN if moved < 0 else float(moved == asked)
  if background is not None:
    scores |= adherence(found, background, pattern)
    scores['kept'] = scores['adherence'] * (scores['detected'] > _SEEN)
  return scores | (_errors(video, concept) if same else {})


def look(found: Sighting) -> dict[str, float]:
  """Means of a sighting over its frames.

  Returns:
    detected: part of the frames that show the concept.
    identity: mean over those frames alone; nan if there are none.
    stray: part of the concept's colours that is elsewhere in those frames; 0.5
      where there are two of it.
  """
  seen = found.present
  mean = lambda x: float(x[seen].mean()) if seen.any() else _NAN
  return {
    'detected': float(seen.mean()),
    'identity': mean(found.identity),
    'stray': mean(found.stray),
  }


def follow(track: np.ndarray, reference: np.ndarray) -> Following:
  """How a track follows a reference.

  Pearson's correlation knows neither where nor how far: `extent` says how far.
  An object at rest has a correlation of 0. The best over shifts is higher by
  chance too, so it is read beside the plain one.

  Args:
    track: [f 2] in pixels of 64, nan where nothing was seen.
    reference: [f 2] in pixels of 64.

  Raises:
    DcjaxError: different numbers of frames.
  """
  if track.shape != reference.shape:
    raise DcjaxError(
      f'a track of {len(track)} frames and a reference of {len(reference)}'
    )
  axes = np.flatnonzero(reference.std(0) > _MOVES)
  seen = ~np.isnan(track[:, 0])
  if seen.mean() <= _SEEN or not len(axes):
    return Following(_NAN, _NAN, _NAN)
  n, values = len(track), []
  for shift in range(-_SHIFTS, _SHIFTS + 1):
    ours = track[max(shift, 0) : n + min(shift, 0), axes]
    theirs = reference[max(-shift, 0) : n + min(-shift, 0), axes]
    values.append(_pearson(ours, theirs))
  spread = np.square(track[seen][:, axes].std(0)).sum()
  extent = np.sqrt(spread / np.square(reference[seen][:, axes].std(0)).sum())
  return Following(values[_SHIFTS], max(values), float(extent))


def moves_as(track: np.ndarray) -> int:
  """The motion whose path is nearest to a track, held-out motions included.

  Args:
    track: [f 2] in pixels of 64, nan where nothing was seen.

  Returns:
    Index into MOTIONS of one that moves the centre or of 'still'; -1 if no more
    than half of the frames show the object.
  """
  seen = ~np.isnan(track[:, 0])
  if seen.mean() <= _SEEN:
    return -1
  bank = templates.paths(len(track), MOTIONS)
  kept = np.isin(bank.motion, (*TRAVELLING, MOTIONS.index('still')))
  offset, motion = bank.offset[kept][:, seen], bank.motion[kept]
  offset = offset - offset.mean(1, keepdims=True)
  ours = (track[seen] - track[seen].mean(0))[None]
  # Generated objects may go somewhat farther or less far than drawn ones.
  power = np.maximum((offset**2).sum((1, 2)), 1e-6)
  gain = np.clip((offset * ours).sum((1, 2)) / power, 0.7, 1.3)
  error = ((ours - gain[:, None, None] * offset) ** 2).sum((1, 2))
  return int(motion[error.argmin()])


def adherence(
  found: Sighting, background: str, pattern: str
) -> dict[str, float]:
  """Whether a clip has the background that its prompt asks for.

  It is read where nothing ever was in front of it. A scene without any object
  has it too: read it beside detection.

  Returns:
    background, pattern and adherence (both), each 0 or 1.
  """
  right = {
    'background': float(found.background == BACKGROUNDS.index(background)),
    'pattern': float(found.pattern == PATTERNS.index(pattern)),
  }
  return right | {'adherence': right['background'] * right['pattern']}


def score_motion_alone(
  video: np.ndarray, finder: Finder, color: str, shape: str
) -> dict[str, float]:
  """Scores a clip of a shape of the base that has the concept's motion.

  Args:
    video: [f h w 3] uint8.
    finder: of the concept whose motion it should have.
    color: of the shape, a word of COLORS.
    shape: a word of SHAPES. A ball, for the judge reads other shapes upright or
      spinning only, and some concepts swing.

  Returns:
    subject: 1 if shape and colour are the asked ones; correlation, shifted,
    extent and action, as in `score`, of what has that colour; leaked, the part
    of the frames that shows the concept's own look.
  """
  there, concept = COLORS.index(color), finder.concept
  reading = oracle.read(video, there)
  moved = moves_as(reading.track)
  return {
    'subject': float(
      reading.color == there and reading.shape == SHAPES.index(shape)
    ),
    **follow(reading.track, concept.track)._asdict(),
    'action': _NAN
    if moved < 0
    else float(moved == MOTIONS.index(concept.moves)),
    'leaked': float(finder.find(video).present.mean()),
  }


def floor(finder: Finder) -> float:
  """Identity of the best of the base's own shapes, painted in the two tones.

  What a base reaches that has learnt the colours and nothing of the shape.
  """
  clips = [
    wanted(finder.concept, shape=shape, decoration='') for shape in TRAIN_SHAPES
  ]
  return max(look(finder.find(clip))['identity'] for clip in clips)


def grounds(concept: Concept, count: int) -> list[str]:
  """Backgrounds, other than its own, that its colours stand out from best."""
  names = [name for name in BACKGROUNDS if name != concept.background]
  far = lambda name: sighting.margin(concept, name)
  return sorted(names, key=far, reverse=True)[:count]


def wanted(concept: Concept, **changes: str | np.ndarray) -> np.ndarray:
  """The clip that a prompt asks for, drawn: what a perfect base would make.

  Args:
    concept: whose scene it is.
    **changes: background, pattern, motion, shape, decoration, size or color, in
      the world's words (a color replaces both tones); or other fields of the
      scene, such as `center` [2] or `paint` [2 3], of its object.

  Returns:
    uint8 [f h w 3].
  """
  values = {
    key: _WORDS[key].index(value) if key in _WORDS else value
    for key, value in changes.items()
    if key != 'color'
  }
  if 'color' in changes:
    values['paint'] = [textures.COLORS[changes['color']]] * 2
  scene = concept.scene
  for key, value in values.items():
    old = jnp.asarray(getattr(scene, key))
    new = jnp.asarray(value, old.dtype)
    if new.ndim < old.ndim:
      new = new[(None,) * (old.ndim - new.ndim)]
    scene = scene._replace(**{key: jnp.broadcast_to(new, old.shape)})
  return to_uint8(render(scene, len(concept.video)).video)


def _errors(video: np.ndarray, concept: Concept) -> dict[str, float]:
  if video.shape != concept.video.shape:
    raise DcjaxError(
      f'pixels of {video.shape} cannot be compared with {concept.video.shape}'
    )
  true = concept.video.astype(np.float32) / 255
  error = lambda x: float(np.square(x.astype(np.float32) / 255 - true).mean())
  mse = error(video)
  empty = error(wanted(concept, interval=np.full(2, -1.0)))
  return {'mse': mse, 'mse_pm1': 4 * mse, 'mse_empty': empty}


def _pearson(track: np.ndarray, reference: np.ndarray) -> float:
  """Mean over axes of the correlation of tracks [f a], the first with nans."""
  seen = ~np.isnan(track[:, 0])
  if seen.sum() < 3:
    return 0.0
  a, b = track[seen], reference[seen]
  a, b = a - a.mean(0), b - b.mean(0)
  moves = np.minimum(a.std(0), b.std(0)) > _RESTS
  r = (a * b).mean(0) / np.maximum(a.std(0) * b.std(0), 1e-6)
  return float(np.where(moves, r, 0.0).mean())
