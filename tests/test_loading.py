"""How a folder is read: what goes where, in which type, under which names."""

import dataclasses
import json
import shutil
import tracemalloc

from folders import (
  DIT_FILE,
  TEXT_FILE,
  change,
  equal,
  own_names,
  refused,
  shard,
)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import tree
from dcjax.weights import container, part
from dcjax.weights import original as original_names
from dcjax.weights.base import load_base, save_base


@pytest.fixture(scope='module')
def base():
  return tiny.base()


@pytest.fixture(scope='module')
def original(base, tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'tiny'
  save_base(base, folder, dtype=jnp.float32)
  return folder


@pytest.fixture
def folder(original, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(original, tmp_path / 'copy')


# ---- how it is read ---------------------------------------------------------


def test_headers_are_checked_before_numbers_are_read(folder, monkeypatch):
  change(folder / TEXT_FILE, lambda tensors: tensors.pop('shared.weight'))

  def read(*args):
    raise AssertionError('a tensor was read')

  monkeypatch.setattr(container.Stored, '__array__', read)
  refused(folder, '- shared.weight .missing.')


def test_large_matrices_may_be_loaded_in_bfloat16(original, base):
  half = load_base(original, dtype=jnp.bfloat16)
  wide = ('norm', 'bias', 'modulation', 'time_', 'vae/')
  for name, x in tree.flatten(half.params).items():
    narrow = not any(word in name for word in wide)
    assert x.dtype == (jnp.bfloat16 if narrow else jnp.float32), name
    exact = tree.flatten(base.params)[name].astype(x.dtype)
    np.testing.assert_array_equal(x, exact)
  # What was learnt on one machine can be used on another.
  assert half.fingerprint == base.fingerprint


def test_parts_may_stay_on_disk(original, base):
  nothing = load_base(original, weights=False)
  assert nothing.params == {}
  no_text = load_base(original, text_encoder=False)
  assert no_text.params.keys() == {'transformer', 'vae'}
  for left in (nothing, no_text):
    assert left.fingerprint == base.fingerprint
    assert equal(left.part('vae'), base.params['vae'])
  assert equal(
    load_base(original, text_encoder=False, dtype=jnp.float32).part(
      'text_encoder'
    ),
    base.params['text_encoder'],
  )


def test_leaves_go_where_they_are_told(original, base, monkeypatch):
  """To eight devices; every number is read once, also of replicated leaves."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ('x', 'y'))
  asked, read = {}, []

  def placement(name, shape):
    spec = ('x', 'y') if name.endswith('mlp/up/kernel') else ()
    spec = jax.sharding.PartitionSpec(*spec)
    asked[name] = (jax.sharding.NamedSharding(mesh, spec), shape)
    return asked[name][0]

  def read_leaf(*args):
    piece = READ_LEAF(*args)
    read.append(piece.size)
    return piece

  monkeypatch.setattr(part, 'read_leaf', read_leaf)
  spread = load_base(original, sharding=placement)
  assert equal(spread.params, base.params)
  leaves = tree.flatten(spread.params)
  assert asked.keys() == leaves.keys()
  for name, x in leaves.items():
    assert (x.sharding, x.shape) == asked[name]
  up = leaves['transformer/blocks/mlp/up/kernel']
  assert {x.data.shape for x in up.addressable_shards} == {(1, 6, 40)}
  assert sum(read) == sum(x.size for x in leaves.values())


READ_LEAF = part.read_leaf


@pytest.fixture(scope='module')
def wide_folder(tmp_path_factory):
  """A base of 30 MB in two shards."""
  dit = dataclasses.replace(tiny.DIT, width=256, layers=8, mlp_width=1024)
  folder = tmp_path_factory.mktemp('base') / 'wide'
  save_base(tiny.base(dit=dit), folder, dtype=jnp.float32)
  shard(folder / DIT_FILE, lambda weight_map: weight_map)
  return folder


def test_the_host_holds_one_leaf_beside_the_parameters(wide_folder):
  transformer = load_base(wide_folder, weights=False).on_disk['transformer']
  leaves = [x.size for x in tree.flatten(transformer.expected).values()]
  tracemalloc.start()
  params = transformer.load()
  now, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert sum(leaves) > 3 * max(leaves)
  assert peak - now < 1.2 * 4 * max(leaves)
  del params


# ---- fingerprints ------------------------------------------------------------


def test_a_fingerprint_sees_training_and_no_copying(wide_folder):
  base = load_base(wide_folder)
  wide = load_base(wide_folder, weights=False)
  assert base.fingerprint == wide.fingerprint
  large = 'transformer/blocks/mlp/up/kernel'

  def changed(function):
    flat = tree.flatten(base.params)
    flat[large] = function(np.array(flat[large]))
    return dataclasses.replace(base, params=tree.unflatten(flat)).fingerprint

  assert changed(lambda x: x) == base.fingerprint
  assert changed(lambda x: x * 1.02) != base.fingerprint
  assert changed(lambda x: np.roll(x, 1, axis=2)) != base.fingerprint
  # One layer of eight.
  layer = np.arange(8).reshape(8, 1, 1) == 3
  assert changed(lambda x: np.where(layer, 1.02 * x, x)) != base.fingerprint


# ---- the names of Wan's own code ---------------------------------------------


@pytest.mark.parametrize('prefix', original_names.PREFIXES)
def test_original_names_are_recognised(base, folder, prefix):
  change(folder / DIT_FILE, lambda tensors: own_names(tensors, prefix))
  back = load_base(folder)
  assert equal(back.params, base.params)
  assert back.fingerprint == base.fingerprint


def test_the_original_config_is_read(base, folder):
  change(folder / DIT_FILE, lambda tensors: own_names(tensors, ''))
  d = tiny.DIT
  config = {'_class_name': 'WanModel', '_diffusers_version': '0.30.0'}
  config |= {'dim': d.width, 'eps': d.eps, 'ffn_dim': d.mlp_width}
  config |= {'freq_dim': d.time_width, 'in_dim': d.channels}
  config |= {'num_heads': d.heads, 'num_layers': d.layers, 'text_dim': 16}
  config |= {'model_type': 't2v', 'out_dim': d.channels, 'text_len': 512}
  path = folder / 'transformer/config.json'
  path.write_text(json.dumps(config))
  assert load_base(folder).fingerprint == base.fingerprint
  for change_, says in (
    ({'model_type': 'i2v'}, "model_type is 'i2v'"),
    ({'num_heads': 7}, 'dim a multiple of num_heads'),
  ):
    path.write_text(json.dumps(config | change_))
    refused(folder, says)
  del config['dim']
  path.write_text(json.dumps(config))
  refused(folder, 'transformer/config.json: dim should be')


def test_original_tensors_that_do_not_fit_have_their_own_names(folder):
  def harm(tensors):
    own_names(tensors, 'model.diffusion_model.')
    del tensors['model.diffusion_model.head.head.bias']
    tensors['model.diffusion_model.img_emb.proj.0.weight'] = np.zeros(3)

  change(folder / DIT_FILE, harm)
  refused(
    folder,
    r'- model.diffusion_model.head.head.bias .missing.; '
    r'\+ model.diffusion_model.img_emb.proj.0.weight .not expected.',
  )
