"""How the objects of the procedural world move.

A motion is a function of `u`, the fraction of the clip in [0, 1] (travelling
and changing size, which last the whole clip), or of `s`, the seconds since its
start (what repeats, at one speed in clips of every length).
"""

import math

from jax import Array
import jax.numpy as jnp

TRAIN_MOTIONS = (
  'still',
  'moving left',
  'moving right',
  'moving up',
  'moving down',
  'bouncing',
  'circling',
  'zigzagging',
  'shaking',
  'growing',
  'shrinking',
  'spinning',
)
NOVEL_MOTIONS = ('swinging', 'spiralling', 'jumping')
MOTIONS = TRAIN_MOTIONS + NOVEL_MOTIONS

TRAVEL = 28.0  # pixels in a clip
HOP = 20.0
SMALLEST, LARGEST = 0.55, 1.35  # of the radius, while growing and shrinking

# Half of the (height, width) in pixels that the centre of an object sweeps.
REACH = (
  (0, 0),
  (0, TRAVEL / 2),
  (0, TRAVEL / 2),
  (TRAVEL / 2, 0),
  (TRAVEL / 2, 0),
  (HOP / 2, 0),
  (11, 11),
  (8, TRAVEL / 2),
  (0, 5),
  (0, 0),
  (0, 0),
  (0, 0),
  (5, 17),
  (13, 13),
  (9, TRAVEL / 2),
)


def pose(
  motion: Array, u: Array, s: Array, phase: Array, direction: Array, rate: Array
) -> tuple[Array, Array, Array]:
  """Where an object is at each frame, relative to its centre of motion.

  Args:
    motion: [] int, an index into MOTIONS.
    u: [f] fraction of the clip.
    s: [f] seconds.
    phase: [] in [0, 1], where in its period the motion starts.
    direction: [] -1 or 1.
    rate: [] speed of what repeats, about 1.

  Returns:
    (offset [f 2] (y, x) in pixels, angle [f] in radians clockwise,
    scale [f] of the radius).
  """
  zero = jnp.zeros_like(u)
  way = TRAVEL * (u - 0.5)
  hop = (phase + 1.2 * rate * s) % 1.0
  hop = HOP * (0.5 - 4 * hop * (1 - hop))
  round_ = 2 * math.pi * direction * (phase + 0.65 * rate * s)
  zigzag = 4 * jnp.abs((2.5 * u + phase) % 1.0 - 0.5) - 1
  # At 8 frames a second, 2 Hz is left, left, right, right: as fast as shows.
  shake = 5 * jnp.sin(2 * math.pi * (phase + 2.0 * s))
  ratio = LARGEST / SMALLEST
  spin = 2 * math.pi * direction * (phase + 0.5 * s)
  swing = jnp.sin(2 * math.pi * (phase + 0.75 * s)) * 0.8
  coil = 2 * math.pi * direction * (phase + 2.0 * u)
  wide = 2.0 + 12.0 * u
  leap = (2.0 * u + phase) % 1.0
  leap = 9 - 72 * leap * (1 - leap)
  dy = (
    *(zero, zero, zero, -way, way, hop),
    *(11 * jnp.sin(round_), 8 * zigzag, zero, zero, zero, zero),
    *(24 * (jnp.cos(swing) - 0.85), wide * jnp.sin(coil), leap),
  )
  dx = (
    *(zero, -way, way, zero, zero, zero),
    *(11 * jnp.cos(round_), direction * way, shake, zero, zero, zero),
    *(24 * jnp.sin(swing), wide * jnp.cos(coil), direction * way),
  )
  dy, dx = jnp.stack(dy)[motion], jnp.stack(dx)[motion]
  angle = jnp.where(motion == MOTIONS.index('spinning'), spin, zero)
  angle = jnp.where(motion == MOTIONS.index('swinging'), -swing, angle)
  grow = SMALLEST * ratio**u
  scale = jnp.where(motion == MOTIONS.index('growing'), grow, 1.0 + zero)
  shrink = LARGEST / ratio**u
  scale = jnp.where(motion == MOTIONS.index('shrinking'), shrink, scale)
  return jnp.stack([dy, dx], -1), angle, scale
