"""Encoded clips on disk: latents and text features, in ArrayRecord files.

    FOLDER/index.json                            what was encoded, and how
    FOLDER/null.safetensors                      features of the empty prompt
    FOLDER/train/000012/16x36x64.array_record    examples of one latent shape
    FOLDER/train/000012/skipped.json             clips that gave none, and why
    FOLDER/held_out/...

A record is a safetensors file: `latents` [f h w c] and `features` [n d] in
float16, and the caption in its header. Numbered folders hold the clips of one
chunk each; they appear whole or not at all, so several processes may write at
once, and what was interrupted goes on with the chunks that are missing.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
import itertools
import json
import os
from pathlib import Path
import shutil
import struct
import tempfile
from typing import Any, NamedTuple

import numpy as np

from dcjax.errors import DcjaxError

SPLITS = ('train', 'held_out')
_SUFFIX = '.array_record'
STORED = np.float16


class Encoded(NamedTuple):
  """One sample.

  Attributes:
    latents: [f h w c], normalised.
    features: [n d], of the caption without padding.
    caption: what it says.
  """

  latents: np.ndarray
  features: np.ndarray
  caption: str = ''


def claim(folder: str | os.PathLike, index: Mapping[str, Any]) -> None:
  """Makes the folder, or makes sure that it holds the same.

  Raises:
    DcjaxError: it holds something that was encoded in another way, or cannot be
      written.
  """
  path = Path(folder) / 'index.json'
  text = json.dumps(index, indent=1, sort_keys=True) + '\n'
  try:
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      with tempfile.NamedTemporaryFile(
        'w', dir=path.parent, delete=False
      ) as file:
        file.write(text)
      os.replace(file.name, path)
    found = json.loads(path.read_text())
  except OSError as error:
    raise DcjaxError(f'cannot write {path}: {error.strerror}') from error
  except ValueError as error:
    raise DcjaxError(f'{path} is not JSON: {error}') from error
  wanted = json.loads(text)
  keys = sorted(set(found) | set(wanted))
  differ = [key for key in keys if found.get(key) != wanted.get(key)]
  if differ:
    shown = '; '.join(
      f'{key} is {wanted.get(key)!r} now and was {found.get(key)!r}'
      for key in differ
    )
    raise DcjaxError(
      f'{folder} holds latents that were encoded in another way ({shown}); '
      'give another folder with data.latents, or remove this one'
    )


def chunk_folder(folder: str | os.PathLike, split: str, chunk: int) -> Path:
  """Where a chunk of a split is, once it is encoded."""
  return Path(folder) / split / f'{chunk:06d}'


def write_chunk(
  path: Path, examples: Iterable[Encoded], skipped: Mapping[str, str]
) -> None:
  """Writes one chunk; a folder that is there already stays.

  Args:
    path: of `chunk_folder`.
    examples: in the order of the clips.
    skipped: {clip: reason} of those that gave no example.

  Raises:
    DcjaxError: the disk refuses.
  """
  from array_record.python import array_record_module

  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix='.tmp-'))
  writers: dict[str, Any] = {}
  try:
    for example in examples:
      name = 'x'.join(map(str, example.latents.shape[:3])) + _SUFFIX
      if name not in writers:
        # One record a group: training reads in random order.
        writers[name] = array_record_module.ArrayRecordWriter(
          str(temporary / name), 'group_size:1'
        )
      writers[name].write(_to_bytes(example))
    for writer in writers.values():
      writer.close()
    (temporary / 'skipped.json').write_text(json.dumps(skipped, indent=1))
    if not path.exists():
      os.replace(temporary, path)
  except OSError as error:
    raise DcjaxError(f'cannot write {path}: {error.strerror}') from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


class Records:
  """The examples of one split and latent shape, by number.

  Args:
    files: of one shape.
  """

  def __init__(self, files: Sequence[Path]):
    import grain

    self._files = [str(file) for file in files]
    self._sources = [
      grain.sources.ArrayRecordDataSource([file]) for file in self._files
    ]
    self._ends = list(itertools.accumulate(map(len, self._sources)))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> Encoded:
    if not 0 <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    place = bisect.bisect_right(self._ends, index)
    first = self._ends[place - 1] if place else 0
    where = f'{self._files[place]}: example {index - first}'
    try:
      data = self._sources[place][int(index) - first]
    except Exception as error:  # array_record raises what it likes
      raise DcjaxError(f'{where} cannot be read: {error}') from error
    return _from_bytes(data, where)


def read(
  folder: str | os.PathLike, split: str
) -> dict[tuple[int, int, int], Records]:
  """{(f, h, w) of the latents: examples} of a split; {} if there are none."""
  files: dict[tuple[int, int, int], list[Path]] = {}
  for path in sorted(Path(folder, split).glob(f'[0-9]*/*{_SUFFIX}')):
    f, h, w = map(int, path.name.removesuffix(_SUFFIX).split('x'))
    files.setdefault((f, h, w), []).append(path)
  return {shape: Records(files[shape]) for shape in sorted(files)}


def skipped(folder: str | os.PathLike) -> dict[str, str]:
  """{clip: reason} of all splits and chunks."""
  found = {}
  for path in sorted(Path(folder).glob('*/[0-9]*/skipped.json')):
    found |= json.loads(path.read_text())
  return found


def write_null(folder: str | os.PathLike, features: np.ndarray) -> None:
  """Keeps the features [n d] of the empty prompt."""
  path = Path(folder) / 'null.safetensors'
  with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
    file.write(_to_bytes(Encoded(np.zeros((0,) * 4), features)))
  os.replace(file.name, path)


def read_null(folder: str | os.PathLike) -> np.ndarray:
  """The features [n d] of the empty prompt."""
  path = Path(folder) / 'null.safetensors'
  return _from_bytes(path.read_bytes(), str(path)).features


def _to_bytes(example: Encoded) -> bytes:
  from safetensors.numpy import save

  arrays = {
    'latents': np.ascontiguousarray(example.latents, STORED),
    'features': np.ascontiguousarray(example.features, STORED),
  }
  return save(arrays, {'caption': example.caption})


def _from_bytes(data: bytes, where: str) -> Encoded:
  from safetensors import SafetensorError
  from safetensors.numpy import load

  try:
    arrays = load(data)
    (size,) = struct.unpack('<Q', data[:8])
    head = json.loads(data[8 : 8 + size]).get('__metadata__', {})
    return Encoded(
      arrays['latents'], arrays['features'], head.get('caption', '')
    )
  except (SafetensorError, KeyError, ValueError) as error:
    raise DcjaxError(f'{where} is no encoded clip: {error}') from error
