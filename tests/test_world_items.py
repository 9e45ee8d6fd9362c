"""S2VTime's items of the procedural world."""

import collections
import dataclasses

import numpy as np
import pytest

from dcjax.data import captions
from dcjax.data.scene import is_held_out
from dcjax.errors import DcjaxError
from dcjax.evals import item_file, timing, world_items, world_judge
from dcjax.evals.items import Benchmark


@pytest.fixture(scope='module')
def drawn():
  return world_items.make(128, again=8)


def test_kinds_and_groups(drawn):
  kinds = collections.Counter(x.item.kind for x in drawn)
  assert kinds['again'] == 8 and 55 <= kinds['one'] <= 70
  assert kinds['two'] >= 28 and kinds['same_class'] >= 28
  groups = collections.Counter(x.item.group for x in drawn if x.item.group)
  assert 36 <= sum(groups.values()) <= 48


def test_a_seed_is_the_items_and_a_count_only_how_many(drawn):
  few = world_items.make(10)
  assert [x.item for x in few] == [x.item for x in drawn[:10]]
  other = world_items.make(10, seed=1)
  assert [x.item.prompt for x in other] != [x.item.prompt for x in few]


def test_objects_are_held_out(drawn):
  for x in drawn:
    n = int(x.scene.count)
    assert np.all(
      is_held_out(x.scene.color[:n], x.scene.shape[:n], x.scene.motion[:n])
    )


def test_lengths_are_balanced_and_intervals_on_half_frames(drawn):
  spans = [(r.start, r.end) for x in drawn for r in x.item.references]
  lengths = np.array([end - start for start, end in spans])
  assert lengths.min() >= 0.3 and lengths.max() <= 1.75
  counts, _ = np.histogram(lengths, [0.3, 0.6, 0.9, 1.2, 1.5, 1.8])
  assert counts.min() >= 10
  for start, end in spans:
    assert start == 0 or (start * 8) % 1 == 0.5
    assert end == 2 or (end * 8) % 1 == 0.5


def test_groups_differ_in_length_alone(drawn):
  groups = collections.defaultdict(list)
  for x in drawn:
    groups[x.item.group].append(x.item)
  del groups['']
  whole = [items for items in groups.values() if len(items) == 3]
  assert len(whole) >= 12
  for items in whole:
    first = [x.subjects[0].intervals[0] for x in items]
    assert len({sum(interval) for interval in first}) == 1
    assert np.all(np.diff([end - start for start, end in first]) > 0.2)
    assert len({x.prompt for x in items}) == 1
    assert len({tuple(s.image for s in x.subjects) for x in items}) == 1
    assert len({tuple(s.intervals for s in x.subjects[1:]) for x in items}) == 1


def test_captions_say_nothing_of_time_and_know_their_words(drawn):
  words = {*captions.VOCABULARY, '.'}
  for x in drawn:
    prompt = x.item.prompt
    tokens = prompt.replace('.', ' .').split()
    assert set(tokens) <= words and len(tokens) < 47
    assert not {'appears', 'leaves', 'late', 'early'} & set(tokens)
    for subject in x.item.subjects:
      assert subject.word in prompt


def test_pairs_are_told_apart_by_their_pictures_alone(drawn):
  for x in drawn:
    if x.item.kind == 'same_class':
      one, other = x.item.subjects
      assert {one.word.split()[0], other.word.split()[0]} == {'small', 'large'}
      assert one.word.split()[1] == other.word.split()[1]
      colors = set(captions.scenes.COLORS) & set(x.item.prompt.split())
      assert not colors
      assert one.description != other.description


def test_events_are_in_order_and_apart(drawn):
  for x in drawn:
    assert len(x.item.events) == len(x.item.references)
    timing.check([(e.start, e.end) for e in x.item.events], x.item.seconds)


def test_who_comes_back_is_one_subject(drawn):
  (item, *_), expected = [x.item for x in drawn if x.item.kind == 'again'], 2
  assert len(item.references) == expected and len(item.subjects) == 1
  (s1, e1), (s2, e2) = item.subjects[0].intervals
  assert s2 - e1 >= 0.6 and s1 < e1 and s2 < e2


def test_a_benchmark_of_them_is_read_back(drawn, tmp_path):
  made = Benchmark('world', tuple(x.item for x in drawn), tmp_path)
  item_file.write(tmp_path / 'world.json', made)
  found = item_file.read(tmp_path / 'world.json', images=False)
  assert found == made


def test_drawn_clips_show_what_was_asked(drawn):
  chosen = [x for x in drawn if x.item.kind == 'again'][:2] + drawn[:2]
  for x in chosen:
    video, pictures = world_items.video(x), world_items.pictures(x)
    assert video.shape == (17, 64, 64, 3) and video.dtype == np.uint8
    assert pictures[0].shape == (128, 128, 3)
    assert (pictures[0][[0, -1]] == 255).all()
    verdict = world_judge.judge(video, 8.0, x.item, pictures)
    present = timing.presence(verdict.masks)
    wanted = timing.asked_frames(x.item.subjects[0].intervals, 17, 8)
    np.testing.assert_array_equal(present[0], wanted)


def test_impossible_counts():
  with pytest.raises(DcjaxError, match='1 or more'):
    world_items.make(0)
  with pytest.raises(DcjaxError, match='-1 items'):
    world_items.make(-1, again=2)


def test_kinds_are_those_that_are_asked_for():
  drawn = world_items.make(9, kinds=('same_class',))
  assert {x.item.kind for x in drawn} == {'same_class'}
  assert sum(bool(x.item.group) for x in drawn) == 3  # one scene three times
  with pytest.raises(DcjaxError, match='expected some of one, two, same'):
    world_items.make(4, kinds=('pair',))
  with pytest.raises(DcjaxError, match=r'are \[\]'):
    world_items.make(4, kinds=())


def test_items_are_frozen(drawn):
  with pytest.raises(dataclasses.FrozenInstanceError):
    drawn[0].item.prompt = ''
