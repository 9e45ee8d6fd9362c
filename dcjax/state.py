"""What an optimizer step changes; the frozen tree stands apart."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
  """State of one stage.

  Attributes:
    step: optimizer steps done, int32 scalar.
    trainable: the part of the parameters that the stage's regex claims.
    opt_state: of optax, for `trainable` only.
    ema: moving average of `trainable`, or None.
  """

  step: jax.Array
  trainable: Any
  opt_state: Any
  ema: Any = None


def init(
  trainable: Any, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
  """A stage's state before its first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    opt_state=optimizer.init(trainable),
    # A copy: the step donates its buffers, and two leaves must not share one.
    ema=jax.tree.map(jnp.copy, trainable) if ema else None,
  )
