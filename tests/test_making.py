"""Videos of a benchmark's items, and the study that compares its rows."""

import dataclasses
import json
from pathlib import Path
import runpy
import shutil

from ml_collections import ConfigDict
import numpy as np
import pytest
from test_configs import load as load_config
import tiny

from dcjax.errors import DcjaxError
from dcjax.evals import (
  item_file,
  items,
  making,
  s2vtime,
  scoring,
  study,
  world_items,
)
from dcjax.weights.base import load_base

CONFIG = Path(__file__).parents[1] / 'configs' / 'study.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A tiny base on disk, with untrained references."""
  path = tmp_path_factory.mktemp('base')
  tiny.base_folder(path)
  tiny.reference_folder(path / 'reference', load_base(path))
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


@pytest.mark.parametrize(
  'options, line',
  [
    ({'system': 'guess'}, 'system is .*references, events, both'),
    ({'batch': 0}, 'batch is 0; expected 1 video or more'),
  ],
)
def test_impossible_options_are_one_line(
  tmp_path, folder, benchmark, options, line
):
  with pytest.raises(DcjaxError, match=line):
    making.make(load_base(folder), benchmark, tmp_path, **options)


def black(monkeypatch):
  """Nothing is sampled; gives the options of every call."""
  calls = []

  def sample(base, told, **options):
    calls.append((len(told), options))
    return np.zeros((len(told), 17, 64, 64, 3), np.uint8)

  monkeypatch.setattr(making.sampling, 'sample', sample)
  return calls


def altered(benchmark, n=0, **changes):
  """The benchmark with another n-th item."""
  rows = list(benchmark.items)
  rows[n] = dataclasses.replace(rows[n], **changes)
  return dataclasses.replace(benchmark, items=tuple(rows))


def test_videos_are_kept_if_they_would_be_made_alike(
  tmp_path, folder, benchmark, monkeypatch, capsys
):
  calls, base = black(monkeypatch), load_base(folder)
  out = tmp_path / 'videos'
  two = dataclasses.replace(benchmark, items=benchmark.items[:2])
  make = lambda items=benchmark, **options: making.make(
    base, items, out, **({'steps': 1} | options)
  )
  make(two)
  make()
  assert 'videos: 2 videos are there and kept' in capsys.readouterr().out
  assert len(calls) == 2
  other = tmp_path / 'reference'
  shutil.copytree(folder / 'reference', other)
  (other / 'config.json').write_text(
    (other / 'config.json').read_text().replace('werope', 'midrope')
  )
  for options, key in (
    ({'steps': 2}, 'steps 1, not 2'),
    ({'seed': 1}, 'seed 0, not 1'),
    ({'system': 'events'}, 'system references, not events'),
    ({'references': other}, 'references '),
    ({'items': altered(benchmark, seed=9)}, f'item {benchmark.items[0].id} '),
  ):
    with pytest.raises(DcjaxError, match=f'was made with {key}.* another'):
      make(**options)
  (out / 'made.json').unlink()
  with pytest.raises(DcjaxError, match='no made.json says what made them'):
    make()
  # An empty folder is nobody's.
  for path in out.glob('*.mp4'):
    path.unlink()
  make(steps=2)
  make(steps=2)


def test_old_videos_are_not_scored_against_new_items(
  tmp_path, folder, benchmark, monkeypatch
):
  black(monkeypatch)
  out = making.make(load_base(folder), benchmark, tmp_path / 'v', steps=1)
  new = altered(benchmark, prompt=f'{benchmark.items[0].prompt} again.')
  item_file.write(benchmark.folder / 'new.json', new)
  c = load_config('s2vtime').get_config('score')
  c.score.benchmark = str(benchmark.folder / 'new.json')
  c.score.videos = str(out)
  with pytest.raises(DcjaxError, match='was made with item .* another folder'):
    s2vtime.run(c, str(tmp_path))


def test_items_of_one_shape_and_options_share_a_batch(
  tmp_path, folder, benchmark, monkeypatch
):
  """An item's own steps and shift hold where the call gives none."""
  mixed = altered(benchmark, 1, options={'steps': 3, 'shift': 2.0})
  mixed = altered(mixed, 2, seconds=1.0)
  for given, told in (
    ({}, [{}, {}, {'steps': 3, 'shift': 2.0}]),
    ({'steps': 5}, [{'steps': 5}] * 2 + [{'steps': 5, 'shift': 2.0}]),
  ):
    calls = black(monkeypatch)
    out = tmp_path / f'{given}'
    making.make(load_base(folder), mixed, out, system='prompt', **given)
    options = [{k: x for k, x in o.items() if k != 'noise'} for _, o in calls]
    assert sorted(options, key=str) == sorted(told, key=str)
    assert {len(o['noise'][0]) for _, o in calls} == {3, 5}


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
  events = (items.Event('the large star is still.', 1.0, 2.0),)
  item = items.Item('one', prompt, 2.0, (64, 64), 8.0, references, events)
  assert making.described(item).prompt == (
    'a small red star and a large orange star. the small star is still.'
  )
  alone = items.Item(
    'one',
    'a star.',
    2.0,
    (64, 64),
    8.0,
    (dataclasses.replace(references[1], word='star'),),
  )
  assert making.described(alone).prompt == 'an orange star.'
  (said,) = making.described(item).events
  assert said.text == 'the large orange star is still.'
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
  for key, value in (
    ('training.subjects.steps', 3),
    ('sample.steps', 3),
    ('benchmark.seed', 7),
    ('rows.prompt', {'system': 'phrases'}),
  ):
    other = config(folder, ['no_tags', 'prompt'])
    if key == 'rows.prompt':
      other.rows['prompt'] = value
    else:
      other.update_from_flattened_dict({key: value})
    with pytest.raises(DcjaxError, match=f'was made with {key} .* another'):
      study.run(other, str(tmp_path))
  # What changes no result may differ.
  c.training.log_every, c.sample.batch = 7, 1
  study.run(c, str(tmp_path))


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


def test_rows_that_are_named_are_made_with_all_seeds(
  tmp_path, folder, monkeypatch
):
  made = []
  monkeypatch.setattr(study, '_judge', lambda *args: made.append(args[3:5]))
  monkeypatch.setattr(study, 'write', lambda *args: None)
  c = config(folder, ['norope'])
  c.seeds = (1,)
  study.run(c, str(tmp_path))
  assert made == [('norope', 1)]
  c.only = ''
  study.run(c, str(tmp_path))
  assert ('norope', 1) not in made[1:] and ('werope', 1) in made


def test_batches_are_checked_before_anything_is_trained(tmp_path, folder):
  c = config(folder, ['werope'])
  c.sample.batch = 0
  with pytest.raises(DcjaxError, match='config.sample.batch is 0; expected 1'):
    study.run(c, str(tmp_path))


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
