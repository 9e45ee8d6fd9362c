"""What the device at hand computes, in the dtype and by the way it trains with.

On a GPU that is cuDNN's attention in bfloat16; on a processor, the plain one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import lora, machine, tree
from dcjax.models import attention_xla
from dcjax.models.attention import attend
from dcjax.models.attention_reach import Reach
from dcjax.models.dit import DiT

HERE = jax.default_backend()
# An accelerator is asked about programs such as it trains with.
pytestmark = [pytest.mark.usefixtures('as_users_compile')] * (HERE != 'cpu')

B, N, K = 2, 200, 2
# Keys, width of a head, whether some are hidden, half width of the window.
CASES = {
  'full': (N, 64, False, None),
  'wide heads': (N, 128, False, None),
  'text': (24, 64, True, None),
  'hidden keys': (N, 64, True, None),
  'window': (N, 64, False, 40),
}


@pytest.mark.parametrize('case', CASES)
def test_attention_in_bfloat16_is_near_that_in_float32(case):
  """Values and all gradients, one part in fifty of the largest."""
  l, e, masked, window = CASES[case]
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (
    jax.random.normal(key, (B, n, K, e))
    for key, n in zip(keys, (N, l, l), strict=True)
  )
  mask = jnp.arange(l)[None] % 7 < jnp.array([[5], [3]]) if masked else None

  def grad(way, dtype):
    def loss(q, k, v):
      out = way(q, k, v).astype(jnp.float32)
      return jnp.sum(jnp.sin(3.0 * out)), out

    every = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return every(*(x.astype(dtype) for x in (q, k, v)))

  got = grad(lambda *x: attend(*x, mask=mask, window=window), jnp.bfloat16)
  reach = Reach(l, window)
  wanted = grad(
    lambda *x: attention_xla.attend_blocks(*x, mask, reach, size=N),
    jnp.float32,
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    error = np.abs(np.float32(a) - np.float32(b)).max()
    assert error < 0.02 * np.abs(b).max()


DITS = {
  'wan': dataclasses.replace(tiny.DIT, width=128, heads=2, mlp_width=160),
  'paper': dataclasses.replace(
    tiny.PAPER_DIT,
    width=128,
    heads=2,
    mlp_width=160,
    rope_split=(32, 16, 16),
    window=9,
  ),
}


@pytest.mark.skipif(
  HERE == 'cpu',
  reason='compares an accelerator with its host; there is none here',
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('layout', DITS)
def test_a_step_on_the_device_is_that_of_its_host(layout, dtype):
  """The loss of a LoRA and its gradient; in bfloat16, nearly."""
  dit = DITS[layout]
  attach = lambda x: lora.attach(x, r'attn/|mlp/', 2, jax.random.key(0))
  params = jax.tree.map(np.asarray, attach(tiny.dit_params(dit)))
  leaves, frozen = tree.partition(params, 'lora/(a1|b1)')
  leaves = jax.tree.map(lambda x: x + 0.1, leaves)
  x = np.linspace(-1, 1, 2 * 8 * 8 * 4, dtype=np.float32)
  x = x.reshape(1, 2, 8, 8, 4)
  text = np.ones((1, 5, dit.text_width), np.float32)

  def step(platform, dtype):
    device = jax.devices(platform)[0]
    with machine.programs_for(platform), jax.default_device(device):
      apply = lora.with_lora(DiT(dit, jnp.dtype(dtype)).apply)

      def loss(leaves, frozen, x, text):
        variables = {'params': tree.combine(leaves, frozen)}
        mask = jnp.ones(text.shape[:2], bool)
        out = apply(variables, x, jnp.ones(1), text, text_mask=mask)
        return jnp.mean(jnp.square(out - x))

      found = jax.jit(jax.value_and_grad(loss))(leaves, frozen, x, text)
      return jax.tree.map(np.asarray, found)

  here, host = step(HERE, dtype), step('cpu', 'float32')
  share = {'float32': 1e-3, 'bfloat16': 0.05}[dtype]
  assert here[0] == pytest.approx(host[0], rel=share)
  norm = lambda tree: np.sqrt(sum(np.sum(a**2) for a in jax.tree.leaves(tree)))
  off = jax.tree.map(np.subtract, here[1], host[1])
  assert norm(off) < share * norm(host[1])
