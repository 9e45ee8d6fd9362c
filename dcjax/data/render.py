"""Drawing scenes of the procedural world."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from dcjax.data import motions
from dcjax.data import shapes
from dcjax.data import textures
from dcjax.data.scene import DECORATIONS
from dcjax.data.scene import OBJECTS
from dcjax.data.scene import RADII
from dcjax.data.scene import Scene

FPS = 8
FRAMES = 17
SIZE = textures.CANVAS

_INK = (0.08, 0.07, 0.10)
_PAPER = (0.98, 0.98, 0.97)


class Clip(NamedTuple):
  """A rendered scene."""

  video: Array  # [f h w 3] float32 in [0, 1]
  mask: Array  # [o f h w] bool, the visible pixels of each object
  track: Array  # [o f 2] (y, x) of each object's centre, in pixels
  present: Array  # [o f] bool, whether the object is there
  interval: Array  # [o 2] seconds of the first and the last moment it is there


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
  for o in range(OBJECTS):
    one = jax.tree.map(lambda x, o=o: x[o], _objects(scene))
    fade = _fade(one.interval, frames)
    fade = fade if o == 0 else fade * (scene.count == 2)
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
    presents.append(fade > 0.5)
  return Clip(
    video=video,
    mask=jnp.stack(covers) > 0.5,
    track=jnp.stack(tracks),
    present=jnp.stack(presents),
    interval=scene.interval * (last / FPS),
  )


class _Object(NamedTuple):
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
  fade = _fade(jnp.asarray(scene.interval), frames)
  drawn = jnp.arange(OBJECTS) < jnp.asarray(scene.count)[..., None]
  return (fade > 0.5) & drawn[..., None]


def _fade(interval: Array, frames: int) -> Array:
  """Opacity [... f]: a fade is about a frame long; none at a clip's ends."""
  if frames == 1:
    return jnp.ones(interval.shape[:-1] + (1,))
  f = jnp.arange(frames, dtype=jnp.float32)
  last = frames - 1
  interval = interval[..., None]
  start, end = interval[..., 0, :] * last, interval[..., 1, :] * last
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
  c = (jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None])
  px, py = (c[0] * dx + c[1] * dy) / radius, (c[0] * dy - c[1] * dx) / radius
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
  paint = right + side * (left - right)
  return _decorate(one, paint, light[..., None], body, area, px, py)


def _decorate(one, rgb, light, body, area, px, py):
  """Lays the decoration over a body: (colour [f h w 3], coverage [f h w])."""
  name = DECORATIONS.index
  on = lambda text: (one.decoration == name(text)).astype(jnp.float32)
  ink, paper = jnp.asarray(_INK), jnp.asarray(_PAPER)
  grey = (ink + paper) / 2
  whites, pupils = shapes.eyes(one.shape, px, py)
  crown, ribbon = shapes.hat(one.shape, px, py)
  halo = shapes.halo(one.shape, px, py)
  legs = shapes.legs(one.shape, px, py)
  dark = one.paint[0] * 0.3
  layers = (
    (area(whites) * on('with eyes'), paper),
    (area(pupils) * on('with eyes'), ink),
    (area(legs) * (1 - body) * on('with legs'), one.paint[0]),
    (area(halo) * on('with a halo'), one.paint[1]),
    (area(crown) * on('with a hat'), grey),
    (area(crown + 0.08) * on('with a hat'), paper),
    (area(ribbon) * on('with a hat'), ink),
  )
  painted = (
    (area(shapes.stripe(py)) * on('with a stripe'), paper),
    (area(shapes.dots(px, py)) * on('with dots'), dark),
  )
  over = lambda rgb, alpha, color: (
    rgb + alpha[..., None] * (textures.rgb(color, 4) - rgb)
  )
  # Paint on the body is lit with it; what is stuck on stands out.
  for alpha, color in painted:
    rgb = over(rgb, alpha, color)
  rgb, cover = jnp.clip(rgb * light, 0, 1), body
  for alpha, color in layers:
    rgb, cover = over(rgb, alpha, color), jnp.maximum(cover, alpha)
  return rgb, cover
