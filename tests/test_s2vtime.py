"""The `s2vtime` task: from nothing to a table, and every mistake's line."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
import pytest
from test_configs import load as load_config

from dcjax import storyboard
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.evals import __main__ as command
from dcjax.evals import (
  experts,
  item_file,
  items,
  s2vtime,
  scenarios,
  scoring,
  timing,
  world_items,
)
from dcjax.evals.items import Benchmark, Item, Reference
from dcjax.evals.judging import Verdict

NAN = float('nan')


def config(variant=''):
  return load_config('s2vtime').get_config(variant)


# ---- a benchmark whose videos are strips of squares --------------------------


def item(name='a', *, spans=(((1.0, 2.0),),), kind='', group=''):
  """One with a subject for each of the spans; the words are s0, s1, ..."""
  references = [
    Reference(f'{n}.png', f's{n}', *interval, f'subject {n}')
    for n, intervals in enumerate(spans)
    for interval in intervals
  ]
  return Item(
    name, 's0 and s1', 4.0, (8, 8), 8.0, tuple(references), (), kind, group
  )


def shown(*spans, frames=33):
  """[f 8 8 3] with a row of its own lit for each subject while it is there."""
  video = np.zeros((frames, 8, 8, 3), np.uint8)
  for n, of in enumerate(spans):
    for first, last in of:
      video[first : last + 1, 2 * n : 2 * n + 2] = 255
  return video


def rows_judge(video, fps, item, pictures):
  """Reads `shown`; everybody looks like himself."""
  del fps, pictures
  count = len(item.subjects)
  masks = np.zeros((count, *video.shape[:3]), bool)
  for n in range(count):
    masks[n, :, 2 * n : 2 * n + 2] = video[:, 2 * n : 2 * n + 2, :, 0] > 0
  seen = np.where(masks.any((1, 2, 3)), 1.0, NAN)
  return Verdict(
    masks, seen, seen, np.eye(count) * seen[:, None], np.eye(count)
  )


def score(pairs, **options):
  """Scores of [(item, video)]."""
  videos = {x.id: v for x, v in pairs}
  return scoring.score(
    Benchmark('test', tuple(x for x, _ in pairs), Path()),
    lambda x: (videos[x.id], options.pop('fps', 8.0)),
    rows_judge,
    pictures=lambda x: [],
    **options,
  )


def test_scores_by_hand():
  record = score(
    [
      (item('a'), shown([(8, 15)])),  # 0.9375 to 1.9375 s of 1 to 2
      (item('b'), shown([])),
    ]
  )
  a, b = (x['subjects'][0]['intervals'][0] for x in record['items'])
  assert a['iou'] == pytest.approx(0.9375 / 1.0625)
  assert a['l2'] == pytest.approx(0.0625 / 4)
  assert (b['iou'], b['l2'], b['detected']) == (0, 1, 0)
  table = record['table']['videos']['all']
  assert table['iou'].mean == pytest.approx(a['iou'] / 2)
  assert table['detected'].mean == 0.5
  # Who was not seen looks like nobody, and lowers no likeness.
  assert table['reference'] == (1, 1, 1, 1)
  assert 'swap' not in table and 'order' not in table


def test_table_has_both_baselines_and_is_split():
  two = item('b', spans=(((1, 2),), ((0, 3),)), kind='two')
  record = score(
    [
      (item('a', kind='one'), shown([(8, 15)])),
      (two, shown([(8, 15)], [(0, 24)])),
    ]
  )
  assert set(record['table']) == {'videos', 'always present', 'random interval'}
  for parts in record['table'].values():
    assert set(parts) == {'all', '1 reference', '2 references', 'one', 'two'}
  always = record['table']['always present']
  assert always['one']['iou'].mean == pytest.approx(0.25)
  assert always['two']['iou'].mean == pytest.approx((0.25 + 0.75) / 2)
  assert record['table']['videos']['two']['swap'].mean == 0
  lines = scoring.table(record).splitlines()
  assert len(lines) == 1 + 5 * 3
  assert 't-IoU' in lines[0] and len({len(x) for x in lines[:4]}) <= 2


def test_differences_are_item_by_item():
  """Items differ much, and what two models make of one of them little."""
  pairs = [
    (item(name, spans=(((1, 1 + length),),)), shown([(8, 8 + frames)]))
    for name, length, frames in (('a', 0.5, 4), ('b', 1, 16), ('c', 2, 8))
  ]
  others = score(pairs)
  ours = score([*pairs[:2], (pairs[2][0], shown([(8, 12)]))])
  benchmark = Benchmark('test', tuple(x for x, _ in pairs), Path())
  table = scoring.differences(benchmark, [(ours['items'], others['items'])])
  mean = table['all']['frame_iou']
  apart = [x['table']['videos']['all']['frame_iou'] for x in (ours, others)]
  assert mean.mean == pytest.approx(apart[0].mean - apart[1].mean)
  assert mean.high == pytest.approx(0, abs=1e-12)  # of no item better
  assert mean.high - mean.low < apart[1].high - apart[1].low
  # Another seed without a difference: half of it, of twice as many values.
  both = [(ours['items'], others['items']), (others['items'],) * 2]
  again = scoring.differences(benchmark, both)['all']['frame_iou']
  assert again.mean == pytest.approx(mean.mean / 2) and again.n == 2 * mean.n


def test_differences_survive_the_file_and_refuse_other_items(tmp_path):
  pairs = [(item('a'), shown([(8, 15)])), (item('b'), shown([]))]
  record = score(pairs)
  s2vtime.write_record(tmp_path / 'timing.json', record)
  items = s2vtime.read_record(tmp_path / 'timing.json')['items']
  benchmark = Benchmark('test', tuple(x for x, _ in pairs), Path())
  table = scoring.differences(benchmark, [(items, record['items'])])['all']
  assert table['iou'] == (0, 0, 0, 2)
  assert table['reference'] == (0, 0, 0, 1)  # one was never seen
  with pytest.raises(DcjaxError, match='the scores of other items'):
    scoring.differences(benchmark, [(items, items[::-1])])


def test_order_in_groups_tells_length_from_midpoint():
  spans = {'short': (1.5, 2.5), 'medium': (1.25, 2.75), 'long': (0.5, 3.5)}
  members = [item(k, spans=((v,),), group='g') for k, v in spans.items()]
  right = [shown([(12, 20)]), shown([(10, 22)]), shown([(4, 28)])]
  record = lambda videos: score(list(zip(members, videos, strict=True)))
  order = lambda videos: record(videos)['table']['videos']['all']['order'].mean
  assert order(right) == 1
  assert order(right[::-1]) == 0
  assert order([right[1]] * 3) == 0.5  # who knows the midpoint alone
  assert order([right[0], shown([]), right[2]]) == pytest.approx(1 / 3)
  mixed = record([right[0], right[0], shown([(14, 18)])])
  assert mixed['order'] == {'longer': 0, 'equal': 1, 'shorter': 2, 'unseen': 0}
  unseen = record([right[0], shown([]), right[2]])
  assert unseen['order']['unseen'] == 2
  assert 'order, of 3 pairs: 1 longer, 0 equal, 0 shorter, 2 unseen' in (
    scoring.table(unseen)
  )


def test_who_comes_back():
  again = item('a', spans=(((0.5, 1.0), (3.0, 3.5)),))
  record = score([(again, shown([(4, 8), (24, 28)]))])
  (subject,) = record['items'][0]['subjects']
  assert (subject['returned'], subject['empty']) == (1, 1)
  assert [x['detected'] for x in subject['intervals']] == [1, 1]
  assert record['table']['videos']['all']['iou'].n == 2


def test_who_is_never_there_looks_like_nobody():
  """One of eight pixels' rows is an eighth of the picture, or two a quarter."""
  pair = item('a', spans=(((1, 2),), ((1, 2),)))
  video = shown([(8, 15)], [(8, 15)])
  video[:, 3] = 0  # the second has one row
  record = score([(pair, video)], area=0.2)
  one, two = record['items'][0]['subjects']
  assert (one['reference'], one['text'], one['swap'], one['leak']) == (
    *(1, 1),
    *(0, 0),
  )
  assert np.isnan([two[k] for k in ('text', 'reference', 'swap', 'leak')]).all()


def test_durations_must_be_right():
  with pytest.raises(DcjaxError, match=r'lasts 2\.00 s \(17 frames at 8 fps\)'):
    score([(item(), shown([(4, 8)], frames=17))])
  record = score([(item(), shown([(4, 8)], frames=17))], stretch=True)
  # Frames 4 to 8 of 17 are 3.5/16 to 8.5/16 of 4 s.
  timed = record['items'][0]['subjects'][0]['intervals'][0]
  assert (timed['start'], timed['end']) == pytest.approx((0.875, 2.125))
  # With or without the last frame's own time.
  for frames in (32, 33, 34):
    score([(item(), shown([(8, 16)], frames=frames))])


# ---- the file ----------------------------------------------------------------

GOOD = {
  'id': 'a',
  'prompt': 'a dog and a cat',
  'seconds': 4.0,
  'size': [64, 64],
  'fps': 8,
  'references': [{'image': 'a.png', 'word': 'dog', 'start': 1, 'end': 2}],
}


def bad_item(**changes):
  return {k: v for k, v in (GOOD | changes).items() if v is not None}


def reference(**changes):
  whole = GOOD['references'][0] | changes
  return [{k: v for k, v in whole.items() if v is not None}]


@pytest.mark.parametrize(
  'record, line',
  [
    (bad_item(promt='x'), "unknown key 'promt'; there is id, prompt"),
    (bad_item(prompt=None), "no key 'prompt'"),
    (bad_item(prompt=' '), "prompt is ' '; expected a text"),
    (bad_item(seconds=0), 'seconds is 0; expected more than 0'),
    (bad_item(seconds='4'), "seconds is '4'; expected a number"),
    (bad_item(fps=float('inf')), 'fps is inf; expected a number'),
    (bad_item(size=[64]), r'size is \[64\]; expected \[height, width\]'),
    (bad_item(id='../a'), "id is '../a'; expected the name of a file"),
    (bad_item(references=[]), 'no references; expected one or more'),
    (bad_item(references='dog'), "references is 'dog'; expected a list"),
    (bad_item(references=['dog']), "reference 0 is 'dog'; expected an object"),
    (
      bad_item(references=reference(word='fox')),
      r"item 0 \(a\): the word 'fox' is not in the prompt 'a dog and a cat'",
    ),
    (
      bad_item(references=reference(start=2, end=1)),
      'reference 0: interval 2 to 1 s; expected 0 <= start < end <= 4',
    ),
    (bad_item(references=reference(end=5)), 'interval 1 to 5 s'),
    (bad_item(references=reference(start=1, end=1)), 'interval 1 to 1 s'),
    (bad_item(references=reference(end=None)), "no key 'end'"),
    (bad_item(references=reference(image='/a.png')), 'relative to the file'),
    (bad_item(references=reference(image='../a.png')), 'outside the folder'),
    (bad_item(references=reference() * 2), 'in order and apart'),
    (
      bad_item(events=[{'text': 'x', 'start': 0, 'end': 9}]),
      'event 0: interval 0 to 9 s',
    ),
    (bad_item(events={}), 'events is {}; expected a list'),
    (
      bad_item(
        events=[
          {'text': 'x', 'start': 1, 'end': 3},
          {'text': 'y', 'start': 0, 'end': 2},
        ]
      ),
      'events: .* one starts at 1 s before another ends at 2 s',
    ),
    (bad_item(seed='abc'), "seed is 'abc'; expected a whole number from 0"),
    (bad_item(seed=[1]), r'seed is \[1\]'),
    (bad_item(seed=1.7), 'seed is 1.7'),
    (bad_item(seed=10**20), 'seed is .* below 4294967296'),
    (bad_item(kind=3), 'kind is 3; expected a text'),
    (bad_item(kind='all'), "kind is 'all', which is a part of every table"),
    (bad_item(kind='2 references'), 'which is a part of every table'),
    (
      bad_item(
        references=[GOOD['references'][0] | {'description': None}],
      ),
      'reference 0: description is None; expected a text',
    ),
  ],
)
def test_bad_items_are_one_line(tmp_path, record, line):
  path = tmp_path / 'b.json'
  whole = {'format': 's2vtime', 'version': 1, 'items': [record]}
  path.write_text(json.dumps(whole))
  with pytest.raises(DcjaxError, match=line) as error:
    item_file.read(path, images=False)
  assert '\n' not in str(error.value)


def test_bad_files_are_one_line(tmp_path):
  path = tmp_path / 'b.json'

  def refused(line, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(DcjaxError, match=line):
      item_file.read(path)

  whole = {'format': 's2vtime', 'version': 1, 'items': [GOOD]}
  refused('is no JSON file', '{')
  refused('is no JSON file', '[' * 100_000)
  refused(r'is \[\]; expected an object', '[]')
  refused("unknown key 'item'", whole | {'item': 1})
  refused("'s2vtime' version 2; this reads", whole | {'version': 2})
  refused("of format 'other'", whole | {'format': 'other'})
  refused('has no items', whole | {'items': []})
  refused("the id 'a' is there twice", whole | {'items': [GOOD, GOOD]})
  refused('item a: .*a.png does not exist', whole)
  nameless = bad_item(references=reference(image=None))
  refused("'dog' has no image; draw one", whole | {'items': [nameless]})
  path.write_text(json.dumps(whole | {'items': [nameless]}))
  (found,) = item_file.read(path, nameless=True).items
  assert scoring.read_pictures(Benchmark('', (found,), tmp_path), found) == [
    None
  ]
  with pytest.raises(DcjaxError, match='does not exist'):
    item_file.read(tmp_path / 'none.json')


def test_groups_have_one_midpoint_and_different_lengths(tmp_path):
  path = tmp_path / 'b.json'

  def read(*intervals):
    items = [
      bad_item(id=f'a{i}', group='g', references=reference(start=s, end=e))
      for i, (s, e) in enumerate(intervals)
    ]
    whole = {'format': 's2vtime', 'version': 1, 'items': items}
    path.write_text(json.dumps(whole))
    return item_file.read(path, images=False)

  assert len(read((1, 3), (1.5, 2.5), (0.5, 3.5)).items) == 3
  for wrong in (((1, 3), (1.5, 3.5)), ((1, 3), (1, 3))):
    with pytest.raises(DcjaxError, match="group 'g' .*different lengths"):
      read(*wrong)


def test_items_are_storyboards(tmp_path):
  """What is made of an item is what `sample` reads."""
  found = scenarios.make(6) + [x.item for x in world_items.make(6, again=1)]
  for x in found:
    record = x.storyboard()
    for one in record['references']:
      path = tmp_path / one['image']
      path.parent.mkdir(exist_ok=True)
      Image.new('RGB', (8, 8)).save(path)
    (tmp_path / 'story.json').write_text(json.dumps(record))
    story = storyboard.Storyboard.load(tmp_path / 'story.json')
    assert story.prompt == x.prompt
    assert len(story.references) == len(x.references)


def test_prompts_that_say_when():
  x = item('a', spans=(((0.5, 2.0),), ((1, 4.0),)))
  assert items.timed_prompt(x) == (
    's0 and s1 s0 appears between 0.5 seconds and 2 seconds. s1 appears '
    'between 1 seconds and 4 seconds.'
  )


# ---- templates ---------------------------------------------------------------


@pytest.mark.parametrize('extended', [False, True])
def test_templates(extended, tmp_path):
  found = scenarios.make(90, extended=extended)
  assert found[:7] == scenarios.make(7, extended=extended)
  assert {x.kind for x in found} == {'one', 'two', 'same_class'}
  lengths = []
  for x in found:
    assert 'appears' not in x.prompt
    assert len({s.word for s in x.subjects}) == len(x.subjects)
    assert len({s.description for s in x.subjects}) == len(x.subjects)
    assert all(s.word in x.prompt and s.description for s in x.subjects)
    timing.check([(e.start, e.end) for e in x.events], x.seconds)
    if not x.group:
      lengths += [r.end - r.start for r in x.references]
  low, high = (0.5, 4.5) if extended else (1.0, 3.0)
  assert low <= min(lengths) < low + 0.4 and high - 0.4 < max(lengths) <= high
  groups = [x for x in found if x.group]
  assert 24 <= len(groups) <= 36
  for a, b, c in zip(groups[::3], groups[1::3], groups[2::3], strict=True):
    first = np.array([x.subjects[0].intervals[0] for x in (a, b, c)])
    np.testing.assert_allclose(first.sum(1), first[0].sum(), atol=1e-6)
    assert (np.diff(first[:, 1] - first[:, 0]) > 0.2).all()
  item_file.write(tmp_path / 'b.json', Benchmark('t', tuple(found), tmp_path))
  read = item_file.read(tmp_path / 'b.json', images=False)
  assert read.items == tuple(found)


def test_timed_captions_never_overlap():
  told = [('a', (0, 4)), ('b', (1, 2)), ('c', (1.5, 3)), ('d', (3, 4))]
  lane = items.lane(told[:2])
  assert [(e.text, e.start, e.end) for e in lane] == [
    ('b', 1, 1.5),
    ('a', 1.5, 4),
  ]
  lane = items.lane([told[0], told[3]])
  assert [(e.text, e.end) for e in lane] == [('a', 3.5), ('d', 4)]
  three = [('a', (0, 4)), ('b', (1, 5)), ('c', (1.2, 1.4))]
  assert [(e.text, e.start, e.end) for e in items.lane(three)] == [
    ('a', 0, 1.3),
    ('c', 1.3, 1.4),
    ('b', 2.5, 5),
  ]
  apart = [('a', (0.0, 1.0)), ('b', (1.0, 2.0))]
  assert [(e.start, e.end) for e in items.lane(apart)] == [(0, 1), (1, 2)]


# ---- the task ----------------------------------------------------------------


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world')
  c = config('build,tiny')
  c.build.rendered, c.build.again = True, 1
  s2vtime.run(c, str(folder))
  return folder


def test_builds_and_scores_the_world(built, tmp_path, capsys):
  c = config('score')
  c.score.benchmark = str(built / 'benchmark.json')
  c.score.videos = str(built / 'rendered')
  s2vtime.run(c, str(tmp_path))
  refuse = lambda word: (_ for _ in ()).throw(AssertionError(word))
  record = json.loads(
    (tmp_path / 'timing.json').read_text(), parse_constant=refuse
  )
  assert len(record['items']) == 5 and record['judge'] == 'world'
  videos = record['table']['videos']['all']
  assert videos['iou']['mean'] > 0.99 and videos['detected']['mean'] == 1
  assert record['table']['always present']['all']['iou']['mean'] < 0.7
  assert record['machine']['python']
  printed = capsys.readouterr().out
  assert 't-IoU' in printed
  assert (tmp_path / 'timing.txt').read_text() in printed


@pytest.mark.parametrize('size', [(24, 24), (64, 128)])
def test_squeezed_and_tiny_videos_are_refused(built, tmp_path, size):
  benchmark = item_file.read(built / 'benchmark.json')
  for item in benchmark.items:
    video = np.zeros((17, *size, 3), np.uint8)
    video_lib.write_video(tmp_path / f'{item.id}.mp4', video, 8)
  c = config('score')
  c.score.benchmark = str(built / 'benchmark.json')
  c.score.videos = str(tmp_path)
  with pytest.raises(DcjaxError, match='pixels, but 64x64 were asked for'):
    s2vtime.score(c, tmp_path / 'out')


def test_videos_of_any_kind_are_found(built, tmp_path, capsys):
  benchmark = item_file.read(built / 'benchmark.json')
  first, second, *_ = benchmark.items
  video = video_lib.read_video(built / 'rendered' / f'{first.id}.mp4').frames
  video_lib.write_video(tmp_path / f'{first.id}.webp', video, 8)
  for i, frame in enumerate(video):
    path = tmp_path / second.id / f'{i:02d}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(frame).save(path)
  found = s2vtime.find(benchmark.items, tmp_path, partial=True)
  assert set(found) == {first.id, second.id}
  c = config('score')
  c.score.benchmark, c.score.videos = (
    str(built / 'benchmark.json'),
    str(tmp_path),
  )
  c.score.partial = True
  record = s2vtime.score(c, tmp_path / 'out')
  assert [x['fps'] for x in record['items']] == [8.0, 8.0]
  assert '2 of 5 items have a video' in capsys.readouterr().out


def test_mistakes_of_the_task(built, tmp_path):
  def refused(line, **changes):
    c = config('score')
    c.score.benchmark = str(built / 'benchmark.json')
    for key, value in changes.items():
      node, _, leaf = key.rpartition('__')
      (c[node] if node else c)[leaf] = value
    with pytest.raises(DcjaxError, match=line):
      s2vtime.run(c, str(tmp_path))

  refused('use one of build, make, score', job='judge')
  refused('there are no videos; give', score__videos='')
  refused('is not a folder', score__videos=str(tmp_path / 'none'))
  refused('5 of 5 videos are not in', score__videos=str(tmp_path))
  refused('5 of 5 videos', score__videos=str(tmp_path), score__partial=True)
  refused(
    'use world or experts',
    score__videos=str(built / 'rendered'),
    score__judge='human',
  )
  refused('use one of world', job='build', build__source='moon')
  for key in ('build', 'score'):
    refused(
      f'config.{key}.seed is -1; expected a whole number from 0',
      job=key,
      **{f'{key}__seed': -1},
    )
  for area in (-1.0, 1.0, NAN):
    refused(
      'area is .*; expected',
      score__area=area,
      score__videos=str(built / 'rendered'),
    )
  for key, value in (('looks', 3), ('device', 'cpu'), ('download', True)):
    refused(
      f"config.score.{key} is .* the judge is 'world'",
      **{f'score__{key}': value},
    )
  for source, key, value in (
    ('world', 'extended', True),
    ('world', 'image_model', 'x'),
    ('templates', 'again', 3),
    ('templates', 'kinds', ('one',)),
    ('llm', 'rendered', True),
    ('tempocontrol', 'count', 9),
  ):
    refused(
      f'config.build.{key} is .* the source is {source!r}',
      job='build',
      build__source=source,
      **{f'build__{key}': value},
    )
  refused('1 or more', job='build', build__count=0)
  twice = tmp_path / 'twice'
  name = item_file.read(built / 'benchmark.json').items[0].id
  for suffix in ('gif', 'webp'):
    video_lib.write_video(twice / f'{name}.{suffix}', shown([]), 8)
  refused(f'several videos of {name}', score__videos=str(twice))


def test_a_folder_is_scored_without_the_repository(built, tmp_path, capsys):
  arguments = [str(built / 'benchmark.json'), str(built / 'rendered')]
  command.main([*arguments, f'--out={tmp_path}'])
  record = s2vtime.read_record(tmp_path / 'timing.json')
  assert record['table']['videos']['all']['iou']['mean'] > 0.99
  assert 't-IoU' in capsys.readouterr().out
  for wrong, line in (
    (['--area=2'], 'area is 2'),
    (['--looks=3'], "the judge is 'world'"),
    (['--judge=human'], 'use world or experts'),
  ):
    with pytest.raises(SystemExit) as error:
      command.main([*arguments, *wrong])
    assert error.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith('error: ') and line in said


def test_judges_and_scores_have_one_area(monkeypatch):
  c = config('score,experts')
  c.score.area = 0.02
  monkeypatch.setattr(experts, 'load', lambda **options: options)
  assert s2vtime.make_judge(c.score)['area'] == 0.02


def test_templates_say_that_pictures_are_missing(tmp_path, capsys):
  s2vtime.run(config('templates,tiny'), str(tmp_path))
  assert 'subjects have no picture yet' in capsys.readouterr().out
  item_file.read(tmp_path / 'benchmark.json', images=False)
  with pytest.raises(DcjaxError, match='does not exist'):
    item_file.read(tmp_path / 'benchmark.json')
