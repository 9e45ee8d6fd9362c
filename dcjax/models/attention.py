"""Scaled dot-product attention: one function, on any backend and any mesh.

    CPU   a head at a time; long sequences a block of queries at a time
    GPU   cuDNN, if there is no window; else a block of queries at a time
    TPU   splash, with windows and masks

All are linear in memory, keep their softmax in float32 and name what their
backward pass needs 'attention', for the policies of `jax.checkpoint`.

On a mesh, tokens are spread over its axis 'context' and heads over 'tensor'.
Self-attention exchanges the two (DeepSpeed-Ulysses, arXiv 2309.14509): by an
all-to-all of q, k, v and the result each device sees all tokens of some heads.
Where the heads do not divide, some devices have the same heads and share out
the queries: k and v are sent to each of them, still by an all-to-all. A ring
would send no less, would need the sums of several passes merged, and could skip
nothing outside a window.
"""

import math

from einops import rearrange
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from dcjax import machine
from dcjax import mesh as mesh_lib
from dcjax.models import attention_gpu, attention_xla
from dcjax.models.attention_reach import Places, Reach

# Scores beyond this many elements a head are computed a block of queries at a
# time.
BLOCK_ELEMENTS = 1 << 22
BLOCK_QUERIES = 512


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  mask: jax.Array | None = None,
  window: int | None = None,
  tail: int = 0,
  cross: bool = False,
) -> jax.Array:
  """Attention of n queries to l keys; softmax in float32.

  A query that sees no key gets something finite, which means nothing.

  Args:
    q: [b n k e] queries.
    k: [b l k e] keys.
    v: [b l k e] values.
    mask: [b l] bool, False hides a key from every query.
    window: half width; query i sees key j if |i - j| <= window. None: all.
    tail: as many last tokens are exempt from the window, as queries and keys.
    cross: the keys are of another sequence, which every device has whole.

  Returns:
    [b n k e] in the dtype of q.
  """
  reach = Reach(k.shape[1], window, tail)
  if mesh_lib.size() > 1:
    return _attend_on_mesh(q, k, v, mask, reach, cross)
  return _attend_here(q, k, v, mask, reach)


# ---- on a mesh ---------------------------------------------------------------


def same_heads(heads: int, tensor: int, context: int) -> int:
  """How many devices see the same heads, and share out their queries.

  Args:
    heads: of the whole model; they are split over 'tensor' where they divide.
    tensor: devices along that axis.
    context: devices along 'context', which share what is left.
  """
  held = heads // tensor if heads % tensor == 0 else heads
  return context // math.gcd(held, context)


def _attend_on_mesh(q, k, v, mask, reach, cross):
  """Each device does its samples and heads by the way of its backend."""
  n, heads, shards = q.shape[1], q.shape[2], mesh_lib.size('context')
  tensor = 'tensor' if heads % mesh_lib.size('tensor') == 0 else None
  exchange = shards > 1 and not cross
  parts = 1
  if exchange:
    parts = same_heads(heads, mesh_lib.size('tensor'), shards)
  pad = -n % (shards * parts)
  lengthen = lambda x: jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
  if exchange:
    k, v = lengthen(k), lengthen(v)
    mask = None if mask is None else jnp.pad(mask, ((0, 0), (0, pad)))

  def local(q, k, v, *mask):
    mask = mask[0] if mask else None
    if not exchange:
      return _attend_here(q, k, v, mask, reach)
    places = None if parts == 1 else _places(n + pad, shards, parts)
    q, k, v = _to_heads(q, parts), *(_to_heads_whole(x, parts) for x in (k, v))
    # Named on both sides of an exchange, so that none is done again for what
    # the backward pass reads.
    q, k, v = (checkpoint_name(x, 'product') for x in (q, k, v))
    out = _attend_here(q, k, v, mask, reach, places)
    return checkpoint_name(_to_tokens(out, parts), attention_xla.NAME)

  rows = mesh_lib.rows(len(q))
  # An axis of one device is named too: gradients are summed over the others.
  keys = 'context' if exchange or shards == 1 else None
  video, keys = (P(rows, axis, tensor, None) for axis in ('context', keys))
  masks = () if mask is None else (mask,)
  out = jax.shard_map(
    local,
    in_specs=(video, keys, keys, *(P(rows, None) for _ in masks)),
    out_specs=video,
    check_vma=False,
  )(lengthen(q), k, v, *masks)
  return out[:, :n]


def _all_to_all(x, split, join):
  return jax.lax.all_to_all(x, 'context', split, join, tiled=True)


def _to_heads(q, parts):
  """[b n/s k e], some tokens of all heads -> [b n/p k p/s e]."""
  q = rearrange(q, 'b (parts n) k e -> b n (parts k) e', parts=parts)
  return _all_to_all(q, 2, 1)


def _to_heads_whole(x, parts):
  """[b n/s k e], some tokens of all heads -> [b n k p/s e]: all tokens."""
  return _all_to_all(jnp.tile(x, (1, 1, parts, 1)), 2, 1)


def _to_tokens(out, parts):
  """Undoes `_to_heads`."""
  out = _all_to_all(out, 1, 2)
  return rearrange(out, 'b n (parts k) e -> b (parts n) k e', parts=parts)


def _places(n, shards, parts):
  """Where the queries stand that `_to_heads` gives to a device."""
  table = rearrange(
    np.arange(n),
    '(shards parts n) -> parts (shards n)',
    shards=shards,
    parts=parts,
  )
  part = jax.lax.axis_index('context') // (shards // parts)
  return Places(table, part)


# ---- on a device -------------------------------------------------------------


def _attend_here(q, k, v, mask, reach, places=None):
  """Attention on one device, of the queries at some places."""
  if machine.backend() == 'tpu':
    # The kernel language takes a second to import.
    from dcjax.models import attention_tpu

    return attention_tpu.attend(q, k, v, mask, reach, places)
  if machine.backend() == 'gpu' and attention_gpu.serves(q, reach):
    if _has_cudnn():
      return attention_gpu.attend(q, k, v, mask, reach)
    # A program that is only looked at, where cuDNN is not: small blocks keep
    # the same arrays for the backward pass and need about as much beside them.
    return attention_xla.attend_blocks(
      q, k, v, mask, reach, places, size=BLOCK_QUERIES // 4
    )
  n, l = q.shape[1], k.shape[1]
  if n * l > BLOCK_ELEMENTS:
    return attention_xla.attend_blocks(
      q, k, v, mask, reach, places, size=BLOCK_QUERIES
    )
  if machine.backend() == 'cpu':
    return attention_xla.attend_heads(q, k, v, mask, reach, places)
  return attention_xla.attend_blocks(q, k, v, mask, reach, places, size=n)


def _has_cudnn() -> bool:
  return jax.default_backend() == 'gpu'
