"""Splash attention is the plain form; it compiles for TPUs at full size."""

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import quick_compile  # noqa: F401

from dcjax.models import attention_tpu, attention_xla
from dcjax.models.attention_reach import Places, Reach

pytestmark = pytest.mark.usefixtures('quick_compile')

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
