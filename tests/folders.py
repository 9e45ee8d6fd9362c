"""Base folders on disk, and harm that is done to them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import tiny

from dcjax import tree
from dcjax.errors import DcjaxError
from dcjax.weights import names, original
from dcjax.weights.base import load_base

DIT_FILE = 'transformer/diffusion_pytorch_model.safetensors'
TEXT_FILE = 'text_encoder/model.safetensors'


def change(path, function):
  """Applies a function to the tensors of a file."""
  tensors = load_file(path)
  function(tensors)
  save_file(tensors, path, {'format': 'pt'})


def shard(path, weight_map_of):
  """Splits a file in two, with an index as transformers writes it."""
  tensors = load_file(path)
  keys = sorted(tensors)
  halves = {'m-00001-of-00002.safetensors': keys[::2]}
  halves['m-00002-of-00002.safetensors'] = keys[1::2]
  for name, inside in halves.items():
    save_file({k: tensors[k] for k in inside}, path.parent / name)
  weight_map = {k: name for name, inside in halves.items() for k in inside}
  path.unlink()
  index = {'metadata': {}, 'weight_map': weight_map_of(weight_map)}
  index_path = path.parent / f'{path.name}.index.json'
  index_path.write_text(json.dumps(index))
  return index_path


def equal(a, b):
  a, b = tree.flatten(a), tree.flatten(b)
  return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def refused(folder, says):
  with pytest.raises(DcjaxError, match=says) as error:
    load_base(folder)
  assert '\n' not in str(error.value)


def own_names(tensors, prefix):
  """In place: a transformer of diffusers in the original's names."""
  table = names.transformer_table(tiny.DIT)
  sign = {prefix + 'blocks.0.self_attn.q.weight'}
  theirs = original.fitting(table, sign)
  for ours, entry in table.items():
    for old, new in zip(entry.keys, theirs[ours].keys, strict=True):
      tensors[new] = tensors.pop(old)
