"""A folder, or a table, of captioned clips and pictures -> what can be used.

    NAME.mp4 + NAME.txt (+ NAME.mask.mp4 or NAME.mask.png)       a folder
    {"file": "a.mp4", "caption": "a cat", "mask": "m.mp4"}       data.jsonl
    file,caption                                                 data.csv

Nothing is dropped silently: what cannot be used is listed with its reason.
Whether a file decodes is found out later, by `probe.probe`.
"""

from collections.abc import Iterator, Mapping
import csv
import dataclasses
import io
import json
import os
from pathlib import Path
import re
from typing import Any

from dcjax.data import prompts
from dcjax.data.decode import IMAGES
from dcjax.errors import DcjaxError

VIDEOS = frozenset(
  '.3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm '
  '.wmv .y4m'.split()
)
TABLES = ('.csv', '.jsonl')
# Names of the columns, the first that a row has.
FILE_KEYS = ('file', 'path', 'video', 'image', 'file_name')
CAPTION_KEYS = ('caption', 'text')


@dataclasses.dataclass(frozen=True)
class Item:
  """A clip or a picture and what it shows.

  Attributes:
    name: as a person knows it, relative to the folder or as in the table.
    path: of the file.
    caption: with the trigger word.
    mask: file that is white where the subject is; None without one.
  """

  name: str
  path: Path
  caption: str
  mask: Path | None = None


@dataclasses.dataclass(frozen=True)
class Skipped:
  """A file that is not used, and why."""

  name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Listing:
  """What a folder or a table holds, in the order of names or rows."""

  items: list[Item]
  skipped: list[Skipped]


@dataclasses.dataclass(frozen=True)
class Wording:
  """How captions become prompts.

  Attributes:
    default: caption of files that have none; '' skips them.
    trigger: the word that is to stand for what is learnt; '' for none.
    placeholder: replaced by the trigger. A caption that holds neither this nor
      the trigger gets the trigger in front.
  """

  default: str = ''
  trigger: str = ''
  placeholder: str = '[trigger]'

  def __post_init__(self):
    prompts.parse(self.trigger, {})

  def apply(self, caption: str) -> str:
    """A caption as it is learnt; DcjaxError if it cannot be."""
    caption = ' '.join(caption.split())
    if self.placeholder and self.placeholder in caption:
      if not self.trigger:
        raise DcjaxError(
          f'its caption holds {self.placeholder}, but data.trigger is empty'
        )
      caption = caption.replace(self.placeholder, self.trigger)
    elif self.trigger and not _holds(caption, self.trigger):
      caption = f'{self.trigger}, {caption}'
    prompts.parse(caption, {})
    return caption


def read(path: str | os.PathLike, wording: Wording) -> Listing:
  """Lists a folder, a .jsonl or a .csv file.

  Paths of a table are relative to it and stay in its folder; files elsewhere
  are given by absolute paths.

  Args:
    path: of the folder or the table.
    wording: how captions become prompts.

  Raises:
    DcjaxError: the path is missing or of another kind, or the table cannot be
      read or lacks a column.
  """
  if not str(path):
    raise DcjaxError('give the data: --config.data.path=FOLDER')
  path = Path(path)
  if path.is_dir():
    rows = _from_folder(path)
  elif not path.exists():
    raise DcjaxError(
      f'{path} does not exist; expected a folder of videos and images with '
      '.txt captions, or a .jsonl or .csv file'
    )
  elif path.suffix.lower() in TABLES:
    rows = _from_table(path)
  else:
    raise DcjaxError(f'{path} is not a folder, a .jsonl or a .csv file')
  items, skipped = [], []
  for row in rows:
    if isinstance(row, Skipped):
      skipped.append(row)
      continue
    try:
      items.append(_worded(row, wording))
    except DcjaxError as error:
      skipped.append(Skipped(row.name, str(error)))
  return Listing(items, skipped)


def _worded(item: Item, wording: Wording) -> Item:
  if not item.caption.strip():
    if not wording.default:
      raise DcjaxError('it has no caption')
    item = dataclasses.replace(item, caption=wording.default)
  return dataclasses.replace(item, caption=wording.apply(item.caption))


def _holds(caption: str, word: str) -> bool:
  return bool(re.search(rf'(?<!\w){re.escape(word)}(?!\w)', caption))


# ---- a folder ---------------------------------------------------------------


def _from_folder(root: Path) -> Iterator[Item | Skipped]:
  files = sorted(root.iterdir(), key=lambda x: x.name)
  texts = {x.stem: x for x in files if x.suffix.lower() == '.txt'}
  masks: dict[str, Path] = {}
  for file in filter(_is_mask, files):
    masks.setdefault(file.stem.removesuffix('.mask'), file)
  beside = {*texts.values(), *masks.values()}
  taken: dict[str, Path] = {}
  for file in files:
    if file in beside:
      continue
    reason = _unfit(file) or (
      f'it shares the name, and so the caption, of {taken[file.stem].name}'
      if file.stem in taken
      else None
    )
    if reason:
      yield Skipped(file.name, reason)
      continue
    taken[file.stem] = file
    try:
      caption = _text(texts[file.stem]) if file.stem in texts else ''
    except DcjaxError as error:
      yield Skipped(file.name, str(error))
      continue
    yield Item(file.name, file, caption, masks.get(file.stem))
  for kind, others in (('caption', texts), ('mask', masks)):
    for stem, file in others.items():
      if stem not in taken:
        yield Skipped(file.name, f'a {kind} without a video or an image')


def _unfit(file: Path) -> str | None:
  """Why a file of a folder is no sample, by its name."""
  if file.name.startswith('.'):
    return 'it is hidden'
  if file.is_dir():
    return 'it is a folder; only the files beside it are read'
  if file.suffix.lower() not in IMAGES | VIDEOS:
    return 'by its name it is neither a video nor an image'
  return 'it is a second mask of the same file' if _is_mask(file) else None


def _is_mask(file: Path) -> bool:
  media = file.suffix.lower() in IMAGES | VIDEOS
  return media and file.stem.endswith('.mask')


def _text(file: Path) -> str:
  try:
    return file.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError:
    raise DcjaxError(f'{file.name} is not UTF-8 text') from None
  except OSError as error:
    raise DcjaxError(f'{file.name}: {error.strerror}') from error


# ---- a table ----------------------------------------------------------------


def _from_table(table: Path) -> Iterator[Item | Skipped]:
  seen: dict[Path, int] = {}
  rows = _csv(table) if table.suffix.lower() == '.csv' else _jsonl(table)
  for line, row in rows:
    name = _first(row, FILE_KEYS)
    if not name:
      what = f'expected one of {", ".join(FILE_KEYS)}'
      yield Skipped(f'line {line}', f'it names no file; {what}')
      continue
    mask = row.get('mask')
    try:
      path = _inside(table, name)
      item = Item(
        name,
        path,
        _first(row, CAPTION_KEYS) or '',
        _inside(table, str(mask)) if mask else None,
      )
      if path in seen:
        raise DcjaxError(f'it is in line {seen[path]} already')
    except DcjaxError as error:
      yield Skipped(name, str(error))
      continue
    seen[path] = line
    yield item


def _inside(table: Path, name: str) -> Path:
  """The file of a row; DcjaxError if it is missing or leaves the folder."""
  if os.path.isabs(name):
    path = Path(os.path.normpath(name))
  else:
    root = os.path.abspath(table.parent)
    path = Path(os.path.normpath(os.path.join(root, name)))
    if not path.is_relative_to(root):
      raise DcjaxError(
        f'{name} lies outside of the folder of {table.name}; write its '
        'absolute path'
      )
  if not path.exists():
    raise DcjaxError(f'{name} does not exist')
  return path


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
  """The value of the first key that the row has, as text."""
  value = next((row[key] for key in keys if row.get(key) is not None), None)
  return None if value is None else str(value)


def _jsonl(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
  """(line number from 1, row) of each line that is not blank."""
  for i, line in enumerate(_lines(table), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise DcjaxError(f'{table} line {i} is not JSON: {error}') from error
    if not isinstance(row, dict):
      raise DcjaxError(
        f'{table} line {i} is not a JSON object such as '
        '{"file": "a.mp4", "caption": "a cat"}'
      )
    yield i, row


def _csv(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
  reader = csv.DictReader(_lines(table))
  columns = reader.fieldnames or ()
  for keys in (FILE_KEYS, CAPTION_KEYS):
    if not set(keys) & set(columns):
      raise DcjaxError(
        f'{table} has no column {" or ".join(keys)}; its first line is '
        f'{",".join(columns)!r}'
      )
  try:
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    raise DcjaxError(f'{table} line {reader.line_num}: {error}') from error


def _lines(table: Path) -> list[str]:
  try:
    # Not `str.splitlines`: captions may hold U+2028 and its like.
    return io.StringIO(_text(table)).readlines()
  except DcjaxError as error:
    raise DcjaxError(f'cannot read {table}: {error}') from error
