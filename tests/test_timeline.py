"""The procedural world as annotated clips."""

import jax
import numpy as np
import pytest

from dcjax.data import appearances, render, scene, subjects, timeline
from dcjax.errors import DcjaxError

FRAMES = 17
COUNT = 3 * timeline.CHUNK


@pytest.fixture(scope='module')
def world():
  return timeline.World(COUNT, frames=FRAMES)


@pytest.fixture(scope='module')
def clips(world):
  return [world[i] for i in range(COUNT)]


@pytest.fixture(scope='module')
def draw():
  """One compilation for scenes of three objects with two spans each."""
  return jax.jit(lambda x: render.render(x, FRAMES))


def same(a, b):
  return (
    np.array_equal(a.video, b.video)
    and (a.caption, a.events, a.fps) == (b.caption, b.events, b.fps)
    and [x.word for x in a.subjects] == [x.word for x in b.subjects]
    and all(
      np.array_equal(x.mask, y.mask)
      for x, y in zip(a.subjects, b.subjects, strict=True)
    )
  )


def test_clips_keep_the_rules_of_annotated_clips(clips):
  for clip in clips:
    subjects.check(clip)
    f = FRAMES + len(clip.subjects)
    assert clip.video.shape == (f, 64, 64, 3) and clip.fps == 8.0


def test_a_clip_depends_on_its_index_alone(world, clips):
  """Not on the order in which clips are asked for, nor on their number."""
  fewer = timeline.World(50, frames=FRAMES)
  for i in (49, 3, 40, 0):
    assert same(fewer[i], clips[i]), i
  assert not same(timeline.World(4, seed=1, frames=FRAMES)[3], clips[3])
  # More chunks than are kept in memory.
  many = timeline.World(10**6, frames=FRAMES)
  for i in (0, 1000, 2000, 3000, 4000, 5000):
    first = many[i]
  assert same(many[0], clips[0]) and same(many[5000], first)


def test_masks_are_where_the_events_say(world, clips):
  """Nothing of an object is seen but in its spans, and after the clip."""
  time = np.arange(FRAMES) / 8
  for i, clip in enumerate(clips):
    texts = [x.text for x in clip.events]
    sentences = appearances.sentences(*world.appearances(i)[:2])
    assert set(texts) == set(sentences)
    last = clip.subjects[-1]
    for subject, text in zip(clip.subjects, sentences, strict=True):
      there = np.zeros(FRAMES, bool)
      for event in clip.events:
        if event.text == text:
          there |= (event.start - 1e-4 <= time) & (time <= event.end + 1e-4)
      seen = subject.mask[:FRAMES].any((1, 2))
      assert not (seen & ~there).any()
      if subject is last:  # in front of all others, so never hidden
        np.testing.assert_array_equal(seen, there)


def test_the_last_frames_show_each_object_alone(clips):
  for clip in clips:
    for o, subject in enumerate(clip.subjects):
      after = subject.mask[FRAMES:]
      assert [x.any() for x in after] == [
        j == o for j in range(len(clip.subjects))
      ]
      mask = after[o]
      assert mask.sum() > 100
      rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
      assert not rim.any(), 'it leaves the frame'
      # Where it is not, there is only background: that of the other pictures.
      for other in range(len(clip.subjects)):
        far = ~_wider(mask) & ~_wider(clip.subjects[other].mask[FRAMES + other])
        np.testing.assert_array_equal(
          clip.video[FRAMES + o][far], clip.video[FRAMES + other][far]
        )


def _wider(mask):
  """A mask and two pixels around it, which antialiasing may touch."""
  wide = np.zeros_like(mask)
  for dy in range(-2, 3):
    for dx in range(-2, 3):
      wide |= np.roll(mask, (dy, dx), (0, 1))
  return wide


def test_both_of_a_pair_are_seen_as_small_and_large(clips):
  pairs = [x for x in clips if x.caption.startswith('a small')]
  pairs = [x for x in pairs if x.subjects[-1].word.startswith('large')]
  assert pairs
  for clip in pairs:
    small, large = (x.mask[FRAMES:].sum() for x in clip.subjects)
    assert large > 1.8 * small


def test_several_spans_are_the_union_of_each(draw):
  """And the pictures of one span are those of a scene without axis s."""
  shown = appearances.draw(
    np.random.default_rng(1), split='train'
  ).scene._replace(count=np.int32(3))
  none = np.float32([-1, -1])
  spans = np.float32([[[0.0, 0.3], [0.7, 1.0]], [[0.5, 1.0], none], [none] * 2])
  clip = draw(shown._replace(interval=spans))
  first = [*range(5), *range(12, 17)]  # 16 * 0.3 = 4.8, 16 * 0.7 = 11.2
  assert np.flatnonzero(clip.present[0]).tolist() == first
  assert np.flatnonzero(clip.present[1]).tolist() == [*range(8, 17)]
  assert not clip.present[2].any() and not clip.mask[2].any()
  np.testing.assert_allclose(clip.interval, spans * 2.0)
  np.testing.assert_array_equal(
    render.visible(shown._replace(interval=spans), FRAMES), clip.present
  )
  one = np.where(np.arange(2).reshape(1, 2, 1) == 0, spans, none)
  plain = render.render(shown._replace(interval=one[:, 0]), FRAMES)
  several = draw(shown._replace(interval=one))
  np.testing.assert_allclose(plain.video, several.video, atol=1e-6)
  np.testing.assert_array_equal(plain.mask, several.mask)


def test_only_counted_objects_are_drawn(draw):
  shown = appearances.draw(
    np.random.default_rng(2), split='train'
  ).scene._replace(interval=np.float32([[[0, 1], [-1, -1]]] * 3))
  for count in (1, 2, 3):
    counted = shown._replace(count=np.int32(count))
    clip = draw(counted)
    expected = np.arange(3) < count
    np.testing.assert_array_equal(clip.present.all(1), expected)
    np.testing.assert_array_equal(clip.mask.any((1, 2, 3)), expected)
    np.testing.assert_array_equal(render.visible(counted, FRAMES), clip.present)


def test_visible_of_batches():
  scenes = [
    appearances.draw(np.random.default_rng(i), split='train').scene
    for i in range(5)
  ]
  batch = jax.tree.map(lambda *x: np.stack(x), *scenes)
  seen = render.visible(batch, FRAMES)
  assert seen.shape == (5, 3, FRAMES)
  for i, one in enumerate(scenes):
    np.testing.assert_array_equal(seen[i], render.visible(one, FRAMES))


def test_the_test_split_is_of_held_out_triples():
  world = timeline.World(40, split='test', frames=FRAMES)
  for i in range(40):
    shown = world.appearances(i).scene
    for o in range(int(shown.count)):
      assert scene.is_held_out(shown.color[o], shown.shape[o], shown.motion[o])


def test_it_is_a_sequence(world):
  assert len(world) == COUNT and len(timeline.World(0)) == 0
  with pytest.raises(IndexError, match='clip 96 of 96'):
    world[COUNT]


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'split': 'all'}, "split is 'all', expected 'train' or 'test'"),
    ({'frames': 1}, 'frames is 1, expected 2 or more'),
    ({'seed': -1}, 'seed is -1, expected 0 or more'),
    ({'count': -1}, 'count is -1'),
  ],
)
def test_mistakes_are_one_line(wrong, message):
  with pytest.raises(DcjaxError, match=message):
    timeline.World(**{'count': 4, **wrong})
