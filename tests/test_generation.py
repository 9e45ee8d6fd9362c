"""The `sample` task: files, and records from which they can be made again."""

import dataclasses
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
import tiny

from dcjax import generation, lora, sampling, storyboard
from dcjax.concept import Concept
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.report.timeline import Lane
from dcjax.storyboard import Event, Reference, Storyboard


@pytest.fixture(scope='module')
def base():
  return tiny.trainable_base()


@pytest.fixture
def config(base, monkeypatch):
  monkeypatch.setattr(generation, 'load_base', lambda name, **_: base)
  path = pathlib.Path(__file__).parents[1] / 'configs' / 'sample.py'
  c = runpy.run_path(str(path))['get_config']()
  c.steps, c.scale = 2, 1
  return c


@pytest.fixture
def written(monkeypatch):
  """The videos as they were given to the encoder."""
  videos = {}
  write = video_lib.write_video

  def spy(path, video, fps, **options):
    videos[path.name] = video
    write(path, video, fps, **options)

  monkeypatch.setattr(video_lib, 'write_video', spy)
  return videos


def concept(base, path, value):
  transformer = lora.attach(
    base.params['transformer'], 'attn/q/kernel', 2, jax.random.key(0)
  )
  block = transformer['blocks']['self_attn']['q']['lora']
  block['b1'] = block['b1'] + value
  tokens = {'v': np.full((1, 16), value, np.float32)}
  Concept.from_params(
    {'transformer': transformer, 'tokens': tokens}, base
  ).save(path)
  return str(path)


def test_every_prompt_is_a_file_with_a_record_of_its_own(
  base, config, written, tmp_path
):
  config.prompt = 'A red cat, in the snow!'
  config.prompts = ('a blue dog.', 'a blue dog.')
  config.seed, config.guidance, config.format = 7, 1.5, 'webp'
  generation.run(config, str(tmp_path))
  names = ['a_red_cat_in_the_snow_7_0', 'a_blue_dog_7_1', 'a_blue_dog_7_2']
  files = sorted(path.name for path in tmp_path.iterdir())
  assert files == sorted(f'{n}.{s}' for n in names for s in ('webp', 'json'))
  for i, name in enumerate(names):
    record = json.loads((tmp_path / f'{name}.json').read_text())
    assert record['index'] == i
    assert record['base']['fingerprint'] == base.fingerprint
    # The record is enough to make it again, alone.
    noise = sampling.draw_noise(base, i + 1, record['seed'], 5, 16, 32)[
      record['index']
    ]
    again = sampling.sample(
      base,
      record['prompt'],
      noise=noise,
      steps=record['steps'],
      guidance=record['guidance'],
      shift=record['shift'],
      sampler=record['sampler'],
      negative=record['negative'],
    )
    difference = again.astype(int) - written[f'{name}.webp'].astype(int)
    assert np.abs(difference).max() <= 1
  assert (written[f'{names[1]}.webp'] != written[f'{names[2]}.webp']).any()


def test_concepts_come_by_file_with_their_weights_and_ours(
  base, config, written, tmp_path
):
  first = concept(base, tmp_path / 'one.safetensors', 0.4)
  second = concept(base, tmp_path / 'two.safetensors', -0.3)
  Concept.load(second).scaled(0.5, 2.0).save(second)
  config.concepts = f'{first}, {second}'
  config.identity = 0.5
  config.prompt = 'a [v1] cat. a [v2] dog.'
  generation.run(config, str(tmp_path / 'out'))
  (record,) = (tmp_path / 'out').glob('*.json')
  said = json.loads(record.read_text())['concepts']
  assert said == [
    {'file': first, 'identity': 0.5, 'motion': 1.0},
    {'file': second, 'identity': 0.25, 'motion': 2.0},
  ]
  (half,) = written.values()
  expected = sampling.sample(
    base,
    config.prompt,
    steps=2,
    concepts=[
      Concept.load(first).scaled(0.5),
      Concept.load(second).scaled(0.25, 2.0),
    ],
  )
  np.testing.assert_array_equal(half, expected)


@pytest.mark.parametrize('kind', ['mp4', 'gif', 'webp'])
def test_files_can_be_read(config, tmp_path, kind):
  config.prompt, config.format, config.scale = 'a cat.', kind, 2
  generation.run(config, str(tmp_path))
  (path,) = tmp_path.glob(f'*.{kind}')
  clip = video_lib.read_video(path)
  assert clip.frames.shape == (5, 32, 64, 3)
  assert clip.fps == pytest.approx(8.0, rel=0.05)


@pytest.mark.parametrize(
  'options,line',
  [
    ({}, 'there is no prompt'),
    ({'prompt': 'a cat', 'format': 'avi'}, "config.format is 'avi'; use mp4"),
    ({'prompt': 'a cat', 'concepts': 'nowhere'}, 'nowhere'),
    ({'prompt': 'a cat', 'references': 'r'}, 'config.references is .*without'),
    ({'prompt': 'a cat', 'scale': -1}, 'config.scale is -1; expected'),
    ({'prompt': 'a cat', 'shift': -3.0}, 'shift is -3.0; expected'),
    ({'prompt': 'a [u] cat'}, r'\[u\] .*not been learnt'),
  ],
)
def test_mistakes_are_one_line(config, tmp_path, options, line):
  config.update(options)
  with pytest.raises(DcjaxError, match=line):
    generation.run(config, str(tmp_path))
  assert not list(tmp_path.iterdir())


# ---- storyboards -------------------------------------------------------------


@pytest.fixture(scope='module')
def references(base, tmp_path_factory):
  """A folder of added parameters, as a training leaves it."""
  path = tmp_path_factory.mktemp('trained') / 'reference'
  rules = dataclasses.replace(tiny.REFERENCES, max_references=2)
  return tiny.reference_folder(path, base, rules)


@pytest.fixture
def board(tmp_path):
  """The path of a storyboard with a picture."""
  folder = tmp_path / 'story'
  folder.mkdir()
  video_lib.write_video(
    folder / 'cat.png', np.full((1, 8, 8, 3), (200, 30, 40), np.uint8), 1.0
  )
  story = Storyboard(
    'a cat in the snow.',
    seconds=1.0,
    seed=5,
    references=[Reference(str(folder / 'cat.png'), 'cat', 0.25, 0.75)],
    events=[Event('the cat jumps.', 0.25, 0.75)],
  )
  return str(story.save(folder / 'snow.json'))


def test_a_storyboard_is_a_video_a_record_and_a_timeline(
  base, config, written, references, board, tmp_path
):
  config.storyboard, config.references = board, references
  out = tmp_path / 'out'
  generation.run(config, str(out))
  names = ('snow_5.mp4', 'snow_5.json', 'snow_5_timeline.png')
  assert sorted(x.name for x in out.iterdir()) == sorted(names)
  record = json.loads((out / 'snow_5.json').read_text())
  assert record['base']['fingerprint'] == base.fingerprint
  assert len(record['references']['sha256']) == 64
  assert record['seen'] == []  # This base has no judge.
  # The record is enough to make it again, from anywhere.
  again = sampling.sample(
    base,
    storyboard.parse(record['storyboard'], '/'),
    references=record['references']['folder'],
    sampler=record['sampler'],
    negative=record['negative'],
  )
  np.testing.assert_array_equal(again, written['snow_5.mp4'])
  assert len(again) == 9 and record['storyboard']['steps'] == 2


def test_the_command_stands_above_the_storyboard(
  config, written, references, board, tmp_path, monkeypatch
):
  # Two subjects with one word are both in the record.
  lane = lambda n: Lane('cat', 'reference', [(0, 1)], present=np.arange(13) < n)
  found = [lane(4), lane(8)], ''
  monkeypatch.setattr(generation.timed_report, 'lanes', lambda *args: found)
  config.storyboard, config.references = board, references
  config.seed, config.frames, config.width = 8, 13, 48
  generation.run(config, str(tmp_path / 'out'))
  assert written['snow_8.mp4'].shape == (13, 16, 48, 3)
  seen = json.loads((tmp_path / 'out' / 'snow_8.json').read_text())['seen']
  assert [x['name'] for x in seen] == ['cat', 'cat']
  assert seen[0]['spans'] != seen[1]['spans']


def test_a_video_is_kept_whatever_becomes_of_its_timeline(
  config, written, references, board, tmp_path, monkeypatch
):
  def broken(*args):
    raise DcjaxError('no lanes')

  monkeypatch.setattr(generation.timed_report, 'lanes', broken)
  config.storyboard, config.references = board, references
  with pytest.raises(DcjaxError, match='no lanes'):
    generation.run(config, str(tmp_path / 'out'))
  assert (tmp_path / 'out' / 'snow_5.mp4').exists() and 'snow_5.mp4' in written


def test_files_are_read_before_a_base_is(
  config, references, board, tmp_path, monkeypatch
):
  def load(*args, **kwargs):
    raise AssertionError('the base was loaded')

  monkeypatch.setattr(generation, 'load_base', load)
  (picture,) = pathlib.Path(board).parent.glob('**/cat.png')
  config.storyboard, config.references = board, references
  whole = picture.read_bytes()
  picture.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(DcjaxError, match='cat.png'):
    generation.run(config, str(tmp_path / 'out'))
  picture.write_bytes(whole)


@pytest.mark.parametrize(
  'options, line',
  [
    ({'prompt': 'a cat'}, 'config.prompt is given beside config.storyboard'),
    ({'guidance': 2.0}, 'config.guidance is given beside'),
    ({'concepts': 'x'}, 'config.concepts is given beside'),
    ({'identity': 0.5}, 'config.identity is given beside'),
    ({'motion': 0.0}, 'config.motion is given beside'),
    ({'shift': -3.0}, 'shift is -3.0; expected more than 0'),
    ({'height': -16}, 'the height of size is -16'),
    ({'storyboard': 'nowhere.json'}, 'there is no storyboard nowhere.json'),
    ({'references': 'nowhere'}, 'nowhere/config.json is missing'),
    ({'references': ''}, 'has no trained references'),
    ({'frames': 5}, 'is outside the video'),
    ({'sampler': 'ddim'}, "unknown sampler 'ddim'"),
  ],
)
def test_mistakes_with_storyboards_are_one_line(
  config, references, board, tmp_path, options, line
):
  config.update({'storyboard': board, 'references': references} | options)
  with pytest.raises(DcjaxError, match=line):
    generation.run(config, str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()
