"""The report of a run: one file, nothing fetched, nothing injected."""

import base64
import hashlib
from html.parser import HTMLParser
import math
import re

import numpy as np
import pytest

from dcjax import report
from dcjax.data.video import read_video
from dcjax.errors import DcjaxError
from dcjax.report.curves import by_stage, charts, series

VOID = {'meta', 'link', 'img', 'input', 'path'}
EVIL = '<script>alert("1")</script> & \'[v]\' </style><img src=x onerror=y>'


class Page(HTMLParser):
  """Reads a page: its elements, its text, and whether all tags are closed."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.elements, self.text = [], [], ''
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('script', 'style'):
      self.text += data

  def all(self, tag, **wanted):
    return [
      attrs
      for name, attrs in self.elements
      if name == tag and all(attrs.get(k) == v for k, v in wanted.items())
    ]


def video(frames=5, height=16, width=16):
  ramp = np.arange(frames * height * width * 3) % 251
  return ramp.reshape(frames, height, width, 3).astype(np.uint8)


def panel(caption='clip', group='Clip', **more):
  fields = {'prompt': 'a [v] cat', 'video': video(), 'fps': 8.0} | more
  return report.Panel(caption=caption, group=group, **fields)


def records(stage='set', steps=50, held_out=True):
  for step in range(1, steps + 1):
    quarters = {f'loss/t{q}': 1 / (step + q) for q in range(step % 5)}
    yield {
      'stage': stage,
      'step': step,
      'loss': 1 / step,
      'lr': 1e-3,
    } | quarters
    if held_out and step % 10 == 0:
      values = {f'held_out/t{q}': 1 / (step + q) for q in range(4)}
      yield {'stage': stage, 'step': step} | values


def write(path, **more):
  fields = {
    'title': 'A run',
    'videos': [panel()],
    'metrics': list(records()),
    'settings': {'seed': 0},
    'timings': {'total': 90.0},
  }
  report.write(path, **(fields | more))
  text = path.read_text()
  return text, Page(text)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
  """A personalisation with everything in it."""
  previews = [
    panel('preview', 'set', step=step, prompt=prompt)
    for step in range(100, 0, -5)
    for prompt in ('a [v] cat', 'a [v] cat in the snow')
  ]
  return write(
    tmp_path_factory.mktemp('run') / 'report.html',
    title='A cat that boxes',
    videos=[
      panel('input clip'),
      panel('reconstruction', settings={'seed': 3, 'guidance': 2.5}),
      panel('another place', 'edits', prompt='a [v] cat doing [u] in snow'),
      panel('still', 'edits', video=video(1)),
      *previews,
    ],
    metrics=[*records('set'), *records('sequence', held_out=False)],
    settings={
      'stages': [{'name': 'set', 'steps': 50}, {'name': 'sequence'}],
      'lora': {'rank': 16, 'alpha': None},
      'machine': {'device': 'abacus'},
      'versions': {'jax': '0.7.2'},
    },
    timings={
      'set': {'compile': 2.0, 'step': 0.0125, 'peak_memory': 3 << 30},
      'total': 3725.0,
    },
    notes=['A remark.'],
    prompts={'appearance': 'a [v] cat', 'motion': 'it is [u] boxing'},
    commands={'another prompt': "dcjax --prompt='a [v] & more'"},
  )


def test_tells_the_run(full):
  _, page = full
  for words in (
    'A cat that boxes',
    'it is [u] boxing',
    'Reconstruction',
    'guidance 2.5',
    'Edits',
    'a [v] cat doing [u] in snow',
    'step 100',
    '12.5 ms a step',
    '3 GiB',
    '1 h 02 min',
    'abacus',
    '0.7.2',
    'rank',
    'sequence',
    'A remark.',
    "dcjax --prompt='a [v] & more'",
  ):
    assert words in page.text, words
  # Stages of the settings are folded by name.
  assert len(page.all('details')) == 1 + 1 + 2
  assert page.all('b', **{'class': 'u'})


def test_asks_for_nothing(full):
  text, page = full
  assert 'http://' not in text and 'https://' not in text
  assert '@import' not in text and 'url(' not in text
  for tag, attrs in page.elements:
    for key in ('src', 'href', 'poster', 'srcset', 'data'):
      assert (attrs.get(key) or 'data:').startswith('data:'), (tag, key)
  (policy,) = [m['content'] for m in page.all('meta') if 'http-equiv' in m]
  assert "default-src 'none'" in policy


def test_clips_loop_by_themselves(full):
  _, page = full
  players = page.all('video')
  for attrs in players:
    assert {'muted', 'loop', 'playsinline'} <= attrs.keys()
    assert attrs['src'].startswith('data:video/mp4;base64,')
    assert 'autoplay' in attrs or attrs['preload'] == 'none'
  assert len([x for x in players if 'autoplay' in x]) == 3
  # A still is a picture.
  assert len(page.all('img')) == 1


def test_previews_are_few_and_in_order(full):
  text, page = full
  assert len([x for x in page.all('video') if 'autoplay' not in x]) == 2 * 8
  steps = [int(x) for x in re.findall(r'>step (\d+)<', text)]
  assert steps[0] == 5 and steps[7] == 100
  assert steps[:8] == sorted(steps[:8]) == steps[8:]


def test_the_policy_runs_our_script_and_no_other(full):
  text, _ = full
  (script,) = re.findall(r'<script>(.*?)</script>', text, re.S)
  digest = hashlib.sha256(script.encode()).digest()
  assert f"'sha256-{base64.b64encode(digest).decode()}'" in text


def test_escapes_everything(tmp_path):
  text, page = write(
    tmp_path / 'report.html',
    title=EVIL,
    videos=[
      panel(EVIL, EVIL, prompt=EVIL, settings={EVIL: EVIL}),
      panel(EVIL, EVIL + '2', prompt=EVIL),
      panel(EVIL, EVIL, prompt=EVIL, step=1),
    ],
    metrics=[{'stage': EVIL, 'step': 1, 'loss': 1.0, EVIL: 2.0}],
    settings={EVIL: {EVIL: EVIL}, 'machine': {EVIL: EVIL}, 'versions': EVIL},
    timings={EVIL: EVIL, EVIL + '3': {EVIL: EVIL}},
    notes=[EVIL],
    prompts={EVIL: EVIL},
    commands={EVIL: EVIL},
  )
  assert len(page.all('script')) == len(page.all('style')) == 1
  assert not page.all('img')
  assert not any(key.startswith('on') for _, a in page.elements for key in a)
  assert page.text.count('alert("1")') > 15
  assert '\n$' not in text


def test_draws_without_held_out_values(tmp_path):
  _, page = write(
    tmp_path / 'a.html', metrics=list(records(held_out=False)), videos=[]
  )
  assert 'Loss by flow time' in page.text
  assert 'Held-out' not in page.text


def test_a_run_that_has_just_begun(tmp_path):
  _, page = write(
    tmp_path / 'deep' / 'report.html',
    videos=[],
    metrics=[],
    settings={},
    timings={},
  )
  assert 'A run' in page.text and not page.all('polyline')


@pytest.mark.parametrize(
  'values',
  [
    [1.0],
    [0.0, 0.0],
    [math.nan, 1.0, math.inf, 2.0],
    [math.nan],
    [1e-12, 1e12],
    [-1.0, 5.0],
    [0.7] * 9,
    [1.0, 1.0 + 1e-15],
    list(np.exp(np.sin(np.arange(5000)))),
  ],
)
def test_curves_are_finite_and_inside(values):
  text = charts(
    [
      {'stage': 's', 'step': 10 * i, 'loss': y, 'lr': y}
      for i, y in enumerate(values)
    ]
  )
  Page(text)
  assert not re.search(r'\b(nan|inf|None)\b', text, re.I)
  points = re.findall(r'points="([^"]*)"', text)
  assert bool(points) == bool(np.isfinite(values).any())
  for line in points:
    x, y = np.asarray([p.split(',') for p in line.split()], float).T
    assert (np.diff(x) >= 0).all()
    assert x.min() >= 0 and x.max() <= 360 and y.min() >= 0 and y.max() <= 200
  # However long the run, the page stays small.
  assert len(text) < 60_000


def test_curves_show_the_values():
  """Points of a line read back through the scale the figure carries."""
  y = np.linspace(3.0, 1.0, 9)
  text = charts([{'step': 5 * i, 'loss': v} for i, v in enumerate(y)])
  low, high, floor, top = map(
    float, re.search('data-y="(.*?)"', text)[1].split()
  )
  first, last, left, right = map(
    float, re.search('data-x="(.*?)"', text)[1].split()
  )
  line = re.search('class="main" points="(.*?)"', text)[1]
  px, py = np.asarray([p.split(',') for p in line.split()], float).T
  np.testing.assert_allclose(
    low + (high - low) * (floor - py) / (floor - top), y, atol=1e-3
  )
  np.testing.assert_allclose(
    first + (last - first) * (px - left) / (right - left),
    5 * np.arange(9),
    atol=1e-2,
  )


def test_smoothing_keeps_a_constant_and_calms_noise():
  noise = np.random.default_rng(0).normal(size=400)
  paths = {}
  for name, values in (('flat', np.full(400, 2.0)), ('noise', noise)):
    text = charts([{'step': i, 'loss': v} for i, v in enumerate(values)])
    for style in ('raw', 'main'):
      line = re.search(f'class="{style}" points="(.*?)"', text)[1]
      paths[name, style] = [float(p.split(',')[1]) for p in line.split()]
  assert np.ptp(paths['flat', 'main']) == 0
  assert np.std(paths['noise', 'main']) < 0.4 * np.std(paths['noise', 'raw'])


def test_a_spike_of_a_long_run_is_drawn():
  values = np.ones(20_000)
  values[12_345] = 1.5
  text = charts([{'step': i, 'loss': v} for i, v in enumerate(values)])
  line = re.search('class="raw" points="(.*?)"', text)[1]
  assert len({p.split(',')[1] for p in line.split()}) == 2


def test_a_resumed_step_counts_once():
  twice = [{'step': s, 'loss': v} for s, v in ((1, 9), (2, 8), (2, 7), (3, 6))]
  x, y = series(twice, 'loss')
  assert x.tolist() == [1, 2, 3] and y.tolist() == [9, 7, 6]


def test_stages_stand_in_the_order_of_the_run():
  assert list(by_stage([*records('b'), *records('a')])) == ['b', 'a']


def test_small_clips_keep_their_colours(tmp_path):
  """Single pixels of pure colour survive 4:2:0, as they are drawn larger."""
  clip = np.zeros((3, 16, 16, 3), np.uint8)
  clip[:, ::2, ::2, 0] = clip[:, 1::2, 1::2, 2] = 255
  _, page = write(tmp_path / 'a.html', videos=[panel(video=clip)])
  (player,) = page.all('video')
  assert (player['width'], player['height']) == ('256', '256')
  file = tmp_path / 'clip.mp4'
  file.write_bytes(base64.b64decode(player['src'].split(',')[1]))
  shown = read_video(file)
  assert shown.fps == 8
  centres = shown.frames[:, 8::16, 8::16].astype(int)
  assert np.abs(centres - clip).max() < 24


@pytest.mark.parametrize('size', [(480, 832), (720, 405), (33, 7), (1, 900)])
def test_pages_stay_small_whatever_the_clips(tmp_path, size):
  clips = [panel(video=np.full((17, *size, 3), 90, np.uint8))] * 2
  text, page = write(tmp_path / 'a.html', videos=clips)
  for player in page.all('video'):
    w, h = int(player['width']), int(player['height'])
    assert max(w, h) <= 512
  assert len(text) < 200_000


def test_depends_on_its_arguments_alone(tmp_path):
  first, _ = write(tmp_path / 'a.html')
  second, _ = write(tmp_path / 'b.html')
  assert first == second


def test_a_failed_write_leaves_the_old_report(tmp_path):
  path = tmp_path / 'report.html'
  before, _ = write(path)
  with pytest.raises(DcjaxError, match=r"'bad' is float32 \[4, 16, 16, 3\]"):
    write(path, videos=[panel('bad', video=np.zeros((4, 16, 16, 3), 'f4'))])
  assert path.read_text() == before
  assert [x.name for x in tmp_path.iterdir()] == ['report.html']


def test_the_disk_refuses(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(DcjaxError, match='cannot write'):
    write(tmp_path / 'file' / 'report.html')
