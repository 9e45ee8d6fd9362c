"""The inspection page: what it finds and shows, and that it is one file."""

from html.parser import HTMLParser
import re

import numpy as np
import pytest
import tiny

from dcjax.data import quality
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.finetuning import inspection, survey
from dcjax.finetuning.inspection import Look
from dcjax.report import sheet


def scene(seed, frames, size=(32, 48)):
  """A textured picture that drifts by a pixel a frame."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
  whole = coarse.repeat(16, 0).repeat(16, 1)
  h, w = size
  return np.stack([whole[8 : 8 + h, i : i + w] for i in range(frames)])


def small(video):
  return np.stack([quality.small(x) for x in video])


def times(count, fps=8.0):
  return np.arange(count) / fps


# ---- what is found -----------------------------------------------------------


def test_cuts_are_found_at_their_times_and_motion_is_none():
  video = np.concatenate([scene(0, 9), scene(1, 11), scene(2, 6)])
  assert quality.cuts(small(video), times(26)) == [9 / 8, 20 / 8]
  assert quality.cuts(small(scene(3, 30)), times(30)) == []
  # Ten times as fast, which changes every frame a lot.
  fast = np.concatenate([scene(s, 16)[::10] for s in (0,)] * 6)
  assert quality.cuts(small(fast), times(len(fast))) == []
  assert quality.cuts(small(scene(0, 1)), times(1)) == []


def test_black_and_frozen_stretches_have_their_times():
  moving = scene(0, 8)
  video = np.concatenate(
    [moving, moving[-1:].repeat(7, 0), np.zeros_like(moving)]
  )
  frames, at = small(video), times(len(video))
  ((start, end),) = quality.frozen(frames, at, len(video) / 8)
  assert (start, end) == (7 / 8, 15 / 8)
  assert quality.black(frames, at, len(video) / 8) == [(15 / 8, 23 / 8)]
  assert quality.frozen(small(moving), times(8), 1.0) == []
  # A slow clip in a fast file repeats each frame, and is not frozen.
  doubled = small(moving.repeat(2, axis=0))
  assert quality.frozen(doubled, times(16), 2.0) == []
  # A blink is not worth a word.
  assert quality.black(frames[12:17], at[:5], at[5]) == []


def test_near_duplicates_are_found_across_sizes_and_rates_only():
  clip = scene(0, 16, (64, 96))
  noise = np.random.default_rng(0).integers(-6, 7, clip.shape)
  files = [
    clip,
    scene(5, 16, (64, 96)),
    video_lib.fit(video_lib.Video(clip, 8.0), 32, 48).frames[::2],
    scene(6, 1),
    (clip + noise).clip(0, 255).astype(np.uint8),
    # A flat picture has no edges, as many others; its colour tells it.
    np.full((4, 32, 32, 3), (200, 30, 30), np.uint8),
    np.full((4, 32, 32, 3), (30, 30, 200), np.uint8),
  ]
  hashes = [quality.hashes(small(x)) for x in files]
  assert quality.near_duplicates(hashes) == [(0, 2), (0, 4), (2, 4)]
  assert quality.near_duplicates([]) == []


def test_strip_is_short_however_long_the_file_and_shows_what_is_cropped():
  look = Look()
  for i in range(500):
    look.see(np.full((32, 48, 3), i // 2, np.uint8))
  assert len(look.small) == 500 and len(look.frames) <= 24
  strip = look.strip(survey.Bucket(17, 64, 64))
  width = 144
  assert strip.shape == (96, 6 * width + 5 * 4, 3)
  # The last frame, without the sixth of it at either side.
  last = strip[50, -width:, 0].astype(int)
  light, dark = last[width // 2], last[4]
  assert light > 200 and dark < 0.4 * light
  bright = np.flatnonzero(last > 0.5 * light)
  assert (bright[0], bright[-1]) == (24, 119)


# ---- the page ----------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The tiny folder, and a file of each kind of trouble."""
  root = tmp_path_factory.mktemp('inspected') / 'files'
  tiny.folder(root)
  for name, frames, text in (
    ('joined', np.concatenate([scene(0, 9), scene(1, 9)]), 'a cat, a dog'),
    ('wide', scene(7, 9, (16, 64)), 'a <b>unicorn</b> jumps'),
    ('copy', scene(7, 9, (16, 64)), 'a cat'),
    ('stops', scene(2, 6)[[0, 1, 2, 3, 4, 5, *[5] * 8]], 'a ' * 40),
  ):
    video_lib.write_video(root / f'{name}.mp4', frames, 8.0)
    (root / f'{name}.txt').write_text(text)
  (root / 'silent.mp4').write_bytes(b'no video')
  return root


@pytest.fixture(scope='module')
def page(folder, tmp_path_factory):
  """(what was printed, the page) of the whole task."""
  workdir = tmp_path_factory.mktemp('workdir')
  with pytest.MonkeyPatch.context() as patch:
    base = tiny.base()
    patch.setattr(inspection, 'load_base', lambda name, weights: base)
    inspection.run(config(folder), str(workdir))
  return (workdir / 'inspection.html').read_text()


def config(folder):
  from ml_collections import ConfigDict

  c = ConfigDict(dict(base='tiny', batch=2, previews=3))
  c.data, c.format = tiny.finetune(folder).data, tiny.finetune(folder).format
  c.data.buckets.max = 3
  return c


class Outline(HTMLParser):
  """Cards by name, with their text; and every URL of the page."""

  def __init__(self, page):
    super().__init__()
    self.urls, self.order = [], []
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.urls += [attributes[k] for k in ('src', 'href') if k in attributes]
    if tag == 'article':
      self.order.append(attributes['id'])


def card(page, name):
  """Markup of one file's card."""
  cards = re.findall(r'<article.*?</article>', page, re.DOTALL)
  return next(x for x in cards if f'<h3>{name}</h3>' in x)


def test_page_is_one_file_with_every_card(page):
  outline = Outline(page)
  assert all(x.startswith(('data:', '#')) for x in outline.urls)
  assert len(outline.order) == 8
  # Moving previews for three files, a strip for each.
  assert page.count('<video') == 3
  assert 'class="frames"' in card(page, 'two.mp4')


def test_each_trouble_is_told_on_its_card_and_at_the_top(page):
  for name, words in {
    'joined.mp4': 'scene cut at 1.12 s',
    'wide.mp4': 'looks nearly like copy.mp4',
    'copy.mp4': 'looks nearly like wide.mp4',
    'stops.mp4': 'frozen from 0.62',
  }.items():
    assert words in card(page, name), name
    assert words in page.partition('<h2>Shapes</h2>')[0]
  assert 'the caption is too long; this is cut off: a a' in card(
    page, 'stops.mp4'
  )
  assert 'unicorn' in card(page, 'wide.mp4')
  assert 'not used: it has no caption' in page


def test_problems_come_first(page):
  """In the order of the cards, and captions are escaped."""
  counts = [
    len(re.findall('<li>', x))
    for x in re.findall(r'<article.*?</article>', page, re.DOTALL)
  ]
  assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
  assert page.index('<h2>Problems</h2>') < page.index('<article')
  assert '<b>unicorn' not in page and '&lt;b&gt;unicorn' in page


def test_totals_and_facts_are_those_of_the_training(page, folder):
  found = survey.read(tiny.base(), config(folder).data)
  facts = dict(re.findall(r'<dt>([^<]*)</dt><dd>([^<]*)</dd>', page))
  assert facts['Samples'] == str(found.samples)
  assert facts['Compiled shapes'] == str(len(found.buckets))
  assert facts['Not used'] == '1'
  two = card(page, 'two.mp4')
  assert '16 fps' in two and '1.38 s, 22 frames' in two
  assert '<b class="v">blue</b>' in two
  assert 'one.mask.png' in card(page, 'one.mp4')


def test_rotated_files_are_shown_upright_and_said_to_be(tmp_path):
  from PIL import Image

  image = Image.fromarray(scene(0, 1)[0])
  exif = Image.Exif()
  exif[0x0112] = 6
  image.save(tmp_path / 'a.jpg', exif=exif)
  (tmp_path / 'a.txt').write_text('a cat')
  found = survey.read(tiny.base(), config(tmp_path).data)
  (entry,) = found.entries
  facts = inspection._facts(entry, found, set())
  assert facts['size'] == '32 × 48, turned by 90°'


def test_nothing_found_is_said(tmp_path):
  strip = np.zeros((96, 96, 3), np.uint8)
  path = sheet.write(
    tmp_path / 'p.html',
    title='t',
    totals={},
    table=[('shape', 'files'), ('1 x 1 x 1', '1')],
    cards=[sheet.Card('a.png', [], {}, 'a cat', strip)],
    skipped=[],
  )
  assert 'None was found.' in path.read_text()


@pytest.mark.parametrize(
  'change,line',
  [
    ({'batch': 0}, 'config.batch is 0'),
    ({'previews': -1}, 'config.previews is -1'),
    ({'data.path': 'gone'}, 'gone does not exist'),
  ],
)
def test_mistakes_are_one_line(folder, tmp_path, monkeypatch, change, line):
  monkeypatch.setattr(
    inspection, 'load_base', lambda name, weights: tiny.base()
  )
  c = config(folder)
  c.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=line) as error:
    inspection.run(c, str(tmp_path))
  assert '\n' not in str(error.value)
