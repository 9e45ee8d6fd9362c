"""Splash attention is the plain form; it compiles for TPUs at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.models import attention_tpu, attention_xla
from dcjax.models.attention_reach import Places, Reach

B, K, E = 2, 2, 16


def qkv(n, l, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(
    jax.random.normal(key, (B, m, K, E)).astype(dtype)
    for key, m in zip(keys, (n, l, l), strict=True)
  )


def grad_of(way):
  """(value, gradients of q, k and v) of something uneven of a result."""

  def loss(q, k, v):
    out = way(q, k, v)
    return jnp.sum(jnp.sin(3.0 * out.astype(jnp.float32))), out

  return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def mask_of(l):
  return jnp.arange(l)[None] % 7 < jnp.array([[5], [3]])


# Tokens, keys, whether some are hidden, half width of the window, tail: blocks
# that are whole, cut by padding, by the window, and by the tail.
CASES = {
  'full': (256, 256, False, None, 0),
  'padded': (200, 200, False, None, 0),
  'text': (130, 40, False, None, 0),
  'masked text': (130, 40, True, None, 0),
  'window': (300, 300, False, 60, 0),
  'window, tail': (300, 300, False, 60, 20),
  'window, tail, mask': (300, 300, True, 60, 20),
}


@pytest.mark.parametrize('case', CASES)
def test_splash_is_plain_attention(case):
  """Values and all gradients, in the interpreter of the kernel language."""
  n, l, masked, window, tail = CASES[case]
  mask, reach = mask_of(l) if masked else None, Reach(l, window, tail)
  splash = grad_of(
    lambda *x: attention_tpu.attend(*x, mask, reach, interpret=True)
  )
  plain = grad_of(lambda *x: attention_xla.attend_heads(*x, mask, reach))
  got, wanted = splash(*qkv(n, l)), plain(*qkv(n, l))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, wanted
  )


def test_queries_of_one_device_know_their_places():
  """Every second run of 20 tokens, as context parallelism shares them out."""
  n, reach = 160, Reach(157, 30, 9)
  q, k, v = qkv(n, n)
  table = np.arange(n).reshape(-1, 2, 20).swapaxes(0, 1).reshape(2, -1)

  def loss(attend, q, k, v):
    # Not of the padding, which no loss reads.
    out = attend(q, k, v)
    return jnp.sum(jnp.sin(3.0 * out[:, :150]))

  def parts(q, k, v):
    out = jnp.zeros_like(q)
    for part, places in enumerate(table):
      mine = attention_tpu.attend(
        q[:, places],
        k,
        v,
        None,
        reach,
        Places(table, jnp.int32(part)),
        interpret=True,
      )
      out = out.at[:, places].set(mine)
    return out

  whole = lambda *x: attention_xla.attend_heads(*x, None, reach)
  got, wanted = (
    jax.jit(jax.value_and_grad(loss, argnums=(1, 2, 3)), static_argnums=0)(
      way, q, k, v
    )
    for way in (parts, whole)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-5),
    got,
    wanted,
  )


@pytest.mark.parametrize('tail, places', [(0, 1), (40, 1), (40, 4)])
@pytest.mark.parametrize('window', [None, 30, 130])
def test_blocks_are_skipped_and_only_those_that_hide_all(window, tail, places):
  """What is decided without a block's elements is what they say."""
  n, keys, size = 640, 600, 32
  order = np.arange(n).reshape(-1, places).T.reshape(-1)
  mask = attention_tpu.Mask(Reach(keys, window, tail), order, n)
  rows, columns = order[:, None], np.arange(n)[None]
  near = np.abs(rows - columns) <= (n if window is None else window)
  near |= (rows >= keys - tail) | (columns >= keys - tail)
  seen = near & (columns < keys)
  decided = 0
  for i in range(0, len(order), size):
    for j in range(0, n, size):
      block = mask[slice(i, i + size), slice(j, j + size)]
      wanted = seen[i : i + size, j : j + size]
      assert np.array_equal(np.broadcast_to(block, wanted.shape), wanted)
      decided += block.size == 1
  assert decided > 0.4 * (len(order) / size) * (n / size)


def test_lengths_choose_their_blocks():
  sizes = {4: 128, 200: 256, 512: 512, 576: 640, 9216: 1024, 32760: 1024}
  for length, size in sizes.items():
    assert attention_tpu.block(length) == size
    assert length + -length % size <= max(length * 17 / 16, length + 127)
