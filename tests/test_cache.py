"""Cached results: never stale, never half, never trusted when altered."""

import dataclasses
import logging
import mmap

import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.data.cache import cached, content_hash
from dcjax.errors import DcjaxError

KEY = {'prompt': 'a cat', 'frames': np.arange(6, dtype=np.uint8)}


class Compute:
  """Counts how often it is asked."""

  def __init__(self):
    self.calls = 0

  def __call__(self):
    self.calls += 1
    rng = np.random.default_rng(0)
    return {
      'latents': rng.normal(size=(3, 4)).astype(np.float32),
      'turned': rng.normal(size=(5, 4)).T,
      'text': jnp.linspace(0, 1, 7, dtype=jnp.bfloat16),
      'mask': np.array([True, False]),
      'scale': np.float32(2.5),
      'none': np.zeros((0, 3), np.int32),
    }


def same(a, b):
  assert a.keys() == b.keys()
  for name, x in a.items():
    x, y = np.asarray(x), b[name]
    assert type(y) is np.ndarray
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert x.tobytes() == y.tobytes()


def test_second_call_reads_the_same(tmp_path):
  compute = Compute()
  first = cached(tmp_path / 'cache', KEY, compute)
  second = cached(tmp_path / 'cache', KEY, compute)
  assert compute.calls == 1
  same(Compute()(), first)
  same(first, second)


def test_what_is_kept_stays_on_disk_and_as_it_is(tmp_path):
  """Thousands of clips need not fit into memory; who writes has a copy."""

  def source(x):
    while isinstance(x, np.ndarray):
      x = x.base
    return x

  for _ in range(2):  # computed, then found
    found = cached(tmp_path, KEY, Compute())
    assert all(isinstance(source(x), mmap.mmap) for x in found.values())
    found['latents'][:] = 0
  same(Compute()(), cached(tmp_path, KEY, Compute()))


def test_any_change_of_the_key_computes_again(tmp_path):
  compute = Compute()
  frames = KEY['frames'].copy()
  frames[3] += 1
  for key in (
    KEY,
    KEY | {'prompt': 'a dog'},
    KEY | {'frames': frames},
    KEY | {'frames': KEY['frames'].astype(np.int16)},
    KEY | {'frames': KEY['frames'].reshape(2, 3)},
    KEY | {'size': 1},
  ):
    cached(tmp_path, key, compute)
  assert compute.calls == 6


@pytest.mark.parametrize(
  'damage',
  [
    lambda x: x[: len(x) // 2],
    lambda x: x[:-1],
    lambda x: b'',
    lambda x: b'letters',
    lambda x: x[:-3] + bytes([x[-3] ^ 1]) + x[-2:],
    lambda x: x.replace(b'"mask"', b'"musk"'),
    lambda x: x.replace(b'content', b'connect'),
  ],
)
def test_damaged_file_is_computed_again(tmp_path, caplog, damage):
  compute = Compute()
  cached(tmp_path, KEY, compute)
  (file,) = tmp_path.iterdir()
  whole = file.read_bytes()
  file.write_bytes(damage(whole))
  assert file.read_bytes() != whole
  with caplog.at_level(logging.WARNING):
    same(Compute()(), cached(tmp_path, KEY, compute))
  assert compute.calls == 2 and 'broken' in caplog.text
  assert file.read_bytes() == whole


def test_file_of_another_key_is_not_trusted(tmp_path):
  compute = Compute()
  cached(tmp_path, KEY, compute)
  (file,) = tmp_path.iterdir()
  cached(tmp_path, 'other', lambda: {'x': np.ones(2)})
  (other,) = (x for x in tmp_path.iterdir() if x != file)
  file.write_bytes(other.read_bytes())
  same(Compute()(), cached(tmp_path, KEY, compute))


def test_full_disk_costs_only_the_file(tmp_path, caplog, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr('os.replace', full)
    same(Compute()(), cached(tmp_path, KEY, Compute()))
  assert 'No space left' in caplog.text
  assert not list(tmp_path.iterdir())


def test_hash_knows_types_apart():
  parts = [1, 1.0, True, '1', b'1', None, [1], {'1': 1}, np.array(1)]
  parts += [np.array([1]), np.array([1.0]), [[1]], {'number': '1'}]
  hashes = [content_hash(x) for x in parts]
  assert len(set(hashes)) == len(hashes)
  assert content_hash('ab', 'c') != content_hash('a', 'bc')
  assert content_hash(b'ab', b'c') != content_hash(b'a', b'bc')


def test_hash_is_of_content_only():
  x = np.arange(6.0).reshape(2, 3)
  assert content_hash({'a': 1, 'b': x}) == content_hash({'b': x, 'a': 1})
  assert content_hash(x.T) == content_hash(np.ascontiguousarray(x.T))
  assert content_hash(jnp.arange(3)) == content_hash(np.asarray(jnp.arange(3)))
  assert content_hash((1, 2)) == content_hash([1, 2])
  assert content_hash(np.float32(0.5)) == content_hash(0.5)
  # Fixed for ever: caches outlive versions.
  assert content_hash('a', 1).startswith('e993d694164f')


def test_hash_of_records():
  @dataclasses.dataclass
  class Config:
    width: int
    scale: np.ndarray

  one, two = Config(4, np.ones(2)), Config(4, np.zeros(2))
  assert content_hash(one) == content_hash(Config(4, np.ones(2)))
  assert content_hash(one) != content_hash(two)


def test_hash_of_files(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  a.write_bytes(b'x')
  b.write_bytes(b'x')
  assert content_hash(a) == content_hash(b) != content_hash(str(a))
  b.write_bytes(b'y')
  assert content_hash(a) != content_hash(b)
  before = content_hash(tmp_path)
  a.rename(tmp_path / 'c')
  assert content_hash(tmp_path) != before
  with pytest.raises(DcjaxError, match='cannot read'):
    content_hash(a)


def test_hash_refuses_what_it_cannot_see():
  for part in (object(), lambda: 0, np.array([object()])):
    with pytest.raises(TypeError):
      content_hash(part)
