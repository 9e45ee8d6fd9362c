"""What the compiled optimizer step promises, whatever XLA makes of it.

Compiled for eight CPU devices, and for TPUs that are not here.
"""

import contextlib
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
import tiny

from dcjax import lora, machine, mesh, objective, optim, sharding, tree
from dcjax import state as state_lib
from dcjax import step as step_lib
from dcjax.models import attention, attention_gpu
from dcjax.models.dit import DiT
from dcjax.planning import collectives, forecast, topology
from dcjax.stage import Optimizer, Stage

# No two products have one shape: 120 tokens, 256 wide, 5 words of 16.
DIT = dataclasses.replace(tiny.DIT, width=256, heads=4, mlp_width=320)
TOKENS = 120
LORA = Stage('set', 'flow', 'clip', r'lora/(a1|b1)', steps=3, batch=8)
ALL = dataclasses.replace(LORA, name='all', train='kernel$')
RANK = 8


@functools.cache
def shapes(layers):
  """Of the transformer, its kernels in bfloat16."""
  frozen = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    tiny.dit_shapes(dataclasses.replace(DIT, layers=layers)),
  )
  attach = lambda x: lora.attach(
    x, r'attn/[qo]/|mlp/up', RANK, jax.random.key(0)
  )
  return {'transformer': jax.eval_shape(attach, frozen)}


def arguments(params, stage):
  """(state, frozen, batch, context, key) as shapes that lie on the mesh."""
  trainable, frozen = tree.partition(params, stage.train)
  init = lambda x: state_lib.init(x, optim.make(Optimizer(), 3), ema=False)
  samples = {
    'latents': ((stage.batch, 2, 20, 12, DIT.channels), jnp.float32),
    'prompt': ((stage.batch,), jnp.int32),
    'sample': ((stage.batch,), jnp.int32),
  }
  context = {
    'features': ((2, 5, DIT.text_width), jnp.float32),
    'mask': ((2, 5), jnp.bool_),
    'slots': ((2, 5), jnp.int32),
  }
  struct = lambda items: {
    name: jax.ShapeDtypeStruct(*x) for name, x in items.items()
  }
  placed = lambda tree, rules: jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    tree,
    sharding.named(sharding.specs(tree, rules)),
  )
  on_rows = sharding.named(jax.sharding.PartitionSpec(mesh.ROWS))
  return (
    placed(jax.eval_shape(init, trainable), sharding.RULES),
    placed(frozen, sharding.RULES),
    {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_rows)
      for name, x in struct(samples).items()
    },
    placed(struct(context), ()),
    placed(jax.eval_shape(lambda: jax.random.key(0)), ()),
  )


def module(where, stage=LORA, remat='products', layers=2, **sizes):
  """The text of a compiled step; `where` is 'cpu' or a topology."""
  return compiled(where, stage, remat, layers, tuple(sizes.items()))


@functools.cache
def compiled(where, stage, remat, layers, sizes):
  if where == 'cpu':
    devices, platform = jax.devices(), 'cpu'
  else:
    found = topology.find(where)
    devices, why = topology.targets(found)
    platform = found.device.platform
    if devices is None:
      pytest.skip(why)
  params = shapes(layers)
  dit = dataclasses.replace(DIT, layers=layers)
  loss = objective.personalize(DiT(dit, jnp.bfloat16, remat), stage)
  run = step_lib.make_step(loss, optim.make(Optimizer(), 3), stage)
  sizes = dict(sizes)
  on = mesh.make(sizes, devices[: math.prod(sizes.values())])
  with mesh.use(on), machine.programs_for(platform), quickly(platform):
    traced = run.trace(*arguments(params, stage))
    lowered = traced.lower(lowering_platforms=(platform,))
    options = forecast.OPTIONS.get(platform)
    return lowered.compile(compiler_options=options).as_text()


@contextlib.contextmanager
def quickly(platform):
  """For CPUs, less optimized: three times as fast to compile."""
  option = 'jax_disable_most_optimizations'
  before = jax.config.read(option)
  jax.config.update(option, platform == 'cpu')
  yield
  jax.config.update(option, before)


def moved(text, **sizes):
  return collectives.read(text, {x: sizes.get(x, 1) for x in mesh.AXES})


def products(text):
  """Shapes of what products make, without axes of 1."""
  found = re.findall(r'= \w+\[([\d,]+)\]\S* (?:dot|convolution)\(', text)
  sizes = ((int(n) for n in shape.split(',')) for shape in found)
  return {tuple(n for n in shape if n > 1) for shape in sizes}


def kernels(stage=LORA, layers=2):
  """{name: shape} of a layer's frozen kernels."""
  _, frozen = tree.partition(shapes(layers), stage.train)
  return {
    name: x.shape[1:]
    for name, x in tree.flatten(frozen).items()
    if re.search('blocks/.*kernel$', name)
  }


def weight_shaped(text):
  """Shapes of kernels, either way round, that products of a module make."""
  shapes = set(kernels().values())
  return products(text) & (shapes | {x[::-1] for x in shapes})


# ---- frozen kernels ----------------------------------------------------------


def test_frozen_kernels_have_no_gradient():
  assert (TOKENS, DIT.width) in {
    x[-2:] for x in products(module('cpu', data=8))
  }
  assert not weight_shaped(module('cpu', data=8))


@pytest.mark.slow
def test_trained_kernels_have_one():
  """Or the reader of the test above sees nothing."""
  found = weight_shaped(module('cpu', stage=ALL, data=8))
  assert found == {(256, 256), (256, 320), (320, 256)}


@pytest.mark.slow
def test_depth_costs_no_program():
  """A deeper model turns its loop more often."""
  shallow, deep = (len(module('cpu', data=8, layers=n)) for n in (2, 6))
  assert deep == pytest.approx(shallow, rel=0.02)


# ---- what devices say to each other ------------------------------------------


def test_a_lora_is_all_that_data_parallelism_moves():
  """Its gradient in float32, once a step, and a few scalars."""
  found = moved(module('cpu', data=8), data=8)
  trained, _ = tree.partition(shapes(2), LORA.train)
  analytic = 4 * sum(x.size for x in jax.tree.leaves(trained))
  assert {(x.kind, x.dtype, x.count) for x in found} == {
    ('all-reduce', 'f32', 1)
  }
  assert analytic <= sum(x.total for x in found) <= 1.05 * analytic


# Four chips: samples and kernels over two of them, tokens over two.
TPU = dict(fsdp=2, context=2)
CASES = [
  ('v5e:2x2', TPU),
  pytest.param('v6e:2x2', TPU, marks=pytest.mark.slow),
  pytest.param('cpu', dict(data=2, context=4), marks=pytest.mark.slow),
]


@pytest.mark.parametrize('where, sizes', CASES)
def test_tokens_are_exchanged_and_never_gathered(where, sizes):
  """Ulysses: 4 all-to-alls forward and 4 backward an attention."""
  found = moved(module(where, **sizes), **sizes)
  exchanges = [x for x in found if x.kind == 'all-to-all']
  # Over 'fsdp' goes what is made once a sample, and nothing else: see below.
  assert {x.axes for x in exchanges} <= {('context',), ('fsdp',)}
  exchanges = [x for x in exchanges if x.axes == ('context',)]
  assert sum(x.count for x in exchanges) == 8 * DIT.layers
  # All that a device has: its samples, its tokens, every head.
  rows = LORA.batch // sizes.get('fsdp', sizes.get('data'))
  tokens = rows * TOKENS // sizes['context'] * DIT.width
  # CPUs exchange in float32.
  number = 4 if where == 'cpu' else 2
  assert {x.bytes for x in exchanges} == {number * tokens}
  # Beside them goes what is summed over tokens: of a LoRA, of the text.
  for x in found:
    assert x.shape[-2:] not in {
      (tokens, DIT.width) for tokens in (TOKENS, TOKENS // sizes['context'])
    }
    if x.kind == 'all-gather' and 'context' in x.axes:
      assert x.bytes < TOKENS * DIT.width * 2, x


@pytest.mark.parametrize('where, sizes', CASES[:2])
def test_a_frozen_base_is_gathered_twice_and_never_reduced(where, sizes):
  """Once forward and once backward, in its own dtype."""
  found = moved(module(where, **sizes), **sizes)
  frozen = kernels()
  base = 2 * DIT.layers * sum(math.prod(x) for x in frozen.values())
  in_loops = [x for x in found if x.count % DIT.layers == 0]
  gathered = [x for x in in_loops if x.kind == 'all-gather']
  assert {x.dtype for x in gathered} == {'bf16'}
  assert base < sum(x.total for x in gathered) <= 2 * base
  reduced = [x for x in found if x.kind in ('reduce-scatter', 'all-reduce')]
  sizes = {math.prod(x) for x in frozen.values()}
  assert not [x for x in reduced if math.prod(x.shape) in sizes]


@pytest.mark.parametrize('where, sizes', CASES[:2])
def test_a_chip_multiplies_while_it_gathers(where, sizes):
  found = moved(module(where, **sizes), **sizes)
  gathered = [x for x in found if x.kind == 'all-gather' and 'fsdp' in x.axes]
  hidden = sum(x.total for x in gathered if x.asynchronous)
  assert hidden > 0.5 * sum(x.total for x in gathered)


@pytest.mark.parametrize('where, sizes', CASES[:2])
def test_what_is_read_once_a_sample_stays_where_it_is(where, sizes):
  """The projection of the time is the largest kernel; what it makes is sent."""
  found = moved(module(where, **sizes), **sizes)
  kernel = shapes(2)['transformer']['time_modulation']['kernel'].shape
  largest = max(x.bytes for x in found if x.kind == 'all-gather')
  assert largest < 2 * math.prod(kernel)
  made = [x for x in found if x.kind == 'all-to-all' and x.axes == ('fsdp',)]
  assert {x.bytes for x in made} <= {4 * LORA.batch // 2 * kernel[1]}


@pytest.mark.slow
def test_remat_gathers_a_base_once_more():
  found = moved(module('v5e:2x2', remat='full', **TPU), **TPU)
  base = 2 * DIT.layers * sum(math.prod(x) for x in kernels().values())
  total = sum(
    x.total
    for x in found
    if x.kind == 'all-gather' and x.count % DIT.layers == 0
  )
  assert base < total <= 3 * base


# ---- attention ---------------------------------------------------------------


def sites(text, kind):
  """Where a splash kernel is called."""
  call = (
    rf'%splash_mha_{kind}\w*[.\d]* = .*custom_call_target="tpu_custom_call"'
  )
  return len(re.findall(call, text))


@pytest.mark.parametrize(
  'remat, forward',
  [
    ('products', 2),
    pytest.param('attention', 2, marks=pytest.mark.slow),
    pytest.param('full', 4, marks=pytest.mark.slow),
  ],
)
def test_flash_attention_runs_forward_once(remat, forward):
  """Of self- and of cross-attention; with 'full' again in the backward pass.

  No LoRA is in the keys and values of the text: they need no gradient.
  """
  text = module('v5e:2x2', remat=remat, **TPU)
  assert [sites(text, kind) for kind in ('fwd', 'dq', 'dkv')] == [forward, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize('remat, forward', [('products', 2), ('full', 4)])
def test_cudnn_runs_forward_once(monkeypatch, remat, forward):
  """Compiled for an H200 that is not here; needs the CUDA plugin."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  # These ask a GPU that is here.
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(cudnn, 'check_compute_capability', lambda _: True)
  monkeypatch.setattr(
    cudnn, 'is_cuda_compute_capability_equal', lambda x: x == '9.0'
  )
  monkeypatch.setattr(attention, '_has_cudnn', lambda: True)
  compiled.cache_clear()
  text = module('h200:1', remat=remat, data=1)
  compiled.cache_clear()
  calls = re.findall(r'custom_call_target="__cudnn\$(fmha\w+)"', text)
  backward = [x for x in calls if x.endswith('Backward')]
  assert (len(calls) - len(backward), len(backward)) == (forward, 2)


@pytest.mark.parametrize('window', [None, 30])
def test_cudnn_never_sees_a_window(monkeypatch, window):
  """It refuses a centred one, and a left one alone it computes wrongly."""
  seen = []

  def fused(q, k, v, mask, reach):
    seen.append(reach)
    return jnp.zeros_like(q)

  monkeypatch.setattr(attention, '_has_cudnn', lambda: True)
  monkeypatch.setattr(attention_gpu, 'attend', fused)
  dit = dataclasses.replace(DIT, window=window)
  model = DiT(dit, jnp.bfloat16)
  x, text = jnp.zeros((1, 2, 20, 12, 4)), jnp.zeros((1, 5, dit.text_width))
  with machine.programs_for('gpu'):
    jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1), text)
  # Cross-attention has no window and is always cuDNN's.
  keys = {reach.keys for reach in seen}
  assert keys == ({5} if window else {5, TOKENS})
  assert all(reach.window is None for reach in seen)
