"""A judge of the procedural world that sees nothing but pixels.

It reads what a clip shows: the background from the colours of still pixels, the
object from what differs from the background, its shape from the overlap with
silhouettes, its motion from the path of its centre (with its size and its turn,
where the centre stays). It is exact on rendered clips and forgiving on
generated ones: everything is decided by the nearest of the known answers.
"""

from typing import NamedTuple

import numpy as np

from dcjax.data import textures
from dcjax.data.render import FPS
from dcjax.data.scene import (
  BACKGROUNDS,
  COLORS,
  MOTIONS,
  PATTERNS,
  SHAPES,
)
from dcjax.errors import DcjaxError
from dcjax.evals import templates

# Motions that the path of the centre shows; the others leave it where it is.
TRAVELLING = (*range(1, 9), *range(12, 15))
# Farther than this in RGB from the background, a pixel is something else.
_OFF = 0.2
_STILL, _SPINNING = MOTIONS.index('still'), MOTIONS.index('spinning')


class Reading(NamedTuple):
  """What a clip shows; an index of -1 means that it cannot be told."""

  background: int  # index into BACKGROUNDS
  pattern: int  # index into PATTERNS
  color: int  # index into COLORS
  shape: int  # index into SHAPES
  motion: int  # index into MOTIONS
  motion_centroid: int  # the same from the centre alone, 'still' if it rests
  present: np.ndarray  # [f] bool
  track: np.ndarray  # [f 2] (y, x) in pixels, nan where absent
  mask: np.ndarray  # [f h w] bool
  covered: np.ndarray  # [f h w] bool, whatever is not background
  shape_score: float  # overlap with the best silhouette, in [0, 1]

  @property
  def names(self) -> dict[str, str]:
    """The indices in words."""
    lists = {
      'background': BACKGROUNDS,
      'pattern': PATTERNS,
      'color': COLORS,
      'shape': SHAPES,
      'motion': MOTIONS,
    }
    index = {name: getattr(self, name) for name in lists}
    return {k: lists[k][i] if i >= 0 else '' for k, i in index.items()}


def read(video: np.ndarray, color: int | None = None) -> Reading:
  """Reads a clip, or with one frame a still (whose motion cannot be told).

  Args:
    video: [f h w 3] uint8.
    color: reads the object of this colour (an index into COLORS); otherwise
      that of the colour which covers most.

  Returns:
    Reading of one object.

  Raises:
    DcjaxError: the video is not uint8 [f h w 3].
  """
  video = np.asarray(video)
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
    raise DcjaxError(
      f'the judge reads uint8 [f h w 3], got {video.dtype} {video.shape}'
    )
  pixels = video.astype(np.float32) / 255
  background, off = _read_background(pixels)
  seen, opacity = _read_color(pixels, off, color)
  mask, present, soft = _read_mask(opacity)
  covered = off > _OFF
  pattern = read_pattern(pixels, covered, background)
  track = np.full((len(video), 2), np.nan)
  shape = motion = by_centroid = -1
  score = 0.0
  if present.any():
    center, radius = _trimmed_moments(soft[present])
    track[present] = center
    log_radius = np.full(len(video), np.nan)
    log_radius[present] = np.log(radius)
    scale = textures.CANVAS / video.shape[2]
    shape, spin, score = _read_shape(soft, present)
    if present.sum() > 3:
      motion, by_centroid = _read_motion(track * scale, log_radius, spin)
  else:
    seen = -1
  return Reading(
    background=background,
    pattern=pattern,
    color=seen,
    shape=shape,
    motion=motion,
    motion_centroid=by_centroid,
    present=present,
    track=track,
    mask=mask,
    covered=covered,
    shape_score=score,
  )


def read_pattern(
  pixels: np.ndarray, covered: np.ndarray, background: int
) -> int:
  """The pattern of a background, from the tones of what is seen of it.

  Args:
    pixels: [f h w 3] in [0, 1].
    covered: [f h w] bool, where something is in front. A pixel counts with the
      mean of the frames in which it is not.
    background: index into BACKGROUNDS.

  Returns:
    Index into PATTERNS; -1 if hardly anything is seen.
  """
  start, end = templates.tones()
  along = end[background] - start[background]
  tone = (pixels - start[background]) @ along / (along @ along)
  seen = (~_widen(covered)).astype(np.float64)
  count = seen.sum(0)
  tone = (tone * seen).sum(0) / np.maximum(count, 1)
  weight = (count > 0).astype(np.float64)
  if weight.sum() < 16:
    return -1
  h, w = weight.shape
  y, x = np.mgrid[:h, :w]
  total = _spread(tone, weight)
  ramp = y / (h - 1)
  slope = _spread(tone, weight, ramp) / _spread(ramp, weight)
  if slope > 0.7 and _spread(tone - slope * ramp, weight) < 0.35 * total:
    return PATTERNS.index('gradient')
  if total < 0.15**2:
    return PATTERNS.index('plain')
  diagonal = _explained(tone, weight, x + y)
  if diagonal > 0.6 * total:
    return PATTERNS.index('striped')
  raised = (weight * (tone > 0.5)).sum() / weight.sum()
  return PATTERNS.index('checkered' if raised > 0.36 else 'dotted')


def _read_background(pixels: np.ndarray) -> tuple[int, np.ndarray]:
  """(index into BACKGROUNDS, distance from it of every pixel [f h w])."""
  start, end = templates.tones()
  # Gradients reach a little beyond both tones.
  start, end = start - 0.35 * (end - start), end + 0.25 * (end - start)
  start, end = np.clip(start, 0, 1), np.clip(end, 0, 1)
  # A quarter of the pixels tells the background, and takes a quarter as long.
  distances = _to_segments(pixels[:, ::2, ::2], start, end)
  near = np.exp(-((distances / 0.08) ** 2)).mean((0, 1, 2))
  # A mush that no colour fits is still nearest to one of them.
  far = -np.minimum(distances, 0.5).mean((0, 1, 2))
  best = int(np.argmax(near if near.max() > 0.2 else far))
  one = slice(best, best + 1)
  return best, _to_segments(pixels, start[one], end[one])[..., 0]


def _to_segments(
  pixels: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
  """Distances [... k] of colours [... 3] from k segments [k 3] to [k 3]."""
  start, along = start.astype(np.float32), (end - start).astype(np.float32)
  length = (along**2).sum(-1)
  # |p - a|^2 - 2 t (p - a).d + t^2 |d|^2, by matrix products.
  project = pixels @ along.T - (start * along).sum(-1)
  t = np.clip(project / length, 0, 1)
  square = (pixels**2).sum(-1, keepdims=True) - 2 * pixels @ start.T
  square = square + (start**2).sum(-1) - 2 * t * project + t**2 * length
  return np.sqrt(np.maximum(square, 0))


def _read_color(
  pixels: np.ndarray, off: np.ndarray, color: int | None
) -> tuple[int, np.ndarray]:
  """(index into COLORS, opacity [f h w] of something of that colour)."""
  paints = templates.paints()
  light = _to_segments(pixels, 0.8 * paints, np.minimum(1.15 * paints, 1))
  # Each pixel that is not background votes for the nearest colour.
  nearest, distance = light.argmin(-1), light.min(-1)
  weight = (off > _OFF) * np.exp(-((distance / 0.2) ** 2))
  votes = np.bincount(nearest.ravel(), weight.ravel(), len(paints))
  seen = int(votes.argmax()) if color is None else color
  opacity = off / (off + light[..., seen] + 1e-6)
  # Noise about the background is not an object, however near the colours are.
  opacity = opacity * np.clip(off / 0.12 - 0.5, 0, 1)
  if color is not None:
    # Beside another object: what is near to this one and not the other's.
    vivid = distance < 0.3
    votes[color] = 0
    # Nothing else has a colour where the object is alone.
    other = (nearest == votes.argmax()) & vivid & (votes.max() > 0)
    opacity = opacity * (_whole((nearest == color) & vivid) & ~other)
  return seen, opacity


def _whole(mask: np.ndarray) -> np.ndarray:
  """An object with its rim from the pixels [f h w] of its colour.

  Edges of one object may have another's colour; they are too thin to stay.
  """
  core = ~_widen(~mask)
  return _widen(_widen(_widen(core))) if core.any() else core


def _read_mask(
  opacity: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(mask [f h w], present [f], soft mask [f h w]) from opacities."""
  mask = opacity > 0.5
  area = mask.sum((1, 2)) * (64 * 64 / mask[0].size)
  # A small object of radius 5 covers 50 pixels; specks cover fewer than 14.
  enough = max(14.0, 0.1 * np.percentile(area, 90))
  # What covers most of the frame is another background, not an object.
  present = (area > enough) & (area < 0.55 * 64 * 64)
  soft = np.clip(2 * opacity - 0.5, 0, 1) * present[:, None, None]
  # Opacity beyond a pixel's reach of the mask is noise.
  soft = soft * _widen(mask)
  return mask & present[:, None, None], present, soft


def _widen(mask: np.ndarray) -> np.ndarray:
  """Adds the pixels that touch a mask [f h w] along rows and columns."""
  wide = mask.copy()
  wide[:, 1:] |= mask[:, :-1]
  wide[:, :-1] |= mask[:, 1:]
  wide[:, :, 1:] |= mask[:, :, :-1]
  wide[:, :, :-1] |= mask[:, :, 1:]
  return wide


def _trimmed_moments(soft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Moments of soft masks [f h w] without specks far from the object."""
  _, h, w = soft.shape
  y, x = np.arange(h)[None, :, None], np.arange(w)[None, None, :]
  for _ in range(2):
    center, radius = templates.moments(soft)
    center, radius = center[:, :, None, None], radius[:, None, None]
    r = np.hypot(y - center[:, 0], x - center[:, 1])
    soft = soft * (r < 2.6 * radius)
  return templates.moments(soft)


def _spread(a: np.ndarray, weight: np.ndarray, b: np.ndarray | None = None):
  """Weighted variance of a, or covariance of a and b."""
  b = a if b is None else b
  total = weight.sum()
  mean = lambda v: (weight * v).sum() / total
  return mean(a * b) - mean(a) * mean(b)


def _explained(
  tone: np.ndarray, weight: np.ndarray, group: np.ndarray
) -> float:
  """Variance between the groups of pixels."""
  count = np.bincount(group.ravel(), weight.ravel())
  total = np.bincount(group.ravel(), (weight * tone).ravel())
  mean = total / np.maximum(count, 1e-9)
  return float(_spread(mean, count))


def _read_shape(
  soft: np.ndarray, present: np.ndarray
) -> tuple[int, float, float]:
  """(index into SHAPES, gain by assuming that it spins, overlap)."""
  bank = templates.silhouettes()
  area = soft.sum((1, 2))
  # Where the object is small or half faded, its outline says little.
  frames = np.flatnonzero(present & (area > 0.6 * np.percentile(area, 90)))
  frames = frames if len(frames) else np.flatnonzero(present)
  crops = templates.crop(soft[frames]).reshape(len(frames), -1)
  t, a, n = bank.masks.shape
  masks = bank.masks.reshape(t * a, n)
  inner = crops @ masks.T
  norms = (crops**2).sum(1)[:, None] + (masks**2).sum(1)[None]
  overlap = (inner / (norms - inner + 1e-9)).reshape(len(frames), t, a)
  upright = overlap[:, :, 0].mean(0)
  spins = []
  for step in (-1, 1):
    # Half a turn a second.
    turn = np.round(step * frames * a * 0.5 / FPS).astype(int)
    for first in range(a):
      angle = (first + turn) % a
      spins.append(overlap[np.arange(len(frames)), :, angle].mean(0))
  spinning = np.max(spins, axis=0)
  gain = spinning.max() - upright.max()
  # Half of the turns of a square look upright: ask for a real difference.
  scores = spinning if gain > 0.03 and len(frames) > 3 else upright
  best = int(scores.argmax())
  return int(bank.shape[best]), float(gain), float(scores[best])


def _read_motion(
  track: np.ndarray, log_radius: np.ndarray, spin: float
) -> tuple[int, int]:
  """(motion, motion by the centre alone), from tracks in pixels of 64."""
  bank = templates.paths(len(track))
  valid = ~np.isnan(track[:, 0])
  seen = track[valid] - track[valid].mean(0)
  offset = bank.offset[:, valid]
  offset = offset - offset.mean(1, keepdims=True)
  # Generated objects may go somewhat farther or less far than rendered ones.
  power = (offset**2).sum((1, 2))
  gain = (offset * seen[None]).sum((1, 2)) / np.maximum(power, 1e-6)
  gain = np.clip(gain, 0.7, 1.3)[:, None, None]
  error = ((seen[None] - gain * offset) ** 2).sum(-1).mean(1)
  # Paths are told apart by the centre alone; 'still' stands for all at rest.
  moves = np.isin(bank.motion, TRAVELLING)
  rests = bank.motion == _STILL
  centroid = np.where(moves | rests, error, np.inf)
  by_centroid = int(bank.motion[centroid.argmin()])
  size = log_radius[valid] - log_radius[valid].mean()
  scale = bank.log_scale[:, valid]
  scale = scale - scale.mean(1, keepdims=True)
  # A change of size by a factor of e counts as much as a way of 12 pixels.
  error = error + 12.0**2 * ((size[None] - scale) ** 2).mean(1)
  motion = int(bank.motion[error.argmin()])
  if motion in (_STILL, _SPINNING):
    motion = _SPINNING if spin > 0.03 else _STILL
  return motion, by_centroid
