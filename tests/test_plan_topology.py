"""Which chips can be planned for, and the mesh that a job gets on them."""

import types

import pytest

from dcjax import mesh, recipes
from dcjax.errors import DcjaxError
from dcjax.planning import devices, layout, topology

ALONE = dict.fromkeys(mesh.AXES, 1)
GB = 1e9


def sizes(**changes):
  return ALONE | changes


# ---- chips -------------------------------------------------------------------


@pytest.mark.parametrize(
  'name, chips, slices, joined, units',
  [
    ('h100', 1, 1, 8, 1),
    ('h200:8', 8, 1, 8, 1),
    ('h100:16', 16, 1, 8, 2),
    ('v5e:4x8', 32, 1, 32, 1),
    ('v5p:4x4x4', 64, 1, 64, 1),
    ('v5p:8x8x16', 1024, 1, 1024, 1),
    ('v6e:16x16*4', 1024, 4, 256, 4),
  ],
)
def test_topologies(name, chips, slices, joined, units):
  found = topology.find(name)
  assert found.units == units
  assert (found.chips, found.slices, found.joined) == (chips, slices, joined)
  assert found.device.name == name.partition(':')[0]


@pytest.mark.parametrize(
  'name, line',
  [
    ('v6e:3x5', r"is 'v6e:3x5'; slices of v6e are 1x1, 2x2, .*16x16"),
    ('v5p:4x4', r'slices of v5p are 2x2x1'),
    ('v6e:4x4*0', r'several of them v6e:4x8\*2'),
    ('h200:0', r'expected a number of GPUs, such as h200:8'),
    ('h200:8x8', r'expected a number of GPUs'),
    ('h200:12', r'more than 8 GPUs are whole machines of 8'),
    ('h300:8', r"there is no chip 'h300', use one of h200"),
    ('h300', r"device is 'h300'; use local, cpu, h200"),
    ('cpu:8', r"there is no chip 'cpu'"),
  ],
)
def test_a_topology_that_is_none_is_one_line(name, line):
  with pytest.raises(DcjaxError, match=line) as error:
    topology.find(name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'kind, name',
  [
    ('TPU v6 lite', 'v6e'),
    ('TPU v6e', 'v6e'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'),
    ('NVIDIA A100-SXM4-80GB', 'a100-80'),
    ('NVIDIA H200', 'h200'),
    ('NVIDIA GeForce RTX 4090', 'rtx4090'),
    ('TPU v4', None),
    ('NVIDIA L4', None),
  ],
)
def test_an_accelerator_that_is_here_has_the_rates_of_its_kind(
  monkeypatch, kind, name
):
  here = types.SimpleNamespace(
    platform='tpu' if 'TPU' in kind else 'gpu',
    device_kind=kind,
    memory_stats=lambda: {'bytes_limit': 92},
  )
  monkeypatch.setattr(devices.jax, 'default_backend', lambda: here.platform)
  monkeypatch.setattr(devices.jax, 'devices', lambda: [here])
  found = devices.find('local')
  assert (found.memory, found.usable) == (100, 92)
  if name is None:
    assert found.title.startswith(f'{kind}, which is unknown: at the rates of')
  else:
    assert (found.peak, found.link, found.title) == (
      devices.DEVICES[name].peak,
      devices.DEVICES[name].link,
      kind,
    )


# ---- meshes ------------------------------------------------------------------


def job(batch=8, accumulate=8, **changes):
  c = recipes.personalize('paper')
  c.sequence.update(dict(batch=batch, accumulate=accumulate))
  c['set'].update(dict(batch=batch))
  c.update_from_flattened_dict(changes)
  return c


def chosen(name, takes, config=None, heads=32):
  """The mesh for a job that takes `takes(sizes)` GB a chip."""
  return layout.choose(
    config or job(),
    topology.find(name),
    heads,
    lambda _, sizes: {'sequence': int(takes(sizes) * GB)},
  )


def test_a_base_that_fits_is_repeated():
  found = chosen('h100:8', lambda _: 50.0)
  assert found.sizes == sizes(data=8)
  assert 'every chip holds the whole base' in found.why
  assert found.options == {'mesh.data': 8}


def test_a_base_that_does_not_fit_is_split_as_little_as_it_can():
  # 40 GB of base and 10 of everything else, on chips of 31.6 GB.
  found = chosen('v6e:2x4', lambda s: 40.0 / s['fsdp'] + 10.0)
  assert found.sizes == sizes(data=4, fsdp=2)
  assert 'fsdp=2, as sequence takes 50.0 GB with less' in found.why


def test_tokens_are_split_where_a_sample_does_not_fit():
  takes = lambda s: 30.0 / s['fsdp'] + 50.0 / s['context']
  found = chosen('v6e:2x4', takes)
  assert found.sizes == sizes(fsdp=2, context=4)
  assert 'context=4, as one sample does not fit' in found.why


def test_what_fits_on_no_mesh_gets_the_nearest():
  found = chosen('v6e:2x4', lambda s: 300.0 / s['fsdp'] + 50.0)
  assert found.sizes == sizes(fsdp=8)
  assert 'the nearest: it takes 87.5 GB of 31.6' in found.why


def test_tokens_are_split_where_samples_are_too_few():
  found = chosen('v5p:4x4x4', lambda _: 50.0)
  assert found.sizes == sizes(data=8, context=8)
  assert 'batches of 8 are too few for 64 chips' in found.why


def test_only_samples_go_between_machines():
  found = chosen('h100:16', lambda s: 400.0 / s['fsdp'], job(batch=64))
  assert found.sizes == sizes(data=2, fsdp=8)
  # Of 24 chips in 3 machines, 12 heads would have 3 share out tokens.
  with pytest.raises(DcjaxError, match='of 8 cannot.* a multiple of 6 samples'):
    chosen('h200:24', lambda _: 1.0, heads=12)
  found = chosen('h200:24', lambda _: 1.0, job(batch=6), heads=12)
  assert found.sizes == sizes(data=6, context=4)


@pytest.mark.parametrize(
  'name, asked, line',
  [
    ('v5e:2x2*2', {'mesh.fsdp': 8}, 'a multiple of 2, the slices of v5e'),
    ('h200:16', {'mesh.fsdp': 16}, 'a multiple of 2, the machines of h200:16'),
    ('h200:24', {'mesh.context': 3}, 'data is 8; expected a multiple of 3'),
  ],
)
def test_nor_does_a_mesh_that_is_asked_for(name, asked, line):
  with pytest.raises(DcjaxError, match=line):
    layout.of_job(job(**asked), topology.find(name))


def test_batches_for_too_many_chips_are_one_line():
  with pytest.raises(DcjaxError, match='batches of 8 cannot') as error:
    chosen('h100:256', lambda _: 1.0)
  assert 'a multiple of 32 samples' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_job_may_ask_for_a_mesh():
  chips = topology.find('v6e:4x4')
  assert not layout.is_asked(job())
  asked = job(**{'mesh.fsdp': 4, 'mesh.context': 2})
  assert layout.is_asked(asked)
  found = layout.of_job(asked, chips)
  assert found.sizes == sizes(data=2, fsdp=4, context=2)
  with pytest.raises(DcjaxError, match=r'v6e:4x4 has 16 chips'):
    layout.of_job(job(**{'mesh.fsdp': 3}), chips)
