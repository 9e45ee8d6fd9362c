"""The programs of a job on this machine: their time and memory, and the plan's.

  python benchmarks/step.py --job=configs/set_seq.py:wan_1_3b
  python benchmarks/step.py --job=configs/set_seq.py:snap_dit_11b \
    --set=prior.videos=0 --set=remat=products --only=sequence,sample

Runs what a personalisation spends its time on (an optimizer step of each stage,
a sampling) in the true shapes, on random weights that are made on the device:
no base is needed, and no video. Random ones, as products of constants take less
power and so less time. Of a sampling only a few steps of the sampler are done,
as its row says. Operations are those of `dcjax/planning/flops.py`.

Printed are ratios to what `plan` said: of the rate to the stated peak of the
device, and of the memory to the forecast. The file is written after each
program, so a run that is stopped has measured something.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
import record

from dcjax import machine, optim
from dcjax import state as state_lib
from dcjax.errors import DcjaxError
from dcjax.planning import programs, tasks, topology
from dcjax.planning import run as plan
from dcjax.planning.forecast import PROCESS, Forecaster
from dcjax.planning.program import Program

# Standard deviation of leaves that are no kernels, by the end of their names.
SMALL = ('bias', 'b1', 'b2', 'table', 'head_modulation')
WARM = 3


def drawn(shapes: Any, seed: int = 0) -> Any:
  """Random arrays of some shapes, made on the device, as a model may have them.

  Kernels keep the size of what they multiply and latents and features have the
  variance 1, so that no number of a step is lost or too large. All text is
  there, and all indices are 0.
  """
  named, structure = jax.tree_util.tree_flatten_with_path(shapes)
  leaves = []
  for i, (path, x) in enumerate(named):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    key = jax.random.key(seed * len(named) + i)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      leaves.append(key)
    elif jnp.issubdtype(x.dtype, jnp.floating):
      leaves.append(_normal(key, name.rpartition('/')[2], x))
    else:
      leaves.append(jnp.full(x.shape, x.dtype == bool, x.dtype))
  return structure.unflatten(leaves)


def _normal(key: jax.Array, name: str, x: jax.ShapeDtypeStruct) -> jax.Array:
  scale, mean = 1.0, 0.0
  if name in ('kernel', 'a1'):
    scale = x.shape[-2] ** -0.5
  elif name == 'scale':
    scale, mean = 0.1, 1.0
  elif name in SMALL:
    scale = 0.02
  return _draw(key, mean, scale, shape=x.shape, dtype=x.dtype)


@functools.partial(jax.jit, static_argnames=('shape', 'dtype'))
def _draw(key, mean, scale, *, shape, dtype):
  """A layer after the other: nothing but the leaf itself takes memory."""

  def one(key, shape):
    return (mean + scale * jax.random.normal(key, shape)).astype(dtype)

  if len(shape) < 3:
    return one(key, shape)
  keys = jax.random.split(key, shape[0])
  return jax.lax.map(lambda key: one(key, shape[1:]), keys)


def arguments(program: Program, planned: programs.Run) -> tuple[Any, ...]:
  """What the program is called with; the state of a stage is a new one."""
  if not program.trains:
    return drawn(program.arguments)
  (stage,) = [x for x in planned.stages if x.name == program.name]
  held, *others = program.arguments
  optimizer = optim.make(stage.optimizer, stage.steps)
  trainable = drawn(held.trainable, 1)
  state = state_lib.init(trainable, optimizer, ema=stage.ema > 0)
  return state, *drawn(tuple(others))


def chosen(programs: Sequence[Program], only: str) -> list[Program]:
  """The programs with operations that are named between commas; '': all.

  Raises:
    DcjaxError: there is no such program.
  """
  timed = {x.name: x for x in programs if x.work is not None}
  names = only.split(',') if only else timed
  unknown = [name for name in names if name not in timed]
  if unknown:
    raise DcjaxError(
      f'--only: the job has no program {unknown[0]!r}; use {", ".join(timed)}'
    )
  return [timed[name] for name in names]


def measure(
  program: Program, planned: programs.Run, options: argparse.Namespace
) -> dict[str, Any]:
  """Times in ms, of compiling in seconds, and bytes at the peak."""
  given = arguments(program, planned)
  began = time.perf_counter()
  compiled = program.jitted.lower(*given).compile()
  spent = time.perf_counter() - began
  found = compiled.memory_analysis()
  result = None

  def call():
    nonlocal given, result
    result = jax.block_until_ready(compiled(*given))
    if program.trains:  # the state is given away: the next run takes the new
      given = (result[0], *given[1:])

  seconds = record.runs(
    call, warm=WARM, most=options.steps, budget=options.seconds
  )
  # That the numbers were alive: null in the file if they were not finite.
  seen = result[1]['loss'] if program.trains else jnp.std(result)
  stats = jax.devices()[0].memory_stats() or {}
  return {
    'compile': spent,
    **record.spread(seconds),
    # The peak of the process so far: programs are measured small ones first.
    'memory': stats.get('peak_bytes_in_use', machine.peak_memory() * 1e9),
    'compiled': found.argument_size_in_bytes
    + found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes,
    'loss' if program.trains else 'deviation': float(seen),
    'hlo': hashlib.sha256(compiled.as_text().encode()).hexdigest()[:12],
  }


def rates(
  program: Program, row: dict[str, Any], planned: programs.Run
) -> dict[str, Any]:
  """What follows from the time of a run: operations and tokens a second."""
  seconds = row['ms'] / 1e3
  found = {
    'model_tflops': program.work.model / seconds / 1e12,
    'executed_tflops': program.work.executed / seconds / 1e12,
  }
  if not program.trains:
    steps = program.passes.forward
    videos = len(jax.tree.leaves(program.arguments[1])[0])
    return found | {
      'sampler_steps': steps,
      'videos': videos,
      'seconds_a_sampler_step_and_video': seconds / steps / videos,
    }
  (stage,) = [x for x in planned.stages if x.name == program.name]
  tokens = sum(n * each for n, each in planned.parts(stage))
  return found | {'tokens': tokens, 'tokens_a_second': tokens / seconds}


def settings(planned: programs.Run) -> dict[str, Any]:
  """What a time is to be read with."""
  base, transformer = planned.base, planned.base.params['transformer']
  return {
    'base': base.name,
    'parameters': sum(x.size for x in jax.tree.leaves(transformer)),
    'dtype': transformer['blocks']['mlp']['up']['kernel'].dtype.name,
    'remat': planned.config.remat,
    'window': base.dit.window,
    'self_conditioning': base.dit.self_cond,
    'format': dataclasses.asdict(base.format),
  }


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  add = parser.add_argument
  add('--job', default='configs/set_seq.py:wan_1_3b')
  add('--set', action='append', default=[], dest='options', help='key=value')
  add('--only', default='', help='programs, between commas; all by default')
  add('--steps', type=int, default=20, help='runs that are timed, at most')
  add('--seconds', type=float, default=60.0, help='for them; two are timed')
  add(
    '--sampler-steps', type=int, default=2, help="of a sampling; 0: the job's"
  )
  add('--name', default='step', help='first in the name of the file')
  add('--folder', type=Path, default=record.RESULTS, help='for the file')
  options = parser.parse_args()
  config = plan.load_job(options.job, options.options)
  # Of a storyboard all steps are done.
  whole = config.sample.steps if 'sample' in config else None
  if whole is not None and options.sampler_steps:
    config.sample.steps = options.sampler_steps
  here = topology.find('local')
  forecaster, device = Forecaster(here, 'count'), here.device
  planned = tasks.outline(tasks.base_of(config), config)
  found = chosen(programs.programs(planned), options.only)
  counted = {x.name: forecaster.count(x) for x in found}
  where = {
    'job': options.job,
    'options': options.options,
    'settings': settings(planned),
    'peak': device.peak,
    'sampler_steps_of_the_job': planned.base.format.steps
    if whole == 0
    else whole,
  }
  rows = []
  print(f'{"":10}{"compile s":>10}{"s":>9}{"of peak":>9}{"GB":>8}{"ratio":>7}')
  for program in sorted(found, key=lambda x: counted[x.name].beside):
    row = measure(program, planned, options)
    memory = counted[program.name]
    # What would lie beside it in a run is not here.
    row['forecast'] = (
      memory.arguments + memory.beside + PROCESS[device.platform]
    )
    row |= rates(program, row, planned)
    print(
      f'{program.name:10}{row["compile"]:10.1f}{row["ms"] / 1e3:9.3f}'
      f'{1e12 * row["executed_tflops"] / device.peak:9.3f}'
      f'{row["memory"] / 1e9:8.2f}'
      f'{row["memory"] / row["forecast"]:7.2f}  {program.what}',
      flush=True,
    )
    rows.append({'name': program.name, 'what': program.what, **row})
    path = record.write(
      options.name, where | {'programs': rows}, options.folder
    )
  print(path)


if __name__ == '__main__':
  record.run(main)
