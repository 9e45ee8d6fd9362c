"""Annotated clips: their rules, and a dataset of them on disk."""

import dataclasses
from pathlib import Path
import re
import subprocess
import sys

import numpy as np
import pytest

from dcjax.data import clip_bytes, subjects
from dcjax.data.subjects import AnnotatedClip, Subject, TimedText
from dcjax.errors import DcjaxError

DOCS = Path(__file__).parents[1] / 'docs/dataset.md'


def make(seed=0, f=6, h=20, w=24, words=('red star', 'ring')):
  rng = np.random.default_rng(seed)
  # Smooth in space, so that H.264 keeps it.
  ramp = np.linspace(0, 100, w).reshape(1, 1, w, 1)
  step = 20 * rng.integers(0, 7, (f, 1, 1, 3))
  video = np.broadcast_to(ramp + step, (f, h, w, 3)).astype(np.uint8)
  masks = rng.random((len(words), f, h, w)) < 0.3
  return AnnotatedClip(
    video=video,
    fps=7.5,
    caption='a red star and a ring on a plain navy background.',
    subjects=tuple(Subject(*x) for x in zip(words, masks, strict=True)),
    events=(TimedText('the ring is still.', 1 / 30, f / 7.5),)[: len(words)],
  )


def assert_same(one, two, atol=0):
  assert one.video.shape == two.video.shape and two.video.dtype == np.uint8
  assert np.abs(one.video.astype(int) - two.video).max() <= atol
  assert (one.fps, one.caption) == (two.fps, two.caption)
  assert [x.word for x in one.subjects] == [x.word for x in two.subjects]
  for x, y in zip(one.subjects, two.subjects, strict=True):
    np.testing.assert_array_equal(x.mask, y.mask)
  assert [x.text for x in one.events] == [x.text for x in two.events]
  for x, y in zip(one.events, two.events, strict=True):
    assert (x.start, x.end) == pytest.approx((y.start, y.end), abs=1e-6)


@pytest.fixture(scope='module')
def clips():
  return [
    make(0),
    make(1, words=()),
    make(2, h=21, w=23),  # H.264 has even sides only
    make(3, f=1),
    make(4, words=('star',)),
  ]


@pytest.fixture(scope='module')
def folder(clips, tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'some/clips'
  assert subjects.write(path, iter(clips), encoding='webp') == len(clips)
  return path


def test_what_is_written_is_read(clips, folder):
  data = subjects.Dataset(folder)
  assert len(data) == len(clips)
  # In order, and at random.
  for i in (0, 1, 2, 3, 4, 2, 0):
    assert_same(clips[i], data[i])
  assert_same(clips[1], data[np.int64(1)])
  with pytest.raises(IndexError, match='clip 5 of 5'):
    data[5]


def test_mp4_looks_the_same(clips, tmp_path):
  subjects.write(tmp_path / 'x', clips, split='test')
  data = subjects.Dataset(tmp_path / 'x', 'test')
  for i, clip in enumerate(clips):
    assert_same(clip, data[i], atol=6)


def test_still_stretches_keep_their_frames(tmp_path):
  """An encoder joins equal frames into one."""
  video = make().video[[0, 0, 0, 1, 1, 0, 2, 2]]
  for encoding, atol in (('webp', 0), ('mp4', 6)):
    data = clip_bytes.ENCODINGS[encoding](video, 7.5)
    found = clip_bytes.decode_video(data, video.shape[:3], 'x')
    assert np.abs(found.astype(int) - video).max() <= atol


def test_masks_are_one_png_of_all_frames():
  import io

  from PIL import Image

  mask = make().subjects[0].mask
  data = clip_bytes.encode_mask(mask)
  with Image.open(io.BytesIO(data)) as image:
    assert (image.format, image.mode, image.size) == ('PNG', '1', (24, 120))
  assert len(data) < mask.size / 8 + 200
  np.testing.assert_array_equal(
    clip_bytes.decode_mask(data, mask.shape, 'x'), mask
  )


def changed(**fields):
  return dataclasses.replace(make(), **fields)


def called(*words):
  return tuple(Subject(word, make().subjects[0].mask) for word in words)


def event(text='x', start=0.1, end=0.2):
  return (TimedText(text, start, end),)


@pytest.mark.parametrize(
  'clip, message',
  [
    (changed(video=make().video[0]), r'video is uint8 \[20, 24, 3\], expected'),
    (changed(video=make().video / 255), r'video is float64 .* expected uint8'),
    (changed(video=make().video[:0]), r'video is empty, \[0, 20, 24, 3\]'),
    (changed(fps=0.0), 'fps is 0.0, expected a number above 0'),
    (changed(fps=float('nan')), 'fps is nan'),
    (changed(subjects=called('dog')), "'dog' is not a part of its caption"),
    (changed(subjects=called('')), "'' is not a part of its caption"),
    (changed(subjects=called('Ring')), "'Ring' is not a part of its caption"),
    (
      changed(subjects=called('ring', 'ring')),
      "two subjects are called 'ring'",
    ),
    (
      changed(subjects=(Subject('ring', make().subjects[0].mask[1:]),)),
      r"mask of 'ring' is bool \[5, 20, 24\], expected bool \[6, 20, 24\]",
    ),
    (
      changed(subjects=(Subject('ring', np.zeros((6, 20, 24))),)),
      "mask of 'ring' is float64",
    ),
    (changed(subjects=called(*['a'] * 16)), '16 subjects, expected at most 15'),
    (changed(events=event(end=0.81)), "'x' is from 0.1 to 0.81 s, .* <= 0.8"),
    (changed(events=event(start=-0.1)), "'x' is from -0.1 to 0.2 s"),
    (changed(events=event(start=0.2)), "'x' is from 0.2 to 0.2 s"),
    (changed(events=event(end=float('nan'))), "'x' is from 0.1 to nan s"),
    (changed(events=event(' ')), 'an event has no text'),
  ],
)
def test_rules(clip, message, tmp_path):
  with pytest.raises(DcjaxError, match=message) as caught:
    subjects.check(clip)
  assert '\n' not in str(caught.value)
  # The first clip is in order; the second is named, and nothing is left.
  with pytest.raises(DcjaxError, match='^clip 1.*' + message):
    subjects.write(tmp_path / 'x', [make(), clip])
  assert not list(tmp_path.iterdir())


def test_nobody_and_nothing_said_is_allowed():
  subjects.check(changed(subjects=(), events=(), caption=''))


def test_mistakes_in_writing(tmp_path, monkeypatch):
  (tmp_path / 'there').mkdir()
  with pytest.raises(DcjaxError, match='there exists already'):
    subjects.write(tmp_path / 'there', [make()])
  with pytest.raises(DcjaxError, match="'avi', expected one of mp4, webp"):
    subjects.write(tmp_path / 'x', [make()], encoding='avi')
  with pytest.raises(DcjaxError, match="split is 'a/b'"):
    subjects.write(tmp_path / 'x', [make()], split='a/b')
  with pytest.raises(DcjaxError, match='no clips to write'):
    subjects.write(tmp_path / 'x', [])
  (tmp_path / 'file').write_text('')
  with pytest.raises(DcjaxError, match='cannot write'):
    subjects.write(tmp_path / 'file/x', [make()])
  monkeypatch.setattr(subjects, 'MAX_MASK_PIXELS', 1000)
  with pytest.raises(DcjaxError, match='clip 0 is too long .* at 2 frames'):
    subjects.write(tmp_path / 'x', [make()])
  assert {x.name for x in tmp_path.iterdir()} == {'there', 'file'}


def test_mistakes_in_reading(folder, tmp_path):
  with pytest.raises(DcjaxError, match='holds no dataset of annotated clips'):
    subjects.Dataset(tmp_path / 'missing')
  with pytest.raises(DcjaxError, match="no split 'test'; it has: train"):
    subjects.Dataset(folder, 'test')
  copy = tmp_path / 'copy'
  _copy(folder, copy)
  (copy / 'dataset_info.json').write_text('{')
  with pytest.raises(DcjaxError, match='not a dataset that TFDS can read') as e:
    subjects.Dataset(copy)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('part', [0.5, 0.99])
def test_a_file_that_is_cut_off(folder, tmp_path, part):
  _copy(folder, tmp_path / 'copy')
  (shard,) = (tmp_path / 'copy').glob('*array_record*')
  data = shard.read_bytes()
  shard.write_bytes(data[: int(part * len(data))])
  message = 'copy: clip 0 cannot be read, its file is cut off or altered'
  with pytest.raises(DcjaxError, match=message) as caught:
    subjects.Dataset(tmp_path / 'copy')[0]
  assert '\n' not in str(caught.value)


def _copy(folder, to):
  to.mkdir()
  for path in folder.iterdir():
    (to / path.name).write_bytes(path.read_bytes())


def test_a_dataset_of_something_else(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  whole = subjects.features
  fewer = lambda: tfds.features.FeaturesDict(
    {k: v for k, v in whole().items() if k != 'fps'}
  )
  example = subjects._to_example(make(), 'webp', 'x')
  del example['fps']
  monkeypatch.setattr(subjects, 'features', fewer)
  monkeypatch.setattr(subjects, '_to_example', lambda *_: example)
  subjects.write(tmp_path / 'x', [make()])
  monkeypatch.setattr(subjects, 'features', whole)
  with pytest.raises(DcjaxError, match='missing features: fps; unknown: none'):
    subjects.Dataset(tmp_path / 'x')


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'does not decode'),
    (b'no video', 'does not decode'),
    (
      clip_bytes.ENCODINGS['webp'](make(f=5).video, 8),
      r'\[5, 20, 24, 3\], exp',
    ),
    (clip_bytes.ENCODINGS['mp4'](make(f=9).video, 8), r'\[7, 20, 24, 3\], exp'),
    (clip_bytes.ENCODINGS['webp'](make(h=9).video, 8), r'\[6, 9, 24, 3\], exp'),
  ],
)
def test_videos_that_are_not_what_they_say(data, message):
  with pytest.raises(DcjaxError, match=f'^here: .*{message}'):
    clip_bytes.decode_video(data, (6, 20, 24), 'here')


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'a mask does not decode as PNG'),
    (
      clip_bytes.ENCODINGS['webp'](make(f=1).video, 8),
      'does not decode as PNG',
    ),
    (clip_bytes.encode_mask(make().subjects[0].mask)[:-60], 'does not decode'),
    (clip_bytes.encode_mask(make(f=5).subjects[0].mask), 'is 1 24x100, expec'),
  ],
)
def test_masks_that_are_not_what_they_say(data, message):
  with pytest.raises(DcjaxError, match=f'^here: .*{message}'):
    clip_bytes.decode_mask(data, (6, 20, 24), 'here')


def test_tensorflow_is_not_needed(folder):
  program = (
    'import sys\n'
    'from dcjax.data import subjects\n'
    "assert 'tensorflow_datasets' not in sys.modules\n"
    f'subjects.Dataset({str(folder)!r})[0]\n'
    "print([x for x in ('tensorflow', 'jax') if x in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', program],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == '[]'


def test_the_page_names_every_feature():
  rows = re.findall(r'^\| (`.*?) \|', DOCS.read_text(), re.M)
  named = set(re.findall(r'`(\w+)`', ' '.join(rows)))
  assert named == set(subjects.features())
  inner = set(re.findall(r'`(\w+/\w+)`', ' '.join(rows)))
  features = subjects.features()
  assert inner == {
    f'{name}/{key}'
    for name in ('events', 'subjects')
    for key in features[name].feature
  }
