"""Scores a folder of videos, of any model, with S2VTime.

  python -m dcjax.evals benchmark.json videos/ --out=scores
  python -m dcjax.evals benchmark.json videos/ --judge=experts --download

The same as `configs/s2vtime.py:score`, for who has the package alone. Prints
the table and writes timing.txt and timing.json into the folder of --out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from ml_collections import ConfigDict

from dcjax.errors import DcjaxError
from dcjax.evals import options, s2vtime


def main(argv: Sequence[str] | None = None) -> None:
  """The command line; a mistake is one line and exit code 2."""
  c = options.score()
  parser = argparse.ArgumentParser(
    prog='python -m dcjax.evals', description=__doc__.partition('\n')[0]
  )
  parser.add_argument('benchmark', help='JSON file, its pictures beside it')
  parser.add_argument('videos', help='folder with one file an item, ID.mp4')
  parser.add_argument('--out', default='.', help='folder of what is written')
  for key, value in c.items():
    if key in ('benchmark', 'videos'):
      continue
    if isinstance(value, bool):
      parser.add_argument(f'--{key}', action='store_true')
    else:
      parser.add_argument(f'--{key}', type=type(value), default=value)
  given = vars(parser.parse_args(argv))
  out = Path(given.pop('out'))
  c.update(given)
  try:
    s2vtime.score(ConfigDict({'score': c}), out)
  except DcjaxError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
