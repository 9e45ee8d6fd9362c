"""What benchmarks share: options of a recipe, and a dated file of results."""

import ast
from collections.abc import Callable, Mapping, Sequence
import datetime
import json
import math
from pathlib import Path
import re
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from dcjax import machine
from dcjax.errors import DcjaxError

if TYPE_CHECKING:  # A record of what failed must be written without it, too.
  from ml_collections import ConfigDict

RESULTS = Path(__file__).parent / 'results'


def write(name: str, record: Mapping[str, Any], folder: Path = RESULTS) -> Path:
  """Writes the record beside when and where it was measured.

  Args:
    name: of the benchmark, first in the name of the file; '' for a whole set.
    record: of JSON values and numpy numbers; nan becomes null.
    folder: for the file.

  Returns:
    Path of the file. One of the same benchmark, machine and day is replaced.
  """
  where = machine.describe()
  date = datetime.datetime.now(datetime.UTC).date().isoformat()
  label = f'{where["device"]} {where["cores"]} cores'
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{"-".join(filter(None, (name, date, _slug(label))))}.json'
  whole = {'benchmark': name, 'date': date, 'machine': where, **record}
  path.write_text(json.dumps(plain(whole), indent=2, allow_nan=False) + '\n')
  return path


def plain(x: Any) -> Any:
  """The same as JSON values, floats to 4 places after the point."""
  if isinstance(x, Mapping):
    return {str(key): plain(value) for key, value in x.items()}
  if isinstance(x, (list, tuple)):
    return [plain(value) for value in x]
  if isinstance(x, bool | int | str) or x is None:
    return x
  x = float(x)
  return round(x, 4) if math.isfinite(x) else None


def runs(
  call: Callable[[], Any], *, warm: int, most: int, budget: float
) -> list[float]:
  """Seconds of each of several calls, which return when they are done.

  Args:
    call: does the work, and waits for it.
    warm: calls before those that count, at most; one at the least.
    most: calls that count, at most; two at the least.
    budget: seconds after which no call more than that begins. A third of it is
      for warming up.
  """
  began, seconds = time.perf_counter(), []
  for _ in range(warm):
    call()
    if time.perf_counter() - began > budget / 3:
      break
  while len(seconds) < 2 or (
    len(seconds) < most and time.perf_counter() - began < budget
  ):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
  """Milliseconds: median, least and most; and of how many."""
  return {
    'ms': 1e3 * statistics.median(seconds),
    'least': 1e3 * min(seconds),
    'most': 1e3 * max(seconds),
    'runs': len(seconds),
  }


def override(config: 'ConfigDict', pairs: Sequence[str]) -> None:
  """Sets 'key.of.config=value' pairs.

  Raises:
    DcjaxError: one of them is not an option, or has another type.
  """
  for pair in pairs:
    key, equals, text = pair.partition('=')
    try:
      value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      value = text
    try:
      if not equals:
        raise KeyError(f'{pair!r}, expected key=value')
      config.update_from_flattened_dict({key: value})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      reason = ' '.join(str(error.args[0]).split())
      raise DcjaxError(f'--set={pair}: {reason}') from error


def run(main: Callable[[], None]) -> None:
  """Calls `main`; a user's mistake is one line on stderr and exit code 2."""
  try:
    main()
  except DcjaxError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


def _slug(text: str) -> str:
  words = re.sub(r'[^a-z0-9]+', ' ', text.lower()).split()
  return '-'.join(dict.fromkeys(words))
