"""Videos of a benchmark's items, and the study that compares its rows."""

import json
from pathlib import Path
import runpy

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny

from dcjax.errors import DcjaxError
from dcjax.evals import items, making, s2vtime, scoring, study, world_items
from dcjax.models.reference_config import ReferenceConfig
from dcjax.weights import reference as reference_lib
from dcjax.weights.base import load_base

CONFIG = Path(__file__).parents[1] / 'configs' / 'study.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A tiny base on disk, with untrained references."""
  path = tmp_path_factory.mktemp('base')
  tiny.base_folder(path)
  base = load_base(path)
  rules = ReferenceConfig(tag_tokens=2)
  fresh = reference_lib.fresh(base, rules, jax.random.key(0))
  added = {
    'reference': fresh.params['transformer']['reference'],
    'blocks': {
      'timed_attn': fresh.params['transformer']['blocks']['timed_attn']
    },
  }
  reference_lib.save(path / 'reference', base, rules, added)
  return path


@pytest.fixture(scope='module')
def benchmark(tmp_path_factory):
  build = dict(
    source='world', count=3, seed=0, again=0, kinds=('one',), rendered=False
  )
  config = ConfigDict({'build': build | {'image_model': ''}})
  return s2vtime.build(config, tmp_path_factory.mktemp('items'))


@pytest.mark.parametrize('system', making.SYSTEMS)
def test_every_system_makes_every_item(tmp_path, folder, benchmark, system):
  base = load_base(folder)
  out = making.make(base, benchmark, tmp_path, system=system, batch=2, steps=1)
  names = {path.stem for path in out.glob('*.mp4')}
  assert names == {item.id for item in benchmark.items}
  # What is there is kept.
  path = out / f'{benchmark.items[0].id}.mp4'
  path.write_bytes(b'kept')
  making.make(base, benchmark, tmp_path, system=system, batch=2, steps=1)
  assert path.read_bytes() == b'kept'


def test_an_unknown_system_is_refused(tmp_path, folder, benchmark):
  with pytest.raises(DcjaxError, match='system is .*references, events, both'):
    making.make(load_base(folder), benchmark, tmp_path, system='guess')


@pytest.mark.parametrize(
  'start, end, phrase',
  [
    (0.0, 2.0, ''),
    (1.0, 2.0, ' the star appears late.'),
    (0.0, 1.0, ' the star leaves early.'),
    (0.5, 1.5, ' the star appears in the middle.'),
  ],
)
def test_phrases_are_those_that_the_world_knows(start, end, phrase):
  reference = items.Reference('star.png', 'star', start, end)
  item = items.Item('one', 'a star.', 2.0, (64, 64), 8.0, (reference,))
  assert making.phrased_prompt(item) == f'a star.{phrase}'


def test_what_the_picture_shows_is_said_to_who_sees_none():
  references = (
    items.Reference('a.png', 'small star', 0.0, 1.0, 'a red star'),
    items.Reference('b.png', 'large star', 1.0, 2.0, 'an orange star'),
  )
  prompt = 'a small star and a large star. the small star is still.'
  item = items.Item('one', prompt, 2.0, (64, 64), 8.0, references)
  assert making.described(item).prompt == (
    'a small red star and a large orange star. the small star is still.'
  )
  long = items.Reference(
    'a.png', 'dog', 0.0, 1.0, 'a brown animal on four legs'
  )
  item = items.Item('one', 'a dog.', 2.0, (64, 64), 8.0, (long,))
  assert making.described(item) == item


def test_a_group_shares_its_noise():
  """Its items differ in time alone; other items have noise of their own."""
  drawn = [x.item for x in world_items.make(16)]
  seeds = {}
  for item in drawn:
    seeds.setdefault(item.group or item.id, set()).add(
      making.noise_seed(item, 0)
    )
  assert all(len(x) == 1 for x in seeds.values())
  assert len(set.union(*seeds.values())) == len(seeds)


# ---- the study ---------------------------------------------------------------


def config(folder, rows):
  c = runpy.run_path(str(CONFIG))['get_config']('alchemint,tiny')
  c.training.base = str(folder)
  c.training.data.event_tokens = 6
  c.only = ','.join(rows)
  return c


def test_a_study_fills_its_table_and_goes_on(tmp_path, folder, monkeypatch):
  c = config(folder, ['no_tags', 'prompt', 'decoded'])
  study.run(c, str(tmp_path))
  text = (tmp_path / 'study.md').read_text()
  table, said, above = text.rstrip().split('\n\n')
  names = lambda x: [line.split('|')[1].strip() for line in x.splitlines()[2:]]
  assert names(table) == [
    *('always present', 'random interval'),
    *('no_tags', 'prompt', 'decoded'),
  ]
  assert said == 'Above no_tags, item by item:'
  assert names(above) == ['prompt', 'decoded']
  results = json.loads((tmp_path / 'study.json').read_text())['results']
  assert {x['seed'] for runs in results.values() for x in runs} == {0}
  written = json.loads(
    (
      tmp_path / 'no_tags_0' / 'training' / 'reference' / 'config.json'
    ).read_text()
  )
  assert written['references']['tag_tokens'] == 0

  def fail(*args, **kwargs):
    raise AssertionError('done before')

  monkeypatch.setattr(study, 'train', fail)
  monkeypatch.setattr(making, 'make', fail)
  study.run(c, str(tmp_path))
  assert (tmp_path / 'study.md').read_text() == text
  # What another run made there is in the table too.
  study.run(config(folder, ['decoded']), str(tmp_path))
  assert (tmp_path / 'study.md').read_text() == text


def test_a_row_may_use_the_training_of_another(tmp_path, folder, monkeypatch):
  trained, told = [], []

  def train(base, config, row, seed, folder, name):
    trained.append(name)
    return folder / name

  def make(*args, system, references, **options):
    told.append((system, references))
    raise StopIteration

  monkeypatch.setattr(study, 'train', train)
  monkeypatch.setattr(making, 'make', make)
  with pytest.raises(StopIteration):
    study.run(config(folder, ['events']), str(tmp_path))
  assert (trained, told) == (['werope'], [('events', tmp_path / 'werope')])


def test_an_unknown_row_is_refused(tmp_path, folder):
  with pytest.raises(DcjaxError, match="'werop'; the rows are decoded"):
    study.run(config(folder, ['werop']), str(tmp_path))


def test_rows_are_compared_seed_by_seed(monkeypatch):
  """Only seeds that both have; the first row is the one that is compared to."""
  monkeypatch.setattr(scoring, 'differences', lambda benchmark, pairs: pairs)
  row = lambda name, *seeds: [
    {'seed': seed, 'items': f'{name}{seed}'} for seed in seeds
  ]
  results = {'a': row('a', 0, 1), 'b': row('b', 1, 2), 'c': row('c', 2)}
  assert study.against_first(None, results) == {
    'b': {'seeds': [1], 'table': [('b1', 'a1')]}
  }


def test_cells_are_means_over_seeds_with_the_widest_interval():
  mean = lambda x, half: dict(mean=x, low=x - half, high=x + half, n=9)
  run = lambda x, half: {
    'table': {
      system: {'1 reference': {'iou': mean(x, half)}}
      for system in ('videos', 'always present', 'random interval')
    }
  }
  lines = study.table({'a': [run(0.5, 0.1), run(0.7, 0.2)]}).splitlines()
  assert lines[-1].startswith('| a | 2 | 0.600 ±0.200 | - |')
  assert np.all([line.count('|') == lines[0].count('|') for line in lines])
