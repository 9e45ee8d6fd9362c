"""One network's parameters on disk: checked by the headers, read leaf by leaf.

A leaf is put together on the host, goes to its devices and is forgotten, so the
host needs the space of one leaf beside the parameters. Of a sharded leaf, only
what this process' devices hold is read.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import tree
from dcjax.weights import fingerprint, names

# (leaf name, shape) -> where it goes. Names begin with that of the part.
Placement = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

# Leaves that may be stored in fewer bits; norms, biases, modulation, all of the
# timestep and the autoencoder are computed with in float32.
_NARROW = re.compile(
  r'transformer/(?!time_).*kernel$|text_encoder/(.*kernel|embedding)$'
)
_STRIP = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A network of a base, not yet loaded.

  Attributes:
    name: 'transformer', 'vae' or 'text_encoder'.
    what: where it is, for messages.
    table: between our names and those of the files.
    tensors: {name in the files: tensor, or `container.Stored`}.
    expected: our tree of `jax.ShapeDtypeStruct`.
    dtype: of the large matrices, once loaded.
    placement: of the leaves; None puts all on the default device.

  Raises:
    DcjaxError: with the +/- list, if a tensor is missing, extra or misshapen.
  """

  name: str
  what: str
  table: names.Table
  tensors: Mapping[str, Any]
  expected: tree.Tree
  dtype: Any
  placement: Placement | None = None

  def __post_init__(self):
    names.check_tensors(self.table, self.tensors, self.expected, what=self.what)

  @property
  def nbytes(self) -> int:
    """Bytes on disk."""
    return sum(x.nbytes for x in self.tensors.values())

  @functools.cached_property
  def digest(self) -> str:
    """`fingerprint.of_tensors`; that of the loaded parameters is the same."""
    return fingerprint.of_tensors(self.table, self.tensors, self.expected)

  def load(self) -> dict[str, Any]:
    """The parameters as jax arrays."""
    shapes = tree.flatten(self.expected)
    return tree.unflatten(
      {n: self._leaf(n, x.shape) for n, x in shapes.items()}
    )

  def _leaf(self, name: str, shape: tuple[int, ...]) -> jax.Array:
    full = f'{self.name}/{name}'
    read = functools.partial(
      read_leaf,
      self.table[name],
      self.tensors,
      shape,
      loaded_dtype(full, self.dtype),
    )
    if self.placement is None:
      # Waited for, or the host would hold all that is still on its way.
      return jax.block_until_ready(jax.device_put(read(_everything(shape))))
    kept: dict[str, np.ndarray] = {}

    def shard(index):
      # Replicas are read once.
      if str(index) not in kept:
        kept[str(index)] = read(index)
      return kept[str(index)]

    sharding = self.placement(full, shape)
    x = jax.make_array_from_callback(shape, sharding, shard)
    return jax.block_until_ready(x)


def loaded_dtype(name: str, dtype: Any) -> Any:
  """The dtype of a leaf, such as 'transformer/head/kernel', once loaded.

  Args:
    name: of the leaf.
    dtype: of the large matrices.
  """
  return dtype if _NARROW.match(name) else jnp.float32


def read_leaf(
  entry: names.Entry,
  tensors: Mapping[str, Any],
  shape: tuple[int, ...],
  dtype: Any,
  index: tuple[slice, ...],
) -> np.ndarray:
  """Reads a piece of a leaf.

  Args:
    entry: where the checkpoint holds it.
    tensors: {checkpoint name: tensor}.
    shape: of our leaf.
    dtype: of the result.
    index: the piece, one slice an axis of ours.
  """
  sizes = [
    len(range(*part.indices(n))) for part, n in zip(index, shape, strict=True)
  ]
  piece = np.empty(sizes, dtype)
  keys, layers = entry.keys, piece[None]
  if entry.stacked:
    keys, layers, index = entry.keys[index[0]], piece, index[1:]
  for key, to in zip(keys, layers, strict=True):
    x = entry.to_ours(np.asarray(tensors[key]), entry.layer_shape(shape))
    _copy(to, x[index])
  return piece


def _everything(shape: tuple[int, ...]) -> tuple[slice, ...]:
  return (slice(None),) * len(shape)


def _copy(to: np.ndarray, x: np.ndarray) -> None:
  """Copies and converts; a transposed matrix in strips that fit the caches."""
  if x.ndim != 2 or x.flags.c_contiguous:
    to[...] = x
    return
  for i in range(0, x.shape[1], _STRIP):
    to[:, i : i + _STRIP] = x[:, i : i + _STRIP].astype(to.dtype)
