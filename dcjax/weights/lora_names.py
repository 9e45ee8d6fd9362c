"""Names of the linear layers that LoRAs extend, in the key styles of others.

A LoRA file names a layer as the model's code does: diffusers' code, Wan's own
code, or Wan's own with underscores for the dots.
"""

import re

from dcjax.weights.names import BLOCK_LINEARS

STYLES = ('diffusers', 'comfyui', 'musubi')

# Ours -> (diffusers, Wan's own code); of blocks, without 'blocks.N.' before it.
_BLOCK = {
  ours: (
    theirs,
    {'mlp/up': 'ffn.0', 'mlp/down': 'ffn.2'}.get(ours, ours.replace('/', '.')),
  )
  for ours, theirs in BLOCK_LINEARS.items()
}
_OTHER = {
  'time_in': ('condition_embedder.time_embedder.linear_1', 'time_embedding.0'),
  'time_out': ('condition_embedder.time_embedder.linear_2', 'time_embedding.2'),
  'time_modulation': ('condition_embedder.time_proj', 'time_projection.1'),
  'text_in': ('condition_embedder.text_embedder.linear_1', 'text_embedding.0'),
  'text_out': ('condition_embedder.text_embedder.linear_2', 'text_embedding.2'),
  'head': ('proj_out', 'head.head'),
}
Place = tuple[str, int | None]


def module_of(layer: str, block: int | None, style: str) -> str | None:
  """A layer's name in one style, without its prefix; None if it has none.

  Args:
    layer: ours, for example 'blocks/self_attn/q'.
    block: its number, for layers of blocks.
    style: one of `STYLES`.
  """
  inner = layer.removeprefix('blocks/')
  found = _OTHER.get(layer) if block is None else _BLOCK.get(inner)
  if found is None:
    return None
  name = found[0 if style == 'diffusers' else 1]
  name = name if block is None else f'blocks.{block}.{name}'
  return name.replace('.', '_') if style == 'musubi' else name


def place_of(module: str) -> tuple[str, Place] | None:
  """A name without its prefix -> (style, (our layer, block)), or None."""
  in_block = re.fullmatch(r'blocks([._])(\d+)\1(.+)', module)
  block = int(in_block[2]) if in_block else None
  found = _FOUND[bool(in_block)].get(in_block[3] if in_block else module)
  if found is None:
    return None
  style, layer = found
  if in_block and (style == 'musubi') != (in_block[1] == '_'):
    return None
  return style, (layer, block)


def _inverse(table: dict[str, tuple[str, str]], before: str):
  """{name of others: (style, our layer)}."""
  found = {}
  for ours, (theirs, own) in table.items():
    names = (theirs, own, own.replace('.', '_'))
    for style, name in zip(STYLES, names, strict=True):
      found[name] = (style, before + ours)
  return found


_FOUND = {True: _inverse(_BLOCK, 'blocks/'), False: _inverse(_OTHER, '')}
