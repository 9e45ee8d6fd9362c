"""The programs of a job on this machine: their time and memory, and the plan's.

  python benchmarks/step.py --job=configs/set_seq.py:wan_1_3b

Runs what a personalisation spends its time on (an optimizer step of each stage,
a sampling) in the true shapes: no weights are needed, and no video. Printed are
ratios to what `plan` said: of the rate to the stated peak of the device, and of
the memory to the forecast.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record

from dcjax import machine, start
from dcjax.planning import devices, programs
from dcjax.planning import run as plan
from dcjax.planning.forecast import PROCESS, Forecaster
from dcjax.weights.outline import outline

NAMES = ('sample', 'set', 'sequence')


def filled(shapes: Any) -> Any:
  """Arrays of some shapes, each of one number: time does not depend on it."""

  def fill(i, x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.key(i)
    value = 0.02 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype == bool
    return jax.device_put(np.full(x.shape, value, x.dtype))

  leaves, structure = jax.tree.flatten(shapes)
  return structure.unflatten([fill(i, x) for i, x in enumerate(leaves)])


def measure(program: programs.Program, steps: int) -> dict[str, float]:
  """Seconds of compiling and of a run, the median, and bytes at the peak."""
  arguments = filled(program.arguments)
  began = time.perf_counter()
  compiled = program.jitted.lower(*arguments).compile()
  spent, seconds = time.perf_counter() - began, []
  for _ in range(1 + steps):
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - began)
    if program.name != 'sample':  # the state is given away: the next takes it
      arguments = (result[0], *arguments[1:])
  stats = jax.devices()[0].memory_stats() or {}
  return {
    'compile': spent,
    'seconds': float(np.median(seconds[1:])),
    # The peak of the process so far: programs are measured small ones first.
    'memory': stats.get('peak_bytes_in_use', machine.peak_memory() * 1e9),
  }


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--job', default='configs/set_seq.py:wan_1_3b')
  parser.add_argument('--set', action='append', default=[], dest='options')
  parser.add_argument('--steps', type=int, default=3, help='that are timed')
  options = parser.parse_args()
  config = plan.load_job(options.job, options.options)
  device = devices.find('local')
  forecaster = Forecaster(device, 'count')
  base = outline(config.base, dtype=start.base_dtype(config))
  found = programs.programs(programs.outline(base, config), NAMES)
  rows = []
  print(f'{"":10}{"compile s":>10}{"s":>9}{"of peak":>9}{"GB":>8}{"ratio":>7}')
  for program in sorted(found, key=lambda p: forecaster.count(p).beside):
    memory = forecaster.count(program)
    row = measure(program, options.steps)
    # What would lie beside it in a run is not here.
    row['forecast'] = (
      memory.arguments + memory.beside + PROCESS[device.platform]
    )
    row['rate'] = program.work.executed / row['seconds']
    print(
      f'{program.name:10}{row["compile"]:10.1f}{row["seconds"]:9.3f}'
      f'{row["rate"] / device.peak:9.3f}{row["memory"] / 1e9:8.2f}'
      f'{row["memory"] / row["forecast"]:7.2f}  {program.what}'
    )
    rows.append({'name': program.name, 'what': program.what, **row})
  where = {'job': options.job, 'options': options.options, 'peak': device.peak}
  print(record.write('step', where | {'programs': rows}))


if __name__ == '__main__':
  record.run(main)
