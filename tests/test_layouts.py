"""Benchmarks of others, on small files in their layouts."""

import json

from PIL import Image
import pytest

from dcjax.errors import DcjaxError
from dcjax.evals import item_file, layouts
from dcjax.evals.items import Benchmark


def signal(*spans, n=21):
  """0 and 1 for latent frames, 1 from the first to the last of each span."""
  values = ['0'] * n
  for first, last in spans:
    values[first : last + 1] = '1' * (last + 1 - first)
  return ' '.join(values)


def csv(path, header, *rows):
  lines = [header] + [','.join(f'"{x}"' for x in row) for row in rows]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return path


ONE = 'prompt,temp_object,control_signal1'
TWO = 'prompt,temp_object,static_object,control_signal1,control_signal2'
ACTION = 'prompt,temp_object,static_object,control_signal1,mov_sec,' + (
  'control_signal2'
)


def test_one_object_that_comes(tmp_path):
  path = csv(
    tmp_path / 'one.csv',
    ONE,
    ('At first nothing, then a lamp, suddenly.', 'lamp', signal((5, 20))),
  )
  (item,) = layouts.read('tempocontrol', str(path), tmp_path)
  assert (item.id, item.kind, item.seconds) == ('one_000', 'one', 5.0)
  (reference,) = item.references
  # Latent frame 5 begins with frame 17: midway after frame 16, of 16 a second.
  assert (reference.start, reference.end) == (16.5 / 16, 5.0)
  assert (reference.word, reference.image) == ('lamp', '')


def test_every_frame_lies_where_its_latent_frame_says(tmp_path):
  path = csv(
    tmp_path / 'x.csv',
    ONE,
    ('a lamp', 'lamp', signal((0, 0), (3, 4), (20, 20))),
  )
  (item,) = layouts.read_tempocontrol(path)
  shown = [
    any(x.start <= f / 16 <= x.end for x in item.references) for f in range(81)
  ]
  expected = [(f + 3) // 4 in (0, 3, 4, 20) for f in range(81)]
  assert shown == expected
  (subject,) = item.subjects
  assert len(subject.intervals) == 3


def test_two_objects_and_actions(tmp_path):
  two = csv(
    tmp_path / 'two.csv',
    TWO,
    ('a fox, later a hen', 'hen', 'fox', signal((10, 20)), signal((0, 20))),
  )
  (item,) = layouts.read_tempocontrol(two)
  assert item.kind == 'two'
  assert [s.word for s in item.subjects] == ['hen', 'fox']
  assert item.subjects[1].intervals == ((0.0, 5.0),)
  action = csv(
    tmp_path / 'action.csv',
    ACTION,
    ('a fox leaping', 'leaping', 'fox', signal((5, 8)), '1', signal((0, 20))),
  )
  (item,) = layouts.read_tempocontrol(action)
  assert [s.word for s in item.subjects] == ['fox']
  (event,) = item.events
  assert (event.text, event.start) == ('fox leaping', 16.5 / 16)
  assert event.end == 32.5 / 16


def test_what_is_read_can_be_written(tmp_path):
  path = csv(tmp_path / 'x.csv', ONE, ('a lamp', 'lamp', signal((5, 9))))
  made = Benchmark('t', tuple(layouts.read_tempocontrol(path)), tmp_path)
  item_file.write(tmp_path / 'b.json', made)
  assert item_file.read(tmp_path / 'b.json', images=False) == made


@pytest.mark.parametrize(
  'header, row, line',
  [
    ('prompt,temp_object', ('a', 'b'), "no column 'control_signal1'"),
    (ONE, ('a lamp', 'lamp', '0 1 2'), r"row 2: the control signal is '0 1 2'"),
    (ONE, ('a lamp', 'lamp', signal()), 'and a 1'),
    (ONE, ('a lamp', 'fox', signal((1, 2))), "'fox' is not in the prompt"),
    (
      TWO,
      ('a fox, a hen', 'hen', 'fox', signal((1, 2)), signal((0, 4), n=5)),
      'of different lengths',
    ),
    (ONE, ('a lamp', 'lamp'), 'row 2 has not as many cells as the first line'),
    (ONE, ('a', 'a', signal((1, 2)), 'b'), 'row 2 has not as many cells'),
  ],
)
def test_bad_tables_are_one_line(tmp_path, header, row, line):
  path = csv(tmp_path / 'x.csv', header, row)
  with pytest.raises(DcjaxError, match=line):
    layouts.read('tempocontrol', str(path), tmp_path)


def test_missing_paths_are_one_line(tmp_path):
  with pytest.raises(DcjaxError, match='no path for tempocontrol'):
    layouts.read('tempocontrol', '', tmp_path)
  with pytest.raises(DcjaxError, match='for cinebenchsyn: give'):
    layouts.read('cinebenchsyn', str(tmp_path / 'none'), tmp_path)
  with pytest.raises(DcjaxError, match='no annotations/ID_ultra_dense.json'):
    layouts.read('cinebenchsyn', str(tmp_path), tmp_path)
  empty = csv(tmp_path / 'e.csv', ONE)
  with pytest.raises(DcjaxError, match='has no rows after its first line'):
    layouts.read_tempocontrol(empty)
  empty.write_text(f'{ONE}\n"{"a" * 200_000}",lamp,0 1\n')
  with pytest.raises(DcjaxError, match='no CSV file: field larger'):
    layouts.read_tempocontrol(empty)
  picture = tmp_path / 'x.csv'
  picture.write_bytes(b'\xff\xfe\x00\x81')
  with pytest.raises(DcjaxError, match='no CSV file'):
    layouts.read_tempocontrol(picture)


# ---- CineBenchSyn ------------------------------------------------------------


def scenario(**changes):
  """A baker who comes, goes and returns; a cat; a camera; a cut."""
  entity = lambda name, text: {'name': name, 'description': text}
  event = lambda name, text, start, end: {
    'name': name,
    'description': text,
    'time_intervals': [start, end],
  }
  return {
    'summary': 'A baker works, and a cat looks on.',
    'global_entities': [
      entity('{camera}', ''),
      entity('{shot_transition}', None),
      entity('{baker_ana}', '{baker_ana} is a woman with a white cap.'),
      entity('{cat}', '{cat} is black.'),
      entity('{scene_shop}', '{scene_shop} is a small shop.'),
    ],
    'dense_entities': [
      event('{camera}', '{camera} holds still.', 0.0, 10.0),
      event('{baker_ana}', '{baker_ana} kneads dough.', 1.0, 3.0),
      event('{baker_ana}', '{baker_ana} looks up at {cat}.', 3.0, 4.0),
      event('{shot_transition}', '{shot_transition} is a cut.', 5.0, 5.01),
      event('{baker_ana}', '{baker_ana} waves.', 7.0, 9.0),
      event('{cat}', '{cat} yawns.', 2.0, 8.0),
      event('{cat}', None, 8.0, 9.0),
      event('{scene_shop}', '{scene_shop} is bright.', 0.0, 10.0),
    ],
  } | changes


PICTURES = (
  '00000_ref_image_00_baker_ana.png',
  '00000_ref_image_01_scene_shop.png',
)


def bench(tmp_path, *scenarios, pictures=PICTURES):
  root = tmp_path / 'cine'
  (root / 'annotations').mkdir(parents=True)
  (root / 'reference_images').mkdir()
  for i, record in enumerate(scenarios):
    file = root / 'annotations' / f'{i:05d}_ultra_dense.json'
    file.write_text(json.dumps(record))
  for name in pictures:
    Image.new('RGB', (8, 8), 'red').save(root / 'reference_images' / name)
  return root


def test_scenarios_become_items(tmp_path):
  root, out = bench(tmp_path, scenario()), tmp_path / 'out'
  (item,) = layouts.read('cinebenchsyn', str(root), out)
  assert item.id == '00001'  # their videos are numbered from 1
  assert item.seconds == 10.0
  (subject,) = item.subjects  # the cat has no picture, the shop is no subject
  assert subject.word == 'baker ana'
  assert subject.word in item.prompt
  # What touches is one presence, what does not is a return.
  assert subject.intervals == ((1.0, 4.0), (7.0, 9.0))
  assert (out / subject.image).is_file()
  assert '{' not in item.prompt + ''.join(e.text for e in item.events)
  assert 'None' not in item.prompt + ''.join(e.text for e in item.events)
  made = Benchmark('cine', (item,), out)
  item_file.write(out / 'b.json', made)
  assert item_file.read(out / 'b.json') == made


def test_what_happens_at_once_is_one_caption(tmp_path):
  (item,) = layouts.read(
    'cinebenchsyn', str(bench(tmp_path, scenario())), tmp_path / 'out'
  )
  at = {(e.start, e.end): e.text for e in item.events}
  assert 'kneads dough' in at[2.0, 3.0] and 'yawns' in at[2.0, 3.0]
  assert 'yawns' not in at[1.0, 2.0]
  assert not any('camera' in text or 'cut' in text for text in at.values())


def test_pictures_by_the_name_in_the_annotation(tmp_path):
  record = scenario()
  record['global_entities'][3]['ref_image_path'] = '/elsewhere/black.png'
  root = bench(tmp_path, record, pictures=('black.png',))
  (item,) = layouts.read('cinebenchsyn', str(root), tmp_path / 'out')
  assert [s.word for s in item.subjects] == ['cat']


def test_bad_scenarios_are_one_line(tmp_path):
  broken = scenario(dense_entities=[{'name': '{cat}'}])
  root = bench(tmp_path / 'a', broken)
  with pytest.raises(DcjaxError, match='no annotation of CineBenchSyn'):
    layouts.read('cinebenchsyn', str(root), tmp_path)
  cat = {'name': '{cat}', 'description': 'x', 'time_intervals': [0, 2]}
  for n, wrong in enumerate(
    (
      {'summary': 3},
      {'global_entities': [{'name': '{cat}', 'description': 3}]},
      {'global_entities': [{'name': '{cat}', 'ref_image_path': 3}]},
      {'global_entities': [{'name': 3}]},
      {'global_entities': ['{cat}']},
      {'dense_entities': [cat | {'time_intervals': [0, 2, 4, 6]}]},
      {'dense_entities': [cat | {'description': 3}]},
    )
  ):
    root = bench(tmp_path / f'w{n}', scenario(**wrong))
    with pytest.raises(DcjaxError, match='no annotation of CineBenchSyn'):
      layouts.read('cinebenchsyn', str(root), tmp_path)
  root = bench(tmp_path / 'b', scenario(dense_entities=[]))
  with pytest.raises(DcjaxError, match='no dense_entities'):
    layouts.read('cinebenchsyn', str(root), tmp_path)
  root = bench(tmp_path / 'c', scenario(), pictures=())
  with pytest.raises(DcjaxError, match='no scenario of .* has a reference'):
    layouts.read('cinebenchsyn', str(root), tmp_path)
