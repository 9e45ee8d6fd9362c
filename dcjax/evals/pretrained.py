"""Networks of others, by folder or hub id: safetensors, local unless asked."""

from pathlib import Path
from typing import Any

from dcjax.errors import DcjaxError


def require_torch(what: str) -> Any:
  """The module torch; DcjaxError if it is not installed."""
  try:
    import torch
  except ImportError as error:
    raise DcjaxError(
      f"{what} needs PyTorch, which is not installed: pip install 'dcjax[eval]'"
    ) from error
  return torch


def load(kind: Any, name: str, download: bool, **options: Any) -> Any:
  """`kind.from_pretrained(name)` of safetensors, with one line for an error.

  Args:
    kind: a class of transformers or diffusers.
    name: folder or hub id.
    download: whether the hub may be asked.
    **options: of from_pretrained.
  """
  if 'Tokenizer' not in kind.__name__:
    options['use_safetensors'] = True
  try:
    return kind.from_pretrained(name, local_files_only=not download, **options)
  except (OSError, ValueError, RuntimeError) as error:
    there = 'a folder without it' if Path(name).is_dir() else 'not here'
    hint = '' if download else '; download=True asks the hub'
    raise DcjaxError(
      f'{kind.__name__} {name} is {there}: give a folder of transformers or a '
      f'hub id that is in the cache{hint}'
    ) from error
