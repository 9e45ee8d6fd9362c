"""Forecasts for several chips: memory of each, traffic and time."""

import importlib.util
import math
import types

import jax
import jax.numpy as jnp
import pytest
import tiny

from dcjax import machine, mesh, recipes, tree
from dcjax.errors import DcjaxError
from dcjax.models.dit_config import DiTConfig
from dcjax.planning import (
  advice,
  collectives,
  forecast,
  program,
  programs,
  step_time,
  tasks,
  topology,
  traffic,
)
from dcjax.planning import run as plan
from dcjax.planning import text as plan_text
from dcjax.planning.collectives import Collective
from dcjax.planning.forecast import Forecaster
from dcjax.weights.base import Base
from dcjax.weights.networks import expected_params

pytestmark = pytest.mark.usefixtures('as_users_compile')

ALONE = dict.fromkeys(mesh.AXES, 1)
ROOT = plan.Path(mesh.__file__).parents[1]


def sizes(**changes):
  return ALONE | changes


# ---- time --------------------------------------------------------------------


def bare(work, mesh_sizes, spread):
  passes = program.Passes(1, 16, 1)
  return program.Program(
    'step', '', None, (), (), 0, mesh_sizes, work, passes=passes, spread=spread
  )


def test_time_is_that_of_the_formula():
  chips = topology.find('h200:8')
  work = types.SimpleNamespace(executed=8 * chips.device.rate * 2.0)
  said = [
    # 370 GB/s: 7/8 of 370 GB take 0.875 s, of which 2 s of work hide all.
    Collective('all-gather', 'bf16', (), int(370e9), 8, ('fsdp',), 1, True),
    # Twice 7/8 of 37 GB: 0.175 s in which nothing else is done.
    Collective('all-reduce', 'f32', (), int(37e9), 8, ('fsdp',), 1, False),
  ]
  found = step_time.predict(bare(work, sizes(fsdp=8), 8), chips, said)
  assert found.compute == pytest.approx(2.0)
  assert found.hidden == pytest.approx(0.875)
  assert found.exposed == pytest.approx(0.175)
  assert found.step == pytest.approx(2.175)
  assert found.efficiency == pytest.approx(2.0 / 2.175)


def test_what_is_not_shared_out_takes_as_long_as_alone():
  chips = topology.find('h200:8')
  work = types.SimpleNamespace(executed=chips.device.rate)
  found = step_time.predict(bare(work, sizes(data=8), 1), chips, [])
  assert (found.step, found.efficiency) == (1.0, 0.125)


def test_far_devices_have_the_network():
  rate = lambda name, axes, **s: step_time.link(
    topology.find(name), sizes(**s), axes
  )
  assert rate('h200:16', ('fsdp',), data=2, fsdp=8) == 370e9
  assert rate('h200:16', ('data',), data=2, fsdp=8) == 50e9
  assert rate('h200:16', ('data', 'fsdp'), data=2, fsdp=8) == 50e9
  assert rate('v6e:16x16*4', ('data',), data=1024) == 12.5e9
  assert rate('v6e:16x16', ('data',), data=256) == 200e9


# ---- programs ----------------------------------------------------------------

SMALL = DiTConfig(
  width=256, layers=3, heads=4, mlp_width=768, channels=4, text_width=16
)


@pytest.fixture(scope='module')
def small():
  """A personalisation whose transformer is large beside its clips."""
  c = recipes.personalize('paper')
  c.base, c.remat, c.prior.videos = 'small', 'full', 0
  c.stages, c.sequence.batch, c.base_dtype = ('sequence',), 16, 'bfloat16'
  c.format.update(dict(frames=17, height=64, width=64))
  narrow = lambda x: jax.ShapeDtypeStruct(
    x.shape, jnp.bfloat16 if x.ndim >= 2 else x.dtype
  )
  params = expected_params(SMALL, tiny.VAE, tiny.TEXT)
  params = jax.tree.map(narrow, params)
  return tasks.outline(
    Base('small', SMALL, tiny.VAE, tiny.TEXT, None, params), c
  )


def step_on(run, **changes):
  with machine.programs_for('tpu'):
    (found,) = programs.programs(run, ['sequence'], sizes(**changes))
  return found


def kernels(found):
  """Bytes of all kernels that the rules split, on one chip."""
  return sum(
    program.shard_bytes(x, spec, found.mesh)
    for _, x, spec in found.leaves
    if any('fsdp' in str(entry) and 'data' not in str(entry) for entry in spec)
  )


def test_a_chip_holds_its_share_of_the_kernels(small):
  whole = step_on(small, data=2, fsdp=2)
  split = step_on(small, data=1, fsdp=4)
  assert kernels(split) == kernels(whole) // 2
  assert whole.held - split.held == kernels(split)


def test_a_chip_takes_its_share_of_the_batch(small):
  count = Forecaster(topology.find('v6e:4x4'), 'count').count
  one, four = (count(step_on(small, data=n)).beside for n in (1, 4))
  assert one > 3 * four
  assert count(step_on(small, data=4, context=2)).beside < 0.6 * four


def test_a_batch_that_is_not_shared_out_is_one_line(small):
  with pytest.raises(DcjaxError, match=r'sequence has batches of 16') as error:
    step_on(small, data=3)
  assert 'a multiple of 3' in str(error.value)


def test_repeated_bases_move_the_gradient_alone(small):
  (found,) = traffic.expected(step_on(small, data=4), SMALL)
  # Rank 8 of 8 layers of attention in 3 blocks, float32, and a word.
  assert found.bytes == 4 * (3 * 8 * 8 * 256 + SMALL.text_width)
  assert (found.kind, found.count, found.axes) == ('all-reduce', 1, ('data',))


@pytest.mark.parametrize(
  'context, tensor, times',
  # Of 4 heads: where 2 devices have the same ones, k and v go to both.
  [(2, 1, 4), (4, 1, 4), (8, 1, 6), (4, 2, 6), (2, 8, 4)],
)
def test_exchanges_before_and_after_attention(small, context, tensor, times):
  step = step_on(small, data=2, context=context, tensor=tensor)
  found = traffic.expected(step, SMALL)
  (exchange,) = [x for x in found if x.kind == 'all-to-all']
  # So many a block in the pass, in what is computed again, and backward.
  assert exchange.count == times * 3 * 3
  # 5 latent frames of 16 x 16, in patches of 2 x 2.
  tokens = 5 * 8 * 8 // context
  assert exchange.bytes == 8 * tokens * 256 * 2 // tensor


@pytest.mark.parametrize(
  'mesh_sizes, axes',
  [
    ({'data': 8}, ('data',)),
    ({'data': 4, 'fsdp': 2}, ('data',)),
    ({'data': 4, 'tensor': 2}, ('data',)),
    ({'data': 4, 'context': 2}, ('data', 'context')),
    ({'fsdp': 8}, ()),
  ],
  ids=str,
)
def test_gradients_of_split_leaves_are_summed_in_each_pass(mesh_sizes, axes):
  """As XLA was seen to do, to the byte."""
  c = plan.load_job(str(ROOT / 'configs/pretrain.py:tiny'))
  for name in advice._stages(c):
    c[name].mix = tuple((frames, 8) for frames, _ in c[name].mix)
  with machine.programs_for('tpu'):
    run = tasks.outline(tasks.base_of(c), c)
    name = run.stages[0].name
    (step,) = programs.programs(run, [name], sizes(**mesh_sizes))
  held = sum(
    program.shard_bytes(x, spec, step.mesh)
    for name, x, spec in step.leaves
    if traffic.is_trained(name) and any(spec)
  )
  found = [
    x
    for x in traffic.expected(step, run.base.dit)
    if x.kind == 'all-reduce' and x.count == step.passes.backward
  ]
  assert step.passes.backward == 2
  assert {x.axes for x in found} == ({axes} if axes else set())
  assert sum(x.total for x in found) == (2 * held if axes else 0)


@pytest.mark.parametrize(
  'config, variant',
  [
    ('set_seq', 'tiny'),
    ('lora', 'tiny'),
    ('alchemint', 'tiny'),
    ('pretrain', 'tiny'),
  ],
)
def test_every_task_has_its_steps_on_a_mesh(config, variant):
  c = plan.load_job(str(ROOT / f'configs/{config}.py:{variant}'))
  for name in advice._stages(c):
    c[name].update(
      {'mix': tuple((f, 2) for f, _ in c[name].mix)}
      if 'mix' in c[name]
      else {'batch': 2}
    )
  with machine.programs_for('tpu'):
    run = tasks.outline(tasks.base_of(c), c)
    names = [stage.name for stage in run.stages]
    made = programs.programs(run, [*names, 'sample'], sizes(data=2))
  assert [x.name for x in made if x.trains] == names
  for found in made:
    assert found.work.model > 0
    assert found.held > 0
    said = traffic.expected(found, run.base.dit)
    assert {x.kind for x in said} == ({'all-reduce'} if found.trains else set())
  if config in ('alchemint', 'pretrain'):
    # The objective takes what its batches are said to be; the others' are
    # compared with a run's, or traced, elsewhere.
    assert made[-1].alone.trace().jaxpr.jaxpr.eqns


# ---- the whole plan ----------------------------------------------------------


@pytest.fixture(scope='module')
def planned(small):
  """A plan of two chips, by counting; its base is patched in."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tasks, 'base_of', lambda _: small.base)
    forecaster = Forecaster(topology.find('h200:2'), 'count')
    return plan.plan(small.config, forecaster)


def test_a_plan_says_how_chips_are_laid_out(planned):
  assert planned['mesh']['sizes'] == sizes(data=2)
  text = plan_text.render(planned)
  assert '2 x NVIDIA H200' in text
  assert 'mesh data=2: every chip holds the whole base' in text
  assert '--config.mesh.data=2' in text
  for word in ('all-reduce', 'by arithmetic', 'exposed', 'efficiency'):
    assert word in text


def test_parts_of_memory_are_parts(planned):
  row = next(x for x in planned['programs'] if x['name'] == 'sequence')
  assert row['parameters'] + row['optimizer'] <= row['arguments']
  # Adam has two moments of each parameter that is trained.
  trained = planned['parameters']['trained']['sequence']
  assert row['optimizer'] == pytest.approx(2 * 4 * trained, rel=0.01)
  assert row['total'] == row['arguments'] + row['beside'] + row['resident']


def test_an_unknown_choice_of_mesh_is_one_line(small):
  forecaster = Forecaster(topology.find('h200:2'), 'count')
  with pytest.raises(DcjaxError, match=r"mesh is 'best'; use auto or job"):
    plan.plan(small.config, forecaster, mesh='best')


def test_what_xla_refuses_says_how_much_it_would_take():
  error = (
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
    'memory space hbm. Used 40.50G of 31.25G hbm. Exceeded hbm capacity by 9G.'
  )
  assert forecast._used(error) == int(40.5 * 2**30)
  assert forecast._used('INTERNAL: something else') == 0


# ---- compiled for TPUs that are not here -------------------------------------


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, which compiles for TPUs, is not installed: pip install '
  '"dcjax[tpu]"',
)
@pytest.mark.parametrize(
  'name, mesh_sizes',
  [
    ('v5e:2x2', {'data': 2, 'fsdp': 2}),
    ('v6e:4x4', {'data': 4, 'fsdp': 2, 'context': 2}),
  ],
  ids=['v5e-fsdp', 'v6e-context'],
)
def test_compiled_steps_say_what_was_expected(small, name, mesh_sizes):
  found = step_on(small, **mesh_sizes)
  memory = Forecaster(topology.find(name), 'compile').memory(found)
  assert memory.how == 'compiled'
  assert memory.arguments == pytest.approx(found.held, rel=0.2)
  said = collectives.gathered(memory.collectives)
  wire = lambda kind, rows: sum(x.wire for x in rows if x.kind == kind)
  expected = traffic.expected(found, SMALL)
  # Kernels of the frozen base are gathered, at most as often as they are read.
  gathered = wire('all-gather', said)
  assert 0.5 * gathered < wire('all-gather', expected)
  assert gathered < 1.05 * wire('all-gather', expected)
  # Their gradients are not made, and no device has all tokens of a batch.
  assert not wire('reduce-scatter', said)
  rows = 16 // found.mesh['data'] // found.mesh['fsdp']
  clip = rows * 5 * 8 * 8 * SMALL.width
  kernels = {
    x.shape[-2:]
    for n, x in tree.flatten(small.base.params['transformer']).items()
    if n.endswith('/kernel')
  }
  assert not [
    x
    for x in said
    if x.kind == 'all-gather'
    and math.prod(x.shape) >= clip
    and x.shape[-2:] not in kernels
  ]
  # What is trained is summed once, in float32.
  (total,) = [x for x in expected if x.kind == 'all-reduce']
  # Beside it are sums over 'context', of what text keys and values are to be.
  sums = [
    x
    for x in said
    if x.kind == 'all-reduce' and x.bytes >= total.bytes and 'data' in x.axes
  ]
  assert [x.dtype for x in sums] == ['f32']
  assert sums[0].total < 1.01 * total.total
  if found.mesh['context'] > 1:
    exchanged = wire('all-to-all', said)
    assert 0 < exchanged < 1.1 * wire('all-to-all', expected)
