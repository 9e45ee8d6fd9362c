"""The `study` task: the rows of one table, trained and sampled alike.

A row is a name with what differs from the others: options of the training, or
another row's training sampled in another way. All rows share data, budget,
items, noises and judge, and every row is run once a seed; so rows are compared
item by item too, which tells smaller differences than their means do. A run
that was interrupted goes on where it was. Rows may be made side by side, by
several runs with rows or seeds of their own and one folder: the table is of all
that lie there. A row that uses the training of another (`of`) trains it where
it is not there: make it after that one, or in the same run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import latents, machine, start, tree
from dcjax.alchemint.run import Training
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.evals import (
  bootstrap,
  making,
  origin,
  s2vtime,
  scoring,
  world_items,
  world_judge,
)
from dcjax.evals.items import Benchmark
from dcjax.weights.base import Base, load_base

# A row and its seed, with the table and the items of its videos.
Result = dict[str, Any]
# Of the training: what its seeds may differ in, and what changes no result.
_FREE = (
  *('base', 'seed', 'name', 'mesh', 'remat'),
  *('log_every', 'save_every', 'eval_every', 'preview_every'),
)
# Of one row and seed, in its folder.
SCORES = 'scores.json'
TRAINED = 'training/done'
# A row of drawn videos, which nothing was trained or sampled for.
DECODED = 'decoded'
# Columns of the table, and of which part of the items.
COLUMNS = (
  ('t-IoU', '1 reference', 'iou'),
  ('t-L2', '1 reference', 'l2'),
  ('frame IoU', '1 reference', 'frame_iou'),
  ('t-IoU, 2 refs', '2 references', 'iou'),
  ('frame IoU, 2 refs', '2 references', 'frame_iou'),
  ('order', 'all', 'order'),
  ('detected', 'all', 'detected'),
  ('swap', 'same_class', 'swap'),
)


def run(config: ConfigDict, workdir: str) -> None:
  """Trains, samples and judges every row; writes `study.json` and `.md`."""
  rows = _rows(config)
  start.check_least(config, {'sample.batch': 1, 'sample.steps': 0})
  base = load_base(config.training.base)
  folder = Path(workdir)
  made = _made(base, config, rows)
  done = [*folder.glob(f'*/{SCORES}'), *folder.glob(f'*/{TRAINED}')]
  origin.check(folder, made, bool(done))
  build = ConfigDict({'build': config.benchmark.to_dict()})
  benchmark = s2vtime.build(build, folder / 'benchmark')
  origin.claim(folder, made, bool(done))
  for seed in config.seeds:
    for name, row in rows.items():
      if seed in row.get('seeds', config.seeds):
        at = folder / f'{name}_{seed}'
        _judge(base, config, benchmark, name, seed, at)
        write(folder, config, benchmark)


def _rows(config: ConfigDict) -> dict[str, dict[str, Any]]:
  """The rows that `only` names, with the config's seeds, or all."""
  rows = config.rows.to_dict()
  only = [x.strip() for x in config.only.split(',') if x.strip()]
  wanted = only or list(config.order)
  unknown = [name for name in wanted if name not in rows]
  if unknown:
    raise DcjaxError(
      f'config.only holds {unknown[0]!r}; the rows are {", ".join(rows)}'
    )
  for name in wanted:
    of = rows[name].get('of', name)
    if of not in rows:
      raise DcjaxError(f'config.rows.{name}.of is {of!r}; it is no row')
  seeds = {'seeds': config.seeds} if only else {}
  return {name: rows[name] | seeds for name in wanted}


def _made(
  base: Base, config: ConfigDict, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  """What all runs in one folder must share, beside other rows and seeds."""
  plain = machine.plain(config)
  training = {k: x for k, x in plain['training'].items() if k not in _FREE}
  training['data'].pop('cache')
  parts = {'training': training, 'benchmark': plain['benchmark']}
  flat = tree.flatten(parts | {'sample': {'steps': plain['sample']['steps']}})
  made = {key.replace('/', '.'): x for key, x in flat.items()}
  defined = config.rows.to_dict()
  for name in {*rows, *(row.get('of', name) for name, row in rows.items())}:
    of = defined[name].items()
    made[f'rows.{name}'] = {k: x for k, x in of if k != 'seeds'}
  return made | {'base': base.fingerprint}


def _judge(
  base: Base,
  config: ConfigDict,
  benchmark: Benchmark,
  name: str,
  seed: int,
  folder: Path,
) -> None:
  """Writes the scores of a row, if they were not written before."""
  path = folder / SCORES
  if path.exists():
    return
  rows = config.rows.to_dict()
  row, references = rows[name], None
  if 'training' in row or 'of' in row:
    of = row.get('of', name)
    references = train(base, config, rows[of], seed, folder.parent, of)
  system = row.get('system', 'references')
  if system == DECODED:
    videos = decode(base, config.benchmark, folder / 'videos')
  else:
    videos = making.make(
      base,
      benchmark,
      folder / 'videos',
      system=system,
      references=references,
      batch=config.sample.batch,
      seed=seed,
      steps=config.sample.steps or None,
    )
  record = scoring.score(
    benchmark,
    lambda item: _load(videos / f'{item.id}.mp4'),
    world_judge.judge,
  )
  print(scoring.table(record), flush=True)
  result = {'row': name, 'seed': seed}
  s2vtime.write_record(
    path, result | {key: record[key] for key in ('table', 'order', 'items')}
  )


def decode(base: Base, build: ConfigDict, folder: Path) -> Path:
  """The perfect videos as the autoencoder shows them: the ceiling of a row."""
  folder.mkdir(parents=True, exist_ok=True)
  for x in world_items.make(
    build.count, seed=build.seed, again=build.again, kinds=build.kinds
  ):
    video = world_items.video(x)[None]
    (seen,) = latents.decode(base, latents.encode_video(base, video))
    video_lib.write_video(folder / f'{x.item.id}.mp4', seen, x.item.fps)
  return folder


def train(
  base: Base,
  config: ConfigDict,
  row: Mapping[str, Any],
  seed: int,
  folder: Path,
  name: str,
) -> Path:
  """The `reference` folder of a row, trained if it is not there."""
  mark = folder / f'{name}_{seed}' / TRAINED
  workdir = mark.parent
  done = workdir / 'reference'
  if mark.exists():
    return done
  c = ConfigDict(config.training.to_dict())
  c.update_from_flattened_dict(row.get('training', {}))
  c.seed = seed
  # The rows see the same clips: they are encoded once.
  c.data.cache = str(folder / 'cache')
  Training(base, c, workdir).run()
  mark.touch()
  return done


def _load(path: Path) -> tuple[np.ndarray, float]:
  video = video_lib.read_video(path)
  return video.frames, video.fps


# ---- the table ---------------------------------------------------------------


def _results(folder: Path, names: Sequence[str]) -> dict[str, list[Result]]:
  """{row: what was found, a seed each} of all that is in a folder."""
  found: dict[str, list[Result]] = {name: [] for name in names}
  for path in folder.glob(f'*/{SCORES}'):
    result = s2vtime.read_record(path)
    if result['row'] in found:
      found[result['row']].append(result)
  return {
    name: sorted(runs, key=lambda run: run['seed'])
    for name, runs in found.items()
    if runs
  }


def write(folder: Path, config: ConfigDict, benchmark: Benchmark) -> None:
  """Writes what there is so far."""
  results = _results(folder, config.order)
  above = against_first(benchmark, results)
  brief = lambda run: {k: x for k, x in run.items() if k != 'items'}
  s2vtime.write_record(
    folder / 'study.json',
    {
      'results': {
        name: [brief(run) for run in runs] for name, runs in results.items()
      },
      'above': above,
      'config': machine.plain(config),
    },
  )
  text = table(results)
  if above:
    text += f'\n\nAbove {next(iter(results))}, item by item:\n\n'
    text += table_of_differences(above)
  (folder / 'study.md').write_text(text + '\n')


def against_first(
  benchmark: Benchmark, results: Mapping[str, Sequence[Result]]
) -> dict[str, dict[str, Any]]:
  """{row: how far it lies above the first, over the seeds of both}.

  Args:
    benchmark: the items of all rows.
    results: {row: its seeds}.

  Returns:
    For every other row that shares a seed with the first, the seeds, and
    {part: {key: Mean}} of `scoring.differences`.
  """
  first, *others = results
  base = {run['seed']: run['items'] for run in results[first]}
  found = {}
  for name in others:
    shared = [run for run in results[name] if run['seed'] in base]
    if shared:
      found[name] = {
        'seeds': [run['seed'] for run in shared],
        'table': scoring.differences(
          benchmark, [(run['items'], base[run['seed']]) for run in shared]
        ),
      }
  return found


def table(results: Mapping[str, Sequence[Result]]) -> str:
  """Markdown: a line a row, each cell the mean over seeds and its interval."""
  first = next(iter(results.values()))
  return '\n'.join(
    [
      *_head(),
      *(_line(x, first[:1], x) for x in ('always present', 'random interval')),
      *(_line(name, runs, 'videos') for name, runs in results.items()),
    ]
  )


def table_of_differences(above: Mapping[str, Mapping[str, Any]]) -> str:
  """Markdown of `against_first`, in the columns of `table`."""
  lines = _head()
  for name, x in above.items():
    cells = [
      scoring.cell(x['table'].get(part, {}).get(key), '+')
      for _, part, key in COLUMNS
    ]
    lines.append(_joined(name, len(x['seeds']), cells))
  return '\n'.join(lines)


def _head() -> list[str]:
  return [
    '| row | seeds | ' + ' | '.join(head for head, *_ in COLUMNS) + ' |',
    '|---|---|' + '---|' * len(COLUMNS),
  ]


def _line(name: str, runs: Sequence[Mapping[str, Any]], system: str) -> str:
  cells = [
    _cell([run['table'][system].get(part, {}).get(key) for run in runs])
    for _, part, key in COLUMNS
  ]
  return _joined(name, len(runs), cells)


def _joined(name: str, seeds: int, cells: Sequence[str]) -> str:
  return f'| {name} | {seeds} | ' + ' | '.join(cells) + ' |'


def _cell(means: Sequence[Mapping[str, float] | None]) -> str:
  """Mean over the seeds, with the widest of their intervals."""
  means = [bootstrap.Mean(**x) for x in means if x]
  if not means:
    return scoring.cell(None)
  middle = float(np.mean([x.mean for x in means]))
  half = max((x.high - x.low) / 2 for x in means)
  count = sum(x.n for x in means)
  return scoring.cell(
    bootstrap.Mean(middle, middle - half, middle + half, count)
  )
