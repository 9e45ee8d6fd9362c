r"""What the tokens of their words do for references, in a trained model.

  python -m dcjax.main --config=configs/s2vtime.py:build --workdir=runs/pairs \
    --config.build.kinds="('same_class',)" --config.build.count=64 \
    --config.build.seed=2
  python benchmarks/word_tags.py --benchmark=runs/pairs/benchmark.json

Two videos of every item, from the same noise: one with the references as they
were trained, one whose model leaves the words' tokens out.
"""

import argparse
import dataclasses
from pathlib import Path

import record

from dcjax import tree
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.evals import item_file, making, scoring, world_judge
from dcjax.evals.items import Benchmark, Item
from dcjax.weights import container, reference
from dcjax.weights.base import Base, load_base

_COLUMNS = ('iou', 'frame_iou', 'detected', 'swap', 'leak', 'text', 'reference')


def without_words(base: Base, folder: Path | None, to: Path) -> Path:
  """Writes references as they are, but for the tokens of their words.

  Args:
    base: that they are of.
    folder: of the references; None: the base's own.
    to: folder to write.

  Raises:
    DcjaxError: there are none, or they have no such tokens.
  """
  config = reference.equip(base, folder).reference
  if not config.tag_tokens:
    raise DcjaxError(
      f'{folder or base.name} has no word tags; expected some to leave out'
    )
  file = Path(folder or base.reference_folder) / reference.FILE
  stored = tree.unflatten(container.read(file)[1])
  _, kept = tree.partition(stored, '^reference/tag_')
  reference.save(to, base, dataclasses.replace(config, tag_tokens=0), kept)
  return to


def scored(benchmark: Benchmark, videos: Path) -> dict:
  """The record of a folder of videos."""

  def load(item: Item):
    video = video_lib.read_video(videos / f'{item.id}.mp4', min_frames=2)
    return video.frames, video.fps

  return scoring.score(benchmark, load, world_judge.judge)


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--benchmark', default='runs/pairs/benchmark.json')
  parser.add_argument(
    '--references', default='', help='folder; empty: the base'
  )
  parser.add_argument('--base', default='world', help='name or folder')
  parser.add_argument('--steps', type=int, default=12, help='of the sampler')
  parser.add_argument('--workdir', default='runs/word_tags', help='for videos')
  options = parser.parse_args()
  base, work = load_base(options.base), Path(options.workdir)
  benchmark = item_file.read(options.benchmark)
  trained = Path(options.references) if options.references else None
  rows = {
    'tagged': trained,
    'untagged': without_words(base, trained, work / 'reference'),
  }
  records = {
    name: scored(
      benchmark,
      making.make(
        base, benchmark, work / name, references=folder, steps=options.steps
      ),
    )
    for name, folder in rows.items()
  }
  means = {name: x['table']['videos']['all'] for name, x in records.items()}
  items = [records[name]['items'] for name in rows]
  means['difference'] = scoring.differences(benchmark, [tuple(items)])['all']
  print(f'{"":12}' + ''.join(f'{key:>15}' for key in _COLUMNS))
  for name, row in means.items():
    sign = '+' if name == 'difference' else ''
    cells = (scoring.cell(row.get(key), sign) for key in _COLUMNS)
    print(f'{name:12}' + ''.join(f'{cell:>15}' for cell in cells))
  found = {
    name: {key: x._asdict() for key, x in row.items()}
    for name, row in means.items()
  }
  shown = {name: x['items'] for name, x in records.items()}
  path = record.write(
    'word-tags', {'rows': found, 'items': shown} | vars(options)
  )
  print(f'\n{path}')


if __name__ == '__main__':
  record.run(main)
