"""Batches: right for each stage, each example once an epoch, exact resume."""

import collections
import itertools
import json
import sys

import jax
import numpy as np
import pytest

from dcjax import mesh
from dcjax.data import pipeline
from dcjax.errors import DcjaxError

SHAPE = (2, 3, 4)  # h w c


@pytest.fixture(params=['grain', 'plain'])
def backend(request, monkeypatch):
  if request.param == 'plain':
    monkeypatch.setitem(sys.modules, 'grain', None)
  else:
    pytest.importorskip('grain')


def numbered(count):
  """Latents whose every value is the number of their frame."""
  x = np.arange(count, dtype=np.float32)
  return np.broadcast_to(x[:, None, None, None], (count, *SHAPE))


def load(source, **options):
  return pipeline.loader(source, **({'seed': 0} | options))


def drawn(loader, steps):
  """The frames' numbers over some steps."""
  batches = itertools.islice(loader, steps)
  return [int(n) for x in batches for n in x['latents'][:, 0, 0, 0, 0]]


def test_set_is_unordered_images_with_nothing_else(backend):
  text = np.ones((5, 6), np.float32)
  source = pipeline.frames(numbered(17), text=text)
  batch = next(load(source, batch=8))
  assert batch.keys() == {'latents', 'text', 'sample'}
  assert batch['sample'].tolist() == list(range(8))  # of the batch, not of time
  assert batch['latents'].shape == (8, 1, *SHAPE)
  assert batch['text'].shape == (8, 5, 6)


def test_every_frame_comes_once_an_epoch_in_ever_new_order(backend):
  n, epochs = 16, 200
  order = drawn(load(pipeline.frames(numbered(n)), batch=8), n * epochs // 8)
  order = np.array(order).reshape(epochs, n)
  assert (np.sort(order, axis=1) == np.arange(n)).all()
  assert len({tuple(x) for x in order.tolist()}) == epochs
  # Uniform at every place: no frame has a time of its own.
  places = np.argsort(order, axis=1).mean(0)
  assert np.abs(places - (n - 1) / 2).max() < 1.5
  # And no trace of neighbours: |step| has its mean over random pairs, (n+1)/3.
  steps = np.abs(np.diff(order, axis=1)).mean()
  assert abs(steps - (n + 1) / 3) < 0.4


def test_sequence_is_the_same_clip_in_order(backend):
  clip = numbered(5)
  loader = load(pipeline.clips(clip), batch=4)
  for batch in itertools.islice(loader, 3):
    assert np.array_equal(
      batch['latents'], np.broadcast_to(clip, (4, *clip.shape))
    )


def test_union_of_concepts_keeps_each_text(backend):
  cat = pipeline.frames(numbered(3), text=np.zeros(2))
  dog = pipeline.frames(numbered(3) + 10, text=np.ones(2))
  for batch in itertools.islice(load(cat + dog, batch=6), 4):
    is_dog = batch['latents'][:, 0, 0, 0, 0] >= 10
    assert is_dog.sum() == 3
    assert np.array_equal(batch['text'][:, 0], is_dog.astype(float))


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_what_one_would_see(backend, processes):
  source = pipeline.frames(numbered(10))
  whole = load(source, batch=8)
  rows = np.split(np.arange(8), processes)
  parts = [load(source, batch=8, rows=list(r)) for r in rows]
  seen = collections.Counter()
  for _ in range(10):  # 80 examples, 8 epochs
    shards = [drawn(x, 1) for x in parts]
    assert all(len(x) == 8 // processes for x in shards)
    together = list(itertools.chain(*shards))
    assert together == drawn(whole, 1)
    seen.update(together)
  assert seen == dict.fromkeys(range(10), 8)


def test_one_clip_serves_many_processes(backend):
  source = pipeline.clips(numbered(5))
  batch = next(load(source, batch=8, rows=[3, 7]))
  assert batch['latents'].shape == (2, 5, *SHAPE)
  assert batch['sample'].tolist() == [3, 7]


def mixed(seed=0):
  concept = pipeline.frames(numbered(17), text=np.zeros((3, 2)))
  prior = pipeline.prior(
    [numbered(1) + i for i in range(5)],
    [{'text': np.full((3, 2), i)} for i in range(5)],
  )
  return pipeline.mix(
    load(concept, batch=4, seed=seed), load(prior, batch=4, seed=seed + 1)
  )


def test_mix_gives_one_of_each(backend):
  for batch in itertools.islice(mixed(), 5):
    assert batch.keys() == {'concept', 'prior'}
    number = batch['prior']['latents'][:, 0, 0, 0, 0]
    assert np.array_equal(batch['prior']['text'][:, 0, 0], number)
    assert (batch['concept']['text'] == 0).all()


def test_resume_is_exact(backend):
  first, again = mixed(), mixed()
  for _ in range(7):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  again.set_state(state)
  for a, b in itertools.islice(zip(first, again, strict=False), 9):
    for part, name in itertools.product(('concept', 'prior'), a['prior']):
      assert np.array_equal(a[part][name], b[part][name])


def test_state_moves_to_another_number_of_processes(backend):
  source = pipeline.frames(numbered(10))
  whole = load(source, batch=4)
  drawn(whole, 5)
  parts = [load(source, batch=4, rows=[p, p + 2]) for p in range(2)]
  for part in parts:
    part.set_state(whole.get_state())
  assert sorted(drawn(parts[0], 1) + drawn(parts[1], 1)) == sorted(
    drawn(whole, 1)
  )


def test_seed_is_the_order(backend):
  source = pipeline.frames(numbered(17))
  one, same, other = (
    drawn(load(source, batch=4, seed=s), 6) for s in (3, 3, 4)
  )
  assert one == same != other


def test_batches_are_the_same_without_grain(monkeypatch):
  pytest.importorskip('grain')
  source = pipeline.frames(numbered(17))
  part = {'batch': 6, 'rows': [1, 3, 5]}
  with_grain = drawn(load(source, **part), 12)
  monkeypatch.setitem(sys.modules, 'grain', None)
  assert drawn(load(source, **part), 12) == with_grain


def test_grain_datasets_are_sources():
  grain = pytest.importorskip('grain')
  source = grain.MapDataset.source(pipeline.frames(numbered(6))).map(
    lambda x: {'latents': x['latents'] + 100}
  )
  assert sorted(drawn(load(source, batch=3), 2)) == list(range(100, 106))


def on_two(source, **options):
  with mesh.use(mesh.make({'data': 2}, jax.devices()[:2])):
    return load(source, **options)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: pipeline.frames(np.zeros((3, 2, 2, 2, 2))), 'single images'),
    (lambda: pipeline.frames(np.zeros((0, 1, 2, 2, 2))), 'single images'),
    (lambda: pipeline.clips([]), 'none'),
    (lambda: pipeline.clips([numbered(3), numbered(5)]), 'one shape'),
    (lambda: pipeline.prior([numbered(3)], []), '1 prior samples and 0'),
    (lambda: load([], batch=2), 'no examples'),
    (lambda: load(pipeline.frames(numbered(3)), batch=0), 'batch'),
    (lambda: on_two(pipeline.frames(numbered(3)), batch=3), 'multiple of 2'),
  ],
)
def test_mistakes_are_one_line(make, words):
  with pytest.raises(DcjaxError, match=words) as caught:
    make()
  assert '\n' not in str(caught.value)
