"""A text encoder that stays on disk: read for new prompts, then forgotten."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import material, sampling, text_features
from dcjax.alchemint import dataset
from dcjax.data import prompts
from dcjax.personalization import Personalization
from dcjax.weights.base import load_base, save_base
from dcjax.weights.part import Part

PROMPTS = ['a red cat in the snow.', 'a blue dog.', '']


@pytest.fixture(scope='module')
def base():
  return tiny.base()


@pytest.fixture(scope='module')
def folder(base, tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'tiny'
  save_base(base, folder, dtype=jnp.float32)
  return folder


@pytest.fixture(autouse=True)
def features(tmp_path, monkeypatch):
  """The folder of features; every test has its own."""
  monkeypatch.setenv('DCJAX_CACHE', str(tmp_path))
  return tmp_path / 'text'


@pytest.fixture
def loads(monkeypatch):
  """Names of the parts that are read from here on."""
  found, load = [], Part.load

  def spy(part):
    found.append(part.name)
    return load(part)

  monkeypatch.setattr(Part, 'load', spy)
  return found


def lazy(folder):
  return load_base(folder, text_encoder=False, dtype=jnp.float32)


def encode(base, texts=PROMPTS):
  return sampling.encode_prompts(base, texts, {})


def test_features_are_those_of_an_encoder_in_memory(base, folder):
  want, mask = encode(base)
  got, same_mask = encode(lazy(folder))
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_array_equal(mask, same_mask)
  assert not np.any(np.asarray(got)[~np.asarray(mask)])


def test_the_encoder_is_read_once_and_never_again(folder, loads, features):
  base = lazy(folder)
  first, _ = encode(base)
  assert loads.count('text_encoder') == 1
  assert len(list(features.iterdir())) == len(PROMPTS)
  assert 'text_encoder' not in base.params
  loads.clear()
  again, _ = encode(lazy(folder), PROMPTS[::-1])
  np.testing.assert_array_equal(again, first[::-1])
  assert 'text_encoder' not in loads


def test_the_encoder_is_forgotten(folder, monkeypatch):
  leaves, load = [], Part.load

  def spy(part):
    params = load(part)
    leaves.extend(weakref.ref(x) for x in jax.tree.leaves(params))
    return params

  base = lazy(folder)
  monkeypatch.setattr(Part, 'load', spy)
  encode(base)
  assert leaves and not [x for x in leaves if x() is not None]


def test_prompts_that_are_remembered_need_no_encoder(folder, loads):
  base = lazy(folder)
  learnt = 'a [v] cat [u] jumps.'
  text_features.remember(base, [learnt, ''], {'v': 2, 'u': 1})
  loads.clear()
  tokens = {'v': jnp.ones((2, 16)), 'u': jnp.ones((1, 16))}
  sampling.encode_prompts(base, [learnt, ''], tokens)
  assert not loads


def test_a_dataset_reads_the_encoder_once(folder, loads, monkeypatch):
  monkeypatch.setattr(text_features, 'TOKENS', 1)
  rows = dataset.text_rows(lazy(folder), PROMPTS)
  assert list(rows) == PROMPTS and loads.count('text_encoder') == 1


def test_a_training_run_encodes_all_its_prompts_ahead(tmp_path, loads):
  base = lazy(tiny.base_folder(tmp_path / 'base'))
  config = tiny.recipe(tiny.clip(tmp_path / 'clip.mp4'), prior=0.5)
  config.prior.videos = 2
  job = Personalization(base, config, tmp_path / 'run')
  loads.clear()
  job._remember_prompts()
  assert loads == ['text_encoder']
  pairs = material.prior_prompts(base, config.prior.noun, 2, config.seed)
  job._context(material.Prior(pairs, None, None))
  texts = [job.appearance, job.full, '', *job.scenes.values()]
  tokens = {name: np.ones((1, 16)) for name in 'vu'}
  sampling.encode_prompts(base, texts, tokens)
  sampling.encode_prompts(base, [prompts.join(*pair) for pair in pairs], {})
  assert loads == ['text_encoder']


def test_a_video_is_the_same(base, folder, loads):
  options = dict(frames=1, steps=2)
  want = sampling.sample(base, PROMPTS[0], **options).astype(int)
  got = sampling.sample(lazy(folder), PROMPTS[0], **options).astype(int)
  assert np.abs(got - want).max() <= 1
  assert loads.count('text_encoder') == 1  # for the prompt and the empty one


def test_other_weights_have_other_features(base, folder, tmp_path, features):
  encode(lazy(folder))
  save_base(tiny.base(seed=1), tmp_path / 'other', dtype=jnp.float32)
  other, _ = encode(lazy(tmp_path / 'other'))
  want, _ = encode(tiny.base(seed=1))
  np.testing.assert_allclose(other, want, atol=1e-5)
  # And weights that were rounded are others.
  encode(load_base(folder, text_encoder=False))
  assert len(list(features.iterdir())) == 3 * len(PROMPTS)


def test_an_encoder_in_memory_leaves_nothing_on_disk(base, features):
  encode(base)
  text_features.remember(base, PROMPTS, {})
  assert not features.exists()


def test_many_prompts_take_turns_in_memory(base, monkeypatch):
  want, _ = encode(base, PROMPTS * 2)
  monkeypatch.setattr(text_features, 'TOKENS', 1)
  got, _ = encode(base, PROMPTS * 2)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_broken_file_is_made_again(folder, features, caplog):
  want, _ = encode(lazy(folder))
  for path in features.iterdir():
    path.write_bytes(path.read_bytes()[:-1])
  got, _ = encode(lazy(folder))
  np.testing.assert_array_equal(got, want)
  assert 'is broken' in caplog.text


def test_what_a_prompt_loses_is_shown(base, caplog):
  long = 'a red cat rolls in the snow. a blue dog jumps in the snow.'
  encode(base, [long])
  limit = base.format.text_length
  assert f'limit is {limit}; this was cut off:' in caplog.text
  assert caplog.text.rstrip().endswith(': jumps in the snow.')


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
  assert text_features.folder() == tmp_path / 'text'
  monkeypatch.delenv('DCJAX_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'x'))
  assert text_features.folder() == tmp_path / 'x' / 'dcjax' / 'text'
