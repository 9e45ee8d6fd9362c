"""A concept's LoRA under the keys of other tools, and theirs as a concept's.

Learned words, which no LoRA file can hold, get files of their own.

The styles of keys are those of `weights.lora_file`. Written are: the scale
folded in, an alpha of r where a style needs one, and never an alpha under the
keys of diffusers, whose loader refuses it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dcjax import concept_shapes as shapes
from dcjax import tree
from dcjax.data import prompts as prompts_lib
from dcjax.errors import DcjaxError
from dcjax.lora import LEAVES
from dcjax.weights import container
from dcjax.weights.lora_file import LoraFile, Pair, Pairs
from dcjax.weights.lora_names import STYLES, module_of
from dcjax.weights.names import BLOCK_LINEARS

PREFIX = {
  'diffusers': 'transformer.',
  'comfyui': 'diffusion_model.',
  'musubi': 'lora_unet_',
}
SPELLINGS = {
  'diffusers': ('lora_A', 'lora_B'),
  'comfyui': ('lora_down', 'lora_up'),
  'musubi': ('lora_down', 'lora_up'),
}
# Name of the files of learned words.
WORDS = 'dcjax_tokens'
# Unit roundoff u of what a number may be stored as.
DTYPES = {'float32': 2.0**-24, 'bfloat16': 2.0**-8, 'float16': 2.0**-11}


def to_pairs(
  lora: tree.Tree, identity: float = 1.0, motion: float = 1.0
) -> Pairs:
  """Leaves of a concept -> one pair a linear layer and block.

  The update is identity A1 B1 + motion A1 B2, of the rank of A1 alone.

  Args:
    lora: tree of leaves `<layer>/lora/{a1,b1,b2}`, with the basis on either
      side.
    identity: weight of the look.
    motion: weight of the motion.
  """
  pairs: Pairs = {}
  for layer, leaves in shapes.layers(lora).items():
    a1, b1, b2 = (np.asarray(leaves[leaf], np.float32) for leaf in LEAVES)
    b = identity * b1 + motion * b2
    down, up = (a1, b) if shapes.on_input(leaves) else (b, a1)
    if a1.ndim == 2:
      pairs[layer, None] = Pair(down, up)
    else:
      for block in range(len(a1)):
        pairs[layer, block] = Pair(down[block], up[block])
  return pairs


def filled(pairs: Pairs, transformer: tree.Tree) -> Pairs:
  """With zero pairs for the linear layers that a LoRA leaves out of its blocks.

  diffusers converts the keys of musubi for whole blocks only.

  Args:
    pairs: of a LoRA of blocks.
    transformer: tree of the kernels, for their shapes.
  """
  rank = max(pair.rank for pair in pairs.values())
  depth = 1 + max((b for _, b in pairs if b is not None), default=-1)
  flat, whole = tree.flatten(transformer), dict(pairs)
  for name in BLOCK_LINEARS:
    layer = f'blocks/{name}'
    *_, width_in, width_out = flat[f'{layer}/kernel'].shape
    nothing = Pair(
      np.zeros((width_in, rank), np.float32),
      np.zeros((rank, width_out), np.float32),
    )
    for block in range(depth):
      whole.setdefault((layer, block), nothing)
  return whole


def to_tensors(
  pairs: Pairs, style: str, dtype: str = 'float32'
) -> dict[str, np.ndarray]:
  """Pairs -> tensors under the keys of one style.

  Raises:
    DcjaxError: the style or dtype is unknown, or a layer has no name there.
  """
  import ml_dtypes

  if style not in STYLES:
    raise DcjaxError(f'key style {style!r}; use one of {", ".join(STYLES)}')
  if dtype not in DTYPES:
    raise DcjaxError(f'dtype {dtype!r}; use one of {", ".join(DTYPES)}')
  stored = ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.dtype(dtype)
  # One rank a file: some loaders take the first layer's for all of them.
  rank = max((pair.rank for pair in pairs.values()), default=0)
  tensors, down, up = {}, *SPELLINGS[style]
  for (layer, block), pair in pairs.items():
    module = module_of(layer, block, style)
    if module is None:
      raise DcjaxError(f'{layer} has no name in other tools: LoRA not exported')
    key = PREFIX[style] + module
    wide = ((0, 0), (0, rank - pair.rank))
    # Row by row: safetensors saves a transposed view as it lies.
    for leaf, x in (
      (down, np.pad(pair.down, wide).T),
      (up, np.pad(pair.up.T, wide)),
    ):
      tensors[f'{key}.{leaf}.weight'] = np.ascontiguousarray(x, stored)
    if style == 'musubi':
      tensors[f'{key}.alpha'] = np.asarray(rank, np.float32)
  return tensors


def to_lora(file: LoraFile) -> dict[str, Any]:
  """The tree of leaves `<layer>/lora/{a1,b1,b2}` of a file; b2 is zero.

  Blocks that the file leaves out are zero, up to the last that it has, and
  ranks that differ between blocks are padded with zeros.

  Raises:
    DcjaxError: the file has faults, as a +/- list.
  """
  if file.faults:
    raise DcjaxError(
      f'{file.name} is no LoRA that can be used whole: '
      f'{tree.some(list(file.faults))}'
    )
  stacks: dict[str, dict[int | None, Pair]] = {}
  for (layer, block), pair in file.pairs.items():
    stacks.setdefault(layer, {})[block] = pair
  flat = {}
  for layer, stack in stacks.items():
    rank = max(pair.rank for pair in stack.values())
    width_in, width_out = next(iter(stack.values())).shape
    depth = () if None in stack else (max(stack) + 1,)
    a1 = np.zeros((*depth, width_in, rank), np.float32)
    b1 = np.zeros((*depth, rank, width_out), np.float32)
    for block, pair in stack.items():
      at = () if block is None else (block,)
      a1[(*at, slice(None), slice(pair.rank))] = pair.down
      b1[(*at, slice(pair.rank))] = pair.up
    leaves = (a1, b1, np.zeros_like(b1))
    for leaf, x in zip(LEAVES, leaves, strict=True):
      flat[f'{layer}/lora/{leaf}'] = x
  return tree.unflatten(flat)


def write_words(
  tokens: Mapping[str, Any], prompts: Mapping[str, str], folder: Path
) -> Path:
  """Writes learned words and, beside them, a text on how to use them elsewhere.

  Args:
    tokens: {name: vectors [n d]}.
    prompts: that they were trained with.
    folder: of both files.

  Returns:
    Path of the vectors.
  """
  path = folder / f'{WORDS}.safetensors'
  vectors = {name: np.asarray(x) for name, x in tokens.items()}
  container.write(path, vectors, {'format': 'pt'})
  words = [
    f'  [{name}]: {len(x)} x {prompts_lib.SENTINELS[name[0]]}'
    for name, x in vectors.items()
  ]
  lines = [
    'How to use the learned words outside of dcjax',
    '',
    f'{path.name} holds one row a vector, in the space of the',
    "output of the base's text encoder. A LoRA file cannot carry them.",
    '',
    '1. Write each word of the prompt as a sentinel of the tokenizer, one for',
    '   each of its vectors:',
    *words,
    '2. Encode the prompt with the text encoder, padding zeroed as usual.',
    '3. Replace the rows of the sentinels by the vectors, in order.',
    '4. Give the result to the pipeline: prompt_embeds in diffusers.',
    *(['', 'It was trained with:'] if prompts else []),
    *(f'  {name}: {text}' for name, text in prompts.items()),
  ]
  (folder / f'{WORDS}.txt').write_text('\n'.join(lines) + '\n')
  return path
