"""The finder of a concept that is known by some of its frames alone.

A concept file holds a few frames of the clip that it was learnt from. What lies
along their rim is the ground, and most of the rest has two colours.
"""

import numpy as np

from dcjax.data.scene import BACKGROUNDS
from dcjax.errors import DcjaxError
from dcjax.evals import templates
from dcjax.evals.sighting import Finder, Look

# Distances in RGB: nearer to the ground a pixel is ground; as near are pixels
# of one tone; farther is another one.
_GROUND, _SAME, _OTHER = 0.2, 0.12, 0.3
_PLAIN = 0.9  # part of the rim that must be ground
_SECOND = 0.1  # part of the subject that must have the second tone
_PIXELS = 2000  # that are compared with each other


def finder(frames: np.ndarray) -> Finder | None:
  """Finds what frames show in other videos of the procedural world.

  Args:
    frames: uint8 [f h w 3].

  Returns:
    None if they do not show one subject of two tones before a plain background
    of the world.
  """
  look = look_of(frames)
  try:
    return look and Finder(look)
  except DcjaxError:  # a frame does not show both its tones
    return None


def look_of(frames: np.ndarray) -> Look | None:
  """The subject, its tones and the ground of frames; see `finder`."""
  pixels = frames.astype(np.float32) / 255
  rim = np.concatenate(
    [pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1
  ).reshape(-1, 3)
  ground = np.median(rim, axis=0)
  known = _apart(templates.tones()[0], ground)
  if (_apart(rim, ground) < _GROUND).mean() < _PLAIN or known.min() > _GROUND:
    return None
  mask = _apart(pixels, ground) > _GROUND
  paint = _two_modes(pixels[_inside(mask)])
  if paint is None:
    return None
  return Look(frames, mask, BACKGROUNDS[int(known.argmin())], paint)


def _inside(mask: np.ndarray) -> np.ndarray:
  """The pixels of a mask [f h w] whose neighbours are of it too.

  What lies at the edge of a subject is mixed with the ground.
  """
  inner = mask.copy()
  inner[:, 1:] &= mask[:, :-1]
  inner[:, :-1] &= mask[:, 1:]
  inner[:, :, 1:] &= mask[:, :, :-1]
  inner[:, :, :-1] &= mask[:, :, 1:]
  return inner if inner.any() else mask


def _two_modes(pixels: np.ndarray) -> np.ndarray | None:
  """The colour [3] that most pixels [n 3] have, and that of most others."""
  pixels = pixels[:: max(1, len(pixels) // _PIXELS)]
  rest, found = pixels, []
  for least in (0.0, _SECOND):
    if len(rest) <= least * len(pixels):
      return None
    near = _apart(rest[:, None], rest) < _SAME
    mode = rest[near[near.sum(1).argmax()]].mean(0)
    found.append(mode)
    rest = rest[_apart(rest, mode) > _OTHER]
  return np.stack(found)


def _apart(x: np.ndarray, color: np.ndarray) -> np.ndarray:
  return np.sqrt(((x - color) ** 2).sum(-1))
