"""Timed benchmarks of others, read as items of S2VTime.

TempoControl: CSV files with a prompt, the word of what comes, and a 0 or 1 for
each of the 21 latent frames of a Wan video (81 frames at 16 a second). Three
files: one object, two objects (of which one never leaves), and actions, where
it is an action that comes and the object stays.

CineBenchSyn: a folder with annotations/ID_ultra_dense.json, which hold
`summary`, `global_entities` and `dense_entities` with `time_intervals`, and
reference_images/. Names are braced words, of which {camera}, {transition} and
{scene_...} are no subjects. A subject is there wherever an event of its is.
"""

from collections.abc import Mapping, Sequence
import csv
import itertools
import json
from pathlib import Path
import re
import shutil
from typing import Any

from dcjax.errors import DcjaxError
from dcjax.evals.items import Event, Item, Reference, lane
from dcjax.evals.timing import Interval

LAYOUTS = ('tempocontrol', 'cinebenchsyn')
SIZE, FPS = (480, 832), 16.0
_STRIDE = 4  # frames a latent frame, after the first
_NOBODY = ('{camera}', '{transition}', '{shot_transition}')
_TOGETHER = 0.05  # seconds: events nearer than this are one presence


def read(layout: str, path: str, folder: Path) -> list[Item]:
  """Items of another benchmark.

  Args:
    layout: of LAYOUTS.
    path: of its CSV file, or of its folder.
    folder: of the benchmark that is written; pictures are copied there.

  Raises:
    DcjaxError: the path is missing, or not of that layout.
  """
  if not path or not Path(path).exists():
    raise DcjaxError(
      f'{path or "no path"} for {layout}: give --config.build.path, '
      + ('a CSV file' if layout == 'tempocontrol' else 'its folder')
    )
  if layout == 'tempocontrol':
    return read_tempocontrol(Path(path))
  return read_cinebenchsyn(Path(path), folder)


# ---- TempoControl ------------------------------------------------------------


def read_tempocontrol(path: Path) -> list[Item]:
  """Items without pictures, from any of its three kinds of CSV file.

  Raises:
    DcjaxError: a column or a cell is missing, or a signal is not of 0 and 1.
  """
  try:
    with path.open(newline='', encoding='utf-8-sig') as file:
      table = csv.DictReader(file)
      rows = list(table)
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise DcjaxError(f'{path} is no CSV file: {error}') from error
  needed = ('prompt', 'temp_object', 'control_signal1')
  missing = [x for x in needed if x not in (table.fieldnames or ())]
  if missing:
    raise DcjaxError(
      f'{path} has no column {missing[0]!r}; TempoControl has '
      f'{", ".join(needed)}'
    )
  if not rows:
    raise DcjaxError(f'{path} has no rows after its first line')
  return [
    _tempo_item(row, f'{path.stem}_{n:03d}', f'{path}: row {n + 2}')
    for n, row in enumerate(rows)
  ]


def _tempo_item(row: Mapping[str, str], name: str, where: str) -> Item:
  if None in row or None in row.values():
    raise DcjaxError(f'{where} has not as many cells as the first line')
  prompt = row['prompt'].strip()
  comes, seconds = _signal(row['control_signal1'], where)
  word, stays = row['temp_object'].strip(), row.get('static_object')
  events: tuple[Event, ...] = ()
  references = []
  if row.get('mov_sec') is not None:  # the action comes, the object stays
    events = lane((f'{stays} {word}', interval) for interval in comes)
  else:
    references = [_tempo_reference(word, x, prompt, where) for x in comes]
  if stays:
    intervals, lasts = _signal(row.get('control_signal2') or '', where)
    if lasts != seconds:
      raise DcjaxError(f'{where}: its two signals are of different lengths')
    references += [
      _tempo_reference(stays.strip(), x, prompt, where) for x in intervals
    ]
  return Item(
    id=name,
    prompt=prompt,
    seconds=seconds,
    size=SIZE,
    fps=FPS,
    references=tuple(references),
    events=events,
    kind='one' if len({x.word for x in references}) == 1 else 'two',
  )


def _tempo_reference(
  word: str, interval: Interval, prompt: str, where: str
) -> Reference:
  if word not in prompt:
    raise DcjaxError(f'{where}: {word!r} is not in the prompt {prompt!r}')
  return Reference('', word, *interval, word)


def _signal(text: str, where: str) -> tuple[list[Interval], float]:
  """(intervals in seconds, duration) of a signal over latent frames.

  Latent frame k > 0 is made of frames 4 k - 3 to 4 k, the first of frame 0.
  """
  values = text.split()
  if len(values) < 2 or set(values) - {'0', '1'} or '1' not in values:
    raise DcjaxError(
      f'{where}: the control signal is {text!r}; expected 0 and 1 for each '
      'latent frame, and a 1'
    )
  last = len(values) - 1
  seconds = _STRIDE * last / FPS
  edges = [i for i in range(1, last + 1) if values[i] != values[i - 1]]
  # Midway between the last frame of one and the first of the next.
  times = [(_STRIDE * i - _STRIDE + 0.5) / FPS for i in edges]
  times = [0.0] * (values[0] == '1') + times + [seconds] * (values[last] == '1')
  pairs = list(zip(times[::2], times[1::2], strict=True))
  return pairs, seconds


# ---- CineBenchSyn ------------------------------------------------------------


def read_cinebenchsyn(path: Path, folder: Path) -> list[Item]:
  """Items of its scenarios; those without any reference picture are left out.

  Raises:
    DcjaxError: no annotations, or one that is not of this layout.
  """
  files = sorted((path / 'annotations').glob('*_ultra_dense.json'))
  if not files:
    raise DcjaxError(
      f'{path} has no annotations/ID_ultra_dense.json; expected the folder of '
      'CineBenchSyn'
    )
  items = [_cine_item(file, path, folder) for file in files]
  items = [item for item in items if item is not None]
  if not items:
    raise DcjaxError(f'no scenario of {path} has a reference picture')
  return items


def _cine_item(file: Path, root: Path, folder: Path) -> Item | None:
  try:
    record = json.loads(file.read_text(encoding='utf-8'))
    summary = _plain(record.get('summary'))
    looks = {
      x['name']: (_plain(x.get('description')), _plain(x.get('ref_image_path')))
      for x in record['global_entities']
    }
    told = [(x['name'], _cine_event(x)) for x in record['dense_entities']]
    names = {name: _plain(name) for name in looks}
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise DcjaxError(
      f'{file} is no annotation of CineBenchSyn ({error!r}); expected texts, '
      'and global_entities and dense_entities with names and time_intervals of '
      'a start and an end'
    ) from error
  if not told:
    raise DcjaxError(f'{file} has no dense_entities')
  # Their videos are numbered from 1, the annotations from 0.
  number = file.name.removesuffix('_ultra_dense.json')
  name = f'{int(number) + 1:05d}' if number.isdigit() else number
  seconds = max(event.end for _, event in told)
  references, described = [], []
  for entity, (look, named) in looks.items():
    picture = _cine_picture(named, entity, root, number)
    present = _union([e for who, e in told if who == entity])
    nobody = entity in _NOBODY or entity.startswith('{scene')
    if picture is None or not present or nobody:
      continue
    copy = folder / 'images' / picture.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    if copy.resolve() != picture.resolve():
      shutil.copyfile(picture, copy)
    described.append(look or f'There is {names[entity]}.')
    references += [
      Reference(f'images/{copy.name}', names[entity], *x, look) for x in present
    ]
  if not references:
    return None
  # The summary does not use the names: the descriptions bring them in.
  prompt = ' '.join([summary, *described]).strip()
  actions = [
    (event.text, (event.start, event.end))
    for who, event in told
    if who not in _NOBODY and who in looks
  ]
  return Item(
    id=name,
    prompt=prompt,
    seconds=seconds,
    size=SIZE,
    fps=FPS,
    references=tuple(references),
    events=_without_overlap(actions),
    kind='one' if len({x.word for x in references}) == 1 else 'several',
  )


def _cine_event(record: Mapping[str, Any]) -> Event:
  start, end = (float(x) for x in record['time_intervals'])
  return Event(_plain(record.get('description')), start, end)


def _cine_picture(
  named: str, entity: str, root: Path, number: str
) -> Path | None:
  """The picture of an entity: as it is named, or by the file's own pattern."""
  images = root / 'reference_images'
  if named and (images / Path(named).name).is_file():
    return images / Path(named).name
  word = entity.strip('{}')
  found = sorted(images.glob(f'{number}_ref_image_*_{word}.*'))
  return found[0] if found else None


def _union(events: Sequence[Event]) -> list[Interval]:
  """Where any of the events is, as intervals that are apart."""
  found: list[Interval] = []
  for event in sorted(events, key=lambda x: (x.start, x.end)):
    if event.end <= event.start:
      continue
    if found and event.start <= found[-1][1] + _TOGETHER:
      found[-1] = found[-1][0], max(found[-1][1], event.end)
    else:
      found.append((event.start, event.end))
  return found


def _without_overlap(
  told: Sequence[tuple[str, Interval]],
) -> tuple[Event, ...]:
  """One event at a time: at once are one caption, later ones cut the earlier.

  Subjects act at the same time there, and timed captions may not overlap. So
  time is cut at every start and end, and a piece says all that is true in it.
  """
  told = [(text, x) for text, x in told if text and x[1] > x[0]]
  times = sorted({t for _, interval in told for t in interval})
  events: list[Event] = []
  for start, end in itertools.pairwise(times):
    texts = [text for text, (s, e) in told if s <= start and end <= e]
    if not texts or end - start < _TOGETHER:
      continue
    events.append(Event(' '.join(texts), start, end))
  return tuple(events)


def _plain(text: str | None) -> str:
  """'{model_jolie} walks' -> 'model jolie walks'; null is nothing said."""
  spoken = lambda found: found.group(1).replace('_', ' ')
  return re.sub(r'\{(\w+)\}', spoken, text or '').strip()
