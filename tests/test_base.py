"""Base folders: written and read alike, and nothing wrong gets through."""

import json
import pickle
import shutil
import struct

from folders import DIT_FILE, TEXT_FILE, change, equal, refused, shard
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
import tiny

from dcjax import tree
from dcjax.errors import DcjaxError
from dcjax.weights.base import load_base, save_base
from dcjax.weights.networks import init_params


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


# ---- what is well formed ---------------------------------------------------


def test_load_undoes_save(base, original):
  back = load_base(original)
  assert equal(back.params, base.params)
  for field in ('name', 'dit', 'vae', 'text', 'format', 'shift', 'fingerprint'):
    assert getattr(back, field) == getattr(base, field), field
  prompt = 'a red cat jumps in the snow.'
  ids = [b.tokenizer(prompt)['input_ids'] for b in (back, base)]
  assert ids[0] == ids[1]
  assert back.tokenizer.unk_token_id not in ids[0]


def test_bfloat16_is_stored_and_float32_is_worked_with(base, tmp_path):
  save_base(base, tmp_path / 'half')
  stored = load_file(tmp_path / 'half' / DIT_FILE)
  assert {x.dtype for x in stored.values()} == {jnp.dtype(jnp.bfloat16)}
  back = tree.flatten(load_base(tmp_path / 'half').params)
  for name, x in tree.flatten(base.params).items():
    assert back[name].dtype == np.float32
    rounded = np.asarray(x, jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(back[name], rounded)


def test_shards_are_put_together(base, folder):
  for file in (DIT_FILE, TEXT_FILE):
    shard(folder / file, lambda weight_map: weight_map)
  assert equal(load_base(folder).params, base.params)


def test_what_is_saved_over_shards_is_what_is_loaded(base, folder):
  for file in (DIT_FILE, TEXT_FILE):
    shard(folder / file, lambda weight_map: weight_map)
  other = tiny.base(seed=1)
  save_base(other, folder, dtype=jnp.float32)
  assert equal(load_base(folder).params, other.params)
  names = sorted(x.name for x in (folder / DIT_FILE).parent.iterdir())
  assert names == ['config.json', 'diffusion_pytorch_model.safetensors']


def test_both_names_of_the_tied_embedding_are_read(base, folder):
  def copy(tensors):
    tensors['encoder.embed_tokens.weight'] = tensors['shared.weight'].copy()

  change(folder / TEXT_FILE, copy)
  assert equal(load_base(folder).params, base.params)
  change(folder / TEXT_FILE, lambda tensors: tensors.pop('shared.weight'))
  assert equal(load_base(folder).params, base.params)


def test_fingerprint_follows_weights_and_shapes_not_names(base, folder):
  assert tiny.base(name='other').fingerprint == base.fingerprint
  assert tiny.base(seed=1).fingerprint != base.fingerprint

  def touch(tensors):
    tensors['proj_out.bias'][0] += 1.0

  change(folder / DIT_FILE, touch)
  assert load_base(folder).fingerprint != base.fingerprint


def test_fresh_parameters_have_the_same_tree(base):
  fresh = jax.eval_shape(
    lambda key: init_params(tiny.DIT, tiny.VAE, tiny.TEXT, key),
    jax.random.key(0),
  )
  assert tiny.shapes(base.params) == tiny.shapes(fresh)


def test_sizes_that_cannot_be_made(base):
  assert base.latent_shape(5, 16, 24) == (2, 4, 6, 4)
  assert base.latent_shape(1, 8, 8) == (1, 2, 2, 4)
  sizes = [(4, 16, 24), (0, 16, 24), (5, 12, 24), (5, 16, 20)]
  for size in (*sizes, (5, -16, 24), (5, 16, 0)):
    with pytest.raises(DcjaxError, match=r'1 \+ 4k frames.*multiples of 8'):
      base.latent_shape(*size)


def test_a_wan_folder_without_our_defaults(folder):
  (folder / 'dcjax.json').unlink()
  assert load_base(folder).format.frames == 81


# ---- what is not -----------------------------------------------------------


def test_a_single_file_is_no_base(folder):
  refused(folder / DIT_FILE, 'is one file, and a base has.*transformer folder')


def test_the_original_layout_is_refused_with_advice(tmp_path):
  for name in ('Wan2.1_VAE.pth', 'models_t5_umt5-xxl-enc-bf16.pth'):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
  refused(tmp_path, r'Wan2.1_VAE.pth.*refused.*-Diffusers')


@pytest.mark.parametrize(
  'changes',
  [
    {'transformer_2': ['diffusers', 'WanTransformer3DModel']},
    {'boundary_ratio': 0.875},
  ],
)
def test_one_of_two_experts_is_not_loaded_for_the_whole(folder, changes):
  path = folder / 'model_index.json'
  index = json.loads(path.read_text())
  path.write_text(json.dumps(index | changes))
  refused(folder, 'model_index.json .*two transformers.*give a base of one')


@pytest.mark.parametrize('index', [None, {}, {'transformer_2': [None, None]}])
def test_a_base_of_one_transformer_need_not_say_so(folder, index):
  path = folder / 'model_index.json'
  path.unlink()
  if index is not None:
    path.write_text(json.dumps(index))
  assert load_base(folder, weights=False).dit == tiny.DIT


HEADERS = {
  'a gap': ({'a': ('F32', [1], [4, 8])}, 8, 'a does not fill its place'),
  'an overlap': (
    {'a': ('F32', [2], [0, 8]), 'b': ('F32', [1], [4, 8])},
    8,
    'b does not fill its place',
  ),
  'a wrong size': ({'a': ('F32', [3], [0, 8])}, 8, 'a does not fill its place'),
  'numbers left over': ({'a': ('F32', [1], [0, 4])}, 8, 'its header says'),
  'too few numbers': ({'a': ('F32', [4], [0, 16])}, 8, 'its header says'),
  'a negative size': ({'a': ('F32', [-2], [0, 8])}, 8, 'no possible shape'),
  'a negative place': ({'a': ('F32', [2], [-8, 0])}, 8, 'no possible shape'),
  'no place': ({'a': ('F32', [2], None)}, 8, 'is not a whole'),
  'another type': (
    {'a': ('I64', [1], [0, 8])},
    8,
    'a is of type I64; expected',
  ),
}


@pytest.mark.parametrize('case', HEADERS)
def test_headers_that_lie(folder, case):
  entries, size, says = HEADERS[case]
  header = {
    key: {'dtype': dtype, 'shape': shape, 'data_offsets': place}
    for key, (dtype, shape, place) in entries.items()
  }
  text = json.dumps(header).encode()
  path = folder / DIT_FILE
  path.write_bytes(struct.pack('<Q', len(text)) + text + bytes(size))
  refused(folder, f'{path.name}.*{says}')


@pytest.mark.parametrize(
  'text',
  [
    *(b'{"a":1,"a":2}', b'[]', b'{"a":[]}', b'{"a":'),
    *(b'{"a":{}}', b'{"a":{"data_offsets":[]}}'),
    b'{"a":{"dtype":"F32","shape":[1]}}',
  ],
)
def test_headers_that_are_none(folder, text):
  path = folder / DIT_FILE
  path.write_bytes(struct.pack('<Q', len(text)) + text)
  refused(folder, 'is not a whole safetensors file')
  path.write_bytes(struct.pack('<Q', 2**60) + text)
  refused(folder, 'length of its header')


def test_no_folder(tmp_path):
  refused(tmp_path / 'gone', 'no base model at .*gone; give "world", a folder')


@pytest.mark.parametrize(
  'file',
  ['transformer/config.json', 'vae/config.json', 'text_encoder/config.json']
  + ['scheduler/scheduler_config.json', 'tokenizer/tokenizer.json'],
)
def test_a_missing_file_is_named(folder, file):
  (folder / file).unlink()
  refused(folder, f'{file} is missing|copy/tokenizer is not a tokenizer')


@pytest.mark.parametrize(
  'file',
  ['transformer/config.json', 'vae/config.json', 'text_encoder/config.json']
  + ['scheduler/scheduler_config.json', 'dcjax.json', 'model.index'],
)
@pytest.mark.parametrize('text', ['{"a": 1,', '[1, 2]', ''])
def test_bad_json_is_named(folder, file, text):
  if file == 'model.index':
    path = shard(folder / TEXT_FILE, lambda weight_map: weight_map)
  else:
    path = folder / file
  path.write_text(text)
  refused(folder, f'{path.name}')


@pytest.mark.parametrize('key', ['num_layers', 'text_dim', 'patch_size'])
def test_an_incomplete_config_is_named(folder, key):
  path = folder / 'transformer/config.json'
  config = json.loads(path.read_text())
  del config[key]
  path.write_text(json.dumps(config))
  refused(folder, f'transformer/config.json.*{key}')


def test_tensors_that_do_not_fit_are_listed(folder):
  def harm(tensors):
    del tensors['proj_out.bias']
    tensors['proj_in.bias'] = np.zeros(3)
    name = 'blocks.1.attn1.to_q.weight'
    tensors[name] = tensors[name][:, :-1].copy()

  change(folder / DIT_FILE, harm)
  with pytest.raises(DcjaxError) as error:
    load_base(folder)
  message = str(error.value)
  for line in (
    '- proj_out.bias (missing)',
    '+ proj_in.bias (not expected)',
    '~ blocks.1.attn1.to_q.weight is (24, 23), expected (24, 24)',
  ):
    assert line in message
  assert str(folder / 'transformer') in message and '\n' not in message


class Bomb:
  def __reduce__(self):
    return (print, ('unpickled',))


@pytest.mark.parametrize('suffix', ['bin', 'pt', 'ckpt', 'pth'])
def test_pickles_are_refused_unopened(folder, suffix, capsys):
  path = folder / DIT_FILE
  path.unlink()
  pickled = path.with_suffix(f'.{suffix}')
  pickled.write_bytes(pickle.dumps(Bomb()))
  refused(folder, f'found {pickled.name}; pickled weights are refused')
  # Nor under another name.
  pickled.rename(path)
  refused(folder, 'is not a whole safetensors file')
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize('outside', ['../stolen.safetensors', '/etc/passwd'])
def test_an_index_stays_in_its_folder(folder, outside):
  shutil.copy(folder / DIT_FILE, folder / 'stolen.safetensors')
  shard(folder / DIT_FILE, lambda keys: dict.fromkeys(keys, outside))
  refused(folder, f'lie outside the folder: {outside}')


@pytest.mark.parametrize('name', ['gone.safetensors', '..', '', 7])
def test_shards_that_are_missing(folder, name):
  shard(folder / DIT_FILE, lambda keys: dict.fromkeys(keys, name))
  refused(folder, r'\.index\.json')


def test_a_shard_with_pickled_weights(folder):
  shard(folder / DIT_FILE, lambda keys: dict.fromkeys(keys, 'model.bin'))
  (folder / 'transformer/model.bin').write_bytes(pickle.dumps(Bomb()))
  refused(folder, 'model.bin')


@pytest.mark.parametrize('keep', [0, 7, 300, -1])
def test_truncated_files(folder, keep):
  path = folder / DIT_FILE
  path.write_bytes(path.read_bytes()[:keep])
  refused(folder, f'{path} is not a whole safetensors file')


def test_two_files_without_an_index(folder):
  path = folder / DIT_FILE
  shutil.copy(path, path.parent / 'other.safetensors')
  refused(folder, 'needs one .safetensors file or an index')


def test_a_tensor_in_two_shards(folder):
  index = shard(folder / DIT_FILE, lambda weight_map: weight_map)
  shards = sorted(set(json.loads(index.read_text())['weight_map'].values()))
  one, two = (index.parent / name for name in shards)
  extra = next(iter(load_file(one)))
  change(two, lambda t: t.update({extra: load_file(one)[extra]}))
  refused(folder, f'{extra} is in more than one file')


@pytest.mark.parametrize('shift', ['three', None, 0])
def test_bad_shift(folder, shift):
  path = folder / 'scheduler/scheduler_config.json'
  path.write_text(json.dumps({'flow_shift': shift}))
  refused(folder, f'scheduler_config.json: the time shift is {shift!r}')


@pytest.mark.parametrize('value', [{'frames': 'many'}, {'frmaes': 17}])
def test_bad_defaults(folder, value):
  path = folder / 'dcjax.json'
  path.write_text(json.dumps({'name': 'tiny', 'format': value}))
  refused(folder, f'dcjax.json.*{next(iter(value))}')
