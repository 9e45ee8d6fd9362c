"""Remat policies: what a block keeps, and what it computes again."""

import collections
import dataclasses

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import tiny

from dcjax import lora, tree
from dcjax.models.dit import DiT

# 32 tokens of 64 numbers, 5 words.
DIT = dataclasses.replace(tiny.DIT, width=64, heads=4, mlp_width=160)
N, RANK = 32, 2


def loss_of(remat):
  """(loss, LoRA leaves) of a small transformer."""
  attach = lambda x: lora.attach(
    x, r'attn/[qkvo]/|mlp/', RANK, jax.random.key(0)
  )
  params = jax.jit(attach)(tiny.dit_params(DIT))
  trainable, frozen = tree.partition(params, 'lora/(a1|b1)')
  trainable = jax.tree.map(lambda x: x + 0.1, trainable)
  x = jnp.linspace(-1, 1, 2 * 8 * 8 * 4).reshape(1, 2, 8, 8, 4)
  text = jnp.ones((1, 5, DIT.text_width))
  apply = lora.with_lora(DiT(DIT, remat=remat).apply)

  def loss(leaves):
    variables = {'params': tree.combine(leaves, frozen)}
    return jnp.sum(jnp.sin(apply(variables, x, jnp.ones(1), text)))

  return loss, trainable


def kept(remat):
  """Numbers a token and block, by their shapes behind the tokens."""
  loss, leaves = loss_of(remat)
  residuals = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], leaves)
  found = collections.Counter()
  for x in jax.tree.leaves(residuals):
    # [layers b n d], and [layers b k n e] and [layers b k n] of attention.
    if x.shape[:1] == (DIT.layers,) and N in x.shape[2:]:
      found[x.size // (DIT.layers * N)] += 1
  return found


def products(remat):
  loss, leaves = loss_of(remat)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(leaves)
  return sum(1 for x in _equations(jaxpr.jaxpr) if x == 'dot_general')


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for inner in core.jaxprs_in_params(equation.params):
      yield from _equations(inner)


def test_products_are_kept_and_none_is_computed_again():
  assert products('products') == products('none')
  # The stream three times, q, k, v, q of cross-attention, what both attend to;
  # `up`; the inner numbers of eight LoRAs; the sums of a row of each head.
  assert kept('products') == {64: 9, 160: 1, RANK: 8, DIT.heads: 2}


def test_attention_is_kept_and_the_stream():
  assert kept('attention') == {64: 5, DIT.heads: 2}
  # Six linear layers with two products of LoRA each, twelve without o and down.
  again = products('attention') - products('none')
  assert 6 * 2 <= again < products('full') - products('none')


def test_full_keeps_what_enters():
  assert kept('full') == {64: 1}


def test_gradients_are_those_without():
  def gradients(remat):
    loss, leaves = loss_of(remat)
    return jax.jit(jax.grad(loss))(leaves)

  same = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)
  jax.tree.map(same, gradients('attention'), gradients('none'))
