"""What a run tells while it runs: progress bar, metrics file, TensorBoard."""

from collections.abc import Mapping
import json
import os
from pathlib import Path
import re
import sys
import time
from typing import Any

from dcjax import machine, processes


class Metrics:
  """Appends one JSON object a log step to `metrics.jsonl`.

  TensorBoard events are written beside it if tensorboardX is installed.

  Args:
    folder: of the run.
    stage: its name, in every line.
    resume: first step to come; lines of this stage at or after it, left by a
      killed run, are dropped so that the file tells one undisturbed story.
  """

  def __init__(self, folder: str | os.PathLike, stage: str, *, resume: int = 0):
    self._stage = stage
    self._path = Path(folder) / 'metrics.jsonl'
    self._path.parent.mkdir(parents=True, exist_ok=True)
    if self._path.exists():
      kept = [r for r in read(self._path) if not _later(r, stage, resume)]
      text = ''.join(json.dumps(record) + '\n' for record in kept)
      _replace(self._path, text)
    self._file = self._path.open('a')
    self._board = _tensorboard(Path(folder) / 'tensorboard' / stage, resume)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """One line: stage, step, then the values."""
    values = {key: float(value) for key, value in values.items()}
    record = {'stage': self._stage, 'step': step, **values}
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    if self._board is not None:
      for key, value in values.items():
        self._board.add_scalar(key, value, step)

  def close(self) -> None:
    self._file.close()
    if self._board is not None:
      self._board.close()


def read(path: str | os.PathLike) -> list[dict]:
  """The records of a metrics file; a last line that was cut off is left out."""
  records = []
  for line in Path(path).read_text().splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def previews(folder: str | os.PathLike, stage: str) -> dict[Path, int]:
  """{file: step} of samples/STAGE_STEP_preview..., the previews of a stage."""
  form = re.compile(rf'{re.escape(stage)}_(\d+)_preview')
  files = sorted(Path(folder, 'samples').glob('*_preview*'))
  found = {path: form.match(path.name) for path in files}
  return {path: int(match[1]) for path, match in found.items() if match}


def forget_previews(
  folder: str | os.PathLike, stage: str, *, resume: int
) -> None:
  """Removes what was shown after the step that a stage goes on from."""
  for path, step in previews(folder, stage).items():
    if step > resume:
      path.unlink()


def _replace(path: Path, text: str) -> None:
  """Writes a file so that it appears whole or stays as it was."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.tmp')
  temporary.write_text(text)
  os.replace(temporary, path)


def _later(record: Mapping, stage: str, step: int) -> bool:
  return record['stage'] == stage and record['step'] > step


def _tensorboard(folder: Path, resume: int):
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  # TensorBoard forgets what was written of this step and of those after it.
  return SummaryWriter(str(folder), purge_step=resume + 1)


class Progress:
  """A bar on a terminal, a line now and then elsewhere.

  Args:
    name: of the stage.
    steps: in all.
    start: steps already done.
    quiet_seconds: between two lines where there is no terminal.
  """

  def __init__(
    self, name: str, steps: int, *, start: int = 0, quiet_seconds: float = 15.0
  ):
    self._name, self._steps, self._start = name, steps, start
    self._silent = not processes.is_main()
    self._terminal = sys.stderr.isatty()
    self._every = 0.2 if self._terminal else quiet_seconds
    self._began: float | None = None
    self._shown = 0.0

  def update(self, step: int, loss: float) -> None:
    """After `step` steps, the last of which had this loss."""
    now = time.monotonic()
    if self._began is None:
      # The first step compiles: the clock of the rate starts after it.
      self._began, self._start = now, step
      self.say(f'{self._name}: compiled, {self._steps - step} steps to go')
      return
    shown = max(self._shown, self._began)
    if now - shown < self._every and step < self._steps:
      return
    self._shown = now
    rate = (step - self._start) / max(now - self._began, 1e-9)
    left = (self._steps - step) / max(rate, 1e-9)
    text = (
      f'{self._name} {step}/{self._steps}  loss {loss:.4f}  '
      f'{rate:.2f} steps/s  {clock(left)} left'
    )
    if self._terminal:
      done = int(24 * step / self._steps)
      self.say(f'\r[{"#" * done}{"." * (24 - done)}] {text} ', end='')
    else:
      self.say(text)

  def close(self) -> None:
    if self._terminal:
      self.say('')

  def say(self, text: str, end: str = '\n') -> None:
    """A line beside the bar."""
    if not self._silent:
      print(text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
  """m:ss or h:mm:ss."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
  )


class Timings:
  """What a run cost, in seconds and bytes, kept in its `timings.json`.

  A stage that was finished before keeps the times of then, and the total is
  over all the commands that it took.

  Args:
    folder: of the run.
  """

  def __init__(self, folder: str | os.PathLike):
    self._path = Path(folder) / 'timings.json'
    self._began = time.monotonic()
    self._values = _object(self._path)
    self._before = self._values.get('total', 0.0)

  def add(self, stage: str, seconds: Mapping[str, float]) -> None:
    """Writes the parts of a stage; one that took no step says nothing."""
    if seconds['steps']:
      self._values[stage] = dict(seconds)
      self.write()

  def write(self) -> dict[str, Any]:
    """Writes the total and the peak of memory, too; everything, as written."""
    spent = self._before + time.monotonic() - self._began
    self._values |= {
      'total': round(spent, 1),
      'peak_memory': int(machine.peak_memory() * 1e9),
    }
    _replace(self._path, json.dumps(self._values, indent=2) + '\n')
    return self._values


def _object(path: Path) -> dict[str, Any]:
  """A JSON file; empty if it is missing, or was cut off."""
  try:
    values = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    return {}
  return values if isinstance(values, dict) else {}
