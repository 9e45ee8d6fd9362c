"""The command line: python -m dcjax.main --config=configs/JOB.py[:VARIANT].

Jobs are Python files that return a config; `config.task` names the module that
runs it. A user's mistake is one line on stderr and exit code 2. The same
command on every machine of a pod is one job (`dcjax/processes.py`).
"""

import contextlib
import errno
import importlib
import itertools
import os
from pathlib import Path
import runpy
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dcjax import processes
from dcjax.errors import DcjaxError

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file of the job, with an optional :variant.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; default runs/NAME.'
)
COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where a job has several.'
)
PROCESS_COUNT = flags.DEFINE_integer(
  'process_count', None, 'Number of processes of the job.'
)
PROCESS_INDEX = flags.DEFINE_integer(
  'process_index', None, 'Which of them this is, from 0.'
)

# The module that runs each task, imported only when it is asked for.
TASKS = {
  'alchemint': 'dcjax.alchemint.run',
  'evaluate': 'dcjax.evals.base',
  'inspect': 'dcjax.finetuning.inspection',
  'lora': 'dcjax.finetuning.run',
  'export': 'dcjax.export',
  'personalize': 'dcjax.personalization',
  'plan': 'dcjax.planning.run',
  'pretrain': 'dcjax.pretrain',
  'pretrain_autoencoder': 'dcjax.pretraining.autoencoder',
  'pretrain_clips': 'dcjax.pretraining.run',
  's2vtime': 'dcjax.evals.s2vtime',
  'sample': 'dcjax.generation',
  'study': 'dcjax.evals.study',
}
# Those whose loop asks at each step whether it is to save and go.
TRAINING = (
  'alchemint',
  'lora',
  'personalize',
  'pretrain',
  'pretrain_autoencoder',
  'pretrain_clips',
)
# Those that several processes do as one.
TOGETHER = (*TRAINING, 'sample')


def main(argv: list[str]) -> None:
  """Dispatches on `config.task`."""
  if len(argv) > 1:
    raise DcjaxError(f'unexpected argument {argv[1]!r}; options begin with --')
  config = CONFIG.value
  if config is None:
    raise DcjaxError('give a job: --config=configs/set_seq.py')
  task = config.get('task')
  if task not in TASKS:
    raise DcjaxError(
      f'config.task is {task!r}; use one of {", ".join(sorted(TASKS))}'
    )
  workdir = WORKDIR.value or f'runs/{config.name}'
  processes.check_folder('--workdir', workdir)
  _check_workdir(Path(workdir).absolute())
  if task not in TOGETHER and processes.find(*_group()):
    raise DcjaxError(
      f'config.task {task!r} runs in one process; several can '
      f'{", ".join(TOGETHER)}'
    )
  from dcjax import machine, mesh

  machine.tell_xla()
  processes.initialize(*_group(), preemption=task in TRAINING)

  task = importlib.import_module(TASKS[task])
  with mesh.use(mesh.of_config(config)), _one_voice():
    task.run(config, str(processes.own(workdir)))


def _group() -> tuple[str | None, int | None, int | None]:
  return COORDINATOR.value, PROCESS_COUNT.value, PROCESS_INDEX.value


def _one_voice() -> contextlib.AbstractContextManager:
  """Of several processes, the first one prints."""
  if processes.is_main():
    return contextlib.nullcontext()
  return contextlib.redirect_stdout(None)


def _check_workdir(path: Path) -> None:
  """Refuses a folder that cannot be written to, before hours of work."""
  there = next(p for p in (path, *path.parents) if os.path.exists(p))
  if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
    raise DcjaxError(f'cannot write to {there}; give another --workdir')


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; every mistake in them is a DcjaxError."""
  try:
    rest = flags.FLAGS(argv)
    if CONFIG.value is not None:
      CONFIG.value.get('task')  # A file that failed to load says so only now.
    return rest
  except OSError as error:
    job = _job(argv)[0]
    reason = _one_line(error) if Path(job).exists() else 'there is no such file'
    raise DcjaxError(f'config {job} cannot be read: {reason}') from error
  except (flags.Error, TypeError, ValueError) as error:
    raise DcjaxError(_one_line(error)) from error
  except (AttributeError, KeyError) as error:
    raise DcjaxError(_unknown_option(argv) or _one_line(error)) from error


def _unknown_option(argv: list[str]) -> str | None:
  """Names the first --config.KEY that the config lacks, and what it has."""
  path, variant = _job(argv)
  config = runpy.run_path(path)['get_config'](variant)
  overrides = [a[9:] for a in argv if a.startswith('--config.')]
  for override in overrides:
    node, keys = config, override.partition('=')[0].split('.')
    for depth, key in enumerate(keys):
      if not hasattr(node, 'keys') or key not in node:
        where = '.'.join(['config', *keys[: depth + 1]])
        known = ', '.join(node) if hasattr(node, 'keys') else 'nothing below it'
        return f'{where} is not an option; there is {known}'
      node = node[key]
  return None


def _job(argv: list[str]) -> tuple[str, str]:
  """(path, variant) of the --config flag."""
  values = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
  values += [b for a, b in itertools.pairwise(argv) if a == '--config']
  path, _, variant = (values or [''])[-1].partition(':')
  return path, variant


def _one_line(error: Exception) -> str:
  text = error.args[0] if error.args else error
  return ' '.join(str(text).split())


def _quiet_main(argv: list[str]) -> None:
  """Runs `main` without the libraries' chatter, unless --verbosity is given."""
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  main(argv)


def run() -> None:
  """Entry point of `python -m dcjax.main`."""
  try:
    app.run(_quiet_main, flags_parser=_parse)
  except DcjaxError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except Exception as error:
    if not _disk_full(error):
      raise
    print(
      'error: the disk is full; free some space and give the same command '
      'again: it goes on from the last complete checkpoint',
      file=sys.stderr,
    )
    sys.exit(2)


def _disk_full(error: Exception) -> bool:
  """Whether a write found no room; Orbax and safetensors only say so."""
  codes = (errno.ENOSPC, errno.EDQUOT)
  return getattr(error, 'errno', None) in codes or any(
    os.strerror(code) in str(error) for code in codes
  )


if __name__ == '__main__':
  run()
