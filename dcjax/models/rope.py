"""Rotary position embedding as data: a table of (cos, sin) a token.

The transformer never computes a position. It takes a table, one row a token,
and rotates queries and keys with it. Plain 3-D RoPE, another axis split, or a
table whose rows are weighted sums of rotations are different tables for one
model.

For a channel pair j with frequency theta_j and a token at position p,

  (1)  u'_{2j}   = u_{2j} cos(theta_j p) - u_{2j+1} sin(theta_j p)
  (2)  u'_{2j+1} = u_{2j} sin(theta_j p) + u_{2j+1} cos(theta_j p)

The pairs of a head are dealt to the axes (f, h, w) in this order by `split`.
"""

from typing import NamedTuple

from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np


class Table(NamedTuple):
  """Rotations of n tokens: cos and sin, each [n e/2] or [b n e/2], float32."""

  cos: jax.Array
  sin: jax.Array


def wan_split(head_dim: int) -> tuple[int, int, int]:
  """Channels of a head for (f, h, w) as Wan 2.1 has them: 128 -> 44 42 42."""
  side = 2 * (head_dim // 6)
  return head_dim - 2 * side, side, side


def paper_split(head_dim: int) -> tuple[int, int, int]:
  """Channels of a head in the ratio 2:1:1 (Set-and-Sequence, Table 4)."""
  return head_dim // 2, head_dim // 4, head_dim // 4


def grid_positions(frames: int, height: int, width: int) -> np.ndarray:
  """Integer positions (f, h, w) of all patches in raster order: [n 3]."""
  axes = np.meshgrid(
    np.arange(frames), np.arange(height), np.arange(width), indexing='ij'
  )
  return np.stack([axis.reshape(-1) for axis in axes], axis=-1)


def table(
  positions: np.ndarray | jax.Array,
  split: tuple[int, ...],
  theta: float = 10000.0,
) -> Table:
  """Table for tokens at continuous positions.

  Args:
    positions: [... n a] on as many axes as `split` has; all three are the
      patch coordinates (f, h, w).
    split: channels of a head dealt to each axis; all even.
    theta: base of the frequencies theta^(-2j / channels).

  Returns:
    Table with leaves [... n sum(split)/2].
  """
  angles = [
    jnp.asarray(positions, jnp.float32)[..., axis, None]
    * _frequencies(channels, theta, np.ndim(positions))
    for axis, channels in enumerate(split)
  ]
  angles = jnp.concatenate(angles, axis=-1)
  return Table(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, rope: Table) -> jax.Array:
  """Rotates the channel pairs of x [b n k e], Eq. (1, 2), in float32."""
  pairs = rearrange(
    x.astype(jnp.float32), 'b n k (e two) -> b n k e two', two=2
  )
  even, odd = pairs[..., 0], pairs[..., 1]
  # One row serves all heads, and all samples if the table has no batch axis.
  cos, sin = (
    jnp.expand_dims(a if a.ndim == 3 else a[None], axis=2) for a in rope
  )
  rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return rearrange(rotated, 'b n k e two -> b n k (e two)').astype(x.dtype)


def _frequencies(channels: int, theta: float, ndim: int) -> np.ndarray:
  """theta^(-2j / channels) for each pair, shaped [1 ... channels/2]."""
  pairs = np.arange(0, channels, 2, dtype=np.float64) / channels
  freqs = (1.0 / theta**pairs).astype(np.float32)
  return freqs.reshape((1,) * (ndim - 1) + (-1,))
