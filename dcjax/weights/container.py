"""One safetensors file with metadata, read and written with care."""

from collections.abc import Mapping
import json
import os
from pathlib import Path

import numpy as np

from dcjax.errors import DcjaxError


def read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """(metadata, tensors) of a file.

  Raises:
    DcjaxError: it is missing, or not a whole safetensors file.
  """
  from safetensors import SafetensorError, safe_open

  if not path.is_file():
    raise DcjaxError(f'there is no file {path}')
  try:
    with safe_open(path, framework='np') as file:
      tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
      return dict(file.metadata() or {}), tensors
  except (SafetensorError, OSError) as error:
    raise DcjaxError(
      f'{path} is not a whole safetensors file: {error}'
    ) from error


def write(
  path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
  """Writes all of it or nothing; equal contents give equal bytes.

  Raises:
    DcjaxError: the folder cannot be written to.
  """
  from safetensors.numpy import save

  # The format wants dense rows: a transposed view would be saved as it lies.
  dense = {key: np.ascontiguousarray(x) for key, x in tensors.items()}
  data = _sort_header(save(dense, dict(metadata)))
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  except OSError as error:
    if partial.is_file():
      partial.unlink()
    raise DcjaxError(f'cannot write {path}: {error.strerror}') from error


def _sort_header(data: bytes) -> bytes:
  """Puts the header in order; the library writes metadata in hash order."""
  size = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + size])
  text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text + data[8 + size :]
