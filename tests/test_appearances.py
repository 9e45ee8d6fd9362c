"""Scenes of objects that come, go and return, and what is said of them."""

import jax
import numpy as np
import pytest

from dcjax.data import appearances, scene, tokenizer
from dcjax.data.appearances import Said
from dcjax.data.captions import VOCABULARY
from dcjax.data.textures import COLORS

SECONDS = 4.0
COUNT = 1500


def draw(i, split='train'):
  return appearances.draw(np.random.default_rng(i), split=split)


@pytest.fixture(scope='module')
def many():
  return [draw(i) for i in range(COUNT)]


def objects(many):
  """(scene, o) of every drawn object."""
  return [(x.scene, o) for x in many for o in range(int(x.scene.count))]


def spans(shown, o):
  """Seconds of the spans of an object."""
  return [SECONDS * x for x in shown.interval[o] if x[1] > x[0]]


def is_pair(shown):
  return shown.count == 2 and shown.shape[0] == shown.shape[1]


def a_scene(**fields):
  """Three objects, the fields as given."""
  return draw(0).scene._replace(
    **{name: np.asarray(value) for name, value in fields.items()}
  )


def index(name, *words):
  return [getattr(scene, name).index(x) for x in words]


def test_a_scene_depends_on_its_seed_alone():
  one, again, other = draw(5), draw(5), draw(6)
  assert jax.tree.all(jax.tree.map(np.array_equal, one, again))
  assert not np.array_equal(one.scene.center, other.scene.center)


def test_numbers_of_objects(many):
  counts = np.asarray([int(x.scene.count) for x in many])
  share = [(counts == n).mean() for n in (1, 2, 3)]
  np.testing.assert_allclose(share, appearances.COUNTS, atol=0.05)
  pairs = np.mean([is_pair(x.scene) for x in many if x.scene.count == 2])
  assert pairs == pytest.approx(appearances.PAIRS, abs=0.06)


def test_objects_are_told_apart(many):
  for shown in (x.scene for x in many):
    n = int(shown.count)
    assert len(set(shown.color[:n])) == n
    if is_pair(shown):
      assert sorted(shown.size[:2]) == index('SIZES', 'small', 'large')
      assert shown.motion[0] != shown.motion[1]
      assert shown.decoration[0] != shown.decoration[1]
    else:
      assert len(set(shown.shape[:n])) == n


def test_spans(many):
  kinds = {'always': 0, 'once': 0, 'twice': 0}
  touching = 0
  for shown, o in objects(many):
    found = spans(shown, o)
    assert all(0 <= a < b <= SECONDS + 1e-5 for a, b in found)
    if len(found) == 2:
      kinds['twice'] += 1
      assert found[1][0] - found[0][1] >= 0.75
      assert min(b - a for a, b in found) >= 0.5 - 1e-5
    elif found[0].tolist() == [0.0, SECONDS]:
      kinds['always'] += 1
    else:
      kinds['once'] += 1
      ((start, end),) = found
      assert 0.5 - 1e-5 <= end - start <= 3.5
      touching += start == 0.0 or end > SECONDS - 1e-5
  share = {k: v / sum(kinds.values()) for k, v in kinds.items()}
  assert share['always'] == pytest.approx(0.2, abs=0.03)
  assert share['twice'] == pytest.approx(0.1, abs=0.03)
  # Some come before the clip begins or stay until it ends; most do neither.
  assert 0.15 < touching / kinds['once'] < 0.5


def test_nothing_tells_when_an_object_comes(many):
  """Neither place, look, motion nor order of the words."""
  rows = []
  for shown, o in objects(many):
    found = np.concatenate(spans(shown, o))
    when = (found[0], found[-1], found[-1] - found[0], float(len(found)))
    size, motion = shown.size[o], shown.motion[o]
    what = (o, size, motion, shown.shape[o], shown.color[o], shown.count)
    rows.append((*when, *what, *shown.center[o]))
  table = np.corrcoef(np.asarray(rows, float).T)
  # Four standard deviations, of the 2,800 objects.
  assert np.abs(table[:4, 4:]).max() < 0.075


def test_splits_share_no_triple(many):
  held = lambda x, o: scene.is_held_out(x.color[o], x.shape[o], x.motion[o])
  assert not any(held(*x) for x in objects(many))
  test = [draw(i, 'test') for i in range(300)]
  assert all(held(*x) for x in objects(test))
  assert any(is_pair(x.scene) for x in test)


def test_objects_stay_in_the_frame_and_mostly_apart(many):
  overlaps = []
  for shown in (x.scene for x in many):
    n = int(shown.count)
    radius = np.asarray(scene.RADII)[shown.size[:n]][:, None]
    center = shown.center[:n]
    assert (center > 0.5 * radius).all() and (center < 63 - 0.5 * radius).all()
    for i in range(n):
      for j in range(i):
        reach = radius[i, 0] + radius[j, 0]
        distance = np.linalg.norm(center[i] - center[j])
        overlaps.append(distance < 0.75 * reach)
  assert np.mean(overlaps) < 0.12


def test_captions_of_one_object():
  shown = a_scene(
    count=1,
    shape=index('SHAPES', 'star') * 3,
    color=index('COLORS', 'orange') * 3,
    size=[2, 2, 2],
    decoration=index('DECORATIONS', 'with eyes') * 3,
    motion=index('MOTIONS', 'bouncing') * 3,
    background=2,
    pattern=0,
  )
  said = Said(size=False, color=True, decoration=True, background=True)
  assert appearances.caption(shown, said) == (
    'an orange star with eyes on a plain navy background. the star is bouncing.'
  )
  assert appearances.names(shown, said) == ('orange star',)
  assert appearances.sentences(shown, said) == ('the star is bouncing.',)
  least = Said(size=False, color=False, decoration=False, background=False)
  assert appearances.caption(shown, least) == 'a star. the star is bouncing.'


def test_captions_of_a_pair():
  shown = a_scene(
    count=2,
    shape=index('SHAPES', 'star', 'star', 'ball'),
    size=[0, 2, 0],
    motion=index('MOTIONS', 'moving left', 'bouncing', 'still'),
    background=2,
    pattern=0,
  )
  said = Said(size=True, color=False, decoration=False, background=True)
  assert appearances.caption(shown, said) == (
    'a small star and a large star on a plain navy background. '
    'the small star is moving left. the large star is bouncing.'
  )
  assert appearances.names(shown, said) == ('small star', 'large star')


def test_captions_of_three_objects():
  shown = a_scene(
    count=3,
    shape=index('SHAPES', 'star', 'ring', 'ball'),
    color=index('COLORS', 'red', 'blue', 'green'),
    motion=index('MOTIONS', 'moving left', 'bouncing', 'still'),
  )
  said = Said(size=False, color=True, decoration=False, background=False)
  assert appearances.caption(shown, said) == (
    'a red star and a blue ring and a green ball. the star is moving left. '
    'the ring is bouncing. the ball is still.'
  )


def test_captions_are_short_and_of_known_words(many):
  built = tokenizer.build_word_tokenizer(VOCABULARY)
  texts = [appearances.caption(x.scene, x.said) for x in many]
  words = {w for text in texts for w in text.replace('.', ' ').split()}
  assert words <= set(VOCABULARY)
  assert not words & {'appears', 'leaves', 'late', 'early', 'middle'}
  _, mask = tokenizer.tokenize(built, texts, 64)
  assert mask.sum(1).max() <= 48


def test_names_are_parts_of_the_caption_and_unique(many):
  for shown, said, _ in many:
    text = appearances.caption(shown, said)
    called = appearances.names(shown, said)
    assert len(set(called)) == len(called) == shown.count
    assert all(name in text for name in called)
    assert all(x in text for x in appearances.sentences(shown, said))


def test_captions_of_pairs_never_say_a_color(many):
  for shown, said, _ in many:
    if is_pair(shown):
      text = appearances.caption(shown, said)
      assert not set(text.split()) & set(COLORS)
      assert 'small' in text and 'large' in text
  said = [x.said for x in many if not is_pair(x.scene)]
  assert np.mean([x.color for x in said]) == pytest.approx(0.5, abs=0.05)


def test_portraits_are_the_same_objects_elsewhere(many):
  spinning = scene.MOTIONS.index('spinning')
  for shown, _, alone in many[:200]:
    assert (alone.count == 1).all()
    for name in ('shape', 'color', 'size', 'decoration'):
      np.testing.assert_array_equal(
        getattr(alone, name)[:, 0], getattr(shown, name)
      )
    np.testing.assert_array_equal(
      alone.motion[:, 0], np.where(shown.motion == spinning, spinning, 0)
    )
    assert (np.abs(alone.center[:, 0] - shown.center) > 0.01).any(-1).all()
