"""Attention: the ways to compute it agree, and masks hide exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax import machine
from dcjax.models import attention
from dcjax.models.attention import attend

B, N, L, K, E = 2, 21, 21, 3, 8


def qkv(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(
    jax.random.normal(key, (B, n, K, E)).astype(dtype)
    for key, n in zip(keys, (N, L, L), strict=True)
  )


def by_hand(q, k, v, mask=None, window=None):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  for b, i, head in np.ndindex(B, N, K):
    seen = [
      j
      for j in range(L)
      if (mask is None or mask[b, j])
      and (window is None or abs(i - j) <= window)
    ]
    scores = k[b, seen, head] @ q[b, i, head] / np.sqrt(E)
    weights = np.exp(scores - scores.max())
    out[b, i, head] = weights / weights.sum() @ v[b, seen, head]
  return out


MASK = np.arange(L)[None] < np.array([[13], [18]])
CASES = [(None, None), (MASK, None), (None, 4), (MASK, 9)]


@pytest.mark.parametrize('mask, window', CASES)
def test_attend_is_the_formula(mask, window):
  got = attend(*qkv(), mask=mask, window=window)
  np.testing.assert_allclose(got, by_hand(*qkv(), mask, window), atol=2e-6)


@pytest.mark.parametrize('mask, window', CASES)
def test_blocks_of_queries_change_nothing(monkeypatch, mask, window):
  """Values and gradients; 21 queries are no multiple of 8."""

  def run(q, k, v):
    y = attend(q, k, v, mask=mask, window=window)
    return jnp.sum(jnp.sin(y)), y

  grad = jax.grad(run, argnums=(0, 1, 2), has_aux=True)
  plain = grad(*qkv())
  monkeypatch.setattr(attention, 'BLOCK_ELEMENTS', 0)
  monkeypatch.setattr(attention, 'BLOCK_QUERIES', 8)
  blocked = grad(*qkv())
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)
  jax.tree.map(close, blocked, plain)


@pytest.mark.parametrize('tail', [0, 5])
@pytest.mark.parametrize('mask, window', CASES)
def test_head_by_head_is_all_heads_at_once(mask, window, tail):
  """Values and gradients of the form that CPUs use."""

  def run(q, k, v):
    y = attend(q, k, v, mask=mask, window=window, tail=tail)
    return jnp.sum(jnp.sin(y)), y

  grad = jax.grad(run, argnums=(0, 1, 2), has_aux=True)
  heads = grad(*qkv())
  with machine.programs_for('gpu'):
    plain = grad(*qkv())
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)
  jax.tree.map(close, heads, plain)


def test_the_tail_is_exempt_from_the_window():
  q, k, v = (x[:1, :, :1] for x in qkv())
  read = jax.jacobian(lambda v: attend(q, k, v, window=2, tail=4)[0, :, 0, 0])(
    v
  )
  i, j = np.indices((N, L))
  seen = (np.abs(i - j) <= 2) | (i >= N - 4) | (j >= L - 4)
  np.testing.assert_array_equal(np.abs(read[:, 0, :, 0, 0]) > 0, seen)


@pytest.mark.parametrize('blocks', [False, True])
@pytest.mark.parametrize('window', [0, 1, 5])
def test_a_window_lets_through_exactly_its_width(monkeypatch, blocks, window):
  if blocks:
    monkeypatch.setattr(attention, 'BLOCK_ELEMENTS', 0)
    monkeypatch.setattr(attention, 'BLOCK_QUERIES', 8)
  q, k, v = (x[:1, :, :1] for x in qkv())
  read = jax.jacobian(lambda v: attend(q, k, v, window=window)[0, :, 0, 0])(v)
  i, j = np.indices((N, L))
  np.testing.assert_array_equal(
    np.abs(read[:, 0, :, 0, 0]) > 0, np.abs(i - j) <= window
  )


def test_softmax_is_float32_whatever_comes_in():
  q, k, v = qkv(jnp.bfloat16)
  got = attend(q, k, v)
  assert got.dtype == jnp.bfloat16
  # Equal scores of many keys: the sum of 1/n would be lost in bfloat16.
  ones = jnp.ones((1, 300, 1, 8), jnp.bfloat16)
  np.testing.assert_allclose(
    np.float32(attend(ones[:, :1], ones, ones)), 1.0, atol=1e-2
  )
  np.testing.assert_allclose(np.float32(got), by_hand(q, k, v), atol=3e-2)
