"""Scaled dot-product attention: one function, four ways to compute it."""

import functools

from einops import rearrange
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dcjax import machine
from dcjax import mesh as mesh_lib
from dcjax.errors import DcjaxError

# Scores beyond this many elements a head are computed a block of queries at a
# time and recomputed in the backward pass, so memory stays linear in tokens.
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

  On a mesh, tokens are spread over its axis 'context' and heads over 'tensor'.
  Self-attention exchanges the two (DeepSpeed-Ulysses, arXiv 2309.14509): each
  device sees all tokens of some heads, by an all-to-all of q, k, v and the
  result.

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
  if mesh_lib.size() > 1:
    return _attend_on_mesh(q, k, v, mask, window, tail, cross)
  return _attend_here(q, k, v, mask, window, tail)


def _attend_on_mesh(q, k, v, mask, window, tail, cross):
  """Each device does its samples and heads by the way of its backend."""
  n, heads, shards = q.shape[1], q.shape[2], mesh_lib.size('context')
  tensor = 'tensor' if heads % mesh_lib.size('tensor') == 0 else None
  held = heads // (mesh_lib.size('tensor') if tensor else 1)
  exchange = shards > 1 and not cross
  if exchange and held % shards:
    raise DcjaxError(
      f'config.mesh.context is {shards}, which does not divide the {held} '
      'heads that a device has; use a divisor of them'
    )
  pad = -n % shards
  lengthen = lambda x: jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
  if mask is None:
    mask = jnp.ones((len(k), k.shape[1]), bool) if pad and exchange else None
  if exchange and pad:
    k, v, mask = lengthen(k), lengthen(v), jnp.pad(mask, ((0, 0), (0, pad)))
    tail += pad if tail else 0

  def exchanged(x, split, join):
    if not exchange:
      return x
    return jax.lax.all_to_all(x, 'context', split, join, tiled=True)

  def local(q, k, v, *mask):
    q, k, v = (exchanged(x, 2, 1) for x in (q, k, v))
    out = _attend_here(q, k, v, mask[0] if mask else None, window, tail)
    return exchanged(out, 1, 2)

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


def _attend_here(q, k, v, mask, window, tail):
  """Attention on one device."""
  if _fused(q, mask, window):
    return _cudnn(q, k, v)
  n, l = q.shape[1], k.shape[1]
  if n * l > BLOCK_ELEMENTS:
    return _attend_blocks(q, k, v, mask, window, tail)
  if machine.backend() == 'cpu':
    return _attend_heads(q, k, v, mask, window, tail)
  return _attend(q, k, v, mask, window, tail, 0)


def _fused(q, mask, window) -> bool:
  """Whether cuDNN's fused kernel serves this call."""
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  return half and mask is None and window is None and _on_gpu()


def _on_gpu() -> bool:
  return machine.backend() == 'gpu'


def _cudnn(q, k, v):
  if jax.default_backend() == 'gpu':
    return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')
  # A program that is only looked at, where cuDNN is not: small blocks keep the
  # same arrays for the backward pass and need about as much beside them.
  return _attend_blocks(q, k, v, None, None, 0, BLOCK_QUERIES // 4)


def _attend(q, k, v, mask, window, tail, offset):
  """Plain attention of the queries that start at token `offset`."""
  # An explicit (b k n e) layout is what XLA:CPU multiplies fastest.
  q, k, v = (rearrange(x, 'b n k e -> b k n e') for x in (q, k, v))
  scale = q.shape[-1] ** -0.5
  scores = jnp.einsum(
    'b k n e, b k l e -> b k n l',
    q * scale,
    k,
    preferred_element_type=jnp.float32,
  )
  visible = _visible(q.shape[2], k.shape[2], mask, window, tail, offset)
  if visible is not None:
    scores = scores + jnp.where(visible, 0.0, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('b k n l, b k l e -> b k n e', weights, v)
  return rearrange(out, 'b k n e -> b n k e')


def _visible(n, l, mask, window, tail, offset):
  """[b|1 1 n|1 l] bool, or None if every key is visible."""
  visible = None if mask is None else mask[:, None, None, :]
  if window is not None:
    i, j = offset + jnp.arange(n)[:, None], jnp.arange(l)[None]
    near = (jnp.abs(i - j) <= window) | (i >= l - tail) | (j >= l - tail)
    near = near[None, None]
    visible = near if visible is None else visible & near
  return visible


def _attend_blocks(q, k, v, mask, window, tail, size=BLOCK_QUERIES):
  """Attention a block of queries at a time."""
  n = q.shape[1]
  pad = -n % size
  blocks = rearrange(
    jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))),
    'b (blocks n) k e -> blocks b n k e',
    n=size,
  )
  offsets = jnp.arange(blocks.shape[0]) * size

  @jax.checkpoint
  def block(args):
    queries, offset = args
    return _attend(queries, k, v, mask, window, tail, offset)

  out = jax.lax.map(block, (blocks, offsets))
  return rearrange(out, 'blocks b n k e -> b (blocks n) k e')[:, :n]


def _attend_heads(q, k, v, mask, window, tail):
  """One head of one sample after the other.

  Its scores stay in the cache of a core, and are computed again in the backward
  pass: on two cores 2 to 3 times as fast as all heads at once.
  """
  b, _, heads, e = q.shape
  split = lambda x: rearrange(x, 'b n k e -> (b k) n e')
  shown = jnp.ones((b, k.shape[1]), bool) if mask is None else mask
  bias = jnp.repeat(jnp.where(shown, 0.0, -1e30), heads, axis=0)
  out = _each_head(split(q * e**-0.5), split(k), split(v), bias, window, tail)
  return rearrange(out, '(b k) n e -> b n k e', b=b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _each_head(q, k, v, bias, window, tail):
  """q [h n e] scaled, k and v [h l e], bias [h l] -> [h n e]."""
  return _each_head_forward(q, k, v, bias, window, tail)[0]


def _head_scores(q, k, bias, window, tail):
  """[n l] float32 of one head."""
  scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) + bias[None]
  near = _visible(len(q), len(k), None, window, tail, 0)
  return scores if near is None else scores + jnp.where(near[0, 0], 0.0, -1e30)


def _each_head_forward(q, k, v, bias, window, tail):
  def one(head):
    q, k, v, bias = head
    scores = _head_scores(q, k, bias, window, tail)
    highest = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)
    out = (weights / total).astype(v.dtype) @ v
    return out, (highest + jnp.log(total))[:, 0]

  out, log_total = jax.lax.map(one, (q, k, v, bias))
  return out, (q, k, v, bias, out, log_total)


def _each_head_backward(window, tail, kept, slope):
  def one(head):
    q, k, v, bias, out, log_total, slope = head
    scores = _head_scores(q, k, bias, window, tail)
    weights = jnp.exp(scores - log_total[:, None])
    of_v = weights.T.astype(v.dtype) @ slope
    # Of softmax: the slope of a score, less what its row has in common.
    common = (slope * out).sum(axis=-1, keepdims=True)
    of_scores = (weights * (slope @ v.T - common)).astype(q.dtype)
    return of_scores @ k, of_scores.T @ q, of_v

  return *jax.lax.map(one, (*kept, slope)), jnp.zeros_like(kept[3])


_each_head.defvjp(_each_head_forward, _each_head_backward)
