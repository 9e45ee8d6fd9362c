"""The command line: python -m dcjax.main --config=configs/JOB.py[:VARIANT]."""

import importlib
import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from dcjax.errors import DcjaxError

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file of the job, with an optional :variant.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; default runs/TASK.'
)

# The module that runs each task, imported only when it is asked for.
TASKS = {
  'personalize': 'dcjax.personalization',
  'pretrain': 'dcjax.pretrain',
  'sample': 'dcjax.make',
  'evaluate': 'dcjax.evals.base',
}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}')
  config = CONFIG.value
  if config is None:
    raise app.UsageError('--config=configs/JOB.py is needed')
  task = config.get('task')
  if task not in TASKS:
    raise DcjaxError(
      f'config.task is {task!r}; use one of {", ".join(sorted(TASKS))}'
    )
  workdir = WORKDIR.value or f'runs/{config.get("name", task)}'
  importlib.import_module(TASKS[task]).run(config, workdir)


def run() -> None:
  """Entry point: user mistakes are one line and exit code 2."""
  try:
    app.run(main)
  except DcjaxError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  run()
