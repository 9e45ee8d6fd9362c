"""Which process of how many this is: what a job asks before anything of jax.

A job is one process, or one process a machine (on Slurm with GPUs, one a GPU)
that all give the same command. Which of them this is comes from the first of

1. flags: --coordinator=HOST:PORT --process_count=N --process_index=I;
2. the environment: DCJAX_COORDINATOR, DCJAX_PROCESS_COUNT and
   DCJAX_PROCESS_INDEX, else JOB_COMPLETION_INDEX, which Kubernetes sets;
3. surroundings that jax knows: a TPU slice of several machines on GKE, a Slurm
   step of several tasks, and, with DCJAX_DISTRIBUTED=auto, all others;
4. nothing of these: one process. DCJAX_DISTRIBUTED=off says so in any case.

A coordinator that is given is met before jax is told of it: process 0 calls the
roll on its port. jax alone would abort the process, without a Python exception,
if a process is missing or the port is taken.
"""

import atexit
from collections.abc import Mapping
import itertools
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any, NamedTuple

from dcjax import roll_call
from dcjax.errors import DcjaxError

# What a training that was told to go exits with once it has saved: as if
# SIGTERM had ended it, and not 0, or a scheduler would take it for finished.
PREEMPTED = 143

# Seconds: images are pulled at different speeds. DCJAX_START_TIMEOUT is others.
START_TIMEOUT = 600.0
# And until a process that says nothing any more is given up, and the job ends;
# DCJAX_SILENCE is others.
SILENCE = 100.0

_MODES = ('', 'auto', 'off')
# What jax reads of Slurm; a shell that is no step of a job has not all of them.
_SLURM = (
  'SLURM_JOB_ID',
  'SLURM_STEP_NODELIST',
  'SLURM_NTASKS',
  'SLURM_PROCID',
  'SLURM_LOCALID',
)


class Group(NamedTuple):
  """The processes of a job, and which of them this is.

  Attributes:
    coordinator: HOST:PORT of process 0. None, with the others: jax detects it.
    count: of processes, at least 2.
    index: of this one, from 0.
  """

  coordinator: str | None = None
  count: int | None = None
  index: int | None = None


DETECTED = Group()


def find(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  environ: Mapping[str, str] = os.environ,
) -> Group | None:
  """The group of this process; None if it is alone.

  Args:
    coordinator: HOST:PORT, as of a flag; None or empty: from `environ`.
    count: of processes; None: from `environ`.
    index: of this process; None: from `environ`.
    environ: of the process.

  Raises:
    DcjaxError: a value is missing, is no number, or does not fit the others.
  """
  mode = environ.get('DCJAX_DISTRIBUTED', '')
  if mode not in _MODES:
    raise DcjaxError(f"DCJAX_DISTRIBUTED is {mode!r}; use 'auto' or 'off'")
  if mode == 'off':
    return None
  coordinator = coordinator or environ.get('DCJAX_COORDINATOR') or None
  if count is None:
    count = _number(environ, 'DCJAX_PROCESS_COUNT')
  if index is None:
    index = _number(environ, 'DCJAX_PROCESS_INDEX')
  if (coordinator, count, index) == (None, None, None):
    return DETECTED if mode == 'auto' or _known(environ) else None
  if index is None:
    # Every indexed Job has it, so that alone it means nothing.
    index = _number(environ, 'JOB_COMPLETION_INDEX')
  return _check(coordinator, count, index)


def initialize(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  preemption: bool = False,
  timeout: float | None = None,
) -> None:
  """Joins the other processes of the job, if there are any.

  Comes before every other use of jax. A process that is alone does not even
  import it.

  Args:
    coordinator: see `find`.
    count: see `find`.
    index: see `find`.
    preemption: whether the job asks, step by step, if it is to go
      (`multihost_utils.reached_preemption_sync_point`). jax's service for that
      takes SIGTERM away from the process: a job that never asks would only end
      when it is killed. So it runs for those that ask, and no others: they die
      of SIGTERM at once, as any program.
    timeout: seconds to wait for the others; None: DCJAX_START_TIMEOUT or
      `START_TIMEOUT`.

  Raises:
    DcjaxError: as of `find`; or the processes do not come together.
  """
  group = find(coordinator, count, index)
  if group is None:
    return
  if timeout is None:
    timeout = _seconds(os.environ, 'DCJAX_START_TIMEOUT', START_TIMEOUT)
  silence = _seconds(os.environ, 'DCJAX_SILENCE', SILENCE)
  if group != DETECTED:
    roll_call.meet(group.coordinator, group.count, group.index, timeout)

  import jax

  jax.config.update('jax_enable_preemption_service', preemption)
  try:
    jax.distributed.initialize(
      *group,
      # What is given is all: nothing is asked of a cluster that may be around.
      cluster_detection_method=None if group == DETECTED else 'deactivate',
      initialization_timeout=int(timeout),
      heartbeat_timeout_seconds=int(silence),
    )
  except (ImportError, RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise DcjaxError(
      f'jax does not join the processes of this job: {reason} Give '
      '--coordinator=HOST:PORT --process_count=N --process_index=I, or '
      'DCJAX_DISTRIBUTED=off for one process'
    ) from error


def alone() -> bool:
  """Whether the job is one process."""
  import jax

  return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_main() -> bool:
  """Whether this is process 0: the one that prints and writes media."""
  import jax

  # Whoever is alone is not made to start a backend for the answer.
  return not jax.distributed.is_initialized() or jax.process_index() == 0


# {what a process writes into instead of the folder of the run: that folder}
_OWN: dict[Path, Path] = {}


def own(folder: str | os.PathLike) -> Path:
  """The folder that this process writes into.

  That of the run for process 0; for another one a folder that is thrown away
  when it ends. So all do the same, which programs over several processes ask
  for, and each file is written once.
  """
  folder = Path(folder)
  if is_main():
    return folder
  mine = next((x for x, run in _OWN.items() if run == folder), None)
  if mine is None:
    mine = Path(tempfile.mkdtemp(prefix='dcjax-'))
    atexit.register(shutil.rmtree, mine, ignore_errors=True)
    _OWN[mine] = folder
  return mine


def shared(path: str | os.PathLike) -> Path:
  """The same place in the folder of the run, which all processes see."""
  path = Path(path)
  for mine, run in _OWN.items():
    if path.is_relative_to(mine):
      return run / path.relative_to(mine)
  return path


def check_folder(name: str, folder: str) -> None:
  """Raises DcjaxError for an address where a folder is expected.

  Args:
    name: of the option.
    folder: its value; pathlib would make a local folder of gs://BUCKET/RUN.
  """
  if '://' in folder:
    raise DcjaxError(
      f'{name} is {folder}; expected a folder, for example one where the '
      'bucket is mounted'
    )


def from_main(data: bytes) -> bytes:
  """What process 0 gives, to every process; all of them call it."""
  if alone():
    return data
  from jax.experimental import multihost_utils
  import numpy as np

  send = multihost_utils.broadcast_one_to_all
  size = int(send(np.int32(len(data))))
  if not size:
    return b''
  mine = np.frombuffer(data if is_main() else bytes(size), np.uint8)
  return np.asarray(send(mine)).tobytes()


def share(n: int) -> range:
  """Which of n pieces of work this process takes, in turn with the others."""
  import jax

  return (
    range(n) if alone() else range(jax.process_index(), n, jax.process_count())
  )


def gathered(mine: Any) -> Any:
  """Numpy arrays of one shape, of all processes by index; all of them call it.

  None of them has the result before all have called.
  """
  import numpy as np

  if alone():
    return np.asarray(mine)[None]
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(mine))


# What jax is asked with: all processes go at one count, the one after the last
# that any of them has asked with, and at no later one. It is not the step:
# that starts anew in each stage and leaps where a run is resumed.
_ASKED = itertools.count(1)


def told_to_go(signalled: bool) -> bool:
  """Whether to save and go before the next step: all processes agree on it.

  All of them ask equally often, after every step of every stage.

  Args:
    signalled: whether this process has got SIGTERM, where it is alone.
  """
  if alone():
    return signalled
  from jax.experimental import multihost_utils

  return multihost_utils.reached_preemption_sync_point(next(_ASKED))


def _known(environ: Mapping[str, str]) -> bool:
  """Whether jax finds several processes here by itself."""
  # On a single TPU machine it is 'localhost', or a name; where libtpu looked
  # for a TPU and found none, it is a sentence.
  workers = environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  workers = [] if ' ' in ''.join(workers) else workers
  slices = environ.get('MEGASCALE_NUM_SLICES') or '1'
  slurm = all(key in environ for key in _SLURM)
  tasks = environ['SLURM_NTASKS'] if slurm else '1'
  return len(workers) > 1 or slices != '1' or tasks != '1'


def _check(
  coordinator: str | None, count: int | None, index: int | None
) -> Group | None:
  """The group of values that were given, if they fit together."""
  for value, flag, variable in (
    (count, 'process_count', 'DCJAX_PROCESS_COUNT'),
    (index, 'process_index', 'DCJAX_PROCESS_INDEX'),
  ):
    if value is None:
      raise DcjaxError(
        f'there is no {flag}; give --{flag} or {variable}, beside '
        'coordinator and the other'
      )
  if count < 1:
    raise DcjaxError(f'process_count is {count}; expected 1 or more')
  if not 0 <= index < count:
    raise DcjaxError(
      f'process_index is {index}; expected 0 to {count - 1}, as '
      f'process_count is {count}'
    )
  if count == 1:
    return None
  if coordinator is None:
    raise DcjaxError(
      'there is no coordinator; give --coordinator=HOST:PORT or '
      f'DCJAX_COORDINATOR to {count} processes'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise DcjaxError(
      f'coordinator is {coordinator!r}; expected HOST:PORT with a port from '
      '1 to 65535'
    )
  return Group(coordinator, count, index)


def _number(environ: Mapping[str, str], name: str) -> int | None:
  text = environ.get(name, '')
  if not text:
    return None
  if not text.isdecimal():
    raise DcjaxError(f'{name} is {text!r}; expected a whole number')
  return int(text)


def _seconds(environ: Mapping[str, str], name: str, usual: float) -> float:
  text = environ.get(name) or str(usual)
  try:
    seconds = float(text)
  except ValueError:
    seconds = 0.0
  if not 1.0 <= seconds <= 1e6:
    raise DcjaxError(f'{name} is {text!r}; expected seconds, 1 or more')
  return seconds
