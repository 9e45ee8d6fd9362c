"""Attention on GPUs: the fused kernels of cuDNN, where they serve.

They take bfloat16 and float16, and see all keys or the first of them. A centred
window they do not take: `local_window_size` with a right half is refused, and
with a left half alone it is wrong (jax 0.10), so windows never come here.
"""

import jax
import jax.numpy as jnp

from dcjax.models.attention_reach import Reach


def serves(q: jax.Array, reach: Reach) -> bool:
  """Whether cuDNN computes attention of these queries [b n k e]."""
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  # Other head dims have no backward pass.
  fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
  return half and fits and reach.window is None


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None,
  reach: Reach,
  *,
  implementation: str = 'cudnn',
) -> jax.Array:
  """Arguments as of `attention.attend`; `serves` must hold."""
  lengths = None
  if mask is None and reach.keys < k.shape[1]:
    lengths = jnp.full(len(k), reach.keys, jnp.int32)
  if mask is not None:
    mask = mask & (jnp.arange(k.shape[1]) < reach.keys)[None]
    k, v, lengths = _visible_first(k, v, mask)
  return jax.nn.dot_product_attention(
    q, k, v, key_value_seq_lengths=lengths, implementation=implementation
  )


def _visible_first(k, v, mask):
  """Keys in an order in which those that are seen come first, and how many.

  Attention does not read the order of keys, and a number for each sample is all
  that the kernel needs: a bias would be as large as the scores.
  """
  order = jnp.argsort(~mask, axis=1, stable=True)
  pick = lambda x: jnp.take_along_axis(x, order[:, :, None, None], axis=1)
  # A sample that sees nothing sees one key: what comes of it is not read.
  lengths = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)
  return pick(k), pick(v), lengths
