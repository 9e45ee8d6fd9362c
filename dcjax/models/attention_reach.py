"""Which keys a query sees, by their places in the sequence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Reach:
  """What is known when a program is made; masks of samples come beside it.

  Attributes:
    keys: of the sequence; places from there on are padding.
    window: half width; the query at i sees the key at j if |i - j| <= window.
      None: all.
    tail: as many last places are exempt from the window, as queries and keys.
  """

  keys: int
  window: int | None = None
  tail: int = 0

  def __post_init__(self):
    # A window that reaches everything is none.
    if self.window is not None and self.window >= self.keys - 1:
      object.__setattr__(self, 'window', None)

  def sees(self, i: Any, j: Any) -> Any:
    """Whether queries at places i see keys at places j.

    Only operators: numpy, jax.numpy and the kernels of Pallas all evaluate it.
    A query of the padding belongs to the tail, so that no row is empty.
    """
    real = j < self.keys
    if self.window is None:
      return real & (i >= 0)
    first = self.keys - self.tail
    near = (i - j <= self.window) & (j - i <= self.window)
    return real & (near | (i >= first) | (j >= first))

  def hides(self, length: int) -> bool:
    """Whether some query does not see some of `length` keys."""
    return self.window is not None or length > self.keys


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the queries of one device stand, if it has not all of them in order.

  Attributes:
    table: [parts n] places, ascending in each part.
    part: int32 scalar, the part that this device has; traced.
  """

  table: np.ndarray
  part: jax.Array

  def here(self) -> jax.Array:
    """[n] places of this device's queries."""
    return jnp.asarray(self.table, jnp.int32)[self.part]
