"""Safetensors files and their indices, read and written with care."""

from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dcjax.errors import DcjaxError

PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


def read_folder(folder: Path) -> dict[str, np.ndarray]:
  """All tensors of a folder that holds one file, or shards and their index.

  Raises:
    DcjaxError: it does not, or a shard is missing, broken, outside the folder.
  """
  tensors: dict[str, np.ndarray] = {}
  for path in _weight_files(folder):
    for key, x in read(path)[1].items():
      if key in tensors:
        raise DcjaxError(f'{path}: {key} is in more than one file of {folder}')
      tensors[key] = x
  return tensors


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object, or a DcjaxError that names the file."""
  try:
    value = json.loads(path.read_text())
  except ValueError as error:
    raise DcjaxError(f'{path} is not JSON: {error}') from error
  if not isinstance(value, dict):
    raise DcjaxError(f'{path} is not a JSON object')
  return value


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


def _weight_files(folder: Path) -> list[Path]:
  indices = sorted(folder.glob('*.safetensors.index.json'))
  if not indices:
    files = sorted(folder.glob('*.safetensors'))
    if len(files) == 1:
      return files
    pickles = [p.name for p in folder.glob('*') if p.suffix in PICKLES]
    found = (
      f'found {", ".join(pickles or [p.name for p in files]) or "nothing"}'
    )
    hint = '; pickled weights are refused' if pickles else ''
    raise DcjaxError(
      f'{folder} needs one .safetensors file or an index, {found}{hint}'
    )
  weight_map = read_json(indices[0]).get('weight_map')
  shards = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
  if not all(isinstance(shard, str) for shard in shards):
    raise DcjaxError(f'{indices[0]} does not map tensors to the names of files')
  shards = sorted(set(shards))
  outside = [s for s in shards if Path(s).name != s]
  missing = [s for s in shards if not outside and not (folder / s).is_file()]
  if outside or missing:
    raise DcjaxError(
      f'{indices[0]} names shards that '
      + (
        f'lie outside the folder: {outside[0]}'
        if outside
        else f'are missing: {", ".join(missing)}'
      )
    )
  return [folder / s for s in shards]


def _sort_header(data: bytes) -> bytes:
  """Puts the header in order; the library writes metadata in hash order."""
  size = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + size])
  text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text + data[8 + size :]
