"""Networks of others, by folder or hub id: safetensors, local unless asked."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dcjax.errors import DcjaxError

# What reading a folder of something else ends in.
_BROKEN = (
  *(OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError),
  *(ImportError, SafetensorError),
)


def require_torch(what: str) -> Any:
  """The module torch; DcjaxError if it is not installed."""
  try:
    import torch
  except ImportError as error:
    raise DcjaxError(
      f"{what} needs PyTorch, which is not installed: pip install 'dcjax[eval]'"
    ) from error
  return torch


def device(name: str) -> str:
  """A device of torch; '' is cuda if there is one, else cpu.

  Raises:
    DcjaxError: torch has no such device here.
  """
  torch = require_torch('a network of others')
  name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
  try:
    torch.zeros(1).to(name).cpu()
  except (RuntimeError, AssertionError, NotImplementedError) as error:
    raise DcjaxError(
      f'torch has no device {name!r} here ({_first_line(error)}); expected '
      'cpu, cuda or cuda:N'
    ) from error
  return name


def load(kind: Any, name: str, download: bool) -> Any:
  """A network of `kind`, whole, in safetensors; one line for an error.

  Args:
    kind: a model class of transformers, or a pipeline of diffusers.
    name: folder or hub id.
    download: whether the hub may be asked.

  Raises:
    DcjaxError: it is not there or cannot be read, or some of its weights are
      missing, which transformers would draw at random.
  """
  options = {'use_safetensors': True}
  if not kind.__module__.startswith('transformers.'):
    return _from_pretrained(kind, name, download, **options)
  options['output_loading_info'] = True
  model, about = _from_pretrained(kind, name, download, **options)
  wrong = sorted({*about['missing_keys'], *map(_key, about['mismatched_keys'])})
  if wrong:
    raise DcjaxError(
      f'{name} is no {kind.__name__}, or not all of it: {len(wrong)} of its '
      f'weights are not there or have other shapes, such as {wrong[0]}'
    )
  return model


def load_tokenizer(name: str, download: bool) -> Any:
  """The tokenizer of a folder or hub id of transformers.

  Raises:
    DcjaxError: it is not there; without its files transformers would make one
      that knows no word.
  """
  from transformers import AutoTokenizer
  from transformers.utils import cached_file

  words = _from_pretrained(AutoTokenizer, name, download)
  there = (
    cached_file(
      name,
      file,
      local_files_only=not download,
      _raise_exceptions_for_missing_entries=False,
      _raise_exceptions_for_connection_errors=False,
    )
    for file in ('tokenizer.json', *words.vocab_files_names.values())
  )
  if not any(there):
    raise DcjaxError(f'{name} has no tokenizer: expected a tokenizer.json')
  return words


def _from_pretrained(kind, name, download, **options) -> Any:
  try:
    return kind.from_pretrained(name, local_files_only=not download, **options)
  except _BROKEN as error:
    if Path(name).is_dir():
      there = f'cannot be read ({_first_line(error)})'
    else:
      there = 'is not here'
    hint = '' if download else '; download=True asks the hub'
    raise DcjaxError(
      f'{kind.__name__} {name} {there}: give a folder of transformers or a '
      f'hub id that is in the cache{hint}'
    ) from error


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return lines[0].rstrip('.') if lines else type(error).__name__


def _key(mismatched: Any) -> str:
  """Its name: some versions give shapes beside it."""
  return mismatched if isinstance(mismatched, str) else mismatched[0]
