"""Shapes and decorations of the procedural world, as signed distances.

Every function takes coordinates in the frame of the object, in units of its
radius, x to the right and y *down*, and returns a signed distance in the same
units: negative inside. Distances are exact near the outline (what antialiasing
reads) and only a bound far from it. The formulas are the usual ones of
constructive geometry: an intersection is a maximum, a union a minimum, and a
symmetry is a folding of the plane.
"""

import math

from jax import Array
import jax.numpy as jnp

TRAIN_SHAPES = (
  'ball',
  'square',
  'triangle',
  'star',
  'ring',
  'cross',
  'diamond',
)
NOVEL_SHAPES = ('crescent', 'gear', 'heart')
SHAPES = TRAIN_SHAPES + NOVEL_SHAPES

DECORATIONS = (
  '',
  'with eyes',
  'with a stripe',
  'with dots',
  'with a hat',
)
NOVEL_DECORATIONS = ('with a halo', 'with legs')
ALL_DECORATIONS = DECORATIONS + NOVEL_DECORATIONS

# Where a face fits: half the distance between the eyes, and their height.
_EYES = (
  (0.34, -0.18),
  (0.32, -0.18),
  (0.24, 0.14),
  (0.23, -0.05),
  (0.72, 0.0),
  (0.30, 0.0),
  (0.27, -0.08),
  (0.26, 0.42),
  (0.52, 0.0),
  (0.36, -0.22),
)
# The height of the top of the body above its centre, where a hat sits.
_TOP = (-0.92, -0.82, -0.86, -0.98, -0.94, -1.0, -0.98, -0.82, -0.94, -0.84)
_BOTTOM = (0.9, 0.8, 0.55, 0.72, 0.92, 0.98, 0.9, 0.85, 0.9, 0.8)


def body(shape: Array, x: Array, y: Array) -> Array:
  """Distance to the outline of SHAPES[shape].

  Args:
    shape: [] int, an index into SHAPES; all shapes are computed and one is
      selected, so that scenes can be batched with vmap.
    x: [...] coordinates, in radii.
    y: [...] coordinates, in radii, downwards.

  Returns:
    [...] signed distance in radii.
  """
  forms = (
    _ball,
    _square,
    _triangle,
    _star,
    _ring,
    _cross,
    _diamond,
    _crescent,
    _gear,
    _heart,
  )
  distances = [form(x, y) for form in forms]
  return _pick(shape, distances)


def eyes(shape: Array, x: Array, y: Array) -> tuple[Array, Array]:
  """Distances to (the whites, the pupils) of two eyes, each [...]."""
  apart, height = _look_up(_EYES, shape)
  x, y = jnp.abs(x) - apart, y - height
  return _disc(x, y, 0.25), _disc(x + 0.03, y - 0.04, 0.12)


def stripe(y: Array) -> Array:
  """Distance to a level band through the middle."""
  return jnp.abs(y - 0.06) - 0.2


def dots(x: Array, y: Array) -> Array:
  """Distance to a hexagonal grid of dots."""
  row = jnp.round(y / 0.54)
  x = x - 0.31 * (row % 2)
  x = x - 0.62 * jnp.round(x / 0.62)
  return _disc(x, y - 0.54 * row, 0.17)


def hat(shape: Array, x: Array, y: Array) -> tuple[Array, Array]:
  """Distances to (a top hat with its brim, its ribbon), each [...]."""
  y = y - _look_up(_TOP, shape) - 0.08
  brim = _box(x, y, 0.62, 0.1)
  crown = _box(x, y + 0.36, 0.36, 0.34)
  ribbon = _box(x, y + 0.2, 0.36, 0.09)
  return jnp.minimum(brim, crown), ribbon


def halo(shape: Array, x: Array, y: Array) -> Array:
  """Distance to a flat ring that floats above the body."""
  y = y - _look_up(_TOP, shape) + 0.28
  # An ellipse through a scaled circle; the factor keeps the width of the ring.
  return jnp.abs(jnp.sqrt(x**2 + (2.6 * y) ** 2 + 1e-6) - 0.6) * 0.6 - 0.085


def legs(shape: Array, x: Array, y: Array) -> Array:
  """Distance to two legs with feet under the body."""
  y = y - _look_up(_BOTTOM, shape)
  leg = _box(jnp.abs(x) - 0.3, y - 0.15, 0.09, 0.38)
  foot = _box(jnp.abs(x) - 0.4, y - 0.48, 0.2, 0.09)
  return jnp.minimum(leg, foot)


def _pick(index: Array, options: list[Array]) -> Array:
  """options[index], as a chain of selects that XLA fuses."""
  chosen = options[0]
  for i, option in enumerate(options[1:], 1):
    chosen = jnp.where(index == i, option, chosen)
  return chosen


def _look_up(table: tuple, index: Array) -> Array:
  return jnp.moveaxis(jnp.asarray(table, jnp.float32), 0, -1)[..., index]


def _norm(x: Array, y: Array) -> Array:
  return jnp.sqrt(x**2 + y**2 + 1e-9)


def _disc(x: Array, y: Array, radius: float) -> Array:
  return _norm(x, y) - radius


def _box(x: Array, y: Array, width: float, height: float) -> Array:
  return jnp.maximum(jnp.abs(x) - width, jnp.abs(y) - height)


def _ball(x: Array, y: Array) -> Array:
  return _disc(x, y, 0.96)


def _square(x: Array, y: Array) -> Array:
  return _box(x, y, 0.84, 0.84)


def _triangle(x: Array, y: Array) -> Array:
  # Equilateral, point up, the centroid at the origin, circumradius 1.2.
  side = math.sqrt(3) / 2 * jnp.abs(x) - 0.5 * y - 0.6
  return jnp.maximum(side, y - 0.6)


def _star(x: Array, y: Array) -> Array:
  outer, inner, half = 1.18, 0.52, math.pi / 5
  angle = jnp.arctan2(jnp.abs(x), -y)
  angle = jnp.abs(angle - 2 * half * jnp.round(angle / (2 * half)))
  r = _norm(x, y)
  px, py = r * jnp.sin(angle), r * jnp.cos(angle)
  # The edge runs from the point (0, outer) to the notch between two points.
  ex, ey = inner * math.sin(half), inner * math.cos(half) - outer
  length = math.hypot(ex, ey)
  return (-ey * px + ex * (py - outer)) / length


def _ring(x: Array, y: Array) -> Array:
  return jnp.abs(_disc(x, y, 0.7)) - 0.29


def _cross(x: Array, y: Array) -> Array:
  return jnp.minimum(_box(x, y, 1.05, 0.38), _box(x, y, 0.38, 1.05))


def _diamond(x: Array, y: Array) -> Array:
  width, height = 0.76, 1.16
  return (height * jnp.abs(x) + width * jnp.abs(y) - width * height) / (
    math.hypot(width, height)
  )


def _crescent(x: Array, y: Array) -> Array:
  # A moon that lies on its back, so that a face fits into it.
  return jnp.maximum(_disc(x, y, 1.06), -_disc(x, y + 0.5, 0.86))


def _gear(x: Array, y: Array) -> Array:
  wave = jnp.cos(8 * jnp.arctan2(x, -y))
  rim = 0.9 + 0.16 * jnp.clip(3 * wave, -1, 1)
  r = _norm(x, y)
  return jnp.maximum((r - rim) * 0.85, 0.3 - r)


def _heart(x: Array, y: Array) -> Array:
  x = jnp.abs(x)
  lobe = _disc(x - 0.46, y + 0.36, 0.58)
  # Below the lobes: the half plane under their common tangent to the tip.
  tip = jnp.maximum((x + y - 0.98) / math.sqrt(2), -y - 0.3)
  tip = jnp.maximum(tip, x - 0.98)
  # Fills the seam between the lobes, where both distances are too short.
  heart = jnp.minimum(lobe, tip)
  return jnp.minimum(heart, _disc(x, y + 0.1, 0.5))
