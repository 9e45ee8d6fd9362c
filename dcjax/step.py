"""One optimizer step, the same on one device and on a mesh of thousands.

    rows of the batch -> shares, one for each group of devices that has rows
      -> microbatches, one after the other -> objective -> gradient
      -> sum over the shares, once -> optax -> state

A leaf that every device has a copy of, such as a LoRA's, gets a gradient for
each share; they are added up in float32 after the last microbatch. Between
devices then moves what is trained and nothing else. A leaf that is split over
'fsdp' or 'tensor' has its gradient summed layer by layer, where it is made.
"""

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax

from dcjax import lora, mesh, sharding, tree
from dcjax.objective import Average, Objective
from dcjax.stage import Stage


def make_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  stage: Stage,
  rules: tuple[sharding.Rule, ...] = sharding.RULES,
) -> Callable:
  """The jitted optimizer step: (state, frozen, batch, context, key) -> ...

  Returns (state, metrics). A step whose loss or gradient is not finite leaves
  parameters and optimizer as they were and says so in its metrics.

  Args:
    objective: `loss(params, batch, context, key)`.
    optimizer: of what is trained.
    stage: of the run.
    rules: where state and parameters lie on a mesh.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, frozen, batch, context, key):
    key = jax.random.fold_in(key, state.step)
    loss, aux, grads = gradients(
      objective, stage, state.trainable, frozen, batch, context, key, rules
    )
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    keep = lambda new, old: jax.tree.map(
      lambda a, b: jnp.where(finite, a, b), new, old
    )
    ema = state.ema
    if ema is not None:
      # A young average would remember the random start: it follows faster.
      decay = jnp.minimum(stage.ema, (1.0 + state.step) / (10.0 + state.step))
      ema = jax.tree.map(
        lambda e, p: decay * e + (1.0 - decay) * p, ema, trainable
      )
      ema = keep(ema, state.ema)
    new = state.replace(
      step=state.step + finite.astype(jnp.int32),
      trainable=keep(trainable, state.trainable),
      opt_state=keep(opt_state, state.opt_state),
      ema=ema,
    )
    metrics = {'loss': loss, 'grad_norm': norm, **aux}
    return sharding.constrain(new, rules), metrics

  return step


def gradients(objective, stage, trainable, frozen, batch, context, key, rules):
  """(loss, aux, gradient of the trainable leaves) of one step."""
  key_drop, key_loss = jax.random.split(key)

  def dropped(trainable):
    # One mask a step: all shares and microbatches have it.
    if not stage.dropout:
      return trainable
    return lora.drop(trainable, key_drop, stage.dropout, stage.dropped)

  used, back = jax.vjp(dropped, trainable)
  shares = mesh.size(*mesh.ROWS)
  copied, shared = _sort(used, rules if shares > 1 else None)

  def loss(copied, shared, batch):
    params = tree.combine(frozen, shared, copied)
    return objective(params, batch, context, key_loss)

  if shares > 1:
    loss = _over_shares(loss)
    copied = _copies(copied, shares)
    batch = mesh.split(batch, shares)
  grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  parts = microbatches(stage, shares)
  if parts == 1:
    (value, aux), (of_copied, of_shared) = grad(copied, shared, batch)
  else:
    (value, aux), (of_copied, of_shared) = _microbatches(
      lambda part: grad(copied, shared, part), batch, parts, shares
    )
  if shares > 1:
    # Each share's loss is one of the shares' mean: its gradients add up.
    of_copied = jax.tree.map(lambda x: x.sum(0), of_copied)
  (grads,) = back(tree.combine(of_copied, of_shared))
  means = {
    name: x.mean if isinstance(x, Average) else x for name, x in aux.items()
  }
  return value, means, grads


def microbatches(stage: Stage, shares: int) -> int:
  """How many microbatches a share is cut into: none larger than on one device.

  Args:
    stage: of which `accumulate` says how many there are on one device.
    shares: of the batch, a divisor of it.
  """
  samples = math.gcd(*(n for _, n in stage.mix)) or stage.batch
  rows = max(samples // shares, 1)
  enough = (n for n in range(1, rows) if n * shares >= stage.accumulate)
  return next((n for n in enough if rows % n == 0), rows)


def _sort(trainable, rules):
  """(leaves of which every share has a copy of its own, the others)."""
  flat = tree.flatten(trainable)
  whole = lambda name, x: not any(sharding.spec(name, x.shape, rules))
  names = {n for n, x in flat.items() if rules is None or whole(n, x)}
  pick = lambda those: tree.unflatten({n: flat[n] for n in flat if those(n)})
  return pick(lambda n: n in names), pick(lambda n: n not in names)


def _copies(leaves, shares):
  """[...] -> [s ...]: what a share computes of its copy stays with it."""

  def copy(x):
    copies = jnp.broadcast_to(x[None], (shares, *x.shape))
    return jax.lax.with_sharding_constraint(copies, P(mesh.ROWS))

  return jax.tree.map(copy, leaves)


def _over_shares(loss):
  """The mean loss of all shares; `copied` and `batch` have an axis of them."""
  mapped = mesh.over_rows(loss)

  def mean(copied, shared, batch):
    found = mapped(copied, shared, batch, in_axes=(0, None, 0))
    return jax.tree.map(lambda x: x.mean(0), found)

  return mean


def _microbatches(grad, batch, parts, shares):
  """`grad` of one part of the batch after the other: their mean."""

  def cut(x):
    if shares == 1:
      return x.reshape(parts, -1, *x.shape[1:])
    # Within each share: no sample moves.
    return jnp.moveaxis(x.reshape(shares, parts, -1, *x.shape[2:]), 1, 0)

  def add(total, part):
    return jax.tree.map(jnp.add, total, grad(part)), None

  batch = jax.tree.map(cut, batch)
  shapes = jax.eval_shape(grad, jax.tree.map(lambda x: x[0], batch))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, batch)
  return jax.tree.map(lambda x: x / parts, total)
