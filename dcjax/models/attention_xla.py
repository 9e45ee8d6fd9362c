"""Attention in plain XLA, a head or a block of queries at a time.

Both keep for the backward pass what flash attention keeps, the result and the
logarithm of each row's sum (arXiv 2205.14135, Algorithm 2 and 4), so memory is
linear in tokens and nothing of the forward pass is done twice but the scores.
Both are named 'attention' for the policies of `jax.checkpoint`.
"""

import functools

from einops import rearrange
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dcjax.models.attention_reach import Places, Reach

NAME = 'attention'
HIDDEN = -1e30


def attend_heads(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None,
  reach: Reach,
  places: Places | None = None,
) -> jax.Array:
  """One head of one sample after the other; arguments as of `attend`.

  Its scores stay in the cache of a core: on two cores 2 to 3 times as fast as
  all heads at once.
  """
  b, n, heads, e = q.shape
  split = lambda x: rearrange(x, 'b n k e -> (b k) n e')
  bias = jnp.repeat(_bias(k, mask), heads, axis=0)
  i = jnp.arange(n) if places is None else places.here()
  out = _heads(split(q * e**-0.5), split(k), split(v), bias, i, reach)
  return rearrange(out, '(b k) n e -> b n k e', b=b)


def attend_blocks(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None,
  reach: Reach,
  places: Places | None = None,
  *,
  size: int,
) -> jax.Array:
  """`size` queries of all heads after the other; arguments as of `attend`."""
  n, e = q.shape[1], q.shape[-1]
  i = jnp.arange(n) if places is None else places.here()
  size = min(size, n)
  pad = -n % size
  # An explicit (b k n e) layout is what XLA:CPU multiplies fastest.
  q, k, v = (rearrange(x, 'b n k e -> b k n e') for x in (q * e**-0.5, k, v))
  q = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0)))
  i = jnp.pad(i, (0, pad), mode='edge')
  bias = _bias(k.swapaxes(1, 2), mask)[:, None]
  out = _blocks(q, k, v, bias, i, reach, size)
  return rearrange(out[:, :, :n], 'b k n e -> b n k e')


def _bias(k, mask):
  """[b l] float32, to be added to scores."""
  if mask is None:
    return jnp.zeros(k.shape[:2], jnp.float32)
  return jnp.where(mask, 0.0, HIDDEN)


# ---- of one head, or of several ----------------------------------------------


def _scores(q, k, bias, i, reach):
  """q [... n e] scaled, k [... l e], bias [... l], i [n] -> [... n l] f32."""
  scores = jnp.matmul(q, k.mT, preferred_element_type=jnp.float32)
  scores = scores + bias[..., None, :]
  if not reach.hides(k.shape[-2]):
    return scores
  seen = reach.sees(i[:, None], jnp.arange(k.shape[-2])[None])
  seen = jnp.where(seen, 0.0, HIDDEN)
  return scores + seen.reshape((1,) * (scores.ndim - 2) + seen.shape)


def _forward(q, k, v, bias, i, reach):
  """[... n e] and the log of the sums, [... n] float32."""
  scores = _scores(q, k, bias, i, reach)
  highest = scores.max(axis=-1, keepdims=True)
  weights = jnp.exp(scores - highest)
  total = weights.sum(axis=-1, keepdims=True)
  out = (weights / total).astype(v.dtype) @ v
  return out, (highest + jnp.log(total))[..., 0]


def _backward(q, k, v, bias, i, out, log_total, slope, reach):
  """Gradients of q, k and v; those of k and v are sums over these queries."""
  weights = jnp.exp(_scores(q, k, bias, i, reach) - log_total[..., None])
  of_v = weights.mT.astype(v.dtype) @ slope
  # Of softmax: the slope of a score, less what its row has in common.
  common = (slope * out).sum(axis=-1, keepdims=True)
  of_scores = (weights * (slope @ v.mT - common)).astype(q.dtype)
  return of_scores @ k, of_scores.mT @ q, of_v


# ---- a head at a time --------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _heads(q, k, v, bias, i, reach):
  """q [h n e] scaled, k and v [h l e], bias [h l], i [n] -> [h n e]."""
  return _heads_forward(q, k, v, bias, i, reach)[0]


def _heads_forward(q, k, v, bias, i, reach):
  one = lambda head: _forward(*head, i, reach)
  out, log_total = jax.lax.map(one, (q, k, v, bias))
  out = checkpoint_name(out, NAME)
  return out, (q, k, v, bias, i, out, checkpoint_name(log_total, NAME))


def _heads_backward(reach, kept, slope):
  *qkv, bias, i, out, log_total = kept

  def one(head):
    *qkv, bias, out, log_total, slope = head
    return _backward(*qkv, bias, i, out, log_total, slope, reach)

  grads = jax.lax.map(one, (*qkv, bias, out, log_total, slope))
  return *grads, None, None


_heads.defvjp(_heads_forward, _heads_backward)


# ---- a block of queries at a time --------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocks(q, k, v, bias, i, reach, size):
  """q [b k n e] scaled, k and v [b k l e], bias [b 1 l], i [n] -> as q."""
  return _blocks_forward(q, k, v, bias, i, reach, size)[0]


def _cut(x, size):
  """[b k n ...] -> [blocks b k size ...]."""
  return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, *x.shape[3:]), 2, 0)


def _join(x):
  """Undoes `_cut`."""
  x = jnp.moveaxis(x, 0, 2)
  return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _blocks_forward(q, k, v, bias, i, reach, size):
  one = lambda block: _forward(block[0], k, v, bias, block[1], reach)
  found = jax.lax.map(one, (_cut(q, size), i.reshape(-1, size)))
  out, log_total = (checkpoint_name(_join(x), NAME) for x in found)
  return out, (q, k, v, bias, i, out, log_total)


def _blocks_backward(reach, size, kept, slope):
  q, k, v, bias, i, out, log_total = kept

  def add(sums, block):
    q, i, *rest = block
    of_q, *of_kv = _backward(q, k, v, bias, i, *rest, reach)
    # Sums of many blocks: in float32, whatever they are rounded to then.
    return tuple(map(jnp.add, sums, of_kv)), of_q

  blocks = [_cut(x, size) for x in (q, out, log_total, slope)]
  blocks = (blocks[0], i.reshape(-1, size), *blocks[1:])
  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  (of_k, of_v), of_q = jax.lax.scan(add, zeros, blocks)
  of_k, of_v = of_k.astype(k.dtype), of_v.astype(v.dtype)
  return _join(of_q), of_k, of_v, None, None


_blocks.defvjp(_blocks_forward, _blocks_backward)
