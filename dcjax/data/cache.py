"""Results kept by the content of what made them.

Latents and text features cost minutes and never change, so they are computed
once. A key is a hash of everything that went in (the pixels, the prompt, the
fingerprint of the weights), hence nothing ever goes stale: other input, other
file. A file proves its content by a digest of its own before it is used.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from dcjax import processes
from dcjax.errors import DcjaxError

_log = logging.getLogger(__name__)


def content_hash(*parts: Any) -> str:
  """SHA-256 of values, in hex; equal content gives equal hashes anywhere.

  Args:
    *parts: None, bool, int, float, str, bytes, arrays (numpy, jax), `Path`s
      (what the file holds, or all files below a folder with their names), and
      mappings, dataclasses, lists and tuples of these. Mappings have no order;
      a list and a tuple are the same; 1, 1.0, True and '1' are not.

  Raises:
    DcjaxError: if a path is missing.
    TypeError: if a part is of another type, whose content is not known.
  """
  digest = hashlib.sha256()
  plain = _canonical(list(parts), digest)
  digest.update(json.dumps(plain, sort_keys=True).encode())
  return digest.hexdigest()


def cached(
  folder: str | os.PathLike,
  key: Any,
  compute: Callable[[], Mapping[str, Any]],
) -> dict[str, np.ndarray]:
  """What `compute` gives, from the folder if it was computed before.

  The file appears whole or not at all, so a run that is killed leaves nothing
  to mend, and several runs may share the folder. A file that is cut off or
  altered is computed again, with a warning. If the disk refuses, the result is
  given all the same. Of the processes of one run, all call this: the first one
  has the folder, and either all of them compute or none.

  Args:
    folder: the cache; made if missing.
    key: everything that the result depends on, see `content_hash`.
    compute: gives {name: array}; called only if needed.

  Returns:
    {name: numpy array}, of the shapes and types that `compute` gave; where
    there is a file, mapped from it rather than read.
  """
  key = content_hash(key)
  if processes.alone():
    return kept(folder, key, compute)
  path = _path(folder, key)
  found = _found(path, key) if processes.is_main() else None
  if processes.from_main(b'' if found is None else b'found'):
    return _from_main(found)
  arrays = _arrays(compute)
  return _keep(path, arrays, key) if processes.is_main() else arrays


def kept(
  folder: str | os.PathLike,
  key: str,
  compute: Callable[[], Mapping[str, Any]],
) -> dict[str, np.ndarray]:
  """`cached` for one process, whatever others that share the folder do.

  Args:
    folder: the cache; made if missing.
    key: of `content_hash`.
    compute: gives {name: array}; called only if needed.
  """
  path = _path(folder, key)
  found = _found(path, key)
  return _keep(path, _arrays(compute), key) if found is None else found


def _path(folder: str | os.PathLike, key: str) -> pathlib.Path:
  return pathlib.Path(folder) / f'{key}.safetensors'


def _arrays(compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
  return {name: np.asarray(x) for name, x in compute().items()}


def _keep(
  path: pathlib.Path, arrays: dict[str, np.ndarray], key: str
) -> dict[str, np.ndarray]:
  """The arrays, from their file if the disk takes them."""
  try:
    _save(path, arrays, key)
    # Thousands of clips need not fit into memory.
    return _mapped(path, arrays)
  except OSError as error:
    _log.warning('%s cannot be kept (%s)', path, error.strerror or error)
    return arrays


def _found(path: pathlib.Path, key: str) -> dict[str, np.ndarray] | None:
  """What a file holds, if it is there and whole."""
  if not path.exists():
    return None
  try:
    return _load(path, key)
  except Exception as error:  # whatever a broken file raises
    _log.warning('%s is broken (%s); computing it again', path, error)
    return None


def _from_main(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
  """Arrays of process 0, in every process."""
  if processes.alone():
    return arrays
  about = {n: [str(x.dtype), x.shape] for n, x in (arrays or {}).items()}
  about = json.loads(processes.from_main(json.dumps(about).encode()))
  return {
    name: np.frombuffer(
      processes.from_main(arrays[name].tobytes() if arrays else b''),
      _dtype(dtype),
    ).reshape(shape)
    for name, (dtype, shape) in about.items()
  }


def _canonical(value: Any, digest: Any) -> Any:
  """JSON of `value`; the bytes that it holds go to `digest`, in order."""
  if isinstance(value, np.generic):
    value = value.item()
  if value is None or isinstance(value, (bool, str)):
    return value
  if isinstance(value, (int, float)):
    return {'number': repr(value)}
  if isinstance(value, bytes):
    digest.update(value)
    return {'bytes': len(value)}
  if isinstance(value, os.PathLike):
    return _canonical_path(pathlib.Path(value), digest)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {x.name: getattr(value, x.name) for x in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    # Sorted before the descent, as arrays reach the digest in this order.
    names = sorted(value, key=str)
    return {'map': [[str(n), _canonical(value[n], digest)] for n in names]}
  if isinstance(value, (list, tuple)):
    return [_canonical(x, digest) for x in value]
  if hasattr(value, '__array__'):
    x = np.asarray(value)
    if x.dtype.hasobject:
      raise TypeError('an array of Python objects has no content to hash')
    digest.update(x.tobytes())
    return {'array': [str(x.dtype), list(x.shape)]}
  raise TypeError(f'cannot hash the content of {type(value).__name__}')


def _canonical_path(path: pathlib.Path, digest: Any) -> Any:
  if path.is_dir():
    files = sorted(x for x in path.rglob('*') if x.is_file())
    names = [x.relative_to(path).as_posix() for x in files]
    hashes = [_file_hash(x) for x in files]
    return {'folder': list(zip(names, hashes, strict=True))}
  return {'file': _file_hash(path)}


def _file_hash(path: pathlib.Path) -> str:
  try:
    with path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DcjaxError(f'cannot read {path}: {error.strerror}') from error


def _load(path: pathlib.Path, key: str) -> dict[str, np.ndarray]:
  """Maps a file, after a check that it is what was written under this key."""
  from safetensors import safe_open

  with safe_open(path, framework='numpy') as file:
    metadata = json.loads(file.metadata()['dcjax'])
    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  for name, dtype in metadata['views'].items():
    arrays[name] = arrays[name].view(_dtype(dtype))
  if (metadata['key'], metadata['content']) != (key, content_hash(arrays)):
    raise ValueError('its content has changed')
  return _mapped(path, arrays)


def _mapped(
  path: pathlib.Path, like: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The arrays of a file that was written here, on disk until they are read.

  Who writes to them has a copy of what he writes, and the file stays.

  Args:
    path: of the file.
    like: {name: array} of the same shapes and types.
  """
  try:
    raw = np.asarray(np.memmap(path, np.uint8, 'c'))
  except OSError:  # A process has so many maps, and no more.
    return dict(like)
  begin = 8 + int.from_bytes(raw[:8].tobytes(), 'little')
  header = json.loads(raw[8:begin].tobytes())
  found = {}
  for name, x in like.items():
    first, last = header[name]['data_offsets']
    place = raw[begin + first : begin + last]
    found[name] = place.view(x.dtype).reshape(x.shape)
  return found


def _save(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], key: str
) -> None:
  from safetensors.numpy import save

  # safetensors reads no bfloat16 into numpy: such arrays are kept as integers.
  views = {n: str(x.dtype) for n, x in arrays.items() if _bf16(x)}
  metadata = {
    'key': key,
    'content': content_hash(arrays),
    'views': views,
  }
  stored = {
    name: np.asarray(x, order='C').view(np.uint16 if name in views else x.dtype)
    for name, x in arrays.items()
  }
  data = save(stored, metadata={'dcjax': json.dumps(metadata)})
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.tmp-') as folder:
    temporary = pathlib.Path(folder) / path.name
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _bf16(x: np.ndarray) -> bool:
  return str(x.dtype) == 'bfloat16'


def _dtype(name: str) -> np.dtype:
  """Also the types that jax adds to numpy, such as bfloat16."""
  import ml_dtypes

  return np.dtype(getattr(ml_dtypes, name, name))
