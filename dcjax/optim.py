"""Optax chains from a `stage.Optimizer`."""

import re

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from dcjax import tree
from dcjax.stage import Optimizer

# Kernels of linear layers and convolutions inside the network: what Muon
# orthogonalises. The first and last layers of a transformer stay outside, and
# the last ones of an autoencoder.
HIDDEN = r'(blocks|layers|^vae)/.*(?<!conv_out)/kernel$'


def schedule(c: Optimizer, steps: int) -> optax.Schedule:
  """Learning rate as a function of the step, for a stage of `steps`."""
  body = max(steps - c.warmup, 1)
  if c.schedule == 'constant':
    main = optax.constant_schedule(c.lr)
  elif c.schedule == 'linear':
    main = optax.linear_schedule(c.lr, 0.0, body)
  elif c.schedule == 'cosine':
    main = optax.cosine_decay_schedule(c.lr, body)
  else:  # trapezoid
    fall = max(int(steps * c.cooldown), 1)
    main = optax.linear_schedule(c.lr, 0.0, fall, max(body - fall, 0))
  warmup = optax.linear_schedule(0.0, c.lr, max(c.warmup, 1))
  return optax.join_schedules([warmup, main], [c.warmup])


def make(c: Optimizer, steps: int) -> optax.GradientTransformation:
  """The chain: clip, then AdamW or Muon, then learning-rate groups."""
  rate = schedule(c, steps)
  chain = [optax.clip_by_global_norm(c.clip)] if c.clip else []
  if c.kind == 'adamw':
    chain.append(
      optax.adamw(
        rate,
        *c.betas,
        eps=c.eps,
        weight_decay=c.weight_decay,
        mask=_matrices,
      )
    )
  else:
    chain.append(
      optax.contrib.muon(
        rate,
        adam_b1=c.betas[0],
        adam_b2=c.betas[1],
        eps=c.eps,
        weight_decay=c.weight_decay,
        adam_weight_decay=0.0,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_muon_axes,
      )
    )
  if c.groups:
    chain.append(_scale_groups(c.groups))
  return optax.chain(*chain)


def _matrices(params: tree.Tree) -> dict:
  return jax.tree.map(lambda x: x.ndim >= 2, params)


def _muon_axes(params: tree.Tree) -> dict:
  """The (in, out) axes of each hidden kernel; None leaves a leaf to AdamW."""

  def axes(name, x):
    # Optax masks what it has dealt to AdamW: such leaves have no axes.
    ndim = getattr(x, 'ndim', 0)
    if ndim < 2 or not re.search(HIDDEN, name):
      return None
    # A third axis is that of scanned layers; more are those of a convolution,
    # whose matrix goes from all inputs of a position to its outputs.
    inputs = -2 if ndim <= 3 else tuple(range(ndim - 1))
    return optax.contrib.MuonDimensionNumbers(inputs, ndim - 1)

  return tree.unflatten(
    {name: axes(name, x) for name, x in tree.flatten(params).items()}
  )


def _scale_groups(groups) -> optax.GradientTransformation:
  """Multiplies updates by the factor of the first pattern that matches."""

  def factor(name: str) -> float:
    return next((f for regex, f in groups if re.search(regex, name)), 1.0)

  def update(updates, state, params=None):
    del params
    flat = tree.flatten(updates)
    scaled = {
      name: jnp.asarray(factor(name), x.dtype) * x for name, x in flat.items()
    }
    return tree.unflatten(scaled), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
