"""What is behind the objects: patterned backgrounds, and free textures.

Positions are in pixels of the 64-pixel canvas, whatever the resolution drawn.
"""

import functools
import math

import jax
from jax import Array
import jax.numpy as jnp

CANVAS = 64

COLORS = {
  'red': (0.89, 0.12, 0.13),
  'orange': (1.00, 0.52, 0.05),
  'yellow': (1.00, 0.87, 0.12),
  'green': (0.15, 0.80, 0.25),
  'cyan': (0.15, 0.86, 0.93),
  'blue': (0.13, 0.36, 0.97),
  'purple': (0.60, 0.20, 0.82),
  'pink': (1.00, 0.48, 0.74),
}
BACKGROUNDS = {
  'black': (0.05, 0.05, 0.06),
  'grey': (0.52, 0.52, 0.54),
  'navy': (0.06, 0.10, 0.34),
  'brown': (0.44, 0.26, 0.12),
  'olive': (0.50, 0.52, 0.10),
  'teal': (0.05, 0.42, 0.44),
  'maroon': (0.45, 0.03, 0.20),
  'cream': (0.96, 0.91, 0.77),
}
PATTERNS = ('plain', 'striped', 'checkered', 'dotted', 'gradient')


def grid(size: int) -> tuple[Array, Array]:
  """(y, x) of the pixel centres on the canvas, [h 1] and [1 w]."""
  step = (jnp.arange(size) + 0.5) * (CANVAS / size) - 0.5
  return step[:, None], step[None, :]


def smooth(distance: Array, pixel: float = 1.0) -> Array:
  """Coverage in [0, 1] of a pixel by an area, from a distance in pixels."""
  return jnp.clip(0.5 - distance / pixel, 0.0, 1.0)


def rgb(color: Array, rank: int) -> Array:
  """[3] -> [1 ... 1 3] of the given rank, to stand beside an image."""
  return color.reshape((1,) * (rank - 1) + (3,))


def second_tone(base: Array) -> Array:
  """The tone [3] of the pattern on a background of colour [3]."""
  # Lighter, except on cream, where there is no room for a lighter one.
  return jnp.where(base.mean() > 0.7, base * 0.83, base + 0.13)


def background(
  color: Array,
  pattern: Array,
  period: Array,
  shift: Array,
  size: int,
) -> Array:
  """A still background in two tones of one colour.

  Args:
    color: [] int, an index into BACKGROUNDS.
    pattern: [] int, an index into PATTERNS.
    period: [] pixels from stripe to stripe or dot to dot.
    shift: [2] (y, x) pixels.
    size: height and width.

  Returns:
    [h w 3] in [0, 1].
  """
  base = jnp.asarray(tuple(BACKGROUNDS.values()), jnp.float32)[color]
  other = second_tone(base)
  pixel = CANVAS / size
  y, x = grid(size)
  y, x = y + shift[0], x + shift[1]
  slant = (x + y) / math.sqrt(2)
  stripes = smooth(_wave(slant, period), pixel)
  checks = _wave(y, 1.5 * period), _wave(x, 1.5 * period)
  # Inside exactly one of the two bands: an exclusive or of coverages.
  cy, cx = smooth(checks[0], pixel), smooth(checks[1], pixel)
  checks = cy + cx - 2 * cy * cx
  spots = smooth(_spots(y, x, period), pixel)
  ramp = grid(size)[0] / (CANVAS - 1)
  full = jnp.zeros((size, size))
  amount = jnp.stack(
    [full, full + stripes, full + checks, full + spots, full + ramp]
  )[pattern]
  spread = jnp.where(pattern == 4, 1.6, 1.0)
  base = jnp.where(pattern == 4, base - 0.35 * (other - base), base)
  mix = rgb(base, 3) + (amount * spread)[..., None] * rgb(other - base, 3)
  return jnp.clip(mix, 0.0, 1.0)


def _wave(x: Array, period: Array) -> Array:
  """Distance to the nearest of the bands that fill half of every period."""
  phase = jnp.abs(x / period - jnp.round(x / period))
  return (phase - 0.25) * period


def _spots(y: Array, x: Array, period: Array) -> Array:
  y = y - period * jnp.round(y / period)
  x = x - period * jnp.round(x / period)
  return jnp.sqrt(x**2 + y**2) - 0.27 * period


@functools.partial(jax.jit, static_argnames=('frames', 'size'))
def texture(key: Array, frames: int, size: int = CANVAS) -> Array:
  """A moving picture of anything but the world, for the autoencoder.

  Dead leaves (Lee, Mumford and Huang 2001: overlapping shapes of scale-free
  sizes, the simplest model with the statistics of photographs), noise with a
  falling spectrum, soft blobs, or mixtures of them; still, drifting or zooming.

  Args:
    key: PRNG key.
    frames: number of frames.
    size: height and width.

  Returns:
    [f h w 3] in [0, 1].
  """
  camera, leaf, noise, blob, mix = jax.random.split(key, 5)
  y, x, s = _camera(camera, frames, size)
  pixel = CANVAS / size * s
  grain = _noise(noise, y, x)
  leaves = _leaves(leaf, y, x, pixel)
  soft = _blobs(blob, y, x)
  kind, tone = jax.random.split(mix)
  kind = jax.random.randint(kind, (), 0, 5)
  a, b, c = jax.random.uniform(tone, (3,))
  mixes = (
    leaves,
    leaves + 0.4 * a * grain,
    0.5 + (0.3 + 0.5 * a) * grain,
    soft,
    soft + 0.5 * a * grain,
  )
  image = mixes[0]
  for i, option in enumerate(mixes[1:], 1):
    image = jnp.where(kind == i, option, image)
  return jnp.clip(0.5 + (0.6 + 0.5 * b) * (image - 0.5) + 0.3 * (c - 0.5), 0, 1)


def _camera(key: Array, frames: int, size: int) -> tuple[Array, Array, Array]:
  """Coordinates (y, x) [f h w] of a drifting camera and its zoom [f 1 1]."""
  still, where, speed, zoom = jax.random.split(key, 4)
  moves = jax.random.bernoulli(still, 0.75).astype(jnp.float32)
  origin = jax.random.uniform(where, (2,), minval=-64.0, maxval=64.0)
  speed = moves * jax.random.uniform(speed, (2,), minval=-1.6, maxval=1.6)
  zoom = moves * jax.random.uniform(zoom, (), minval=-0.02, maxval=0.02)
  f = jnp.arange(frames, dtype=jnp.float32)[:, None, None]
  y, x = grid(size)
  s = jnp.exp(zoom * f)
  half = CANVAS / 2
  y = s * (y[None] - half) + origin[0] + speed[0] * f
  x = s * (x[None] - half) + origin[1] + speed[1] * f
  shape = (frames, size, size)
  return jnp.broadcast_to(y, shape), jnp.broadcast_to(x, shape), s


def _noise(key: Array, y: Array, x: Array, waves: int = 48) -> Array:
  """Colour noise [f h w 3], about unit variance, spectrum 1 / f^p."""
  slope, angle, phase, color = jax.random.split(key, 4)
  slope = jax.random.uniform(slope, (), minval=0.5, maxval=1.6)
  angle = jax.random.uniform(angle, (waves,), maxval=math.pi)
  phase = jax.random.uniform(phase, (waves,), maxval=2 * math.pi)
  # Spatial frequency in cycles a pixel: one cycle a canvas to 3 pixels a cycle.
  cycles = jnp.exp(jnp.linspace(math.log(1 / 64), math.log(1 / 3), waves))
  weight = cycles**-slope
  weight = weight / jnp.sqrt(0.5 * jnp.sum(weight**2))
  grey = jax.random.normal(color, (waves, 1))
  tint = 0.4 * jax.random.normal(jax.random.fold_in(color, 1), (waves, 3))
  color = weight[:, None] * (grey + tint)

  def add(i, total):
    along = jnp.cos(angle[i]) * y + jnp.sin(angle[i]) * x
    wave = jnp.cos(2 * math.pi * cycles[i] * along + phase[i])
    return total + wave[..., None] * rgb(color[i], 4)

  return 0.4 * jax.lax.fori_loop(0, waves, add, jnp.zeros(y.shape + (3,)))


def _leaves(key: Array, y: Array, x: Array, pixel: Array) -> Array:
  """Dead leaves [f h w 3]: 48 discs, boxes, half planes, large ones first."""
  count = 48
  keys = jax.random.split(key, 7)
  radius = 3.0 * (60.0 / 3.0) ** jax.random.uniform(keys[0], (count,))
  radius = -jnp.sort(-radius)
  place = jax.random.uniform(keys[1], (count, 2), minval=-128.0, maxval=128.0)
  # Small leaves are drawn about the view, or few of them would be seen.
  spread = jnp.clip(radius / 24 + 0.3, 0.3, 1.0)[:, None]
  middle = jnp.stack([y.mean(), x.mean()])
  place = middle[None] + spread * place
  turn = jax.random.uniform(keys[2], (count,), maxval=math.pi)
  flat = jax.random.uniform(keys[3], (count,), minval=0.35, maxval=1.0)
  boxy = jax.random.bernoulli(keys[4], 0.5, (count,))
  palette = jax.random.uniform(keys[5], (5, 3))
  which = jax.random.randint(keys[6], (count,), 0, 5)
  jitter = 0.12 * jax.random.normal(jax.random.fold_in(key, 1), (count, 3))
  color = jnp.clip(palette[which] + jitter, 0, 1)

  def paint(i, image):
    c, s = jnp.cos(turn[i]), jnp.sin(turn[i])
    dy, dx = y - place[i, 0], x - place[i, 1]
    u, v = c * dx + s * dy, (c * dy - s * dx) / flat[i]
    disc = jnp.sqrt(u**2 + v**2)
    box = jnp.maximum(jnp.abs(u), jnp.abs(v))
    distance = (jnp.where(boxy[i], box, disc) - radius[i]) * flat[i]
    cover = smooth(distance / pixel)[..., None]
    # A little shading across each leaf, as light falls on things.
    shade = 1 + 0.25 * jnp.clip(u / radius[i], -1, 1)[..., None]
    return image + cover * (rgb(color[i], 4) * shade - image)

  start = jnp.broadcast_to(rgb(palette[0], 4), y.shape + (3,))
  return jax.lax.fori_loop(0, count, paint, start)


def _blobs(key: Array, y: Array, x: Array, count: int = 10) -> Array:
  """Soft colour gradients [f h w 3]: a normalised mixture of Gaussians."""
  where, width, color = jax.random.split(key, 3)
  where = jax.random.uniform(where, (count, 2), minval=-48.0, maxval=48.0)
  where = where + jnp.stack([y.mean(), x.mean()])[None]
  width = jnp.exp(jax.random.uniform(width, (count,), minval=2.0, maxval=3.6))
  color = jax.random.uniform(color, (count, 3))

  def add(i, carry):
    total, weight = carry
    r2 = (y - where[i, 0]) ** 2 + (x - where[i, 1]) ** 2
    w = jnp.exp(-0.5 * r2 / width[i] ** 2)[..., None] + 1e-4
    return total + w * rgb(color[i], 4), weight + w

  zero = jnp.zeros(y.shape + (3,))
  total, weight = jax.lax.fori_loop(0, count, add, (zero, zero[..., :1]))
  return total / weight
