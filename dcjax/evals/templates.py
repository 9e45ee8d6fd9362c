"""What the judge of the procedural world compares pixels with.

Three banks, drawn once: silhouettes of every shape (turned, and as decorations
leave them), the ways every motion may go, and the tones of every colour. All
are plain numpy arrays.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.data import motions, shapes, textures
from dcjax.data.render import FPS
from dcjax.data.scene import BACKGROUNDS, COLORS

CROP = 32  # side of a silhouette
EXTENT = 2.3  # half of the crop's side, in root mean square radii
ANGLES = 32  # a turn
_DRAWN = 128  # side of the pictures that silhouettes are cut from


class Silhouettes(NamedTuple):
  """Soft masks, centred and scaled by `normalize`."""

  masks: np.ndarray  # [t a CROP*CROP] templates, each in ANGLES turns
  shape: np.ndarray  # [t] int, index into SHAPES


class Paths(NamedTuple):
  """Ways to move, each relative to its mean over the frames."""

  offset: np.ndarray  # [p f 2] pixels of 64
  log_scale: np.ndarray  # [p f]
  motion: np.ndarray  # [p] int, index into MOTIONS


def tones() -> tuple[np.ndarray, np.ndarray]:
  """Backgrounds as segments in RGB: (from [8 3], to [8 3]).

  Position 0 on a segment is the colour itself, 1 the tone of its pattern.
  """
  base = np.asarray([textures.BACKGROUNDS[name] for name in BACKGROUNDS])
  other = np.asarray([textures.second_tone(jnp.asarray(c)) for c in base])
  return base, other


def paints() -> np.ndarray:
  """The colours of objects [8 3]."""
  return np.asarray([textures.COLORS[name] for name in COLORS])


@functools.cache
def silhouettes(names: tuple[str, ...] = shapes.TRAIN_SHAPES) -> Silhouettes:
  """Every shape as it may show: whole, with a hat, and with holes.

  What decorates a body is as often of the background's colour as not, so the
  judge must know bodies with and without it.
  """
  step = (np.arange(_DRAWN) + 0.5) / _DRAWN * 4.4 - 2.2
  y, x = jnp.asarray(step[:, None]), jnp.asarray(step[None, :])
  masks, kinds = [], []
  for name in names:
    shape = shapes.SHAPES.index(name)
    for mask in _variants(jnp.asarray(shape), x, y):
      turned = [
        crop(np.asarray(mask, np.float32)[None], angle=angle)[0]
        for angle in 2 * np.pi * np.arange(ANGLES) / ANGLES
      ]
      masks.append(np.stack(turned))
      kinds.append(shape)
  masks = np.stack(masks).reshape(len(kinds), ANGLES, CROP * CROP)
  return Silhouettes(masks, np.asarray(kinds))


def _variants(shape, x, y) -> list:
  """Silhouettes [h w] of a body, by what is on it."""
  whites, pupils = shapes.eyes(shape, x, y)
  crown, ribbon = shapes.hat(shape, x, y)
  inside = shapes.body(shape, x, y) < 0
  holes = (
    shapes.stripe(y) + 0 * x < 0,
    shapes.dots(x, y) < 0,
    whites < 0,
    pupils < 0,
  )
  hat = (crown < 0) & ~(ribbon < 0)
  masks = [inside, inside | hat, inside | (crown < 0), inside & ~(crown < 0)]
  masks += [inside & ~hole for hole in holes]
  # Eyes that look out over the rim of a thin shape.
  return masks + [inside | (whites < 0)]


def crop(masks: np.ndarray, *, angle: float = 0.0) -> np.ndarray:
  """Centres and scales soft masks.

  Args:
    masks: [f h w] in [0, 1], none of them empty.
    angle: radians to turn them by, clockwise.

  Returns:
    [f CROP CROP]: the centroid in the middle, the root mean square radius
    CROP / (2 EXTENT) pixels.
  """
  center, radius = moments(masks)
  step = (np.arange(CROP) + 0.5) / CROP * 2 - 1
  dy, dx = np.meshgrid(step * EXTENT, step * EXTENT, indexing='ij')
  c, s = np.cos(angle), np.sin(angle)
  dy, dx = c * dy - s * dx, s * dy + c * dx
  y = center[:, 0, None, None] + radius[:, None, None] * dy
  x = center[:, 1, None, None] + radius[:, None, None] * dx
  return _bilinear(masks, y, x)


def moments(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(centroid [f 2] (y, x), root mean square radius [f]) of soft masks."""
  _, h, w = masks.shape
  y, x = np.arange(h)[None, :, None], np.arange(w)[None, None, :]
  area = masks.sum((1, 2)) + 1e-9
  cy, cx = (masks * y).sum((1, 2)) / area, (masks * x).sum((1, 2)) / area
  r2 = (y - cy[:, None, None]) ** 2 + (x - cx[:, None, None]) ** 2
  radius = np.sqrt((masks * r2).sum((1, 2)) / area)
  return np.stack([cy, cx], -1), np.maximum(radius, 0.5)


def _bilinear(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Values of images [f h w] at (y, x) [f i j]; 0 outside."""
  images = np.pad(images, ((0, 0), (1, 2), (1, 2)))
  _, h, w = images.shape
  y, x = np.clip(y + 1, 0, h - 2), np.clip(x + 1, 0, w - 2)
  top, left = np.floor(y).astype(int), np.floor(x).astype(int)
  dy, dx = y - top, x - left
  f = np.arange(len(images))[:, None, None]
  upper = images[f, top, left] * (1 - dx) + images[f, top, left + 1] * dx
  lower = (
    images[f, top + 1, left] * (1 - dx) + images[f, top + 1, left + 1] * dx
  )
  return upper * (1 - dy) + lower * dy


@functools.cache
def paths(frames: int, names: tuple[str, ...] = motions.TRAIN_MOTIONS) -> Paths:
  """Every motion from 16 phases, in both directions, at three rates."""
  f = jnp.arange(frames, dtype=jnp.float32)
  u = f / max(frames - 1, 1)
  grid = [
    (motions.MOTIONS.index(name), phase / 16, direction, rate)
    for name in names
    for phase in range(16)
    for direction in (-1.0, 1.0)
    for rate in (0.9, 1.0, 1.1)
  ]
  columns = [jnp.asarray(column) for column in zip(*grid, strict=True)]
  pose = jax.jit(
    jax.vmap(lambda m, p, d, r: motions.pose(m, u, f / FPS, p, d, r))
  )
  offset, _, scale = pose(*columns)
  return Paths(np.asarray(offset), np.log(scale), np.asarray(columns[0]))
