r"""A sweep over options of a config, by XManager.

  pip install -e ".[xmanager]"
  python -m launch.xm --config=configs/set_seq.py:tiny \
    --sweep=seed=0,1,2 --sweep=lora.rank=4,8 --runs=runs/ranks

Six runs, one a point, each with a folder of its own below --runs. Here they run
one after the other; with --executor=vertex, all at once on Vertex AI, from an
image in a registry, each on one machine with GPUs:

  python -m launch.xm --config=configs/set_seq.py:wan_14b \
    --option=base=/gcs/BUCKET/bases/Wan2.1-T2V-14B-Diffusers \
    --sweep=seed=0,1,2 --runs=/gcs/BUCKET/runs/seeds \
    --executor=vertex --image=IMAGE:cuda --gpu=h100 --gpus=8

What needs several machines, or TPUs, is a JobSet (launch/gke.py): XManager's
own executors have neither slices of new TPUs nor jobs of several hosts.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
import itertools
import sys
from typing import Any

from dcjax.errors import DcjaxError

GPUS = ('a100', 'a100_80gib', 'h100', 'h200')


def points(sweeps: Sequence[str]) -> list[dict[str, str]]:
  """All combinations of 'KEY=VALUE,VALUE' as options.

  Raises:
    DcjaxError: one of them is not of that form, or a key comes twice.
  """
  axes = {}
  for sweep in sweeps:
    key, _, values = sweep.partition('=')
    values = values.split(',')
    if not key or not all(values):
      raise DcjaxError(f'sweep is {sweep!r}; expected KEY=VALUE,VALUE')
    if key in axes:
      raise DcjaxError(f'two sweeps are over {key}; give its values in one')
    axes[key] = values
  return [
    dict(zip(axes, x, strict=True)) for x in itertools.product(*axes.values())
  ]


def arguments(
  config: str, options: Sequence[str], sweeps: Sequence[str], runs: str
) -> list[dict[str, str]]:
  """Options of `dcjax.main`, of each point.

  Raises:
    DcjaxError: there is no config, or an option is not KEY=VALUE.
  """
  if not config:
    raise DcjaxError('give a job: --config=configs/set_seq.py')
  for option in options:
    if not option.partition('=')[0] or '=' not in option:
      raise DcjaxError(f'option is {option!r}; expected KEY=VALUE')
  common = dict(option.split('=', 1) for option in options)
  return [
    {
      'config': config,
      'workdir': f'{runs}/{index}',
      **{f'config.{k}': v for k, v in {**common, **point}.items()},
    }
    for index, point in enumerate(points(sweeps))
  ]


async def launch(
  experiment: Any,
  packageable: Any,
  executor: Any,
  each: Sequence[Mapping[str, str]],
  *,
  together: bool,
) -> None:
  """Starts a job of each point; waits for each, unless all go together."""
  from xmanager import xm

  [executable] = experiment.package([packageable])
  for args in each:
    unit = await experiment.add(
      xm.Job(executable=executable, executor=executor, args=args)
    )
    if not together:
      await unit.wait_until_complete()


def here() -> tuple[Any, Any]:
  """(what runs, where) on this machine: this Python."""
  from xmanager import xm, xm_local

  program = xm.Packageable(
    executable_spec=xm.Binary(path=sys.executable),
    executor_spec=xm_local.Local.Spec(),
    args=xm.SequentialArgs.from_collection(['-m', 'dcjax.main']),
  )
  return program, xm_local.Local()


def vertex(image: str, gpu: str, count: int) -> tuple[Any, Any]:
  """(what runs, where) on Vertex AI: an image, whose program is dcjax.main.

  Raises:
    DcjaxError: there is no image, or no such machine.
  """
  if not image:
    raise DcjaxError(
      'give --image=REGISTRY/NAME:TAG; launch/Dockerfile makes it'
    )
  if gpu not in GPUS:
    raise DcjaxError(f'gpu is {gpu!r}; use {", ".join(GPUS)}')
  if count not in (1, 2, 4, 8):
    raise DcjaxError(f'gpus is {count}; expected 1, 2, 4 or 8, of one machine')
  from xmanager import xm, xm_local

  program = xm.Packageable(
    executable_spec=xm.Container(image_path=image),
    executor_spec=xm_local.Vertex.Spec(),
  )
  requirements = xm.JobRequirements(**{gpu: count})
  return program, xm_local.Vertex(requirements=requirements)


async def _run(given: argparse.Namespace) -> None:
  """The experiment that the options say."""
  each = arguments(given.config, given.option, given.sweep, given.runs)
  local = given.executor == 'local'
  what = here() if local else vertex(given.image, given.gpu, given.gpus)
  from absl import flags
  from xmanager import xm_local

  # XManager has flags, of which none is given here.
  flags.FLAGS(['xm'])
  async with xm_local.create_experiment(experiment_title='dcjax') as experiment:
    await launch(experiment, *what, each, together=not local)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The options of a command line.

  Raises:
    DcjaxError: there is no such option, or value of it.
  """
  parser = argparse.ArgumentParser(
    prog='python -m launch.xm', allow_abbrev=False, exit_on_error=False
  )
  parser.add_argument('--config', help='config file of the job')
  parser.add_argument(
    '--sweep',
    action='append',
    default=[],
    help='KEY=VALUE,VALUE; they multiply',
  )
  parser.add_argument(
    '--option', action='append', default=[], help='KEY=VALUE of all points'
  )
  parser.add_argument('--runs', default='runs/sweep', help='folder of the runs')
  parser.add_argument(
    '--executor', default='local', choices=('local', 'vertex')
  )
  parser.add_argument('--image', default='', help='of launch/Dockerfile')
  parser.add_argument('--gpu', default='h100', help='kind, on Vertex AI')
  parser.add_argument('--gpus', default=8, type=int, help='of one machine')
  try:
    given, unknown = parser.parse_known_args(argv)
  except argparse.ArgumentError as error:
    raise DcjaxError(str(error)) from error
  if unknown:
    raise DcjaxError(f'{unknown[0]} is not an option; see --help')
  return given


def main(argv: Sequence[str]) -> int:
  """Runs the sweep; the exit code."""
  try:
    asyncio.run(_run(parse(argv)))
  except DcjaxError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except ModuleNotFoundError as error:
    if error.name != 'xmanager':
      raise
    print(
      'error: pip install -e ".[xmanager]" brings XManager', file=sys.stderr
    )
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
