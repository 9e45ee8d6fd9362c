"""What tells the weights of two models apart, in a second at any size.

Of every tensor up to 65 536 numbers all are read, of a larger one 64 that lie
spread over it. Numbers count as bfloat16. So a model has one fingerprint
whether it lies on disk or in memory, in float32 or in bfloat16, and training
that changed it by more than rounding changes the fingerprint.
"""

from collections.abc import Mapping
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import sharding, tree
from dcjax.weights.container import Stored
from dcjax.weights.names import LAYOUTS, Entry, Table

_WHOLE = 2**16
_SAMPLES = 64


def of_tensors(
  table: Table, tensors: Mapping[str, Any], expected: tree.Tree
) -> str:
  """Of a checkpoint; only what is sampled is read from disk.

  Args:
    table: the model's table.
    tensors: {checkpoint name: tensor}, checked.
    expected: our tree of shapes.
  """

  def sample(name: str, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    del name
    size = math.prod(entry.layer_shape(shape))
    layers = [tensors[key] for key in entry.keys]
    if size > _WHOLE and isinstance(layers[0], Stored):
      return np.stack([x.take(_places(size)) for x in layers])
    return np.stack([np.ravel(x)[_places(size)] for x in layers])

  return _digest(table, expected, sample)


def of_params(table: Table, params: tree.Tree) -> str:
  """Of the same model in memory, in our tree."""
  leaves = tree.flatten(params)

  def sample(name: str, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    layer, leaf = entry.layer_shape(shape), leaves[name]
    places = _places(math.prod(layer))
    axes = LAYOUTS[entry.layout] or tuple(range(len(layer)))
    found = np.unravel_index(places, [layer[axis] for axis in axes])
    index = tuple(found[axes.index(axis)] for axis in range(len(layer)))
    if entry.stacked:
      index = (slice(None), *index)
    if len(places) == _SAMPLES and not _on_host(leaf):
      return sharding.fetch(leaf[index])
    return sharding.fetch(leaf)[index]

  return _digest(table, params, sample)


def _digest(table: Table, shapes: tree.Tree, sample: Any) -> str:
  digest = hashlib.sha256()
  for name, x in sorted(tree.flatten(shapes).items()):
    values = sample(name, table[name], tuple(x.shape))
    digest.update(f'{name}{tuple(x.shape)}'.encode())
    values = values.astype(np.float32).astype(jnp.bfloat16)
    digest.update(np.ascontiguousarray(values).tobytes())
  return digest.hexdigest()


def _on_host(leaf: Any) -> bool:
  """Whether numpy can look at a leaf without a copy."""
  if not isinstance(leaf, jax.Array):
    return True
  return len(leaf.devices()) == 1 and leaf.device.platform == 'cpu'


def _places(size: int) -> np.ndarray:
  """Places in a flat tensor: all, or some that no stride has in common."""
  if size <= _WHOLE:
    return np.arange(size)
  turns = np.arange(_SAMPLES, dtype=np.uint64) * np.uint64(0x9E3779B9)
  turns &= np.uint64(0xFFFFFFFF)  # multiples of the golden ratio, modulo 1
  return (turns * np.uint64(size) >> np.uint64(32)).astype(np.int64)
