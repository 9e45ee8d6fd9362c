"""What concepts.py can show at best, and what it shows of failures.

  python benchmarks/ceilings.py

Nothing is trained: the clips that the prompts ask for are drawn, and decoded
from their own latents; and clips are drawn that fail in one way each.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import concepts as benchmark
import numpy as np
import record

from dcjax import sampling
from dcjax.data import world
from dcjax.evals import concepts as judge
from dcjax.evals.sighting import Finder
from dcjax.weights.base import Base, load_base


def failures(index: int, finder: Finder) -> benchmark.Scores:
  """What clips score that fail in one way each."""
  c = finder.concept
  another = 'jumping' if c.moves != 'jumping' else 'spiralling'
  draw = lambda **changes: judge.wanted(c, **changes)
  middle = np.asarray(c.scene.center)[0]
  clips = {
    'nothing there': draw(interval=np.full(2, -1.0)),
    'another concept': world.concept(index + 1).video,
    'frozen': np.repeat(c.video[:1], len(c.video), 0),
    'misplaced': draw(center=middle + np.array([9.0, -12.0])),
    'backwards': c.video[::-1],
    'moves right': draw(motion='moving right'),
    'moves up': draw(motion='moving up'),
    'another novel motion': draw(motion=another),
    'ball in its tones': draw(shape='ball', decoration=''),
    'without decoration': draw(decoration=''),
    'halves swapped': draw(paint=c.paint[::-1]),
    'one tone': draw(paint=c.paint[[0, 0]]),
    'red': draw(color='red'),
    'another background': draw(background=judge.grounds(c, 1)[0]),
    'another pattern': draw(pattern='striped'),
  }
  there = {'background': c.background, 'same': True}
  return {k: judge.score(x, finder, **there) for k, x in clips.items()}


def ceilings(base: Base, indices: Sequence[int]) -> dict[str, Any]:
  """What can be scored at best, and by failing."""
  rows, wrong = [], []
  for index in indices:
    concept = world.concept(index)
    prompts, finder = benchmark.asks(concept), Finder(concept)
    targets = np.stack([ask.target for ask in prompts])
    decoded = sampling.decode(base, sampling.encode_video(base, targets))
    rows.append(
      {
        'drawn': benchmark.score(prompts, targets, finder),
        'decoded': benchmark.score(prompts, decoded, finder),
      }
    )
    wrong.append(failures(index, finder))
  return {
    'drawn': benchmark.summary([row['drawn'] for row in rows]),
    'decoded': benchmark.summary([row['decoded'] for row in rows]),
    'failures': benchmark.summary(wrong),
  }


def print_ceilings(found: dict[str, Any]) -> None:
  """Prints what drawn and decoded clips score, then failures."""
  print(f'\n{"":26}   drawn decoded  spread')
  for group, metrics in benchmark.SHOWN.items():
    print(group)
    for key in metrics.split():
      drawn, decoded = (found[k][group][key] for k in ('drawn', 'decoded'))
      print(
        f'  {key:24}{drawn["mean"]:8.3f}{decoded["mean"]:8.3f}'
        f'{decoded["spread"]:8.3f}'
      )
  keys = 'detected identity correlation shifted extent action adherence mse'
  print(f'\n{"":24}' + ''.join(f'{key[:9]:>10}' for key in keys.split()))
  for name, values in found['failures'].items():
    row = ''.join(f'{values[key]["mean"]:10.3f}' for key in keys.split())
    print(f'{name:24}{row}')


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--concepts', type=int, default=5, help='how many')
  parser.add_argument('--base', default='world', help='name or folder')
  options = parser.parse_args()
  base = load_base(options.base)
  found = ceilings(base, range(max(options.concepts, 1)))
  print_ceilings(found)
  path = record.write(
    'concept-ceilings',
    {'base': base.fingerprint, 'concepts': options.concepts} | found,
  )
  print(f'\n{path}')


if __name__ == '__main__':
  record.run(main)
