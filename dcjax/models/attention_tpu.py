"""Attention on TPUs: the splash kernel, which skips blocks that are not seen.

Windows, the tail and the padding of keys are computed in the kernel from the
places of queries and keys, and blocks that they hide are neither loaded nor
multiplied. Masks of samples are segments: a query sees its own segment, and a
hidden key is of another. Sums and the result of a row are float32; the result
and the logarithm of the sums are named 'attention' for `jax.checkpoint`.
"""

import functools

from einops import rearrange
import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
import numpy as np

from dcjax.models.attention_reach import Places, Reach
from dcjax.models.attention_xla import NAME

# Lengths are padded to a multiple of it: the lanes of a vector register.
LANES = 128
# Queries and keys of a block, in the order of preference. A larger block loads
# keys less often: with b queries in it, all keys are read n / b times. With
# 1024 x 1024 forward and backward kernels compile within the 16 MiB of VMEM
# that a kernel gets by default, on v5e, v5p and v6e; with 2048 x 2048 not.
BLOCKS = (1024, 768, 640, 512, 384, 256, 128)
# Most that a length may grow when it is padded to whole blocks.
GROWTH = 1 / 16
# Most keys of a block that are multiplied at once.
COMPUTE = 640


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None,
  reach: Reach,
  places: Places | None = None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Arguments as of `attention.attend`.

  Args:
    q: [b n k e] queries.
    k: [b l k e] keys.
    v: [b l k e] values.
    mask: [b l] bool, False hides a key.
    reach: which keys a query sees.
    places: of the queries, if they are not 0 to n - 1.
    interpret: computes without a TPU what the kernel would compute.

  Returns:
    [b n k e] in the dtype of q.
  """
  (b, n, heads, e), l = q.shape, k.shape[1]
  block_q, block_k = block(n), block(l)
  pad = lambda x, size: jnp.pad(
    x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0))
  )
  q, k, v = pad(q * e**-0.5, block_q), pad(k, block_k), pad(v, block_k)
  if mask is not None:
    mask = jnp.pad(mask, ((0, 0), (0, -l % block_k)))
  if mask is not None and reach.window is None:
    # The mask hides the padding too.
    reach = Reach(k.shape[1])
  make = functools.partial(
    _kernel, reach, n, q.shape[1], k.shape[1], block_q, block_k, interpret
  )
  if mask is None:
    # All heads of all samples are one grid, whose first axis two cores share.
    kernel = make(places, b * heads)
    fold = lambda x: rearrange(x, 'b n k e -> (b k) n e')
    out = kernel(fold(q), fold(k), fold(v))
    out = rearrange(out, '(b k) n e -> b n k e', b=b)
  else:
    kernel = make(places, heads)
    q, k, v = (rearrange(x, 'b n k e -> b k n e') for x in (q, k, v))
    one = lambda q, k, v, mask: kernel(q, k, v, _segments(q, mask))
    out = rearrange(jax.vmap(one)(q, k, v, mask), 'b k n e -> b n k e')
  return out[:, :n]


def block(length: int) -> int:
  """Places of a block: the largest that pads little more than it must."""
  least = length + -length % LANES
  for size in BLOCKS:
    if length + -length % size <= max(least, length * (1 + GROWTH)):
      return size
  raise AssertionError('the smallest block pads least')


def _segments(q, mask):
  seen = jnp.ones(q.shape[1], jnp.int32)
  return splash.SegmentIds(seen, mask.astype(jnp.int32))


def _kernel(
  reach, n, padded, length, block_q, block_k, interpret, places, heads
):
  """The kernel of `heads` heads that see the same, for the queries here."""
  table = np.arange(n)[None] if places is None else places.table
  parts = len(table)
  rows = np.pad(table, ((0, 0), (0, padded - n)), mode='edge').reshape(-1)
  if reach.hides(length):
    mask = Mask(reach, rows, length)
  else:
    mask = Everything(len(rows), length)
  compute = block_k if block_k <= COMPUTE else block_k // 2
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block_q,
      block_kv=block_k,
      block_kv_compute=compute,
      block_q_dkv=block_q,
      block_kv_dkv=block_k,
      block_kv_dkv_compute=compute,
      # The fused backward kernel would write dq once for each block of keys.
      use_fused_bwd_kernel=False,
      block_q_dq=block_q,
      block_kv_dq=block_k,
    ),
    head_shards=1,
    q_seq_shards=parts,
    residual_checkpoint_name=NAME,
    interpret=interpret,
  )
  if parts == 1:
    return kernel

  def mine(x):
    # What is known of blocks is [1 blocks of queries, of keys]; of queries [n].
    axis = 1 if x.ndim == 3 else 0
    held = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, places.part * held, held, axis)

  return jax.tree.map(mine, kernel)


class Everything(splash.Mask):
  """Every query sees every key. A block of a mask may be of shape [1 1]."""

  def __init__(self, n: int, length: int):
    self._shape = (n, length)

  @property
  def shape(self) -> tuple[int, int]:
    return self._shape

  def __getitem__(self, index) -> np.ndarray:
    return np.ones((1, 1), bool)

  def __eq__(self, other):
    return type(self) is type(other) and self.shape == other.shape

  def __hash__(self):
    return hash((type(self), self.shape))


class Mask(splash.Mask):
  """What a `Reach` lets queries see.

  Splash computes it in the kernel, by `mask_function` of the places of queries
  and keys, and reads blocks of it here to find those that it can skip.

  Attributes:
    reach: which keys a query sees.
    q_sequence: [n] int32 places of the queries, ascending within a block.
  """

  def __init__(self, reach: Reach, places: np.ndarray, length: int):
    self.reach, self.length = reach, length
    self.q_sequence = places.astype(np.int32)
    self.mask_function = reach.sees

  @property
  def shape(self) -> tuple[int, int]:
    return len(self.q_sequence), self.length

  def __getitem__(self, index) -> np.ndarray:
    i = self.q_sequence[index[0]]
    j = np.arange(self.length, dtype=np.int32)[index[1]]
    # Decided without its elements, of which a long clip has 10^10.
    known = self._known(i[0], i[-1], j[0], j[-1])
    if known is not None:
      return np.full((1, 1), known)
    return self.reach.sees(i[:, None], j[None])

  def _known(self, i, last_i, j, last_j) -> bool | None:
    """Whether all of a block is seen, or nothing; None if that is not plain."""
    reach = self.reach
    first = reach.keys - reach.tail
    if j >= reach.keys:
      return False
    if last_j >= reach.keys:
      return None
    if reach.window is None or i >= first or j >= first:
      return True
    if max(last_j - i, last_i - j) <= reach.window:
      return True
    no_tail = last_i < first and last_j < first
    apart = max(j - last_i, i - last_j) > reach.window
    return False if no_tail and apart else None

  def __eq__(self, other):
    return (
      type(self) is type(other)
      and (self.reach, self.length) == (other.reach, other.length)
      and np.array_equal(self.q_sequence, other.q_sequence)
    )

  def __hash__(self):
    return hash((self.reach, self.length, self.q_sequence.tobytes()))
