"""Safetensors files and their indices, read and written with care.

Small files are read whole. Of large ones the headers are read, and every tensor
is then a `Stored`, whose numbers stay on disk until somebody asks for them.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from dcjax import strict_json
from dcjax.errors import DcjaxError

PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file; `numpy.asarray` maps it into memory, read-only.

  Attributes:
    path: of the file.
    offset: of the first byte.
    dtype: of the numbers.
    shape: of the tensor.
  """

  path: Path
  offset: int
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    """Bytes of the numbers."""
    return math.prod(self.shape) * self.dtype.itemsize

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    if not self.nbytes:
      return np.empty(self.shape, dtype or self.dtype)
    try:
      x = np.memmap(self.path, self.dtype, 'r', self.offset, self.shape)
    except (OSError, ValueError) as error:
      raise DcjaxError(f'{self.path} cannot be read: {error}') from error
    return np.array(x, dtype, copy=copy)

  def take(self, places: np.ndarray) -> np.ndarray:
    """Single numbers of the flattened tensor, without what lies around them."""
    size = self.dtype.itemsize
    with open(self.path, 'rb', buffering=0) as file:
      read = lambda i: os.pread(file.fileno(), size, self.offset + size * i)
      return np.frombuffer(b''.join(map(read, places.tolist())), self.dtype)


def stored_in(folder: Path) -> dict[str, Stored]:
  """All tensors of a folder that holds one file, or shards and their index.

  Only headers are read.

  Raises:
    DcjaxError: it does not, or a shard is missing, broken, outside the folder.
  """
  tensors: dict[str, Stored] = {}
  for path in _weight_files(folder):
    for key, x in stored(path).items():
      if key in tensors:
        raise DcjaxError(f'{path}: {key} is in more than one file of {folder}')
      tensors[key] = x
  return tensors


def stored(path: Path) -> dict[str, Stored]:
  """All tensors of a file, from its header.

  Raises:
    DcjaxError: it is missing, not a whole safetensors file, or holds other
      than floating-point numbers.
  """
  if not path.is_file():
    raise DcjaxError(f'there is no file {path}')
  try:
    with open(path, 'rb') as file:
      size = os.fstat(file.fileno()).st_size
      begin = 8 + int.from_bytes(file.read(8), 'little')
      if not 8 < begin <= min(size, 8 + _LARGEST_HEADER):
        raise ValueError('the length of its header is impossible')
      header = strict_json.loads(file.read(begin - 8))
    return _check_header(header, begin, size, path)
  except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
    raise DcjaxError(
      f'{path} is not a whole safetensors file: {error}'
    ) from error


# That of the library; the header of the largest models takes a hundredth.
_LARGEST_HEADER = 100_000_000


def _check_header(header, begin, size, path) -> dict[str, Stored]:
  """Tensors must fill the file one after another, without gap or overlap."""
  import ml_dtypes

  kinds = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16}
  kinds['BF16'] = ml_dtypes.bfloat16
  header.pop('__metadata__', None)
  tensors, at = {}, 0
  order = sorted(header.items(), key=lambda item: item[1]['data_offsets'][:2])
  for key, entry in order:
    shape, (first, last) = entry.get('shape'), entry['data_offsets']
    kind = entry.get('dtype')
    if not isinstance(shape, list) or not all(
      type(x) is int and x >= 0 for x in (*shape, first, last)
    ):
      raise ValueError(f'{key} has no possible shape or place')
    if kind not in kinds:
      raise DcjaxError(
        f'{path}: {key} is of type {kind}; expected {", ".join(kinds)}'
      )
    x = Stored(path, begin + first, np.dtype(kinds[kind]), tuple(shape))
    if first != at or last - first != x.nbytes:
      raise ValueError(f'{key} does not fill its place')
    tensors[key], at = x, last
  if begin + at != size:
    raise ValueError(f'it has {size} bytes, and its header says {begin + at}')
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
    DcjaxError: it is missing, not a whole safetensors file, or of a type that
      numpy has not.
  """
  from safetensors import SafetensorError, safe_open

  if not path.is_file():
    raise DcjaxError(f'there is no file {path}')
  try:
    with safe_open(path, framework='np') as file:
      tensors = {key: _tensor(file, key, path) for key in file.keys()}  # noqa: SIM118
      return dict(file.metadata() or {}), tensors
  except (SafetensorError, OSError) as error:
    raise DcjaxError(
      f'{path} is not a whole safetensors file: {error}'
    ) from error


def _tensor(file: Any, key: str, path: Path) -> np.ndarray:
  try:
    return file.get_tensor(key)
  except AttributeError as error:  # such as numpy.float8_e4m3fn
    kind = file.get_slice(key).get_dtype()
    raise DcjaxError(
      f'{path}: {key} is of type {kind}; expected F32, F16 or BF16'
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


def sharded_in(folder: Path) -> list[Path]:
  """Indices of a folder and the shards that they name.

  Raises:
    DcjaxError: an index is broken, or a shard is missing or outside the folder.
  """
  indices = _indices(folder)
  return [*indices, *(path for index in indices for path in _shards(index))]


def _indices(folder: Path) -> list[Path]:
  return sorted(folder.glob('*.safetensors.index.json'))


def _weight_files(folder: Path) -> list[Path]:
  indices = _indices(folder)
  if not indices:
    files = sorted(folder.glob('*.safetensors'))
    if len(files) == 1:
      return files
    pickles = [p.name for p in folder.glob('*') if p.suffix in PICKLES]
    found = (
      f'found {", ".join(pickles or [p.name for p in files]) or "nothing"}'
    )
    hint = (
      '; pickled weights are refused, the same model in diffusers layout (hub '
      'ids that end in -Diffusers) has them as safetensors'
      if pickles
      else ''
    )
    raise DcjaxError(
      f'{folder} needs one .safetensors file or an index, {found}{hint}'
    )
  return _shards(indices[0])


def _shards(index: Path) -> list[Path]:
  folder, weight_map = index.parent, read_json(index).get('weight_map')
  shards = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
  if not all(isinstance(shard, str) for shard in shards):
    raise DcjaxError(f'{index} does not map tensors to the names of files')
  shards = sorted(set(shards))
  outside = [s for s in shards if Path(s).name != s]
  missing = [s for s in shards if not outside and not (folder / s).is_file()]
  if outside or missing:
    raise DcjaxError(
      f'{index} names shards that '
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
