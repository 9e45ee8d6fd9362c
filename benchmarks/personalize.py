"""What the default run costs: the README's first command, timed.

  python benchmarks/personalize.py

Runs `python -m dcjax.main --config=configs/set_seq.py` in a process and a
folder of its own, with no compiled programs left from before, and takes its
time from outside. Options after `--` go to the job.
"""

import argparse
import itertools
import json
import os
from pathlib import Path
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import record

from dcjax import tracking
from dcjax.errors import DcjaxError

ROOT = Path(__file__).parents[1]
_STEP = re.compile(r'(\w+) (\d+)/(\d+)  loss')
_COMPILED = re.compile(r'(\w+): compiled')

Line = tuple[float, str]  # seconds since the start, text


def follow(command: list[str], environment: dict[str, str]) -> list[Line]:
  """Runs a command and notes when it says what.

  Raises:
    DcjaxError: it fails.
  """
  began = time.monotonic()
  lines: list[Line] = []
  with subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    for line in process.stdout:
      lines.append((time.monotonic() - began, line.rstrip()))
      print(f'{lines[-1][0]:7.1f}  {line}', end='', flush=True)
  lines.append((time.monotonic() - began, ''))
  if process.returncode:
    raise DcjaxError(f'the job ended with exit code {process.returncode}')
  return lines


def measure(lines: list[Line], timings: dict[str, Any]) -> dict[str, Any]:
  """Seconds of each part of a run.

  Args:
    lines: what the run said, the last one at its end.
    timings: its `timings.json`.

  Returns:
    stages: for each, compile, step (the median between two lines of progress,
      so without previews) and all (with previews, checkpoints and held-out
      losses); prior: sampling and encoding it; start: imports, base, latents
      of the clip; report: sampling and writing it; total_minutes of all, by
      this clock; peak_memory_gb.
  """
  parts: dict[str, Any] = {'stages': {}}
  compiled = _when(lines, _COMPILED)
  for name, (at, _) in compiled.items():
    points = [(at, 1.0)]
    for seconds, text in lines:
      found = _STEP.search(text)
      if found and found[1] == name:
        points.append((seconds, float(found[2])))
    rates = [
      (t1 - t0) / (n1 - n0)
      for (t0, n0), (t1, n1) in itertools.pairwise(points)
      if n1 > n0
    ]
    inside = timings.get(name, {})
    parts['stages'][name] = {
      'compile': inside.get('compile'),
      'step': statistics.median(rates) if rates else None,
      'all': inside.get('steps'),
      'steps': int(points[-1][1]),
    }
  end = lines[-1][0]
  prior = [seconds for seconds, text in lines if text.startswith('prior:')]
  if compiled:
    first, *_, last = *compiled, *compiled
    ready = compiled[first][0] - (parts['stages'][first]['compile'] or 0.0)
    parts['start'] = prior[0] if prior else ready
    parts['prior'] = ready - prior[0] if prior else 0.0
    trained = compiled[last][0] + (parts['stages'][last]['all'] or 0.0)
    parts['report'] = end - trained
  parts['total_minutes'] = end / 60
  parts['peak_memory_gb'] = timings.get('peak_memory', float('nan')) / 1e9
  return parts


def show(parts: dict[str, Any]) -> None:
  """Prints a table."""
  number = lambda x: '      -' if x is None else f'{x:7.2f}'
  print(f'\n{"":18}compile s   s/step   all s  steps')
  for name, stage in parts['stages'].items():
    row = '  '.join(number(stage[key]) for key in ('compile', 'step', 'all'))
    print(f'{name:18}{row}  {stage["steps"]:5}')
  for key in ('start', 'prior', 'report', 'total_minutes', 'peak_memory_gb'):
    if key in parts:
      print(f'{key:18}{number(parts[key])}')


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  add = parser.add_argument
  add('--config', default='configs/set_seq.py', help='job to time')
  add('--keep', default='', help='folder to leave the run in')
  add('options', nargs='*', help='of the job, after --')
  options = parser.parse_args()
  folder = Path(options.keep or tempfile.mkdtemp(prefix='dcjax-')).resolve()
  if folder.exists() and any(folder.iterdir()):
    raise DcjaxError(f'{folder} is not empty; a run is timed from the start')
  command = [sys.executable, '-m', 'dcjax.main', f'--config={options.config}']
  command += [f'--workdir={folder}', *options.options]
  # Unbuffered, so that every line has its own time; nothing compiled before.
  environment = os.environ | {
    'PYTHONUNBUFFERED': '1',
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
  }
  try:
    lines = follow(command, environment)
    timings = json.loads((folder / 'timings.json').read_text())
    logged = tracking.read(folder / 'metrics.jsonl')
  finally:
    if not options.keep:
      shutil.rmtree(folder, ignore_errors=True)
  parts = measure(lines, timings)
  losses = {r['stage']: r['loss'] for r in logged if 'loss' in r}
  show(parts)
  path = record.write(
    'personalize',
    {
      'config': options.config,
      'options': options.options,
      'last_losses': losses,
      **parts,
    },
  )
  print(f'\n{path}')


def _when(lines: list[Line], pattern: re.Pattern) -> dict[str, Line]:
  """{first group: the first line that has it}."""
  found: dict[str, Line] = {}
  for line in lines:
    match = pattern.search(line[1])
    if match:
      found.setdefault(match[1], line)
  return found


if __name__ == '__main__':
  record.run(main)
