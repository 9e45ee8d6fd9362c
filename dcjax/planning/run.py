"""The `plan` task: what a personalisation will need, before anything is loaded.

The job's own config file gives its programs (`programs`), which are traced or
compiled for the device (`forecast`); nothing of the base is read but headers,
and published bases need not be here at all. If something does not fit, settings
with which it does are found by trying them (`advice`).
"""

import ast
from collections.abc import Sequence
import dataclasses
import json
import math
from pathlib import Path
import runpy
from typing import Any

from ml_collections import ConfigDict

from dcjax import machine, start, tree
from dcjax.errors import DcjaxError
from dcjax.planning import advice, devices, programs
from dcjax.planning import text as plan_text
from dcjax.planning.devices import Device
from dcjax.planning.forecast import Forecaster
from dcjax.weights.outline import outline


def run(config: ConfigDict, workdir: str) -> None:
  """Prints the forecast and writes it to plan.json."""
  options = config.plan
  device = devices.find(options.device)
  forecaster = Forecaster(device, options.memory)
  job = load_job(options.job, options.options)
  found = plan(job, forecaster)
  found = {'job': options.job, 'options': list(options.options)} | found
  print(plan_text.render(found))
  path = Path(workdir) / 'plan.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(found, indent=2) + '\n')


def load_job(place: str, options: Sequence[str] = ()) -> ConfigDict:
  """The config of a job.

  Args:
    place: path of its config file, with an optional :variant.
    options: 'key=value', as --config.key=value of the job.

  Raises:
    DcjaxError: there is no such job or option, or it is no personalisation.
  """
  path, _, variant = place.partition(':')
  if not Path(path).is_file():
    raise DcjaxError(
      f'config.plan.job is {place!r}, and there is no file {path}; give one '
      'such as configs/set_seq.py:wan_1_3b'
    )
  try:
    config = runpy.run_path(path)['get_config'](variant)
  except DcjaxError:
    raise
  except Exception as error:  # of a file that is no config
    raise DcjaxError(f'{path} is not a config: {error!r}') from error
  task = getattr(config, 'task', None)
  if task != 'personalize':
    raise DcjaxError(
      f'{place} is a job of task {task!r}; only personalize can be planned'
    )
  for option in options:
    _set_option(config, option)
  return config


def _set_option(config: ConfigDict, option: str) -> None:
  key, equals, text = option.partition('=')
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    value = text
  config.lock()
  try:
    if not equals:
      raise KeyError('expected key=value')
    config.update_from_flattened_dict({key: value})
  except (KeyError, TypeError, AttributeError) as error:
    raise DcjaxError(
      f'config.plan.options holds {option!r}, which is no option of the job: '
      f'{" ".join(str(error).split())[:120]}'
    ) from error


def plan(config: ConfigDict, forecaster: Forecaster) -> dict[str, Any]:
  """The forecast of a job on a device, ready for JSON; sizes in bytes.

  Raises:
    DcjaxError: for what the job itself would refuse.
  """
  device = forecaster.device
  planned = _outline(config, device)
  with machine.programs_for(device.platform):
    rows = [_row(program, forecaster) for program in programs.programs(planned)]
  peak = max(row['total'] for row in rows)
  found = {
    'base': planned.base.name,
    'device': dataclasses.asdict(device) | {'usable': device.usable},
    'note': forecaster.note,
    'format': dataclasses.asdict(planned.base.format),
    'parameters': _parameters(planned),
    'programs': rows,
    'peak': peak,
    'fits': peak <= device.usable,
    'hours': sum(row['seconds'] * row['runs'] for row in rows) / 3600.0,
  }
  if not found['fits']:
    found['advice'] = dataclasses.asdict(_advice(config, found, forecaster))
  return found


def _outline(config: ConfigDict, device: Device) -> programs.Run:
  with machine.programs_for(device.platform):
    dtype = start.base_dtype(config)
    return programs.outline(outline(config.base, dtype=dtype), config)


def _row(program: programs.Program, forecaster: Forecaster) -> dict[str, Any]:
  memory, work = forecaster.memory(program), program.work
  rate = forecaster.device.rate
  return {
    'name': program.name,
    'what': program.what,
    **dataclasses.asdict(memory),
    'total': memory.total,
    'model_flops': work.model if work else None,
    'executed_flops': work.executed if work else None,
    'seconds': work.executed / rate if work else 0.0,
    'runs': program.runs,
  }


def _parameters(planned: programs.Run) -> dict[str, Any]:
  """How many parameters there are, and how many each stage trains."""
  parts = {part: _count(leaves) for part, leaves in planned.base.params.items()}
  trained = {
    stage.name: _count(tree.partition(planned.params, stage.train)[0])
    for stage in planned.stages
  }
  return parts | {'trained': trained}


def _count(leaves: tree.Tree) -> int:
  return sum(math.prod(x.shape) for x in tree.flatten(leaves).values())


def _advice(
  config: ConfigDict, found: dict[str, Any], forecaster: Forecaster
) -> advice.Advice:
  """Settings with which all programs fit, by counting."""
  usable = forecaster.device.usable
  large = [row['name'] for row in found['programs'] if row['total'] > usable]

  def peak(changed, names):
    planned = _outline(changed, forecaster.device)
    with machine.programs_for(forecaster.device.platform):
      found = programs.programs(planned, names)
      return max(forecaster.count(program).total for program in found)

  size = found['format']
  format = (size['frames'], size['height'], size['width'])
  return advice.find(config, format, large, peak, usable)
