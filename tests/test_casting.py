"""Annotated clips become samples: who, when, and a picture from elsewhere."""

import itertools

import numpy as np
import pytest

from dcjax.data import augment, casting
from dcjax.data.subjects import AnnotatedClip, Subject, TimedText
from dcjax.errors import DcjaxError

SIZE = (32, 32)
PLAIN = dict(frames=9, fps=8.0, size=SIZE, window='first', changes=())


def make(presences, frames=None, fps=8.0, events=(), side=10, height=32):
  """A clip whose subjects are squares beside one another.

  `presences` has the frames of each subject. The red of a square is five times
  the number of the frame, its blue that of the subject, so that a picture tells
  where it is from.
  """
  frames = frames or max(max(x, default=0) for x in presences) + 1
  video = np.full((frames, height, 32 * len(presences) or 32, 3), 128, np.uint8)
  subjects = []
  for s, presence in enumerate(presences):
    mask = np.zeros(video.shape[:3], bool)
    for f in presence:
      mask[f, 4 : 4 + side, 32 * s + 6 : 32 * s + 6 + side] = True
      video[f][mask[f]] = (5 * f, 0, 50 * (s + 1))
    subjects.append(Subject(f'thing{s}', mask))
  words = ' '.join(x.word for x in subjects)
  return AnnotatedClip(video, fps, words, tuple(subjects), tuple(events))


def cast(clip, seed=0, **options):
  if 'size' not in options:
    options['size'] = clip.video.shape[1:3]
  return casting.cast(clip, np.random.default_rng(seed), **PLAIN | options)


def color(reference):
  """The RGB of the middle of a reference's picture."""
  h, w, _ = reference.image.shape
  return reference.image[h // 2, w // 2].tolist()


def intervals(sample):
  return sorted((x.word, x.start, x.end) for x in sample.references)


def test_an_interval_reaches_half_a_frame_around_what_is_seen():
  sample = cast(make([range(2, 6)], frames=9))
  assert intervals(sample) == [('thing0', 1.5 / 8, 5.5 / 8)]


def test_an_interval_ends_with_the_window():
  assert intervals(cast(make([range(9)]))) == [('thing0', 0.0, 1.0)]
  # What comes before and after the window is of no account.
  assert intervals(cast(make([range(7, 12)]))) == [('thing0', 6.5 / 8, 1.0)]


def test_areas_of_half_a_percent_do_not_count():
  # 32 x 32 pixels: 5 are 0.49% of them, 6 are 0.59%.
  for pixels, seen in ((5, 0), (6, 1)):
    clip = make([range(9)])
    mask = np.zeros_like(clip.subjects[0].mask)
    mask[:, 0, :pixels] = True
    clip = AnnotatedClip(
      clip.video, 8.0, 'thing0', (Subject('thing0', mask),), ()
    )
    assert len(cast(clip).references) == seen


def test_short_absences_are_bridged_and_long_ones_are_not():
  # Three frames are away: 3/8 s.
  clip = make([[0, 1, 5, 6]], frames=9)
  assert intervals(cast(clip, gap=0.5)) == [('thing0', 0.0, 6.5 / 8)]
  two = [('thing0', 0.0, 1.5 / 8), ('thing0', 4.5 / 8, 6.5 / 8)]
  assert intervals(cast(clip, gap=0.375)) == two


def test_who_returns_is_given_with_all_returns_or_not_at_all():
  clip = make([[0, 1, 7, 8], range(9), range(3, 6)], frames=9)
  seen = set()
  for seed in range(60):
    words = [x.word for x in cast(clip, seed, gap=0.5).references]
    assert 1 <= len(words) <= 3
    assert words.count('thing0') in (0, 2)
    seen.add(tuple(words))
  assert len({tuple(sorted(x)) for x in seen}) == 6
  # The order is drawn too.
  assert ('thing1', 'thing2') in seen and ('thing2', 'thing1') in seen


def test_one_to_three_references():
  clip = make([range(9)] * 5)
  counts = [len(cast(clip, i).references) for i in range(300)]
  share = np.bincount(counts, minlength=4) / 300
  np.testing.assert_allclose(share, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.08)
  chosen = {x.word for i in range(40) for x in cast(clip, i).references}
  assert len(chosen) == 5
  assert {
    len(cast(clip, i, max_references=1).references) for i in range(9)
  } == {1}


def test_pictures_come_from_outside_the_window():
  # Subject 0 is seen in frames 0 to 12, the window has 0 to 8.
  clip = make([range(13), range(9)], frames=14)
  outside, inside = set(), set()
  for seed in range(40):
    for x in cast(clip, seed).references:
      red, _, blue = color(x)
      (outside if blue == 50 else inside).add(red // 5)
  assert outside == {9, 10, 11, 12}
  # Subject 1 is nowhere else.
  assert len(inside) > 3 and inside <= set(range(9))


def test_pictures_are_not_of_what_is_half_hidden():
  clip = make([range(14)])
  clip.subjects[0].mask[12, :8] = False  # 4 of its 10 rows
  clip.subjects[0].mask[9:12, :10] = False  # 6 of them
  reds = {color(cast(clip, i).references[0])[0] // 5 for i in range(30)}
  assert reds == {12, 13}


def test_windows_are_anywhere():
  clip = make([range(20, 40)], frames=40)
  firsts = set()
  for seed in range(150):
    sample = cast(clip, seed, window='random')
    # Frame 20 + k is red: find where the window begins.
    seen = sample.cover.any((1, 2))
    if not seen.any():
      assert not sample.references
      continue
    first = int(np.flatnonzero(seen)[0])
    red = sample.clip[first][sample.cover[first]][0, 0]
    ((_, start, end),) = intervals(sample)
    assert start == (0.0 if first == 0 else (first - 0.5) / 8) and end == 1.0
    firsts.add((int(red), first))
  assert len(firsts) > 15


def test_a_window_at_another_rate():
  # 24 frames a second; at 8, every third one of the first 25.
  clip = make([range(10, 20)], frames=30, fps=24.0)
  sample = cast(clip)
  np.testing.assert_array_equal(sample.clip, clip.video[0:25:3])
  # Frames 12, 15 and 18 are seen: 4 to 6 of the window.
  assert intervals(sample) == [('thing0', 3.5 / 8, 6.5 / 8)]
  # Nearest frames where the rates do not divide.
  sample = cast(make([range(9)], frames=9, fps=6.0), frames=5)
  reds = [x[8, 8, 0] // 5 for x in sample.clip]
  assert reds == [0, 1, 2, 2, 3]  # of 0, 0.75, 1.5, 2.25, 3


def test_clips_of_another_size_are_scaled_and_cut_with_their_masks():
  clip = make([range(9)], height=48)  # 48 x 32 covers 32 x 32 as it is
  clip.subjects[0].mask[:, :] = False
  clip.subjects[0].mask[:, 8:40, :16] = True
  clip.video[:] = np.where(clip.subjects[0].mask[..., None], 255, 0)
  sample = cast(clip, size=(16, 16))
  assert sample.clip.shape == (9, 16, 16, 3)
  expected = np.zeros((9, 16, 16), bool)
  expected[:, :, :8] = True
  np.testing.assert_array_equal(sample.cover, expected)
  assert sample.clip[:, :, :7].min() > 230 and sample.clip[:, :, 9:].max() < 25
  assert sample.references[0].image.shape == (16, 16, 3)


def test_cover_is_the_union_of_all_subjects():
  clip = make([range(3), range(2, 9)])
  sample = cast(clip)
  np.testing.assert_array_equal(
    sample.cover, clip.subjects[0].mask | clip.subjects[1].mask
  )
  nobody = AnnotatedClip(clip.video, 8.0, 'nothing', (), ())
  sample = cast(nobody)
  assert sample.references == () and not sample.cover.any()
  assert sample.cover.shape == clip.video.shape[:3]


def test_pictures_are_changed():
  clip = make([range(13)])
  plain = cast(clip, 3).references[0].image
  changed = casting.cast(
    clip, np.random.default_rng(3), **PLAIN | {'changes': augment.ALL}
  )
  assert not np.array_equal(plain, changed.references[0].image)


def test_a_sample_depends_on_its_rng_alone():
  clip = make([range(20), range(4, 30)], events=[TimedText('a', 0.0, 2.0)])
  options = dict(window='random', changes=augment.ALL)
  one, again, other = (cast(clip, seed, **options) for seed in (5, 5, 6))
  np.testing.assert_array_equal(one.clip, again.clip)
  assert one.events == again.events
  for x, y in zip(one.references, again.references, strict=True):
    assert (x.word, x.start, x.end) == (y.word, y.start, y.end)
    np.testing.assert_array_equal(x.image, y.image)
  assert not np.array_equal(one.references[0].image, other.references[0].image)


def events(*rows, start=0.0, seconds=4.0):
  given = [TimedText(text, a, b) for text, a, b in rows]
  cut = casting.cut_events(given, start, seconds, 8.0)
  return [(x.text, x.start, x.end) for x in cut]


def test_events_are_clipped_to_the_window():
  rows = ('early', 0.0, 1.5), ('late', 3.0, 9.0), ('never', 6.0, 7.0)
  assert events(*rows, start=1.0) == [('early', 0.0, 0.5), ('late', 2.0, 4.0)]
  # Less than a frame is left of it.
  assert events(('a', 0.0, 1.1), start=1.0) == []


@pytest.mark.parametrize(
  'rows, expected',
  [
    # Both are cut at the midpoint of what they share.
    ([('b', 1, 4), ('a', 0, 3)], [('a', 0, 2), ('b', 2, 4)]),
    ([('a', 0, 1), ('b', 1, 2)], [('a', 0, 1), ('b', 1, 2)]),
    # One within the other: the longer one keeps its longer end.
    ([('a', 0, 4), ('b', 1, 2)], [('b', 1, 1.5), ('a', 1.5, 4)]),
    ([('a', 0, 4), ('b', 2, 3)], [('a', 0, 2.5), ('b', 2.5, 3)]),
    # The same time.
    ([('a', 0, 4), ('b', 0, 4)], [('a', 0, 2), ('b', 2, 4)]),
    # The third lies in what the first keeps, not in what the second keeps.
    (
      [('a', 0, 3.5), ('b', 0.5, 4), ('c', 1, 1.5)],
      [('a', 0, 1.25), ('c', 1.25, 1.5), ('b', 2, 4)],
    ),
  ],
)
def test_overlapping_events(rows, expected):
  assert events(*rows) == expected


def test_events_never_overlap_and_never_grow():
  rng = np.random.default_rng(0)
  for _ in range(100):
    start = rng.uniform(0, 3.5, 6)
    end = start + rng.uniform(0.2, 3.0, 6)
    rows = [(str(i), start[i], min(end[i], 4.0)) for i in range(6)]
    found = events(*rows)
    assert found
    for one, two in itertools.pairwise(found):
      assert one[2] <= two[1]
    for text, a, b in found:
      _, low, high = rows[int(text)]
      assert low <= a and b <= high and b - a >= 1 / 8


@pytest.mark.parametrize(
  'options, message',
  [
    ({'window': 'last'}, "window is 'last', expected 'random' or 'first'"),
    ({'frames': 10}, '9 frames at 8 a second; 10 frames at 8 .* take 10'),
    ({'fps': 4.0}, '9 frames at 4 a second take 17'),
    ({'frames': 1}, 'frames is 1'),
    ({'fps': 0.0}, 'fps 0.0'),
    ({'max_references': 0}, 'max_references 0'),
  ],
)
def test_mistakes_are_one_line(options, message):
  with pytest.raises(DcjaxError, match=message):
    cast(make([range(9)]), **options)
