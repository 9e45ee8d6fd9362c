"""Attention: the ways to compute it agree, and masks hide exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax import machine
from dcjax.models import attention, attention_gpu, attention_xla
from dcjax.models.attention import attend
from dcjax.models.attention_reach import Reach

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


def close(got, wanted):
  """Equal up to the order of float32 sums: four of their last places.

  The gradient of a value that every query sees is a sum of 21 terms, about
  16 in all, where two neighbouring floats are 2e-6 apart.
  """
  np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=5e-7)


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


@pytest.mark.parametrize('size', [4, 8, 32])
def test_blocks_add_up_in_float32(size):
  """Gradients of keys in bfloat16: as of all queries at once."""
  q, k, v = qkv(jnp.bfloat16)

  def grad(size):
    out = lambda k: attention_xla.attend_blocks(
      q, k, v, None, Reach(L), size=size
    )
    return jax.grad(lambda k: jnp.sum(jnp.sin(out(k).astype(jnp.float32))))(k)

  whole, blocks = (np.float32(grad(n)) for n in (N, size))
  assert np.abs(blocks - whole).max() <= 2**-7 * np.abs(whole).max()


# A hidden key in the middle; all but the last; and one whole sample.
HIDDEN = np.stack([np.arange(L) % 5 != 2, np.arange(L) == L - 1])


@pytest.mark.parametrize('mask', [None, MASK, HIDDEN])
@pytest.mark.parametrize('keys', [L, 17])
def test_cudnn_is_told_lengths_only(mask, keys):
  """Visible keys first: what a GPU is given, computed without one."""
  if mask is not None and not mask[:, :keys].any(axis=1).all():
    mask = mask | (np.arange(L) == 3)
  shown = np.arange(L)[None] < keys
  shown = shown & (np.ones((B, 1), bool) if mask is None else mask)

  def run(q, k, v):
    out = attention_gpu.attend(q, k, v, mask, Reach(keys), implementation='xla')
    return jnp.sum(jnp.sin(out)), out

  def plain(q, k, v):
    out = attend(q, k, v, mask=shown)
    return jnp.sum(jnp.sin(out)), out

  got, wanted = (
    jax.grad(way, argnums=(0, 1, 2), has_aux=True)(*qkv())
    for way in (run, plain)
  )
  jax.tree.map(close, got, wanted)


def test_what_cudnn_takes():
  half = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
  assert attention_gpu.serves(half, Reach(9))
  assert not attention_gpu.serves(half, Reach(9, window=3))
  # A window that reaches everything is none.
  assert attention_gpu.serves(half, Reach(9, window=8))
  assert not attention_gpu.serves(half.astype(jnp.float32), Reach(9))
  assert not attention_gpu.serves(half[..., :12], Reach(9))
