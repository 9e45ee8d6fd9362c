"""Which arrays make a concept, and whether they fit a base.

A layer's LoRA has a basis on the input, a1 [in r] and b1, b2 [r out], or on the
output, a1 [r out] and b1, b2 [in r]; scanned layers have a leading layer axis.
"""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

import numpy as np

from dcjax import tree
from dcjax.errors import DcjaxError
from dcjax.lora import LEAVES

WORD = re.compile(r'([vu])([1-9]\d*)?')
Leaves = Mapping[str, Any]


def layers(lora: tree.Tree) -> dict[str, dict[str, Any]]:
  """{layer: {a1, b1, b2}} of a tree of leaves `<layer>/lora/<leaf>`."""
  found: dict[str, dict[str, Any]] = {}
  for name, x in tree.flatten(lora).items():
    layer, leaf = name.rsplit('/lora/', 1)
    found.setdefault(layer, {})[leaf] = x
  return found


def on_input(leaves: Leaves) -> bool:
  """Whether the basis reads the layer's input.

  Around a square layer both orders multiply. There a basis on the input is
  tall, because a rank is smaller than a width.
  """
  a1, b1 = leaves['a1'], leaves['b1']
  fits_input = a1.shape[-1] == b1.shape[-2]
  fits_output = b1.shape[-1] == a1.shape[-2]
  if fits_input and fits_output:
    return a1.shape[-2] >= a1.shape[-1]
  return fits_input


def rank(leaves: Leaves) -> int:
  """The r of a layer's leaves."""
  return leaves['a1'].shape[-1 if on_input(leaves) else -2]


def kernel_shape(leaves: Leaves) -> tuple[int, ...]:
  """Shape of the kernel they belong to: [in out] or [layers in out]."""
  a1, b1 = leaves['a1'], leaves['b1']
  down, up = (a1, b1) if on_input(leaves) else (b1, a1)
  return (*a1.shape[:-2], down.shape[-2], up.shape[-1])


def depth(lora: tree.Tree) -> int:
  """Layers of the deepest scanned leaves; 0 without any."""
  leaves = tree.flatten(lora).values()
  return max((len(x) for x in leaves if x.ndim == 3), default=0)


def with_depth(lora: tree.Tree, layers: int) -> dict[str, Any]:
  """Scanned leaves with zeros for the last layers that they lack."""
  flat = tree.flatten(lora)
  for name, x in flat.items():
    if x.ndim == 3 and len(x) < layers:
      flat[name] = np.pad(x, ((0, layers - len(x)), (0, 0), (0, 0)))
  return tree.unflatten(flat)


def with_basis_on_input(leaves: Leaves) -> dict[str, Any]:
  """The same update the other way round.

  (B1 + B2) A1 = [B1 | B2] ([A1; 0] + [0; A1]): of twice the rank, because B1
  and B2 stay apart.
  """
  if on_input(leaves):
    return dict(leaves)
  a1, b1, b2 = (np.asarray(leaves[leaf]) for leaf in LEAVES)
  zero = np.zeros_like(a1)
  return {
    'a1': np.concatenate([b1, b2], axis=-1),
    'b1': np.concatenate([a1, zero], axis=-2),
    'b2': np.concatenate([zero, a1], axis=-2),
  }


def side_by_side(several: list[Leaves]) -> dict[str, np.ndarray]:
  """One LoRA whose update is the sum: concatenated along the rank axis.

  Raises:
    DcjaxError: its rank is above the width of a square layer, where the basis
      would be taken for one on the output.
  """
  several = [with_basis_on_input(leaves) for leaves in several]
  joined = {
    leaf: np.concatenate([np.asarray(x[leaf]) for x in several], axis=axis)
    for leaf, axis in zip(LEAVES, (-1, -2, -2), strict=True)
  }
  if not on_input(joined):
    width, together = joined['a1'].shape[-2:]
    raise DcjaxError(
      f'{len(several)} LoRAs of a layer of {width} channels have rank '
      f'{together} together; join fewer, or of smaller ranks, up to {width}'
    )
  return joined


def numbering(several: Sequence[Iterable[str]]) -> list[dict[str, str]]:
  """New names of the learned words of several concepts: v1 u1 v2 u2 ...

  Args:
    several: names of each concept's words. Of one concept alone they stay.

  Returns:
    {old name: new name} of each.
  """
  if len(several) == 1:
    return [{name: name for name in several[0]}]
  renamed, used = [], 0
  for words in several:
    old = {name: int(WORD.fullmatch(name)[2] or 0) for name in words}
    # A concept without words still takes a number, so the k-th stays the k-th.
    order = sorted(set(old.values())) or [0]
    renamed.append(
      {n: f'{n[0]}{used + 1 + order.index(k)}' for n, k in old.items()}
    )
    used += len(order)
  return renamed


def renumber(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Learned words of several concepts in one, under their new names."""
  return {
    new[name]: vectors
    for new, words in zip(numbering(several), several, strict=True)
    for name, vectors in words.items()
  }


def problems(
  lora: tree.Tree, tokens: Mapping[str, Any], frames: Any = None
) -> list[str]:
  """What is wrong with a concept's arrays by themselves."""
  found = []
  if frames is not None and (
    frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3
  ):
    found.append(
      f'frames are {frames.dtype} {frames.shape}, not uint8 [f h w 3]'
    )
  for layer, leaves in layers(lora).items():
    missing = [leaf for leaf in LEAVES if leaf not in leaves]
    if missing:
      found.append(f'{layer} lacks {", ".join(missing)}')
    elif not _fit_each_other(*(leaves[leaf].shape for leaf in LEAVES)):
      shapes = ', '.join(f'{n} {leaves[n].shape}' for n in LEAVES)
      found.append(f'{layer}: {shapes} do not fit each other')
  for name, vectors in tokens.items():
    if not WORD.fullmatch(name):
      found.append(f'[{name}] is not a learned word such as [v] or [u2]')
    elif vectors.ndim != 2 or not vectors.size:
      found.append(f'[{name}] is {vectors.shape}, expected (n, d)')
  arrays = {**tree.flatten(lora), **tokens}
  found += [
    f'{name} holds numbers that are not finite'
    for name, x in arrays.items()
    if not np.isfinite(x).all()
  ]
  return found if arrays else ['it has neither LoRA leaves nor learned words']


def misfits(
  lora: tree.Tree,
  tokens: Mapping[str, Any],
  transformer: tree.Tree,
  text_width: int,
) -> list[str]:
  """What does not fit a transformer's kernels or its text features."""
  flat, found = tree.flatten(transformer), []
  for layer, leaves in layers(lora).items():
    kernel = flat.get(f'{layer}/kernel')
    if kernel is None:
      found.append(f'no linear layer {layer}')
    elif tuple(kernel.shape) != kernel_shape(leaves):
      found.append(
        f'{layer} is for a kernel of shape {kernel_shape(leaves)}, not '
        f'{tuple(kernel.shape)}'
      )
  return found + [
    f'[{name}] has {x.shape[-1]} channels, not {text_width}'
    for name, x in tokens.items()
    if x.shape[-1] != text_width
  ]


def _fit_each_other(a1, b1, b2) -> bool:
  return (
    len(a1) in (2, 3)
    and b1 == b2
    and len(a1) == len(b1)
    and a1[:-2] == b1[:-2]
    and (a1[-1] == b1[-2] or b1[-1] == a1[-2])
  )
