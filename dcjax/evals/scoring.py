"""Scores of videos against S2VTime: per item, means, and what chance scores.

  record = scoring.score(benchmark, load, judge)
  print(scoring.table(record))

`load(item)` gives (video [f h w 3] uint8, frames a second). The judge is the
only part that knows what is in the pictures.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dcjax import storyboard_rules as rules
from dcjax.errors import DcjaxError
from dcjax.evals import bootstrap, chance, pairs, timing
from dcjax.evals.items import Benchmark, Item
from dcjax.evals.judging import Judge, Verdict

Load = Callable[[Item], tuple[np.ndarray, float]]

# Key of a row -> head of its column.
COLUMNS = {
  'iou': 't-IoU',
  'l2': 't-L2',
  'frame_iou': 'frame IoU',
  'detected': 'detected',
  'text': 'text',
  'reference': 'reference',
  'swap': 'swap',
  'leak': 'leak',
  'returned': 'returned',
  'empty': 'gap empty',
  'order': 'order',
}
# A video may be this part shorter or longer than what was asked for.
_SLACK = 0.1
_NAN = float('nan')
Row = dict[str, Any]


def score(
  benchmark: Benchmark,
  load: Load,
  judge: Judge,
  *,
  pictures: Callable[[Item], Sequence[np.ndarray | None]] | None = None,
  stretch: bool = False,
  area: float = timing.AREA,
  seed: int = 0,
) -> dict[str, Any]:
  """Judges the video of every item.

  Args:
    benchmark: the items.
    load: gives the video of an item and its rate.
    judge: see `judging`.
    pictures: gives the pictures of an item's subjects; None reads the files of
      the benchmark.
    stretch: compare fractions of the duration, where videos have another one
      than was asked for.
    area: part of a frame that a subject must cover to be there.
    seed: of the bootstrap.

  Returns:
    JSON values. 'items': what was seen of each. 'order': `pairs.counts`.
    'table': {system: {part: {key: Mean}}}, where the system is 'videos',
    'always present' or 'random interval', and the part 'all', '1 reference',
    '2 references' or a kind.

  Raises:
    DcjaxError: a video has another duration than was asked for, or the area is
      no part of a frame.
  """
  rules.number(area, 'area')
  if not 0 <= area < 1:
    raise DcjaxError(f'area is {area:g}; expected a part, from 0 to below 1')
  pictures = pictures or (lambda item: read_pictures(benchmark, item))
  items, rows = [], defaultdict(list)
  for item in benchmark.items:
    video, fps = load(item)
    fps = _rate(item, len(video), fps, stretch)
    verdict = judge(video, fps, item, pictures(item))
    found = _item(item, timing.presence(verdict.masks, area), fps, verdict)
    items.append(found)
    for name, model in _CHANCE.items():
      rows[name] += _rows(item, _expected(item, model, len(video), fps))
  rows = {'videos': _seen(benchmark.items, items)} | rows
  return {
    'benchmark': benchmark.name,
    'items': items,
    'order': pairs.counts(benchmark.items, items),
    'table': {name: _split(found, seed) for name, found in rows.items()},
  }


_CHANCE = {
  'always present': chance.always_present,
  'random interval': chance.random_interval,
}


def differences(
  benchmark: Benchmark,
  pairs: Sequence[tuple[Sequence[Mapping], Sequence[Mapping]]],
  *,
  seed: int = 0,
) -> dict[str, dict[str, bootstrap.Mean]]:
  """How far videos of the same items lie above others, item by item.

  What makes an item hard is in both, so the intervals are narrower than those
  of two means.

  Args:
    benchmark: the items.
    pairs: ('items' of a record of `score`, those of another); several pairs,
      such as seeds, are taken together, and all of an item is drawn together.
    seed: of the bootstrap.

  Returns:
    {part: {key: Mean}}, as in the table of a record.

  Raises:
    DcjaxError: they are of other items.
  """
  rows = []
  for ours, others in pairs:
    for a, b in zip(
      _seen(benchmark.items, ours), _seen(benchmark.items, others), strict=True
    ):
      above = {k: float(a[k]) - float(b[k]) for k in COLUMNS if k in a}
      rows.append({'video': a['video'], 'parts': a['parts']} | above)
  return _split(rows, seed)


def read_pictures(benchmark: Benchmark, item: Item) -> list[np.ndarray | None]:
  """The pictures of an item's subjects, uint8 [h w 3], over white.

  None for a subject that has none.
  """
  from PIL import Image

  pictures: list[np.ndarray | None] = []
  for subject in item.subjects:
    if not subject.image:
      pictures.append(None)
      continue
    try:
      with Image.open(benchmark.image(subject)) as image:
        rgba = image.convert('RGBA')
    except OSError as error:
      raise DcjaxError(
        f'item {item.id}: cannot read {benchmark.image(subject)}'
      ) from error
    white = Image.new('RGBA', rgba.size, 'white')
    rgb = Image.alpha_composite(white, rgba).convert('RGB')
    pictures.append(np.asarray(rgb))
  return pictures


def _rate(item: Item, frames: int, fps: float, stretch: bool) -> float:
  """Frames a second, once the duration is what the item asks for."""
  lasts = (frames - 1) / fps
  if frames > 1 and stretch:
    return (frames - 1) / item.seconds
  # Some count the last frame's own time, some do not.
  short = lasts + 1 / fps < item.seconds * (1 - _SLACK)
  if short or lasts > item.seconds * (1 + _SLACK):
    raise DcjaxError(
      f'the video of {item.id} lasts {lasts:.2f} s ({frames} frames at '
      f'{fps:g} fps), but {item.seconds:g} s were asked for; make it as long, '
      'or compare fractions of the duration: config.score.stretch=True'
    )
  return fps


def _item(
  item: Item, present: np.ndarray, fps: float, verdict: Verdict
) -> dict[str, Any]:
  """What was seen of an item, as JSON values."""
  swaps = timing.swaps(verdict.similarity)
  leaks = timing.leaks(verdict.similarity, verdict.between)
  subjects = []
  for s, subject in enumerate(item.subjects):
    seen = present[s]
    # Who is never there looks like nobody.
    likeness = {
      'text': verdict.text[s],
      'reference': verdict.reference[s],
      'swap': swaps[s],
      'leak': leaks[s],
    }
    wanted = timing.asked_frames(subject.intervals, len(seen), fps)
    scores = timing.score(seen, subject.intervals, fps, item.seconds)
    back = timing.reentry(seen, subject.intervals, fps)
    subjects.append(
      {
        'word': subject.word,
        'runs': timing.runs(seen),
        'intervals': [
          {'asked': list(asked)} | x._asdict()
          for asked, x in zip(subject.intervals, scores, strict=True)
        ],
        'frame_iou': timing.frame_iou(seen, wanted),
        **{k: float(x) if seen.any() else _NAN for k, x in likeness.items()},
        'returned': back.returned,
        'empty': back.empty,
      }
    )
  return {
    'id': item.id,
    'kind': item.kind,
    'frames': present.shape[1],
    'fps': fps,
    'subjects': subjects,
  }


def _expected(
  item: Item, model: Callable, frames: int, fps: float
) -> list[dict[str, Any]]:
  """What a closed-form baseline scores on an item, in the form of `_item`."""
  subjects = []
  for subject in item.subjects:
    scores, overlap = model(subject.intervals, frames, fps, item.seconds)
    subjects.append(
      {
        'intervals': [x._asdict() for x in scores],
        'frame_iou': overlap,
      }
    )
  return subjects


def _seen(
  items: Sequence[Item], found: Sequence[Mapping[str, Any]]
) -> list[Row]:
  """All rows of what was seen of the items."""
  if [x.id for x in items] != [x['id'] for x in found]:
    raise DcjaxError(
      'these are the scores of other items; use another folder, or score all '
      'videos anew'
    )
  rows = []
  for item, x in zip(items, found, strict=True):
    rows += _rows(item, x['subjects'])
  return rows + _order(items, rows)


def _rows(item: Item, subjects: Sequence[Mapping[str, Any]]) -> list[Row]:
  """A row for each asked interval, and one for each subject's own values."""
  where = {
    'video': item.group or item.id,
    'parts': _parts(item, len(subjects)),
  }
  rows = []
  for subject in subjects:
    own = {k: subject[k] for k in COLUMNS if k in subject}
    rows.append(where | own)
    for n, interval in enumerate(subject['intervals']):
      timed = {k: interval[k] for k in ('iou', 'l2', 'detected')}
      first = subject is subjects[0] and n == 0
      length = interval['end'] - interval['start']
      tag = {'item': item.id, 'length': length} if first else {}
      rows.append(where | timed | tag)
  return rows


def _order(items: Sequence[Item], rows: Sequence[Row]) -> list[Row]:
  """A row for each pair of a group."""
  lengths = {row['item']: row['length'] for row in rows if 'item' in row}
  return [
    {
      'video': a.group,
      'parts': _parts(a, len(a.subjects)),
      'order': pairs.ORDER[outcome],
    }
    for a, outcome in pairs.outcomes(items, lengths)
  ]


def _parts(item: Item, count: int) -> tuple[str, ...]:
  references = '1 reference' if count == 1 else f'{count} references'
  return 'all', references, item.kind


def _split(rows: Sequence[Row], seed: int) -> dict[str, dict[str, Any]]:
  """{part: {key: Mean}} of rows; a key that no row has is left out."""
  parts = dict.fromkeys(p for row in rows for p in row['parts'] if p)
  table = {}
  for part in parts:
    mine = [row for row in rows if part in row['parts']]
    table[part] = {}
    for key in COLUMNS:
      values = [row.get(key, _NAN) for row in mine]
      mean = bootstrap.mean(values, [row['video'] for row in mine], seed=seed)
      if mean.n:
        table[part][key] = mean
  return table


def table(record: Mapping[str, Any]) -> str:
  """The table of a record as text, a line for each part and system."""
  keys = [
    key
    for key in COLUMNS
    if any(key in x for of in record['table'].values() for x in of.values())
  ]
  lines = [['', *(COLUMNS[key] for key in keys)]]
  for part in record['table']['videos']:
    for system, parts in record['table'].items():
      cells = [cell(parts[part].get(key)) for key in keys]
      lines.append([f'{part}: {system}', *cells])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    '  '.join(
      x.rjust(width) if n else x.ljust(width)
      for n, (x, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  ]
  counts = record.get('order', {})
  if sum(counts.values()):
    told = ', '.join(f'{n} {name}' for name, n in counts.items())
    text += ['', f'order, of {sum(counts.values())} pairs: {told}']
  return '\n'.join(text)


def cell(mean: bootstrap.Mean | None, sign: str = '') -> str:
  """A mean with half of its interval; `sign` '+' shows that of gains too."""
  if mean is None:
    return '-'
  half = (mean.high - mean.low) / 2
  return f'{mean.mean:{sign}.3f} ±{half:.3f}'
