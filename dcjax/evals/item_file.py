"""The benchmark file of S2VTime: storyboards to make videos of, and to judge.

One JSON file, pictures beside it:

  {"format": "s2vtime", "version": 1, "name": "world", "items": [
    {"id": "one_000", "kind": "one", "prompt": "a star on ...",
     "seconds": 4.0, "size": [64, 64], "fps": 8, "seed": 0,
     "references": [{"image": "images/one_000_0.png", "word": "star",
                     "start": 0.5, "end": 2.0, "description": "a red star"}],
     "events": [{"text": "the star is bouncing.", "start": 0.5, "end": 2.0}]}]}

An item is a storyboard with an id, and with a description of each subject for
judges that read text. `kind` splits the scores, and items of one `group` have
intervals with the same midpoint and different lengths. Two references of one
item with the same word and image are one subject that comes back.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import json
import os
from pathlib import Path
import re
from typing import Any

from dcjax import storyboard_rules as rules
from dcjax import strict_json
from dcjax.errors import DcjaxError
from dcjax.evals import timing
from dcjax.evals.items import Benchmark, Event, Item, Reference
from dcjax.evals.timing import Interval

FORMAT, VERSION = 's2vtime', 1
# Keys of a storyboard that are handed on as they are.
OPTIONS = ('guidance', 'steps', 'shift')


def read(
  path: str | os.PathLike, *, images: bool = True, nameless: bool = False
) -> Benchmark:
  """Reads a benchmark file, strictly.

  Args:
    path: the JSON file.
    images: whether each picture must be there.
    nameless: whether references without a picture's name are accepted, for
      judges that read words alone.

  Raises:
    DcjaxError: the file is missing, no JSON or of another format or version; a
      key is unknown or missing, or a value impossible: an interval that is
      empty, reversed or outside the video, a word that is not in the prompt,
      an id that is there twice or no file name, a picture that is missing,
      timed captions that overlap; items of one group with other midpoints or
      equal lengths.
  """
  path = Path(path)
  if not path.exists():
    raise DcjaxError(f'{path} does not exist')
  record = _keys(
    strict_json.read(path), str(path), ('format', 'version', 'items'), ('name',)
  )
  if (record['format'], record['version']) != (FORMAT, VERSION):
    raise DcjaxError(
      f'{path} is of format {record["format"]!r} version '
      f'{record["version"]!r}; this reads {FORMAT!r} version {VERSION}'
    )
  if not isinstance(record['items'], list) or not record['items']:
    raise DcjaxError(f'{path} has no items; expected a list of at least one')
  items = tuple(
    parse(item, f'{path}: item {i}') for i, item in enumerate(record['items'])
  )
  benchmark = Benchmark(str(record.get('name', path.stem)), items, path.parent)
  check_ids(items)
  _check_groups(items)
  if images:
    _check_images(benchmark, nameless)
  return benchmark


def write(path: str | os.PathLike, benchmark: Benchmark) -> None:
  """Writes the file that `read` reads; pictures are not copied."""
  check_ids(benchmark.items)
  rows = []
  for item in benchmark.items:
    row = {'id': item.id, 'kind': item.kind, 'group': item.group}
    row = {key: value for key, value in row.items() if value}
    row |= item.storyboard()
    row['references'] = [dataclasses.asdict(x) for x in item.references]
    parse(json.loads(json.dumps(row)), f'item {item.id}')
    rows.append(row)
  record = {'format': FORMAT, 'version': VERSION, 'name': benchmark.name}
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record | {'items': rows}, indent=1) + '\n')


def parse(record: Any, where: str) -> Item:
  """An item from its JSON; `where` begins every error. See `read`."""
  needed = ('id', 'prompt', 'seconds', 'size', 'fps', 'references')
  others = ('kind', 'group', 'seed', 'events', *OPTIONS)
  record = _keys(record, where, needed, others)
  where = f'{where} ({record["id"]})'
  seconds = rules.number(
    record['seconds'], f'{where}: seconds', above=0, most=rules.SECONDS
  )
  item = Item(
    id=_name(record['id'], f'{where}: id'),
    prompt=rules.text(record['prompt'], f'{where}: prompt'),
    seconds=seconds,
    size=_size(record['size'], f'{where}: size'),
    fps=rules.number(record['fps'], f'{where}: fps', above=0, most=rules.FPS),
    references=tuple(
      _reference(x, f'{where}: reference {n}', seconds)
      for n, x in enumerate(_list(record['references'], where, 'references'))
    ),
    events=tuple(
      _event(x, f'{where}: event {n}', seconds)
      for n, x in enumerate(_list(record.get('events', []), where, 'events'))
    ),
    kind=_kind(record.get('kind', ''), f'{where}: kind'),
    group=_string(record.get('group', ''), f'{where}: group'),
    seed=record.get('seed', 0),
    options=_options(record, where),
  )
  rules.check_seed(item.seed, f'{where}: seed')
  if not item.references:
    raise DcjaxError(f'{where} has no references; expected one or more')
  for reference in item.references:
    if reference.word not in item.prompt:
      raise DcjaxError(
        f'{where}: the word {reference.word!r} is not in the prompt '
        f'{item.prompt!r}'
      )
  for subject in item.subjects:
    _intervals(subject.intervals, f'{where}: {subject.word}', seconds)
  lane = sorted((x.start, x.end) for x in item.events)
  _intervals(lane, f'{where}: events', seconds)
  return item


def check_ids(items: Sequence[Item]) -> None:
  """Raises DcjaxError if an id is there twice."""
  seen: set[str] = set()
  for item in items:
    if item.id in seen:
      raise DcjaxError(f'the id {item.id!r} is there twice')
    seen.add(item.id)


def _check_groups(items: Sequence[Item]) -> None:
  """A group tells lengths apart where midpoints cannot."""
  groups: dict[str, list[Item]] = {}
  for item in items:
    if item.group:
      groups.setdefault(item.group, []).append(item)
  for name, members in groups.items():
    firsts = [x.subjects[0].intervals[0] for x in members]
    near = 0.5 / min(x.fps for x in members)  # half a frame
    middles = sorted((start + end) / 2 for start, end in firsts)
    lengths = sorted(end - start for start, end in firsts)
    if middles[-1] - middles[0] > near or any(
      b - a < near for a, b in itertools.pairwise(lengths)
    ):
      raise DcjaxError(
        f'the items of group {name!r} have the first intervals {firsts}; '
        'expected one midpoint, and different lengths'
      )


def _options(record: dict[str, Any], where: str) -> dict[str, Any]:
  """What is handed on; null leaves a value to the model."""
  steps, shift = record.get('steps'), record.get('shift')
  if steps is not None:
    rules.whole(steps, f'{where}: steps', 1, rules.STEPS)
  if shift is not None:
    rules.number(shift, f'{where}: shift', above=0, most=rules.SCALE)
  return {key: record[key] for key in OPTIONS if key in record}


def _reference(record: Any, where: str, seconds: float) -> Reference:
  record = _keys(
    record, where, ('word', 'start', 'end'), ('image', 'description')
  )
  start, end = (
    rules.number(record[k], f'{where}: {k}') for k in ('start', 'end')
  )
  _intervals([(start, end)], where, seconds)
  image = record.get('image', '')
  if not isinstance(image, str) or Path(image).is_absolute():
    raise DcjaxError(
      f'{where}: image is {image!r}; expected a path relative to the file'
    )
  if '..' in Path(image).parts:
    raise DcjaxError(f'{where}: image {image!r} is outside the folder')
  return Reference(
    image,
    rules.text(record['word'], f'{where}: word'),
    start,
    end,
    _string(record.get('description', ''), f'{where}: description'),
  )


def _event(record: Any, where: str, seconds: float) -> Event:
  record = _keys(record, where, ('text', 'start', 'end'))
  start, end = (
    rules.number(record[k], f'{where}: {k}') for k in ('start', 'end')
  )
  _intervals([(start, end)], where, seconds)
  return Event(rules.text(record['text'], f'{where}: text'), start, end)


def _intervals(
  intervals: Sequence[Interval], where: str, seconds: float
) -> None:
  try:
    timing.check(intervals, seconds)
  except DcjaxError as error:
    raise DcjaxError(f'{where}: {error}') from error


def _keys(
  record: Any, where: str, needed: Sequence[str], others: Sequence[str] = ()
) -> dict[str, Any]:
  if not isinstance(record, dict):
    raise DcjaxError(f'{where} is {record!r}; expected an object with keys')
  unknown = [key for key in record if key not in (*needed, *others)]
  if unknown:
    raise DcjaxError(
      f'{where} has the unknown key {unknown[0]!r}; there is '
      f'{", ".join((*needed, *others))}'
    )
  missing = [key for key in needed if key not in record]
  if missing:
    raise DcjaxError(f'{where} has no key {missing[0]!r}')
  return record


def _list(value: Any, where: str, key: str) -> list:
  if not isinstance(value, list):
    raise DcjaxError(f'{where}: {key} is {value!r}; expected a list')
  return value


def _string(value: Any, where: str) -> str:
  if not isinstance(value, str):
    raise DcjaxError(f'{where} is {value!r}; expected a text')
  return value


def _kind(value: Any, where: str) -> str:
  """Not a name that parts of the table have anyway."""
  if _string(value, where) == 'all' or re.fullmatch(r'\d+ references?', value):
    raise DcjaxError(f'{where} is {value!r}, which is a part of every table')
  return value


def _name(value: Any, where: str) -> str:
  text = rules.text(value, where)
  if text != Path(text).name or text.startswith('.'):
    raise DcjaxError(f'{where} is {value!r}; expected the name of a file')
  return text


def _size(value: Any, where: str) -> tuple[int, int]:
  ok = isinstance(value, list) and len(value) == 2
  if not (ok and all(type(x) is int and x > 0 for x in value)):
    raise DcjaxError(f'{where} is {value!r}; expected [height, width]')
  return value[0], value[1]


def _check_images(benchmark: Benchmark, nameless: bool) -> None:
  for item in benchmark.items:
    for subject in item.subjects:
      if not subject.image and nameless:
        continue
      if not subject.image:
        raise DcjaxError(
          f'item {item.id}: {subject.word!r} has no image; draw one first'
        )
      if not benchmark.image(subject).is_file():
        raise DcjaxError(
          f'item {item.id}: {benchmark.image(subject)} does not exist'
        )
