"""Makes one file of what the parts of gpu.sh found, or did not.

  python benchmarks/gather.py FOLDER

The folder has parts.tsv (name, exit code, seconds, limit and command of each
part), a NAME.log of each, and the files that benchmarks wrote. Needs nothing
but jax, so that a machine which lacks something is told about, too.
"""

import json
from pathlib import Path
import re
import sys
from typing import Any

import record

from dcjax.errors import DcjaxError

# Exit codes of `timeout`, and gpu.sh's of a part that was not begun.
ENDS = {0: 'done', 124: 'out of time', 137: 'out of time', 77: 'not begun'}
COMMON = ('benchmark', 'date', 'machine')  # which the whole file has, too
TAIL = 30  # lines of the log of a part that failed
_TEST = re.compile(r'^(tests/.*?) (PASSED|FAILED|ERROR|SKIPPED)\b', re.M)
_WHY = re.compile(r'^(?:FAILED|ERROR|SKIPPED) .*$', re.M)
_MISSING = re.compile(r"No module named '([\w.]+)'")


def parts(folder: Path) -> dict[str, Any]:
  """{name: how each part ended, and what its benchmark wrote}.

  Raises:
    DcjaxError: the folder is not one of gpu.sh.
  """
  table = folder / 'parts.tsv'
  if not table.is_file():
    raise DcjaxError(f'there is no {table}; benchmarks/gpu.sh makes it')
  found = {}
  for line in table.read_text().splitlines():
    name, code, seconds, limit, command = line.split('\t')
    log = folder / f'{name}.log'
    text = log.read_text(errors='replace') if log.is_file() else ''
    row = {
      'end': ENDS.get(int(code), f'failed with exit code {code}'),
      'seconds': int(seconds),
      'limit': int(limit),
      'command': command,
      # What a part imports and the machine lacks, whatever became of it.
      'missing': sorted(set(_MISSING.findall(text))),
    }
    if name == 'tests':
      row |= tests(text)
    elif int(code):
      row['log'] = text.splitlines()[-TAIL:]
    # One file a benchmark and day: `--name` tells jobs apart.
    for path in folder.glob(f'{name}-2*.json'):
      wrote = json.loads(path.read_text())
      row['found'] = {k: x for k, x in wrote.items() if k not in COMMON}
    found[name] = row
  return found


def tests(log: str) -> dict[str, Any]:
  """What `pytest -v -rsfE` said: counts, and why some did not pass."""
  ends = _TEST.findall(log)
  counts = {
    end: sum(1 for _, x in ends if x == end)
    for end in ('PASSED', 'FAILED', 'ERROR', 'SKIPPED')
  }
  return {
    'counts': counts,
    # A file that cannot be imported is an ERROR of the summary alone.
    'why': _WHY.findall(log),
    'log': log.splitlines()[-TAIL:] if not ends else [],
  }


def main() -> None:
  """The command line."""
  if len(sys.argv) != 2:
    raise DcjaxError('usage: python benchmarks/gather.py FOLDER')
  folder = Path(sys.argv[1])
  found = parts(folder)
  path = record.write('', {'parts': found})
  for name, row in found.items():
    missing = f', missing {", ".join(row["missing"])}' if row['missing'] else ''
    counts = ', '.join(f'{n} {x}' for x, n in row.get('counts', {}).items())
    print(
      f'{name:24}{row["seconds"]:5} s  {row["end"]}  {counts.lower()}{missing}'
    )
  print(path)


if __name__ == '__main__':
  record.run(main)
