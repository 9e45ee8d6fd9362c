"""The LoRA doctor: what a LoRA holds, what it does to a base, who reads it.

The effect of an update dW on a kernel W is |dW| / |W|, of Frobenius norms. A
LoRA that trained for hours and does nothing has a zero there, and it is said.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any, NamedTuple

import numpy as np

from dcjax import tree
from dcjax.weights.lora_file import LoraFile, Pair, Pairs
from dcjax.weights.lora_names import Place
from dcjax.weights.names import BLOCK_LINEARS

# Below this, an update may vanish where bfloat16 weights are merged.
FAINT = 1e-4
LOADERS = ('diffusers', 'ComfyUI', 'musubi-tuner')


class Effect(NamedTuple):
  """Norms of the update and of its kernel."""

  update: float
  kernel: float

  @property
  def ratio(self) -> float:
    return self.update / self.kernel if self.kernel else math.inf


def kernel_of(transformer: tree.Tree, place: Place) -> np.ndarray | None:
  """The kernel [in out] of a linear layer, or None where there is none."""
  (layer, block), node = place, transformer
  for name in (*layer.split('/'), 'kernel'):
    node = node.get(name) if isinstance(node, Mapping) else None
  if node is None or block is None:
    return node
  return node[block] if node.ndim == 3 and block < len(node) else None


def norm(pair: Pair) -> float:
  """|down @ up| without the product: the trace of two Gram matrices."""
  down, up = (np.asarray(x, np.float64) for x in (pair.down, pair.up))
  square = np.sum((down.T @ down) * (up @ up.T))
  return math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan


def kernel_norms(pairs: Pairs, transformer: tree.Tree) -> dict[Place, float]:
  """|W| of every layer that the transformer has in the shape of its pair."""
  kernels = ((place, kernel_of(transformer, place)) for place in pairs)
  return {
    place: float(np.linalg.norm(np.asarray(kernel, np.float32)))
    for place, kernel in kernels
    if kernel is not None and kernel.shape == pairs[place].shape
  }


def effects(pairs: Pairs, norms: Mapping[Place, float]) -> dict[Place, Effect]:
  """The effects of all pairs whose kernel is among `kernel_norms`."""
  return {place: Effect(norm(pairs[place]), x) for place, x in norms.items()}


def misfits(pairs: Pairs, transformer: tree.Tree) -> list[str]:
  """The +/- list of what does not fit a transformer."""
  found = []
  for place, pair in pairs.items():
    kernel = kernel_of(transformer, place)
    if kernel is None:
      found.append(f'+ {say(place)} (the base has no such layer)')
    elif tuple(kernel.shape) != pair.shape:
      found.append(
        f'~ {say(place)} is for a kernel {pair.shape}, expected '
        f'{tuple(kernel.shape)}'
      )
  return found


def summary(found: Mapping[Place, Effect]) -> dict[str, Any]:
  """Effects over all, by target and by block; the layers without any."""
  targets, blocks = {}, {}
  for (layer, block), effect in found.items():
    targets.setdefault(target(layer), []).append(effect)
    if block is not None:
      blocks.setdefault(block, []).append(effect)
  return {
    'all': _together(found.values()),
    'targets': {
      name: {
        'all': _together(several),
        'least': min(e.ratio for e in several),
        'most': max(e.ratio for e in several),
      }
      for name, several in targets.items()
    },
    'blocks': {i: _together(blocks[i]) for i in sorted(blocks)},
    'no_effect': [say(p) for p, effect in found.items() if not effect.update],
  }


def not_finite(pairs: Pairs) -> list[str]:
  """Layers with a NaN or an infinity."""
  return [
    f'{say(place)} holds numbers that are not finite'
    for place, pair in pairs.items()
    if not (np.isfinite(pair.down).all() and np.isfinite(pair.up).all())
  ]


def prove(
  have: Pairs,
  want: Mapping[Place, Callable[[], np.ndarray]],
  transformer: tree.Tree,
  bound: float,
) -> dict[str, float]:
  """Compares merged weights, layer by layer.

  Args:
    have: as read from a file.
    want: what makes the update [in out] of each layer as it should be.
    transformer: the kernels to merge into.
    bound: for both errors.

  Returns:
    'weights', max |W'_have - W'_want| / max |W'_want| of the worst layer;
    'update', |dW_have - dW_want| / |dW_want| in Frobenius norms; and 'bound'.
  """
  weights = update = 0.0 if have.keys() == want.keys() else np.inf
  for place in have.keys() & want.keys():
    kernel = np.asarray(kernel_of(transformer, place), np.float32)
    mine, theirs = have[place].down @ have[place].up, want[place]()
    merged = kernel + theirs
    gap = kernel + mine
    gap -= merged
    # Unlike max, it passes a NaN on.
    weights = np.maximum(weights, np.abs(gap).max() / np.abs(merged).max())
    size = np.linalg.norm(theirs)
    mine -= theirs
    gap = np.linalg.norm(mine)
    update = np.maximum(update, gap / size if size else gap)
  return {'weights': float(weights), 'update': float(update), 'bound': bound}


def notes(file: LoraFile) -> list[str]:
  """What is odd about the ranks and alphas of a file, though it can be used."""
  alphas = [pair.alpha for pair in file.pairs.values()]
  ranks = {pair.rank for pair in file.pairs.values()}
  scales = {round(pair.scale, 6) for pair in file.pairs.values()}
  found = []
  if None in alphas and set(alphas) != {None}:
    found.append(
      f'{alphas.count(None)} of {len(alphas)} layers have no alpha, which '
      'stands for their rank'
    )
  if scales - {1.0}:
    found.append(
      'alpha is not the rank: updates are scaled by '
      f'{", ".join(f"{x:g}" for x in sorted(scales))}'
    )
  if file.style == 'diffusers' and len(ranks) > 1 and not file.configured:
    found.append(
      'ranks differ and no config gives the alphas: older diffusers scale some '
      'layers wrongly'
    )
  return found


def loaders(file: LoraFile) -> dict[str, str]:
  """{loader: 'yes', or 'no: ' and why}, by the keys that each of them knows."""
  own = file.prefix.startswith('lora_unet_')
  if file.faults:
    return dict.fromkeys(LOADERS, 'no: the file has faults')
  answers = {
    'diffusers': _diffusers(file),
    'ComfyUI': '' if own or _with_prefix(file, 'diffusion_model.') else _KEYS,
    'musubi-tuner': '' if own else _KEYS,
  }
  if own and any(block is None for _, block in file.pairs):
    answers['musubi-tuner'] = 'it extends the layers of blocks alone'
  return {name: f'no: {why}' if why else 'yes' for name, why in answers.items()}


_KEYS = 'it does not know these keys'


def _diffusers(file: LoraFile) -> str:
  """Why its loader refuses a file; empty if it does not."""
  alphas = [pair.alpha for pair in file.pairs.values()]
  has_alpha = not file.configured and set(alphas) != {None}
  if any('.' in leaf for leaf in file.spelling):
    return 'the name of an adapter is in the keys'
  if file.prefix == 'lora_unet_':
    blocks = {block for _, block in file.pairs}
    whole = blocks == set(range(len(blocks)))
    if not whole or len(file.pairs) != len(blocks) * len(BLOCK_LINEARS):
      return 'its converter of these keys wants all ten layers of every block'
    return 'its converter wants an alpha' if None in alphas else ''
  if _with_prefix(file, 'diffusion_model.'):
    others = [layer for layer, block in file.pairs if block is None]
    if len(others) == len(file.pairs):
      return 'its converter of these keys wants a layer of a block'
    return 'an alpha outside of the blocks' if others and has_alpha else ''
  if (file.style, file.prefix) != ('diffusers', 'transformer.'):
    return 'the keys lack the prefix transformer. of its own names'
  if file.spelling != ('lora_A', 'lora_B'):
    return 'it wants lora_A and lora_B'
  return 'it refuses alpha keys beside its own names' if has_alpha else ''


def _with_prefix(file: LoraFile, prefix: str) -> bool:
  return file.style == 'comfyui' and file.prefix == prefix


# ---- as text -----------------------------------------------------------------


def target(layer: str) -> str:
  """The kind of a layer: its name without 'blocks/'."""
  return layer.removeprefix('blocks/')


def say(place: Place) -> str:
  """A layer in words."""
  layer, block = place
  return target(layer) if block is None else f'{target(layer)} of block {block}'


def spans(numbers: Iterable[int]) -> str:
  """Block numbers in short: '0-3, 7'."""
  runs: list[list[int]] = []
  for i in sorted(set(numbers)):
    if runs and i == runs[-1][-1] + 1:
      runs[-1].append(i)
    else:
      runs.append([i])
  return ', '.join(f'{r[0]}-{r[-1]}' if r[1:] else str(r[0]) for r in runs)


def counted(values: Iterable[Any]) -> str:
  """Values, and how often each of several occurs: '8' or '8 (20x), 4 (2x)'."""
  counts = Counter(values)
  if len(counts) == 1:
    return str(*counts)
  return ', '.join(f'{value} ({n}x)' for value, n in counts.most_common())


def lines(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The effects as aligned text.

  Args:
    parts: {name: summary}. The first is told in full, of the others there is
      one column.
  """
  (_, whole), *others = parts.items()
  heads = ['all', 'least', 'most', *(name for name, _ in others)]
  rows = [
    (name, [x['all'], x['least'], x['most']])
    for name, x in whole['targets'].items()
  ]
  rows = [
    (name, row + [part['targets'][name]['all'] for _, part in others])
    for name, row in rows
  ]
  totals = [whole['all'], None, None, *(part['all'] for _, part in others)]
  text = [f'  {"effect |dW|/|W|":<18}' + ''.join(f'{h:>10}' for h in heads)]
  for name, row in [*rows, ('together', totals)]:
    cells = ('' if x is None else f'{x:.2e}' for x in row)
    text.append(f'  {name:<18}' + ''.join(f'{cell:>10}' for cell in cells))
  blocks = [f'{i:>4} {x:.2e}' for i, x in whole['blocks'].items()]
  for at in range(0, len(blocks), 5):
    start = 'by block' if at == 0 else ''
    text.append(f'  {start:<10}' + ''.join(blocks[at : at + 5]))
  return text


def silence(whole: Mapping[str, Any]) -> str:
  """A loud line about layers without effect; empty if there are none."""
  silent = whole['no_effect']
  if silent and not whole['all']:
    return (
      'NO EFFECT: the update of every layer is zero, this LoRA does nothing'
    )
  if silent:
    shown = tree.some(silent, ', ', 6)
    return f'NO EFFECT in {len(silent)} layers: {shown}'
  if 0 < whole['all'] < FAINT:
    return (
      f'FAINT: an effect of {whole["all"]:.1e} may vanish where it is merged '
      'into bfloat16 weights'
    )
  return ''


def _together(several: Iterable[Effect]) -> float:
  several = list(several)
  update = math.hypot(*(effect.update for effect in several))
  return Effect(update, math.hypot(*(e.kernel for e in several))).ratio
