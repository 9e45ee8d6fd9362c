"""Attention over a mesh is attention on one device."""

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax import mesh
from dcjax.models.attention import attend

B, E = 2, 8
EVERYTHING = {'window': 4, 'tail': 6, 'masked': True}
# Heads, axes, tokens: heads that `context` divides, that it shares a factor
# with, and that it has nothing in common with; tokens that nothing divides.
SPREAD = {
  '4 heads, 4 devices': (4, {'data': 2, 'context': 4}, 21),
  '6 heads, 4 devices': (6, {'fsdp': 2, 'context': 4}, 21),
  '12 heads, 8 devices': (12, {'context': 8}, 37),
  '3 heads, 8 devices': (3, {'context': 8}, 45),
  '3 of 6 heads, 4 devices': (6, {'tensor': 2, 'context': 4}, 22),
}


def qkv(n, l, heads):
  keys = jax.random.split(jax.random.key(1), 3)
  return tuple(
    jax.random.normal(key, (B, m, heads, E))
    for key, m in zip(keys, (n, l, l), strict=True)
  )


def gradients(x, *, masked=False, **kwargs):
  """Of something uneven of the result, and the result."""
  mask = jnp.arange(x[1].shape[1])[None] % 5 < jnp.array([[4], [3]])

  def loss(q, k, v):
    out = attend(q, k, v, mask=mask if masked else None, **kwargs)
    return jnp.sum(jnp.sin(3.0 * out)), out

  return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*x)


def same(there, here):
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
  jax.tree.map(close, there, here)


@pytest.mark.parametrize(
  'spread, seen',
  [(spread, EVERYTHING) for spread in SPREAD]
  + [('12 heads, 8 devices', {}), ('12 heads, 8 devices', {'window': 4})],
)
def test_tokens_over_devices_change_no_number(spread, seen):
  heads, sizes, n = SPREAD[spread]
  x = qkv(n, n, heads)
  here = gradients(x, **seen)
  with mesh.use(mesh.make(sizes)):
    there = gradients(x, **seen)
  same(there, here)


@pytest.mark.parametrize('heads', [3, 4])
def test_text_is_whole_on_every_device(heads):
  x = qkv(21, 5, heads)
  here = gradients(x, masked=True, cross=True)
  with mesh.use(mesh.make({'data': 2, 'context': 4})):
    there = gradients(x, masked=True, cross=True)
  same(there, here)


@pytest.mark.parametrize('spread', SPREAD)
def test_every_device_does_its_part_and_no_more(spread):
  """Pairs of queries and keys of a device: all of them, by the devices."""
  heads, sizes, n = SPREAD[spread]
  x = qkv(n, n, heads)
  devices = sizes.get('context', 1) * sizes.get('tensor', 1)
  with mesh.use(mesh.make(sizes)):
    jaxpr = jax.make_jaxpr(lambda *x: attend(*x))(*x)
  text = str(jaxpr)
  assert text.count(' all_to_all[') == 4
  assert ' all_gather[' not in text
  rows = sizes.get('data', 1) * sizes.get('fsdp', 1)
  scores = _largest(jaxpr.jaxpr)
  padded = n + -n % (sizes['context'] ** 2)
  assert scores * devices <= (B // rows) * heads * padded**2


def _largest(jaxpr, times=1):
  """Elements of the largest product of a program, over the turns of loops."""
  most = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      most = max(most, times * equation.outvars[0].aval.size)
    turns = equation.params.get('length', 1)
    for inner in core.jaxprs_in_params(equation.params):
      most = max(most, _largest(inner, times * turns))
  return most
