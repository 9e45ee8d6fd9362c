"""Meshes, and where leaves and samples lie on them."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from dcjax import mesh, recipes, sampling, sharding, tree
from dcjax.errors import DcjaxError
from dcjax.weights.base import load_base, save_base


def on(**sizes):
  return mesh.use(mesh.make(sizes))


# ---- meshes ------------------------------------------------------------------


@pytest.mark.parametrize(
  'sizes, shape',
  [
    ({}, None),
    ({'data': 0}, (8, 1, 1, 1)),
    ({'data': 0, 'context': 4}, (2, 1, 1, 4)),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, (2, 2, 2, 1)),
  ],
)
def test_the_axes_make_up_the_devices(sizes, shape):
  if shape is None:
    sizes, shape = {'fsdp': 0}, (1, 8, 1, 1)
  found = mesh.make(sizes)
  assert found.devices.shape == shape
  assert found.axis_names == ('data', 'fsdp', 'tensor', 'context')


@pytest.mark.parametrize(
  'sizes, line',
  [
    ({'data': 3}, "'data': 3.*there are 8 devices"),
    ({'data': 0, 'fsdp': 0}, 'at most one axis is 0'),
    ({'data': 0, 'tensor': 3}, 'product of the axes'),
    ({'data': -1, 'tensor': -8}, 'product of the axes'),
    ({'model': 8}, "no axis 'model'; use data, fsdp, tensor, context"),
  ],
)
def test_impossible_meshes_are_one_line(sizes, line):
  with pytest.raises(DcjaxError, match=line):
    mesh.make(sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
  """Of two slices of four."""

  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v9'

  @property
  def slice_index(self):
    return self.id // 4

  @property
  def process_index(self):
    return self.id // 4

  @property
  def coords(self):
    return self.id % 2, self.id // 2 % 2, 0

  @property
  def core_on_chip(self):
    return 0


def test_only_samples_are_shared_out_over_slices():
  chips = [Chip(i) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
  found = mesh.make({'data': 4, 'tensor': 2}, chips)
  slices = np.vectorize(lambda x: x.slice_index)(found.devices)
  assert slices.squeeze().tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
  line = 'data is 1; expected a multiple of 2, the '
  with pytest.raises(DcjaxError, match=f'{line}slices'):
    mesh.make({'fsdp': 8}, chips)
  chips = [dataclasses.replace(x, platform='gpu') for x in chips]
  with pytest.raises(DcjaxError, match=f'{line}machines'):
    mesh.make({'fsdp': 8}, chips)


def job(batch=8, accumulate=1, **sizes):
  c = ConfigDict(dict(mesh=recipes.mesh()))
  c.mesh.update(sizes)
  c.stage = ConfigDict(dict(batch=batch, accumulate=accumulate, optimizer={}))
  return c


def test_a_processor_is_one_device_unless_a_mesh_is_asked_for():
  assert mesh.of_config(job()) is None
  assert mesh.of_config(ConfigDict()) is None
  assert mesh.of_config(job(context=2)).devices.shape == (4, 1, 1, 2)
  assert mesh.of_config(job(data=4)).devices.shape == (4, 1, 1, 1)
  assert mesh.of_config(job(data=1, fsdp=0)).devices.shape == (1, 8, 1, 1)
  assert mesh.of_config(job(data=4, context=0)).devices.shape == (4, 1, 1, 2)


@pytest.mark.parametrize(
  'wrong', [dict(fsdp=0), dict(fsdp=-1), dict(data=-1), dict(data=3, fsdp=0)]
)
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_a_mesh_of_a_job_that_is_none_is_one_line(monkeypatch, platform, wrong):
  chips = [Accelerator(platform)] * 8
  monkeypatch.setattr(mesh.jax, 'devices', lambda: chips)
  with pytest.raises(DcjaxError, match=r'8 devices; .* at most one axis is 0'):
    mesh.of_config(job(**wrong))


def test_only_batches_of_stages_that_run_are_to_be_shared_out():
  c = job(8, data=8)
  c.other = ConfigDict(dict(batch=7, optimizer={}))
  with pytest.raises(DcjaxError, match=r'other\.batch is 7; expected a multi'):
    mesh.of_config(c)
  c.stages = ('stage',)
  assert mesh.of_config(c).devices.shape == (8, 1, 1, 1)


@pytest.mark.parametrize(
  'count, batch, data', [(4, 6, 2), (4, 3, 1), (8, 7, 1), (8, 12, 4), (8, 8, 8)]
)
def test_of_a_tpu_all_chips_are_used_or_a_half_of_them(
  monkeypatch, count, batch, data
):
  chips = [Accelerator('tpu')] * count
  monkeypatch.setattr(mesh.jax, 'devices', lambda: chips)
  monkeypatch.setattr(mesh, 'make', made)
  found = mesh.of_config(job(batch))
  assert (found.shape['data'] if found else 1) == data
  with pytest.raises(DcjaxError, match=rf'3 of {count} TPUs; expected a div'):
    mesh.of_config(job(3, data=3))


@pytest.mark.parametrize(
  'batch, accumulate, sizes, shape',
  [
    (8, 1, {}, (8, 1, 1, 1)),
    (8, 4, {}, (8, 1, 1, 1)),
    (6, 1, {}, (6, 1, 1, 1)),
    (7, 1, {}, (7, 1, 1, 1)),
    (4, 1, {'fsdp': 2}, (2, 2, 1, 1)),
    (4, 1, {'tensor': 2}, (4, 1, 2, 1)),
  ],
)
def test_accelerators_are_used_as_far_as_they_divide_the_batch(
  monkeypatch, batch, accumulate, sizes, shape
):
  monkeypatch.setattr(mesh.jax, 'devices', lambda: [Accelerator()] * 8)
  monkeypatch.setattr(mesh, 'make', made)
  found = mesh.of_config(job(batch, accumulate, **sizes))
  assert tuple(found.shape[axis] for axis in mesh.AXES) == shape


def made(sizes, devices):
  """The shape of a mesh, of devices that are none."""
  sizes = {k: n or len(devices) for k, n in sizes.items()}
  return types.SimpleNamespace(shape=sizes)


def test_several_processes_use_all_devices_or_say_what_would(monkeypatch):
  monkeypatch.setattr(mesh.jax, 'devices', lambda: [Accelerator()] * 16)
  monkeypatch.setattr(mesh.jax, 'process_count', lambda: 4)
  monkeypatch.setattr(mesh, 'make', made)
  assert mesh.of_config(job(32)).shape['data'] == 16
  with pytest.raises(DcjaxError, match=r'stage.batch is 8; .*context=2 '):
    mesh.of_config(job(8))
  mixed = job(0)
  mixed.stage.mix = ((1, 32), (9, 24))
  with pytest.raises(DcjaxError, match=r'stage.mix is 24; .* of 16'):
    mesh.of_config(mixed)


@dataclasses.dataclass(frozen=True)
class Accelerator:
  platform: str = 'gpu'


# ---- leaves ------------------------------------------------------------------


def test_rules_are_read_from_the_right_and_the_first_one_counts():
  q, o = (
    'transformer/blocks/self_attn/q/kernel',
    'mu/transformer/mlp/down/kernel',
  )
  with on(fsdp=2, tensor=4):
    assert sharding.spec(q, (6, 64, 64)) == P(None, 'fsdp', 'tensor')
    assert sharding.spec(o, (96, 64)) == P('tensor', 'fsdp')
    lora = 'transformer/blocks/self_attn/q/lora/a1'
    assert sharding.spec(lora, (6, 64, 4)) == P(None, None, None)
    assert sharding.spec('vae/conv/kernel', (3, 3, 8, 8)) == P(*[None] * 4)
    # An axis that does not divide is left out; a bias has no room for two.
    assert sharding.spec(q, (6, 63, 64)) == P(None, None, 'tensor')
    rules = (('bias', ('fsdp', 'tensor')),)
    assert sharding.spec('bias', (64,), rules) == P('tensor')


@pytest.mark.parametrize(
  'rules, line',
  [
    ([('a', ())] * 11, '11 rules; expected at most 10'),
    (['kernel'], "has 'kernel'; expected pairs of a regular expression"),
    ([('a', None)], r"has \('a', None\); expected pairs"),
    (
      [('a', 'fsdp')],
      'expected pairs of a regular expression and different ax',
    ),
    ([(1, ('fsdp',))], 'expected pairs'),
    ([('a', ('fsdp',), 1)], 'expected pairs'),
    ([('a', ('fsdp', None, 'fsdp'))], 'and different axes'),
    ([('a', ('model',))], "asks for the axis 'model'; use data, fsdp"),
    ([('(', ('data',))], r"rules: '\('"),
  ],
)
def test_rules_that_are_none_are_one_line(rules, line):
  with pytest.raises(DcjaxError, match=line):
    sharding.check_rules(rules)


def test_a_base_is_read_where_it_is_to_lie(tmp_path):
  save_base(tiny.base(), tmp_path, dtype='float32')
  whole = load_base(tmp_path)
  with on(fsdp=4, tensor=2):
    parts = load_base(tmp_path, sharding=sharding.placement())
    kernel = parts.params['transformer']['blocks']['mlp']['up']['kernel']
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 6, 20)
    assert parts.fingerprint == whole.fingerprint
    assert tiny.equal(parts.params, whole.params)


def test_nothing_is_born_larger_than_its_part():
  make = lambda key: {'up': {'kernel': jax.random.normal(key, (16, 32))}}
  rules = (('kernel', ('fsdp', 'tensor')),)
  with on(fsdp=2, tensor=4):
    x = sharding.create(make, jax.random.key(0), rules=rules)['up']['kernel']
    assert x.sharding.shard_shape(x.shape) == (8, 8)
    np.testing.assert_array_equal(x, make(jax.random.key(0))['up']['kernel'])


# ---- samples -----------------------------------------------------------------


def test_a_batch_lies_in_rows():
  local = {'x': np.arange(24.0).reshape(8, 3)}
  with on(data=2, fsdp=2, context=2):
    found = sharding.batch(local)['x']
    assert found.sharding.shard_shape(found.shape) == (2, 3)
    np.testing.assert_array_equal(found, local['x'])
  assert sharding.batch(local) is local


def test_a_batch_that_cannot_be_shared_out_is_one_line():
  with on(data=8), pytest.raises(DcjaxError, match='multiple of 8, the shares'):
    sharding.local_rows(4)


@functools.cache
def sampled():
  return videos(tiny.base())


def videos(base, count=2):
  prompts = ['a red cat in the snow', 'a blue dog jumps'][:count]
  return sampling.sample(base, prompts, seed=1, steps=2)


@pytest.mark.parametrize(
  'sizes', [dict(data=4, tensor=2), dict(data=2, fsdp=2, context=2)], ids=str
)
def test_sampling_on_a_mesh_makes_the_same_video(sizes):
  """Two prompts and their negative passes: four rows."""
  base = tiny.base()
  with on(**sizes):
    placed = dataclasses.replace(base, params=sharding.place(base.params))
    found = videos(placed)
  assert np.abs(found.astype(int) - sampled().astype(int)).max() <= 1
  assert np.abs(sampled().astype(int) - 127).max() > 5


def test_one_video_is_sampled_on_many_devices():
  base = tiny.base()
  with on(data=8):
    found = videos(base, 1)
  expected = sampled()[:1].astype(int)
  assert np.abs(found.astype(int) - expected).max() <= 1


def test_names_in_a_state_are_those_of_its_parameters():
  leaves = {'transformer': {'mlp': {'up': {'kernel': jnp.ones((8, 8))}}}}
  with on(fsdp=2, tensor=4):
    found = sharding.specs({'mu': leaves, 'count': jnp.zeros(())})
    # Also for a rule that says where a name begins.
    rules = (('^transformer/mlp', (None, 'fsdp')), ('^tokens/', ('tensor',)))
    state = {'trainable': leaves | {'tokens': {'v': jnp.ones((1, 8))}}}
    anchored = sharding.specs(state | {'mu': leaves}, rules)
  assert tree.flatten(found) == {
    'mu/transformer/mlp/up/kernel': P('fsdp', 'tensor'),
    'count': P(),
  }
  assert tree.flatten(anchored) == {
    'trainable/transformer/mlp/up/kernel': P(None, 'fsdp'),
    'trainable/tokens/v': P(None, 'tensor'),
    'mu/transformer/mlp/up/kernel': P(None, 'fsdp'),
  }
