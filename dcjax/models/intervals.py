"""When a subject is there, as rotations: WeRoPE, MidRoPE and ReRoPE.

A reference with the interval [t0, t1] of a video of T latent frames is rotated
in time by a weighted sum of rotations R at three anchors (AlcheMinT, Sec. 3.2):

  (1)  k' = w_m R(m) k + w_e R(t_l) k + w_e R(t_r) k,    m = (t0 + t1) / 2
  (2)  t_l = t0 / 2,   t_r = (T - 1 + t1) / 2       the middles of the outside

Rotations are linear, so that is one table with, in place of cos and sin of an
angle, the weighted sums of them. MidRoPE is the middle anchor alone; without
temporal RoPE every reference is at frame 0.

Events with the intervals [s_n, e_n] stretch time so that each is L long and its
text stands in its middle (ReRoPE of MinT, Sec. 3.3):

  (3)  t~ = sum_n L clip((t - s_n) / (e_n - s_n), 0, 1)
  (4)  text of event n at (n - 1/2) L,  n = 1, 2, ...

Rotations say little where time is short: over five latent frames all but two of
their frequencies stand still, and none resolves the frames within one. What an
interval says of each of these is its *presence*, which this project adds:

  (5)  p(t) = clip(1 + k min(t - t0, t1 - t), 0, 1)    k frames a latent frame
"""

from typing import Any

import jax
import jax.numpy as jnp

from dcjax.models import rope as rope_lib

SCHEMES = ('werope', 'midrope', 'norope')
ANCHORS = ('outside', 'margin', 'ends', 'printed')
BORDERS = ('absorb', 'keep')
# Latent frames: who is as near to a border of the video is there with it.
TOUCHES = 1e-4


def latent_time(seconds: Any, fps: float, stride: int, frames: int) -> Any:
  """Seconds -> continuous latent time in [0, frames - 1].

  Args:
    seconds: any shape, of numpy or of JAX.
    fps: frames a second of the video.
    stride: video frames a latent frame.
    frames: T, latent frames of the video.
  """
  return (seconds * (fps / stride)).clip(0.0, frames - 1.0)


def anchors(
  interval: jax.Array,
  frames: int,
  *,
  scheme: str = 'werope',
  kind: str = 'outside',
  border: str = 'absorb',
  middle: float = 5 / 3,
  edge: float = -1 / 3,
  margin: float = 3.0,
) -> tuple[jax.Array, jax.Array]:
  """Times and weights of the rotations that stand for an interval, Eq. (1, 2).

  Args:
    interval: [... 2] latent times t0 <= t1.
    frames: T, latent frames of the video.
    scheme: one of `SCHEMES`.
    kind: of the outer anchors: 'outside', Eq. (2); 'printed', the same with
      t_r = (T - t1) / 2 as the paper prints it; 'ends', t0 and t1; 'margin', as
      far outside as `margin` says.
    border: what becomes of an anchor with nothing outside, because the interval
      begins or ends with the video: 'keep' leaves it where it falls, on the
      interval itself; 'absorb' gives its weight to the middle.
    middle: weight of the middle.
    edge: weight of each outer anchor; middle + 2 edge should be 1.
    margin: latent frames, for 'margin'.

  Returns:
    (times [... 3], weights [... 3]), middle, left, right.
  """
  start, end = interval[..., 0], interval[..., 1]
  center = (start + end) / 2
  if scheme != 'werope':
    time = center if scheme == 'midrope' else jnp.zeros_like(center)
    one = jnp.ones_like(center)
    return jnp.stack([time] * 3, -1), jnp.stack([one, 0 * one, 0 * one], -1)
  last = frames - 1.0
  left, right = {
    'outside': (start / 2, (last + end) / 2),
    'printed': (start / 2, (frames - end) / 2),
    'ends': (start, end),
    'margin': (start - margin, end + margin),
  }[kind]
  weight = jnp.full_like(center, edge)
  before, after = weight, weight
  if border == 'absorb':
    before = jnp.where(start <= TOUCHES, 0.0, weight)
    after = jnp.where(end >= last - TOUCHES, 0.0, weight)
  rest = middle + 2 * edge - before - after
  return jnp.stack([center, left, right], -1), jnp.stack(
    [rest, before, after], -1
  )


def table(
  times: jax.Array,
  weights: jax.Array,
  places: jax.Array,
  split: tuple[int, int, int],
) -> rope_lib.Table:
  """Table of tokens that share a weighted sum of rotations in time, Eq. (1).

  Args:
    times: [... a] of the anchors.
    weights: [... a] of them.
    places: [n 2] positions (h, w) of the tokens.
    split: channels of a head dealt to the axes (f, h, w).

  Returns:
    Table with leaves [... n e/2]. Spatial channels are rotated once and not
    weighted.
  """
  lead, n = times.shape[:-1], len(places)
  turns = rope_lib.table(times[..., None], split[:1])
  summed = [jnp.sum(weights[..., None] * x, axis=-2) for x in turns]
  spatial = rope_lib.table(places, split[1:])
  return rope_lib.Table(
    *(
      jnp.concatenate(
        [
          jnp.broadcast_to(t[..., None, :], (*lead, n, t.shape[-1])),
          jnp.broadcast_to(s, (*lead, *s.shape)),
        ],
        axis=-1,
      )
      for t, s in zip(summed, spatial, strict=True)
    )
  )


def presence(interval: jax.Array, frames: int, parts: int) -> jax.Array:
  """How much of each video frame an interval covers, Eq. (5).

  Args:
    interval: [... 2] latent times t0 <= t1.
    frames: T, latent frames of the video.
    parts: k, video frames of a latent frame; the first one has a single frame,
      which stands for all of its parts.

  Returns:
    [... T k] in 0..1: one within the interval, and nothing a frame outside.
  """
  start, end = (interval[..., i, None, None] for i in (0, 1))
  times = frame_times(frames, parts)[(None,) * (interval.ndim - 1)]
  inside = jnp.minimum(times - start, end - times)
  return jnp.clip(1.0 + parts * inside, 0.0, 1.0)


def frame_times(frames: int, parts: int) -> jax.Array:
  """Latent times [T k] of the video frames of each latent frame.

  Args:
    frames: T, latent frames of the video.
    parts: k, as in `presence`.
  """
  within = (jnp.arange(parts) + 1.0) / parts - 1.0
  times = jnp.arange(frames)[:, None] + within[None]
  return times.at[0].set(0.0)


def stretch(
  times: jax.Array, interval: jax.Array, valid: jax.Array, length: float
) -> jax.Array:
  """Time on the scale of the events, Eq. (3).

  Args:
    times: [t] latent times.
    interval: [b e 2] of the events, sorted and not overlapping.
    valid: [b e] bool; events that are not valid come last.
    length: L of every event.

  Returns:
    [b t]. Gaps hold what the event before them reached.
  """
  start, end = interval[..., :1], interval[..., 1:]
  past = (times[None, None] - start) / jnp.maximum(end - start, 1e-3)
  return length * jnp.sum(jnp.clip(past, 0.0, 1.0) * valid[..., None], axis=1)
