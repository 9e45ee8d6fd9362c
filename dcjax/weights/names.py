"""Tables between our parameter names and those of published checkpoints.

Every model has one table: our leaf name -> `Entry`, which says under which
name(s) the checkpoint holds that leaf and how the axes differ. A leaf of scanned
layers has one checkpoint name a layer, in order. The same table reads and
writes, so both directions agree by construction.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from dcjax import tree
from dcjax.errors import DcjaxError
import numpy as np

# Axes of ours in the order of the checkpoint's: checkpoint = ours.transpose(p).
LAYOUTS = {
  'same': None,
  'linear': (1, 0),  # [in out] -> (out, in)
  'conv2d': (3, 2, 0, 1),  # [h w in out] -> (out, in, h, w)
  'conv3d': (4, 3, 0, 1, 2),  # [f h w in out] -> (out, in, f, h, w)
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a checkpoint holds one of our leaves.

  Attributes:
    keys: checkpoint name of each layer of a scanned leaf; else just one.
    layout: a key of `LAYOUTS`.
    stacked: whether our leaf has a leading layer axis.
    shape: the checkpoint's shape where reshaping is needed after the layout (a
      norm scale of shape (c, 1, 1), for instance); None otherwise.
  """

  keys: tuple[str, ...]
  layout: str = 'same'
  stacked: bool = False
  shape: tuple[int, ...] | None = None


Table = dict[str, Entry]


def read_tensors(
  table: Table, tensors: Mapping[str, Any], expected: tree.Tree, *, what: str
) -> dict[str, Any]:
  """Checkpoint tensors -> our tree, strictly.

  Args:
    table: the model's table.
    tensors: {checkpoint name: array}.
    expected: our tree of `jax.ShapeDtypeStruct`.
    what: where the tensors came from, for the message.

  Returns:
    Nested dict of numpy arrays in the checkpoint's dtype.

  Raises:
    DcjaxError: with the +/- list, if a tensor is missing, extra or misshapen.
  """
  wanted = {key for entry in table.values() for key in entry.keys}
  problems = [f'- {key} (missing)' for key in sorted(wanted - set(tensors))]
  problems += [f'+ {key} (not expected)' for key in sorted(set(tensors) - wanted)]
  shapes = {name: x.shape for name, x in tree.flatten(expected).items()}
  flat = {}
  for name, entry in table.items():
    shape = shapes[name][1:] if entry.stacked else shapes[name]
    layers = []
    for key in entry.keys:
      if key not in tensors:
        continue
      x = _from_checkpoint(np.asarray(tensors[key]), entry, shape)
      if x is None:
        problems.append(
          f'~ {key} is {tuple(np.shape(tensors[key]))}, expected '
          f'{_checkpoint_shape(entry, shape)}'
        )
      else:
        layers.append(x)
    if len(layers) == len(entry.keys):
      flat[name] = np.stack(layers) if entry.stacked else layers[0]
  if problems:
    shown = '; '.join(problems[:12])
    more = f'; and {len(problems) - 12} more' if len(problems) > 12 else ''
    raise DcjaxError(f'{what} does not fit this model: {shown}{more}')
  return tree.unflatten(flat)


def write_tensors(table: Table, params: tree.Tree) -> dict[str, np.ndarray]:
  """Our tree -> {checkpoint name: array}, the inverse of `read_tensors`."""
  tensors = {}
  for name, leaf in tree.flatten(params).items():
    entry, leaf = table[name], np.asarray(leaf)
    for key, x in zip(
      entry.keys, leaf if entry.stacked else leaf[None], strict=True
    ):
      tensors[key] = np.ascontiguousarray(_to_checkpoint(x, entry))
  return tensors


def _checkpoint_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
  if entry.shape is not None:
    return entry.shape
  axes = LAYOUTS[entry.layout]
  return shape if axes is None else tuple(shape[axis] for axis in axes)


def _from_checkpoint(x, entry, shape):
  """One layer in our layout, or None if its shape is wrong."""
  if tuple(x.shape) != _checkpoint_shape(entry, shape):
    return None
  axes = LAYOUTS[entry.layout]
  if axes is not None:
    if entry.shape is not None:
      x = x.reshape([shape[axis] for axis in axes])
    x = x.transpose(np.argsort(axes))
  return x.reshape(shape)


def _to_checkpoint(x, entry):
  axes = LAYOUTS[entry.layout]
  if axes is not None:
    x = x.transpose(axes)
  return x if entry.shape is None else x.reshape(entry.shape)
