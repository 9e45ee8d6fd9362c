"""LoRA files of other tools, read strictly.

Three styles of keys, with N the block, all of linear layers y = x W:

    diffusers  transformer.blocks.N.attn1.to_q.lora_A.weight, lora_B.weight
    comfyui    diffusion_model.blocks.N.self_attn.q.lora_down.weight, lora_up
    musubi     lora_unet_blocks_N_self_attn_q.lora_down.weight, lora_up, alpha

`lora_A` or `lora_down` is (r, in) and `lora_B` or `lora_up` is (out, r). The
update of the kernel [in out] is (alpha / r) lora_A^T lora_B^T, where a missing
alpha stands for r. All spellings are read under every prefix. A key that is
none of these is a fault of the file, and never silently dropped.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import numbers
from pathlib import Path
import re
from typing import Any

import numpy as np

from dcjax import tree
from dcjax.errors import DcjaxError
from dcjax.weights import container
from dcjax.weights.lora_names import Place, place_of

_KEY = re.compile(
  r'(transformer\.|diffusion_model\.|base_model\.model\.|lora_unet__?|)'
  r'(.+?)\.(?:(lora_A|lora_B|lora_down|lora_up)((?:\.\w+)?)\.weight|alpha)'
)
_DOWN = ('lora_A', 'lora_down')
# What a key that is not of a plain LoRA of the transformer belongs to.
_OTHERS = {
  r'dora_scale|lora_magnitude_vector': 'DoRA',
  r'\.hada_': 'LoHa',
  r'\.lokr_': 'LoKr',
  r'\.lora_mid\b': 'LoCon of a convolution',
  r'\.diff(_b)?$': 'a difference of whole weights',
  r'\.bias$': 'LoRA of a bias',
  r'^(lora_te|text_encoder)': 'LoRA of a text encoder',
  r'^transformer_2\.': 'LoRA of a second transformer',
  r'patch_embedding': 'LoRA of the patch embedding',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """The LoRA of one linear layer of one block: its update is `down @ up`.

  Attributes:
    down: [in r] float32.
    up: [r out] float32, with the scale folded in.
    alpha: as a file has it; None where it has none.
    scale: what was folded in.
  """

  down: np.ndarray
  up: np.ndarray
  alpha: float | None = None
  scale: float = 1.0

  @property
  def rank(self) -> int:
    return self.up.shape[0]

  @property
  def shape(self) -> tuple[int, int]:
    """Of the kernel, [in out]."""
    return self.down.shape[0], self.up.shape[1]


Pairs = dict[Place, Pair]


@dataclasses.dataclass(frozen=True, eq=False)
class LoraFile:
  """What a LoRA file of another tool holds.

  Attributes:
    name: of the file.
    style: one of `STYLES`, by the names of its layers.
    prefix: of its keys.
    spelling: of the two matrices, for example ('lora_A', 'lora_B'); with the
      name of an adapter after it where the keys have one.
    dtypes: of its tensors.
    pairs: {(our layer, block): pair}, of those that are whole.
    faults: the +/- list of what keeps it from being used.
    configured: whether the alphas come from a PEFT config.
  """

  name: str
  style: str
  prefix: str
  spelling: tuple[str, str]
  dtypes: tuple[str, ...]
  pairs: Pairs
  faults: tuple[str, ...] = ()
  configured: bool = False


def read(path: Path) -> LoraFile:
  """Reads the LoRA file of another tool, as `parse`."""
  return parse(*container.read(path), path)


def parse(
  head: Mapping[str, str], tensors: Mapping[str, np.ndarray], path: Path
) -> LoraFile:
  """Sorts the keys of a LoRA file; what is wrong with them is in `faults`.

  Args:
    head: its metadata. `lora_adapter_metadata`, a PEFT config, gives the alpha
      of layers that have no tensor for it; so does an `adapter_config.json`
      beside a file of PEFT.
    tensors: {key: array}.
    path: of the file.

  Raises:
    DcjaxError: it holds no LoRA of a Wan transformer at all, or several styles
      of keys at once.
  """
  groups: dict[Place, dict[str, str]] = {}
  faults, kinds, spelt = [], {}, {}
  for key in tensors:
    match = _KEY.fullmatch(key)
    found = place_of(match[2]) if match else None
    if found is None:
      faults.append(f'+ {key} ({_reason(key)})')
      continue
    style, place = found
    kinds.setdefault((style, match[1]), key)
    leaf = 'alpha' if match[3] is None else 'up'
    leaf = 'down' if match[3] in _DOWN else leaf
    if match[3]:
      spelt.setdefault(leaf, match[3] + match[4])
    if groups.setdefault(place, {}).setdefault(leaf, key) != key:
      faults.append(f'+ {key} (the same as {groups[place][leaf]})')
  if not spelt:
    raise DcjaxError(
      f'{path} is not a dcjax concept but other weights without a LoRA of a '
      f'Wan transformer, with keys such as {_first(tensors)}'
    )
  if len(kinds) > 1:
    raise DcjaxError(
      f'{path} mixes styles of keys: {" and ".join(kinds.values())}'
    )
  (style, prefix), *_ = kinds
  config = _peft_config(head, prefix, path)
  pairs = {}
  for place, keys in groups.items():
    wrong = _wrong(tensors, keys)
    if wrong:
      faults += wrong
    else:
      pairs[place] = _pair(tensors, keys, config)
  return LoraFile(
    name=str(path),
    style=style,
    prefix=prefix,
    spelling=(spelt.get('down', '?'), spelt.get('up', '?')),
    dtypes=tuple(sorted({str(x.dtype) for x in tensors.values()})),
    pairs=pairs,
    faults=tuple(faults + _uneven(pairs)),
    configured=config is not None,
  )


def _reason(key: str) -> str:
  for pattern, what in _OTHERS.items():
    if re.search(pattern, key):
      return f'{what}, which is not supported'
  return 'not a key of a LoRA of Wan'


def _first(tensors: Mapping[str, Any]) -> str:
  return tree.some(list(tensors), ', ', 2) or 'none'


def _wrong(tensors: Mapping[str, Any], keys: Mapping[str, str]) -> list[str]:
  """What is wrong with the tensors of one layer of one block."""
  known = next(iter(keys.values()))
  missing = [
    f'- {re.sub(_LEAF, "", known)}: {what} (missing)'
    for leaf, what in (('down', 'lora_A/lora_down'), ('up', 'lora_B/lora_up'))
    if leaf not in keys
  ]
  if missing:
    return missing
  down, up = tensors[keys['down']], tensors[keys['up']]
  if down.ndim != 2 or not down.size:
    return [f'~ {keys["down"]} is {down.shape}, expected (rank, in)']
  rank, width_in = down.shape
  if up.ndim != 2 or up.shape[1] != rank or not up.size:
    return [f'~ {keys["up"]} is {up.shape}, expected (out, {rank})']
  if rank > width_in == up.shape[0]:
    return [f'~ {keys["down"]} is {down.shape}: the rank is above the width']
  if 'alpha' in keys and tensors[keys['alpha']].size != 1:
    shape = tensors[keys['alpha']].shape
    return [f'~ {keys["alpha"]} is {shape}, expected one number']
  return []


_LEAF = r'\.(lora_\w+(\.\w+)?\.weight|alpha)$'


def _pair(
  tensors: Mapping[str, Any],
  keys: Mapping[str, str],
  config: Mapping[str, Any] | None,
) -> Pair:
  down = np.asarray(tensors[keys['down']], np.float32).T
  up = np.asarray(tensors[keys['up']], np.float32).T
  alpha, root = None, False
  if 'alpha' in keys:
    alpha = float(np.asarray(tensors[keys['alpha']], np.float32).reshape(()))
  elif config is not None:
    module = _KEY.fullmatch(keys['down'])[2]
    # PEFT: the first pattern that matches the end of the module's name.
    alpha = next(
      (
        value
        for pattern, value in (config.get('alpha_pattern') or {}).items()
        if re.match(rf'(.*\.)?({pattern})$', module)
      ),
      config.get('lora_alpha', len(up)),
    )
    root = bool(config.get('use_rslora'))
  scale = 1.0
  if alpha is not None:
    scale = alpha / (math.sqrt(len(up)) if root else len(up))
  return Pair(down, up * np.float32(scale), alpha, scale)


def _peft_config(
  head: Mapping[str, str], prefix: str, path: Path
) -> dict[str, Any] | None:
  """The PEFT config of a file: in its header, or beside it."""
  text = head.get('lora_adapter_metadata')
  if text is not None:
    try:
      config = dict(json.loads(text))
    except (TypeError, ValueError) as error:
      raise DcjaxError(f'{path}: its LoRA metadata is not JSON') from error
  elif prefix == 'base_model.model.' and _beside(path).is_file():
    config = container.read_json(_beside(path))
  else:
    return None
  config = {key.removeprefix('transformer.'): x for key, x in config.items()}
  alphas = {'lora_alpha': config.get('lora_alpha', 1)}
  for name, alpha in (alphas | (config.get('alpha_pattern') or {})).items():
    if not isinstance(alpha, numbers.Real) or isinstance(alpha, bool):
      raise DcjaxError(f'{path}: the alpha {name} is {alpha!r}, not a number')
  return config


def _beside(path: Path) -> Path:
  return path.with_name('adapter_config.json')


def _uneven(pairs: Pairs) -> list[str]:
  """Blocks whose layer is of another shape than in the first block."""
  first: dict[str, tuple[int, int]] = {}
  return [
    f'~ {layer} of block {block} is for a kernel {pair.shape}, that of other '
    f'blocks for {first[layer]}'
    for (layer, block), pair in pairs.items()
    if first.setdefault(layer, pair.shape) != pair.shape
  ]
