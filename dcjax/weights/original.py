"""Transformers in the names of Wan's own code, as ComfyUI has them too."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from dcjax.errors import DcjaxError
from dcjax.weights.lora_names import module_of
from dcjax.weights.names import Table

PREFIXES = ('', 'model.diffusion_model.', 'diffusion_model.')
# A linear layer that only Wan's own code calls so.
_SIGN = 'blocks.0.self_attn.q.weight'

# Leaves that belong to no linear layer; the others are `lora_names`'.
_LEAVES = {
  'patch/kernel': 'patch_embedding.weight',
  'patch/bias': 'patch_embedding.bias',
  'head_modulation': 'head.modulation',
  'blocks/modulation/table': 'blocks.{}.modulation',
  'blocks/cross_norm/scale': 'blocks.{}.norm3.weight',
  'blocks/cross_norm/bias': 'blocks.{}.norm3.bias',
} | {
  f'blocks/{attn}/norm_{x}/scale': f'blocks.{{}}.{attn}.norm_{x}.weight'
  for attn in ('self_attn', 'cross_attn')
  for x in 'qk'
}


def fitting(table: Table, keys: Iterable[str]) -> Table:
  """The transformer's table in the names that a checkpoint has.

  Args:
    table: `names.transformer_table`.
    keys: the checkpoint's names: diffusers', or Wan's own with one of
      `PREFIXES` before them.
  """
  keys = set(keys)
  for prefix in PREFIXES:
    if prefix + _SIGN in keys:
      return {
        ours: dataclasses.replace(
          entry,
          keys=tuple(
            prefix + _original(ours, i if entry.stacked else None)
            for i in range(len(entry.keys))
          ),
        )
        for ours, entry in table.items()
      }
  return table


def config(raw: Mapping[str, Any]) -> dict[str, Any]:
  """The config.json of Wan's own code as that of diffusers; others unchanged.

  Raises:
    DcjaxError: it is of another kind of model, or a number is missing.
  """
  if raw.get('_class_name') != 'WanModel':
    return dict(raw)
  if raw.get('model_type') != 't2v':
    raise DcjaxError(
      f'transformer/config.json: model_type is {raw.get("model_type")!r}; only '
      "text-to-video models ('t2v') are supported"
    )
  missing = [key for key in ('num_heads', *_SIZES) if key not in raw]
  if missing or raw['dim'] % raw['num_heads']:
    raise DcjaxError(
      f'transformer/config.json: {", ".join(missing) or "dim"} should be '
      'positive numbers, dim a multiple of num_heads'
    )
  values = {theirs: raw[key] for key, theirs in _SIZES.items() if theirs}
  return values | {
    'num_attention_heads': raw['num_heads'],
    'attention_head_dim': raw['dim'] // raw['num_heads'],
    'patch_size': raw.get('patch_size', (1, 2, 2)),
    'text_dim': raw.get('text_dim', 4096),
    'cross_attn_norm': raw.get('cross_attn_norm', True),
  }


_SIZES = {
  'dim': None,
  'eps': 'eps',
  'ffn_dim': 'ffn_dim',
  'freq_dim': 'freq_dim',
  'in_dim': 'in_channels',
  'num_layers': 'num_layers',
  'out_dim': 'out_channels',
}


def _original(ours: str, block: int | None) -> str:
  if ours in _LEAVES:
    return _LEAVES[ours].format(block)
  layer, leaf = ours.rsplit('/', 1)
  kind = {'kernel': 'weight', 'bias': 'bias'}[leaf]
  return f'{module_of(layer, block, "comfyui")}.{kind}'
