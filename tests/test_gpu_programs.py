"""The steps of true bases as XLA compiles them for H200s that are not here.

Everything is of its true width and length; what several GPUs say to each other
is read from programs of two layers, as they do not grow with depth. Needs
jax-cuda13-plugin and jax-cuda13-pjrt, and no GPU:

  JAX_PLATFORMS=cpu python -m pytest -m slow tests/test_gpu_programs.py
"""

import dataclasses
import functools
import math
import re

import jax
import pytest

from dcjax import machine, mesh, tree
from dcjax.models import attention
from dcjax.planning import (
  collectives,
  forecast,
  programs,
  tasks,
  topology,
)
from dcjax.planning import run as plan
from dcjax.planning.forecast import Forecaster
from dcjax.weights import outline

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('as_users_compile', 'cudnn'),
]

ROOT = plan.Path(mesh.__file__).parents[1]
LAYERS = 2
PAPER, WAN = 'snap_dit_11b', 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'
JOBS = {PAPER: 'snap_dit_11b', WAN: 'wan_1_3b'}
# One clip a device and step: 9216 tokens of the paper, 14040 of Wan.
STEP = {'prior.videos': 0, 'sequence.accumulate': 1}


@pytest.fixture(scope='module')
def cudnn():
  """Compilers for H200s, and cuDNN as one has it."""
  devices, why = topology.targets(topology.find('h200:8'))
  if devices is None:
    pytest.skip(why)
  from jax._src.cudnn import fused_attention_stablehlo as checks

  with pytest.MonkeyPatch.context() as patch:
    # These ask a GPU that is here.
    patch.setattr(checks, 'check_cudnn_version', lambda: 91000)
    patch.setattr(checks, 'check_compute_capability', lambda _: True)
    patch.setattr(
      checks, 'is_cuda_compute_capability_equal', lambda x: x == '9.0'
    )
    patch.setattr(attention, '_has_cudnn', lambda: True)
    yield
    compiled.cache_clear()


def step(base, remat, layers=LAYERS, estimate=True, **sizes):
  """Stage *sequence* of a job on H200s: as a program, and compiled."""
  return compiled(base, remat, layers, estimate, tuple(sizes.items()))


@functools.cache
def compiled(base, remat, layers, estimate, sizes):
  sizes = dict.fromkeys(mesh.AXES, 1) | dict(sizes)
  chips = math.prod(sizes.values())
  config = plan.load_job(str(ROOT / f'configs/set_seq.py:{JOBS[base]}'))
  config.update_from_flattened_dict(STEP)
  config.sequence.batch, config.remat = chips, remat
  known = outline.KNOWN[base]
  shallow = dataclasses.replace(known.dit, layers=layers)
  if not estimate:
    shallow = dataclasses.replace(shallow, self_cond=None)
  with pytest.MonkeyPatch.context() as patch:
    thin = dataclasses.replace(known, dit=shallow)
    patch.setitem(outline.KNOWN, base, thin)
    with machine.programs_for('gpu'):
      run = tasks.outline(tasks.base_of(config), config)
      (program,) = programs.programs(run, ['sequence'], sizes)
  where = topology.find('h200' if chips == 1 else f'h200:{chips}')
  with machine.programs_for('gpu'):
    lowered = Forecaster(where, 'compile')._lower(program)
  found = lowered.compile(compiler_options=forecast.OPTIONS['gpu'])
  return run, program, found, Forecaster(where, 'count').count(program)


def moved(found, **sizes):
  sizes = dict.fromkeys(mesh.AXES, 1) | sizes
  return collectives.read(found.as_text(), sizes)


def kernels(run):
  """{name: shape} of the kernels of the frozen transformer's blocks."""
  names = tree.flatten(run.base.params['transformer'])
  return {n: x for n, x in names.items() if re.search('blocks/.*kernel$', n)}


def gradient(run):
  """Bytes of what is trained, in float32."""
  (stage,) = [x for x in run.stages if x.name == 'sequence']
  trained, _ = tree.partition(run.params, stage.train)
  return 4 * sum(x.size for x in jax.tree.leaves(trained))


def nbytes(leaves):
  return sum(x.size * x.dtype.itemsize for x in leaves)


def shapes(run):
  """Of kernels: of a layer and of all, and as one of eight devices has them."""
  found = set()
  for x in kernels(run).values():
    layer = x.shape[1:]
    found |= {tuple(sorted(layer)), tuple(sorted((layer[0] // 8, layer[1])))}
    found.add(tuple(sorted((layer[0], layer[1] // 8))))
  return found


def is_kernel(shape, run):
  """Whether an array is a kernel, one of several layers, or a share of one."""
  return tuple(sorted(n for n in shape if n > 1)[-2:]) in shapes(run)


# ---- what eight GPUs say to each other ---------------------------------------


@pytest.mark.parametrize('base', JOBS)
def test_a_repeated_base_moves_the_gradient_alone(base):
  """One sum of what is trained in float32, and a few scalars."""
  run, _, found, _ = step(base, 'products', data=8)
  said = moved(found, data=8)
  analytic = gradient(run)
  assert {x.kind for x in said} == {'all-reduce'}
  large = [x for x in said if x.bytes > 0.01 * analytic]
  assert {(x.dtype, x.count) for x in large} == {('f32', 1)}
  assert analytic <= sum(x.total for x in said) <= 1.05 * analytic


# Reads of the base: forward and backward; what 'full' computes again; and the
# pass that gives the model its own estimate.
READS = [
  (WAN, 'products', True, 2.0),
  (WAN, 'full', True, 3.0),
  (PAPER, 'products', False, 2.0),
  (PAPER, 'full', False, 3.0),
  (PAPER, 'products', True, 3.0),
]


@pytest.mark.parametrize('base, remat, estimate, reads', READS)
def test_a_split_base_is_gathered_as_often_as_it_is_read(
  base, remat, estimate, reads
):
  run, _, found, _ = step(base, remat, estimate=estimate, fsdp=8)
  said = moved(found, fsdp=8)
  whole = nbytes(tree.flatten(run.base.params['transformer']).values())
  gathered = [x for x in said if x.kind == 'all-gather']
  # In the dtype of the base, also what is multiplied in float32.
  layers = [x for x in gathered if x.count >= LAYERS]
  assert {x.dtype for x in layers if is_kernel(x.shape, run)} == {'bf16'}
  total = sum(x.total for x in gathered)
  blocks = nbytes(kernels(run).values())
  assert 0.9 * (reads - 1) * blocks < total <= reads * whole
  # Its gradient is not made: what is summed is that of the LoRA.
  summed = [x for x in said if x.kind in ('reduce-scatter', 'all-reduce')]
  assert not [x for x in summed if is_kernel(x.shape, run)]
  assert {x.kind for x in summed} == {'all-reduce'}
  assert sum(x.total for x in summed) <= 1.05 * gradient(run)


# ---- what one GPU does -------------------------------------------------------


def sites(found):
  """(forward, backward) calls of cuDNN's attention in a program."""
  calls = re.findall(
    r'custom_call_target="__cudnn\$(fmha\w+)"', found.as_text()
  )
  backward = sum(x.endswith('Backward') for x in calls)
  return len(calls) - backward, backward


@pytest.mark.parametrize(
  'remat, forward', [('attention', 2), ('products', 2), ('full', 4)]
)
def test_attention_of_wan_runs_forward_once(remat, forward):
  """Of the video and of the text; with 'full' again in the backward pass."""
  _, _, found, _ = step(WAN, remat, data=1)
  assert sites(found) == (forward, 2)


@pytest.mark.parametrize('base', JOBS)
def test_depth_costs_no_program(base):
  """XLA fuses a little otherwise; a layer more is no text more."""
  shallow, deep = (
    len(step(base, 'products', layers=n, data=1)[2].as_text())
    for n in (LAYERS, outline.KNOWN[base].dit.layers)
  )
  assert deep == pytest.approx(shallow, rel=0.15)


# What is counted beside the arguments of a step of the true depth, in parts of
# what XLA allocates. Where little is kept, what one layer takes at its peak
# weighs more, and of that a count cannot know what XLA fuses away.
COUNTED = {
  (PAPER, 'full'): (0.95, 1.4),
  (PAPER, 'products'): (0.95, 1.1),
  (WAN, 'products'): (0.95, 1.1),
  (WAN, 'attention'): (0.95, 1.1),
}


@pytest.mark.parametrize('base, remat', COUNTED)
def test_a_count_is_near_what_xla_allocates(base, remat):
  depth = outline.KNOWN[base].dit.layers
  _, program, found, counted = step(base, remat, layers=depth, data=1)
  memory = found.memory_analysis()
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  beside = memory.temp_size_in_bytes + results
  assert memory.argument_size_in_bytes == pytest.approx(program.held, rel=0.01)
  low, high = COUNTED[base, remat]
  assert low <= counted.beside / beside <= high
