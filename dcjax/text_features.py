"""Features of prompts, from a text encoder that may be too large to keep.

The encoder of Wan has 5.7 billion parameters and is needed for a second. It is
read when a prompt comes that no run has encoded before, used and forgotten;
the features stay on disk, so a second run never reads it. A small encoder is
in memory with the rest of the base, and nothing of this happens.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.data import cache
from dcjax.data import prompts as prompts_lib
from dcjax.models.text import UMT5Encoder
from dcjax.weights.base import Base

# Prompts are encoded at lengths in multiples of this: few compilations, and no
# work on hundreds of rows of padding.
_STRIDE = 64
# Tokens that are encoded at once: bounds the memory of many long prompts.
TOKENS = 4096


def text_features(base: Base, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
  """Output of the text encoder [b l d], zero where padded.

  Args:
    base: whose encoder is in memory or on disk.
    ids: [b l] int32.
    mask: [b l] bool, True for tokens.
  """
  if 'text_encoder' not in base.on_disk:
    return _from_memory(base, ids, mask)
  features = np.zeros((*ids.shape, base.text.d_model), np.float32)
  for row, found in enumerate(_all_remembered(base, ids, mask)):
    features[row, : len(found)] = found
  return jnp.asarray(features)


def remember(
  base: Base, prompts: Sequence[str], sizes: Mapping[str, int]
) -> None:
  """Encodes prompts ahead, so that the encoder is out of the way later.

  Args:
    base: does nothing if its encoder is in memory.
    prompts: whatever will be asked for.
    sizes: vectors of each learned word.
  """
  if 'text_encoder' in base.on_disk and prompts:
    length = base.format.text_length
    encoded = prompts_lib.encode(base.tokenizer, prompts, length, sizes)
    # One by one, as padded features of many prompts would not fit into memory.
    for _ in _all_remembered(base, encoded.ids, encoded.mask):
      pass


def folder() -> Path:
  """Where features stay: $DCJAX_CACHE, or dcjax in the user's cache folder."""
  home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  return Path(os.environ.get('DCJAX_CACHE') or Path(home) / 'dcjax') / 'text'


def _from_memory(base: Base, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
  params, count = base.params['text_encoder'], max(1, TOKENS // ids.shape[1])
  ids, mask = jnp.asarray(ids), jnp.asarray(mask)
  rows = [
    _encode(params, ids[i : i + count], mask[i : i + count], base.text)
    for i in range(0, len(ids), count)
  ]
  return prompts_lib.zero_padding(jnp.concatenate(rows), mask)


def _all_remembered(
  base: Base, ids: np.ndarray, mask: np.ndarray
) -> Iterator[np.ndarray]:
  """[n d] of each prompt, without padding."""
  # Read at the first prompt that is new, and freed at the end.
  encoder = functools.cache(lambda: base.part('text_encoder'))
  for tokens, valid in zip(ids, mask, strict=True):
    yield _remembered(base, np.asarray(tokens[valid]), encoder)


def _remembered(base: Base, tokens: np.ndarray, encoder: Any) -> np.ndarray:
  """[n d] of one prompt's tokens [n]."""
  part = base.on_disk['text_encoder']
  key = {
    'encoder': part.digest,
    'config': base.text,
    'dtype': str(jnp.dtype(part.dtype)),
    'ids': tokens,
  }

  def compute():
    length = -(-len(tokens) // _STRIDE) * _STRIDE
    ids = np.zeros((1, length), np.int32)
    ids[0, : len(tokens)] = tokens
    mask = np.arange(length)[None] < len(tokens)
    rows = _encode(encoder(), jnp.asarray(ids), jnp.asarray(mask), base.text)
    return {'features': np.asarray(rows[0, : len(tokens)])}

  return cache.cached(folder(), key, compute)['features']


@functools.partial(jax.jit, static_argnums=3)
def _encode(params, ids, mask, config):
  return UMT5Encoder(config).apply({'params': params}, ids, mask)
