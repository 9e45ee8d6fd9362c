"""Drawing scenes of the procedural world."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from dcjax.data import motions, shapes, textures
from dcjax.data.scene import DECORATIONS, RADII, Scene

FPS = 8
FRAMES = 17
SIZE = textures.CANVAS

_INK = (0.08, 0.07, 0.10)
_PAPER = (0.98, 0.98, 0.97)
# Half opaque counts as there, also where rounding makes it a little less.
_THERE = 0.4999


class Clip(NamedTuple):
  """A rendered scene."""

  video: Array  # [f h w 3] float32 in [0, 1]
  mask: Array  # [o f h w] bool, the visible pixels of each object
  track: Array  # [o f 2] (y, x) of each object's centre, in pixels
  present: Array  # [o f] bool, whether the object is there
  interval: Array  # [o 2], or [o s 2] as in the scene, in seconds


@functools.partial(jax.jit, static_argnames=('frames', 'size'))
def render(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> Clip:
  """Draws one scene; use vmap for a batch.

  Args:
    scene: what to draw.
    frames: length of the clip; 1 draws a still of every object at rest, in the
      middle of its way.
    size: height and width in pixels; scenes scale with it.

  Returns:
    Clip of `frames` frames at 8 frames a second.
  """
  f = jnp.arange(frames, dtype=jnp.float32)
  last = max(frames - 1, 1)
  u = f / last if frames > 1 else f + 0.5
  ground = textures.background(
    scene.background, scene.pattern, scene.period, scene.shift, size
  )
  video = jnp.broadcast_to(ground[None], (frames, size, size, 3))
  covers, tracks, presents = [], [], []
  for o in range(scene.shape.shape[0]):
    one = jax.tree.map(lambda x, o=o: x[o], _objects(scene))
    fade = _fade(one.interval, frames)
    fade = fade.max(0) if fade.ndim == 2 else fade
    fade = fade if o == 0 else fade * (scene.count > o)
    # A still picture cannot show a motion.
    motion = one.motion if frames > 1 else jnp.zeros_like(one.motion)
    offset, angle, scale = motions.pose(
      motion, u, f / FPS, one.phase, one.direction, one.rate
    )
    track = one.center[None] + offset
    rgb, cover = _draw(one, track, angle, scale, size)
    alpha = cover * fade[:, None, None]
    video = video + alpha[..., None] * (rgb - video)
    covers = [c * (1 - alpha) for c in covers] + [alpha]
    # From pixels of the canvas to pixels of this resolution.
    tracks.append((track + 0.5) * (size / SIZE) - 0.5)
    presents.append(fade >= _THERE)
  return Clip(
    video=video,
    mask=jnp.stack(covers) >= _THERE,
    track=jnp.stack(tracks),
    present=jnp.stack(presents),
    interval=scene.interval * (last / FPS),
  )


# (coverage [f h w], colour [3]), the lowest first.
_Layers = tuple[tuple[Array, Array], ...]


def to_uint8(video: Array) -> np.ndarray:
  """[0, 1] -> 0 .. 255, as a video file holds it."""
  return np.round(np.asarray(video) * 255.0).astype(np.uint8)


class _Object(NamedTuple):
  """The fields of one object of a scene, without the axis o."""

  shape: Array
  size: Array
  decoration: Array
  motion: Array
  interval: Array
  paint: Array
  center: Array
  phase: Array
  direction: Array
  rate: Array


def _objects(scene: Scene) -> _Object:
  return _Object(*(getattr(scene, name) for name in _Object._fields))


def visible(scene: Scene, frames: int = FRAMES) -> Array:
  """In which frames objects are on screen, without drawing them.

  Args:
    scene: Scene, or a batch of them with leading axes.
    frames: length of the clip.

  Returns:
    [... o f] bool, the same as `Clip.present`.
  """
  interval, shape = jnp.asarray(scene.interval), jnp.asarray(scene.shape)
  fade = _fade(interval, frames)
  # One span an object, or several of which any shows it.
  fade = fade.max(-2) if interval.ndim == shape.ndim + 2 else fade
  o = jnp.arange(shape.shape[-1]).reshape((1,) * (shape.ndim - 1) + (-1, 1))
  drawn = jnp.asarray(scene.count)[..., None, None] > o
  return (fade >= _THERE) & drawn


def _fade(interval: Array, frames: int) -> Array:
  """Opacity [... f]: a fade is about a frame long; none at a clip's ends."""
  if frames == 1:
    return jnp.ones(interval.shape[:-1] + (1,))
  last = frames - 1
  start, end = interval[..., :1] * last, interval[..., 1:] * last
  f = jnp.arange(frames, dtype=jnp.float32)
  f = f.reshape((1,) * (interval.ndim - 1) + (frames,))
  comes = jnp.where(start <= 0, 1.0, jnp.clip(f - start + 0.5, 0, 1))
  goes = jnp.where(end >= last, 1.0, jnp.clip(end - f + 0.5, 0, 1))
  return comes * goes


def _draw(
  one: _Object, track: Array, angle: Array, scale: Array, size: int
) -> tuple[Array, Array]:
  """An object on its own: (colour [f h w 3], coverage [f h w])."""
  y, x = textures.grid(size)
  dy = y[None] - track[:, 0, None, None]
  dx = x[None] - track[:, 1, None, None]
  radius = (jnp.asarray(RADII)[one.size] * scale)[:, None, None]
  c, s = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
  px, py = (c * dx + s * dy) / radius, (c * dy - s * dx) / radius
  pixel = textures.CANVAS / size

  def area(distance):
    return textures.smooth(distance * radius, pixel)

  inside = shapes.body(one.shape, px, py)
  body = area(inside)
  # Light from the upper left, and a darker rim.
  light = 1 - 0.10 * (dx + dy) / radius
  rim = textures.smooth(-inside * radius - 1.2, 1.5 * pixel)
  light = light * (1 - 0.35 * rim)
  side = area(px)[..., None]
  left, right = (textures.rgb(one.paint[i], 4) for i in range(2))
  image = right + side * (left - right)
  for alpha, color in _markings(one, area, px, py):
    image = _over(image, alpha, color)
  image, cover = jnp.clip(image * light[..., None], 0, 1), body
  for alpha, color in _extras(one, area, px, py):
    image, cover = _over(image, alpha, color), jnp.maximum(cover, alpha)
  return image, cover


def _markings(one: _Object, area: Callable, px: Array, py: Array) -> _Layers:
  """What is painted on the body, and lit with it."""
  on = lambda text: one.decoration == DECORATIONS.index(text)
  return (
    (on('with a stripe') * area(shapes.stripe(py)), jnp.asarray(_PAPER)),
    (on('with dots') * area(shapes.dots(px, py)), 0.3 * one.paint[0]),
  )


def _extras(one: _Object, area: Callable, px: Array, py: Array) -> _Layers:
  """What is stuck on the body, and may stand out from it."""
  on = lambda text: one.decoration == DECORATIONS.index(text)
  ink, paper = jnp.asarray(_INK), jnp.asarray(_PAPER)
  whites, pupils = shapes.eyes(one.shape, px, py)
  crown, ribbon = shapes.hat(one.shape, px, py)
  inside = shapes.body(one.shape, px, py)
  legs = area(shapes.legs(one.shape, px, py)) * (1 - area(inside))
  return (
    (on('with eyes') * area(whites), paper),
    (on('with eyes') * area(pupils), ink),
    (on('with legs') * legs, one.paint[0]),
    (on('with a halo') * area(shapes.halo(one.shape, px, py)), one.paint[1]),
    # A grey edge, for white hats on pale ground.
    (on('with a hat') * area(crown), (ink + paper) / 2),
    (on('with a hat') * area(crown + 0.08), paper),
    (on('with a hat') * area(ribbon), ink),
  )


def _over(image: Array, alpha: Array, color: Array) -> Array:
  """Lays a colour [3] of opacity [f h w] over an image [f h w 3]."""
  return image + alpha[..., None] * (textures.rgb(color, 4) - image)
