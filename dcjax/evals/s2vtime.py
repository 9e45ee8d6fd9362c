"""The `s2vtime` task: builds the benchmark, makes its videos, scores folders.

A benchmark is one JSON file with its pictures beside it (`item_file`). A model
makes a video of each item, under the item's id. The score is a JSON file with
what was seen of every item, and a table that holds the two baselines too.
"""

from collections.abc import Sequence
import json
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import machine
from dcjax import storyboard_rules as rules
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.evals import (
  item_file,
  layouts,
  options,
  origin,
  proposals,
  scenarios,
  scoring,
  world_items,
  world_judge,
)
from dcjax.evals.items import Benchmark, Item
from dcjax.evals.judging import Judge

SUFFIXES = (
  *('.mp4', '.m4v', '.mkv', '.mov', '.webm', '.avi', '.mpg', '.mpeg', '.ts'),
  *('.gif', '.webp', '.png', '.apng', '.avif'),
)
SOURCES = ('world', 'templates', 'llm', *layouts.LAYOUTS)
FILE = 'benchmark.json'
# Of `config.build`: what only some sources read, and its default.
_OPEN = tuple(x for x in SOURCES if x != 'world')
_BUILT_FROM = {
  'count': (128, ('world', 'templates', 'llm')),
  'again': (0, ('world',)),
  'kinds': (world_items.KINDS, ('world',)),
  'rendered': (False, ('world',)),
  'extended': (False, ('templates',)),
  'path': ('', tuple(layouts.LAYOUTS)),
  'language_model': ('', ('llm',)),
  'image_model': ('', _OPEN),
  'download': (False, _OPEN),
}
# And of `config.score`.
_JUDGED_BY = {
  key: (default, ('experts',))
  for key, default in options.score().items()
  if key in options.OF_EXPERTS
}


def run(config: ConfigDict, workdir: str) -> None:
  """The `s2vtime` task of the command line."""
  jobs = {'build': build, 'make': make, 'score': score}
  if config.job not in jobs:
    raise DcjaxError(
      f'config.job is {config.job!r}; use one of {", ".join(jobs)}'
    )
  jobs[config.job](config, Path(workdir))


# ---- build -------------------------------------------------------------------


def build(config: ConfigDict, folder: Path) -> Benchmark:
  """Writes `benchmark.json` and its pictures into the folder."""
  c = config.build
  if c.source not in SOURCES:
    raise DcjaxError(
      f'config.build.source is {c.source!r}; use one of {", ".join(SOURCES)}'
    )
  _check_unread(c, 'build', 'source', _BUILT_FROM)
  rules.check_seed(c.seed, 'config.build.seed')
  folder.mkdir(parents=True, exist_ok=True)
  if c.source == 'world':
    benchmark = _build_world(c, folder)
  else:
    benchmark = _build_open(c, folder)
  item_file.write(folder / FILE, benchmark)
  item_file.read(folder / FILE, images=False)
  print(f'{len(benchmark.items)} items: {folder / FILE}')
  missing = _without_picture(benchmark)
  if missing:
    print(
      f'{missing} subjects have no picture yet: give '
      '--config.build.image_model=FOLDER to draw them, or put files there and '
      'name them in the JSON'
    )
  return benchmark


def _check_unread(c: ConfigDict, job: str, choice: str, table: dict) -> None:
  """Refuses what was given and nobody would read."""
  for key, (default, readers) in table.items():
    if c[choice] not in readers and c.get(key, default) != default:
      raise DcjaxError(
        f'config.{job}.{key} is {c[key]!r}, which only {", ".join(readers)} '
        f'reads; the {choice} is {c[choice]!r}'
      )


def _build_world(c: ConfigDict, folder: Path) -> Benchmark:
  drawn = world_items.make(c.count, seed=c.seed, again=c.again, kinds=c.kinds)
  for x in drawn:
    pictures = world_items.pictures(x)
    for subject, picture in zip(x.item.subjects, pictures, strict=True):
      write_picture(folder / subject.image, picture)
    if c.rendered:
      path = folder / 'rendered' / f'{x.item.id}.mp4'
      video_lib.write_video(path, world_items.video(x), x.item.fps)
  return Benchmark('world', tuple(x.item for x in drawn), folder)


def _build_open(c: ConfigDict, folder: Path) -> Benchmark:
  """Items of real subjects: by templates, an LLM, or somebody's benchmark."""
  if c.source in layouts.LAYOUTS:
    items = layouts.read(c.source, c.path, folder)
  elif c.source == 'llm':
    propose = proposals.language_model(c.language_model, download=c.download)
    items = proposals.propose(propose, c.count, seed=c.seed)
  else:
    items = scenarios.make(c.count, seed=c.seed, extended=c.extended)
  if c.image_model:
    draw = proposals.image_model(c.image_model, download=c.download)
    items = proposals.draw(draw, items, folder, seed=c.seed)
  return Benchmark(c.source, tuple(items), folder)


def write_picture(path: Path, picture: np.ndarray) -> None:
  """Writes uint8 [h w 3] as PNG."""
  from PIL import Image

  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture).save(path)


def _without_picture(benchmark: Benchmark) -> int:
  return sum(
    not (subject.image and benchmark.image(subject).is_file())
    for item in benchmark.items
    for subject in item.subjects
  )


# ---- make --------------------------------------------------------------------


def make(config: ConfigDict, folder: Path) -> Path:
  """Makes the video of every item with a base of ours, in `videos/SYSTEM`."""
  # Who scores the videos of others needs no model.
  from dcjax.evals import making
  from dcjax.weights.base import load_base

  c = config.make
  making.check(c.system, c.batch)
  benchmark = item_file.read(c.benchmark or folder / FILE)
  return making.make(
    load_base(c.base),
    benchmark,
    folder / 'videos' / c.system,
    system=c.system,
    references=c.references or None,
    batch=c.batch,
    seed=c.seed,
    steps=c.steps or None,
  )


# ---- score -------------------------------------------------------------------


def score(config: ConfigDict, folder: Path) -> dict[str, Any]:
  """Writes `timing.json`, prints and writes the table."""
  c = config.score
  if c.judge not in options.JUDGES:
    raise DcjaxError(
      f'config.score.judge is {c.judge!r}; use {" or ".join(options.JUDGES)}'
    )
  _check_unread(c, 'score', 'judge', _JUDGED_BY)
  rules.check_seed(c.seed, 'config.score.seed')
  # Words are enough for judges that read them.
  benchmark = item_file.read(
    c.benchmark or folder / FILE, nameless=c.judge == 'experts'
  )
  if not c.videos:
    raise DcjaxError(
      'there are no videos; give --config.score.videos=FOLDER with one file '
      f'an item, such as {benchmark.items[0].id}.mp4'
    )
  paths = find(benchmark.items, Path(c.videos), partial=c.partial)
  origin.check(c.videos, origin.of_items(benchmark.items))
  kept = tuple(item for item in benchmark.items if item.id in paths)
  if len(kept) < len(benchmark.items):
    print(f'{len(kept)} of {len(benchmark.items)} items have a video')
  benchmark = Benchmark(benchmark.name, kept, benchmark.folder)
  record = scoring.score(
    benchmark,
    lambda item: _load(paths[item.id], item),
    make_judge(c),
    stretch=c.stretch,
    area=c.area,
    seed=c.seed,
  )
  folder.mkdir(parents=True, exist_ok=True)
  write_record(folder / 'timing.json', record | {'judge': c.judge})
  text = scoring.table(record)
  (folder / 'timing.txt').write_text(text + '\n')
  print(text)
  return record


def make_judge(c: ConfigDict) -> Judge:
  """The judge of `config.score`."""
  if c.judge == 'world':
    return world_judge.judge
  from dcjax.evals import experts

  return experts.load(
    detector=c.detector,
    segmenter=c.segmenter,
    clip=c.clip,
    looks=c.looks,
    area=c.area,
    device=c.device,
    download=c.download,
  )


def find(
  items: Sequence[Item], folder: Path, *, partial: bool = False
) -> dict[str, Path]:
  """{id: path} of the items' videos: files of any suffix, folders of images.

  Raises:
    DcjaxError: the folder or videos are missing, or one id has several files.
  """
  if not folder.is_dir():
    raise DcjaxError(f'{folder} is not a folder; it should hold the videos')
  found: dict[str, list[Path]] = {}
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      found.setdefault(path.name, []).append(path)
    elif path.suffix.lower() in SUFFIXES:
      found.setdefault(path.stem, []).append(path)
  several = [item.id for item in items if len(found.get(item.id, ())) > 1]
  if several:
    names = ', '.join(x.name for x in found[several[0]])
    raise DcjaxError(f'{folder} has several videos of {several[0]}: {names}')
  missing = [item.id for item in items if item.id not in found]
  if missing and (not partial or len(missing) == len(items)):
    some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
    raise DcjaxError(
      f'{len(missing)} of {len(items)} videos are not in {folder}: {some}; '
      'config.score.partial=True scores the others alone'
    )
  return {item.id: found[item.id][0] for item in items if item.id in found}


def _load(path: Path, item: Item) -> tuple[np.ndarray, float]:
  # A folder of images has no clock of its own.
  fps = item.fps if path.is_dir() else None
  video = video_lib.read_video(path, fps=fps, min_frames=2)
  return video.frames, video.fps


def write_record(path: Path, record: dict[str, Any]) -> None:
  """Writes a record of `scoring.score` as JSON; nan becomes null."""
  record = record | {'machine': machine.describe()}
  text = json.dumps(_plain(record), indent=1, allow_nan=False)
  path.write_text(text + '\n')


def read_record(path: Path) -> dict[str, Any]:
  """What `write_record` wrote; null is nan again."""
  return _with_nans(json.loads(path.read_text()))


def _with_nans(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _with_nans(x) for key, x in value.items()}
  if isinstance(value, list):
    return [_with_nans(x) for x in value]
  return math.nan if value is None else value


def _plain(value: Any) -> Any:
  if hasattr(value, '_asdict'):
    value = value._asdict()
  if isinstance(value, dict):
    return {key: _plain(x) for key, x in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(x) for x in value]
  if isinstance(value, float) and math.isnan(value):
    return None
  return value
