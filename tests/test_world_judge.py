"""The world's judge of who is on screen, on clips whose truth is known."""

import numpy as np
import pytest

from dcjax.data.scene import COLORS
from dcjax.errors import DcjaxError
from dcjax.evals import timing, world_items, world_judge, world_scenes


@pytest.fixture(scope='module')
def shown():
  """[(drawn, video, pictures)] of some of every kind."""
  drawn = world_items.make(24)
  chosen = [x for x in drawn if x.item.kind != 'one'][:8]
  chosen += [x for x in drawn if x.item.kind == 'one'][:3]
  return [(x, world_items.video(x), world_items.pictures(x)) for x in chosen]


def verdict(x, video, pictures):
  return world_judge.judge(video, 8.0, x.item, pictures)


def test_reads_drawn_clips(shown):
  for x, video, pictures in shown:
    found = verdict(x, video, pictures)
    assert found.masks.shape == (len(pictures), *video.shape[:3])
    assert (found.text > 0.6).all() and (found.reference == 1).all()
    present = timing.presence(found.masks)
    for s, subject in enumerate(x.item.subjects):
      (row,) = timing.score(present[s], subject.intervals, 8, x.item.seconds)
      assert row.iou > 0.99, (x.item.id, s)


def test_subjects_in_each_others_place_are_swaps(shown):
  """The right clip, judged by exchanged pictures."""
  swapped = right = 0
  for x, video, pictures in shown:
    if len(pictures) == 2:
      right += timing.swaps(verdict(x, video, pictures).similarity).sum()
      turned = verdict(x, video, pictures[::-1])
      swaps = timing.swaps(turned.similarity)
      swapped += swaps.mean()
      assert (timing.leaks(turned.similarity, turned.between) >= swaps).all()
  assert right == 0
  assert swapped >= 0.9 * sum(len(p) == 2 for _, _, p in shown)


def test_another_clip_has_none_of_its_subjects(shown):
  x, _, pictures = shown[0]
  colors = {world_judge.color_of(p) for p in pictures}
  for other, video, theirs in shown[1:]:
    if colors.isdisjoint(world_judge.color_of(p) for p in theirs):
      found = verdict(x, video, pictures)
      assert not found.masks.any(), other.item.id
      assert np.isnan(found.text).all() and np.isnan(found.reference).all()
      assert np.isnan(found.similarity).all()


def test_a_missing_subject_is_not_the_other_one(shown):
  for x, _, pictures in shown:
    if len(pictures) == 2:
      never = ((-9, -8),)
      video = world_scenes.video(x.scene, (never, x.spans[1]))
      found = verdict(x, video, pictures)
      assert not found.masks[0].any() and found.masks[1].any()
      swaps = timing.swaps(found.similarity)
      assert np.isnan(swaps[0]) and swaps[1] == 0


def test_colours_of_pictures(shown):
  for x, _, pictures in shown:
    for o, picture in enumerate(pictures):
      assert world_judge.color_of(picture) == x.scene.color[o]
      # At any size, as users bring them.
      assert world_judge.color_of(picture[::2, ::2]) == x.scene.color[o]


def test_what_words_say():
  drawn = world_items.make(24)
  for x in drawn:
    for o, subject in enumerate(x.item.subjects):
      said = world_judge.words_of(x.item, subject)
      assert said.shape == subject.word.split()[-1]
      assert said.motion == world_judge.MOTIONS[x.scene.motion[o]]
      pair = x.item.kind == 'same_class'
      assert said.size == (subject.word.split()[0] if pair else '')


def test_mistakes_are_one_line(shown):
  x, video, pictures = next(s for s in shown if len(s[2]) == 2)
  color = COLORS[world_judge.color_of(pictures[0])]
  with pytest.raises(DcjaxError, match=f'of one colour, {color}'):
    verdict(x, video, [pictures[0], pictures[0]])
  with pytest.raises(DcjaxError, match='nothing but white'):
    verdict(x, video, [np.full((8, 8, 3), 255, np.uint8), pictures[1]])
  with pytest.raises(DcjaxError, match='one has none'):
    verdict(x, video, [pictures[0], None])
  with pytest.raises(DcjaxError, match='uint8'):
    verdict(x, video / 255, pictures)
