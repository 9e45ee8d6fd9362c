"""The `plan` task: what a job will need, before anything is loaded.

The job's own config file gives its programs (`tasks`, `programs`), which are
laid out over the chips (`layout`) and compiled for them, or counted
(`forecast`); nothing of the base is read but headers, and published bases need
not be here at all. If something does not fit, settings with which it does are
found by trying them (`advice`).
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
import runpy
from typing import Any

from ml_collections import ConfigDict

from dcjax import machine, recipes, tree
from dcjax.errors import DcjaxError
from dcjax.planning import advice, forecast, layout, programs, step_time, tasks
from dcjax.planning import text as plan_text
from dcjax.planning import topology as topology_lib
from dcjax.planning.forecast import Forecaster, Memory
from dcjax.planning.layout import Layout
from dcjax.planning.program import Program, shard_bytes

MESHES = ('auto', 'job')


def run(config: ConfigDict, workdir: str) -> None:
  """Prints the forecast and writes it to plan.json."""
  options = config.plan
  topology = topology_lib.find(options.topology or options.device)
  forecaster = Forecaster(topology, options.memory)
  job = load_job(options.job, options.options)
  found = plan(job, forecaster, mesh=options.mesh)
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
    DcjaxError: there is no such job or option, or its task is not planned.
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
  tasks.check(getattr(config, 'task', None), place)
  if 'mesh' not in config:
    config.mesh = recipes.mesh()
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


def plan(
  config: ConfigDict, forecaster: Forecaster, *, mesh: str = 'auto'
) -> dict[str, Any]:
  """The forecast of a job on a topology, ready for JSON; bytes of one chip.

  Args:
    config: of the job.
    forecaster: for the topology.
    mesh: 'auto' chooses a mesh unless the job asks for one; 'job' has its own.

  Raises:
    DcjaxError: for what the job itself would refuse.
  """
  if mesh not in MESHES:
    raise DcjaxError(f'config.plan.mesh is {mesh!r}; use {" or ".join(MESHES)}')
  topology = forecaster.topology
  device = topology.device
  planned = _outline(config, forecaster)
  laid = _layout(config, forecaster, mesh, planned.base.dit.heads)
  config = layout.with_options(config, laid.options)
  planned = _outline(config, forecaster)
  with machine.programs_for(device.platform):
    made = programs.programs(planned, sizes=laid.sizes)
  memories = forecaster.memories(made)
  rows = [
    _row(program, memory, planned, forecaster)
    for program, memory in zip(made, memories, strict=True)
  ]
  peak = max(row['total'] for row in rows)
  found = {
    'base': planned.base.name,
    'topology': {
      'name': topology.name,
      'title': topology.title,
      'chips': topology.chips,
      'slices': topology.slices,
      'joined': topology.joined,
    },
    'device': dataclasses.asdict(device) | {'usable': device.usable},
    'mesh': dataclasses.asdict(laid),
    'note': forecaster.note,
    'format': dataclasses.asdict(planned.base.format),
    'parameters': _parameters(planned),
    'programs': rows,
    'peak': peak,
    'fits': peak <= device.usable,
    'hours': sum(row['seconds'] * row['runs'] for row in rows) / 3600.0,
  }
  if not found['fits']:
    advised = _advice(config, found, forecaster, laid)
    found['advice'] = dataclasses.asdict(advised)
  return found


def _outline(config: ConfigDict, forecaster: Forecaster) -> programs.Run:
  with machine.programs_for(forecaster.topology.device.platform):
    return tasks.outline(tasks.base_of(config), config)


def _layout(
  config: ConfigDict, forecaster: Forecaster, mesh: str, heads: int
) -> Layout:
  topology = forecaster.topology
  if mesh == 'job' or layout.is_asked(config):
    return layout.of_job(config, topology)
  return layout.choose(
    config,
    topology,
    heads,
    lambda changed, sizes: _peaks(changed, forecaster, sizes),
  )


def _peaks(
  config: ConfigDict,
  forecaster: Forecaster,
  sizes: dict[str, int],
  names: Sequence[str] = (),
) -> Mapping[str, int]:
  """{program: bytes on a chip}, by counting."""
  planned = _outline(config, forecaster)
  with machine.programs_for(forecaster.topology.device.platform):
    made = programs.programs(planned, names, sizes)
    return {x.name: forecaster.count(x).total for x in made}


def _row(
  program: Program,
  memory: Memory,
  planned: programs.Run,
  forecaster: Forecaster,
) -> dict[str, Any]:
  work = program.work
  said = forecast.said(program, memory, planned.base.dit)
  time = step_time.predict(program, forecaster.topology, said)
  return {
    'name': program.name,
    'what': program.what,
    **{
      key: getattr(memory, key)
      for key in ('arguments', 'beside', 'resident', 'how', 'total')
    },
    **_held(program),
    'model_flops': work.model if work else None,
    'executed_flops': work.executed if work else None,
    'time': dataclasses.asdict(time),
    'seconds': time.step,
    'efficiency': time.efficiency,
    'runs': program.runs,
    'collectives': [
      dataclasses.asdict(x) | {'total': x.total, 'wire': x.wire} for x in said
    ],
    'traffic': 'compiled' if memory.collectives is not None else 'expected',
  }


def _held(program: Program) -> dict[str, int]:
  """Bytes of parameters and of optimizer state among the arguments."""
  held = {'parameters': 0, 'optimizer': 0}
  for name, x, spec in program.leaves:
    if name.startswith('0/') and 'trainable' not in name and program.trains:
      part = 'optimizer'
    elif program.trains and name[:2] not in ('0/', '1/'):
      continue
    else:
      part = 'parameters'
    held[part] += shard_bytes(x, spec, program.mesh)
  return held


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
  config: ConfigDict,
  found: dict[str, Any],
  forecaster: Forecaster,
  laid: Layout,
) -> advice.Advice:
  """Settings with which all programs fit, by counting."""
  usable = forecaster.topology.device.usable
  totals = {row['name']: row['total'] for row in found['programs']}
  large = [name for name, total in totals.items() if total > usable]
  # What XLA was asked about may take more than a count knows of.
  counted = _peaks(config, forecaster, laid.sizes, large)
  scale = {name: max(totals[name] / counted[name], 1.0) for name in large}

  def peak(changed, names):
    sizes = laid.sizes
    if forecaster.topology.chips > 1:
      sizes = layout.of_job(changed, forecaster.topology).sizes
    found = _peaks(changed, forecaster, sizes, names)
    return int(max(scale[name] * found[name] for name in names))

  size = found['format']
  format = (size['frames'], size['height'], size['width'])
  units = forecaster.topology.units
  return advice.find(config, format, large, peak, usable, laid.sizes, units)
