"""The judge of concepts: right clips score, and each failure where it fails."""

import numpy as np
import pytest

from dcjax.data import textures, world
from dcjax.errors import DcjaxError
from dcjax.evals import concepts, reading, sighting
from dcjax.evals.concepts import wanted

# Swinging, spiralling, jumping; crescent, gear, heart; halo and legs.
CONCEPTS = (0, 1, 2)


@pytest.fixture(scope='module')
def finders():
  return {i: sighting.Finder(world.concept(i)) for i in CONCEPTS}


@pytest.fixture(params=CONCEPTS)
def finder(request, finders):
  return finders[request.param]


def score(video, finder, **asked):
  return concepts.score(video, finder, **asked)


def blurred(video):
  """As a generated clip may look: soft and noisy."""
  f, h, w, _ = video.shape
  soft = video.reshape(f, h // 2, 2, w // 2, 2, 3).mean((2, 4))
  soft = soft.repeat(2, 1).repeat(2, 2)
  noise = np.random.default_rng(0).normal(0, 8, soft.shape)
  return np.clip(soft + noise, 0, 255).astype(np.uint8)


def still(concept, **changes):
  return wanted(concept, motion='still', **changes)


def test_its_own_clip_scores_full(finder):
  c = finder.concept
  scores = score(c.video, finder, background=c.background, same=True)
  for name in ('detected', 'identity', 'correlation', 'extent', 'action'):
    assert scores[name] == pytest.approx(1, abs=0.01), name
  assert scores['adherence'] == scores['kept'] == 1
  assert scores['mse'] == 0 < scores['mse_empty']
  assert scores['stray'] < 0.1


def test_forgives_what_generated_clips_are_like(finder):
  c = finder.concept
  scores = score(blurred(c.video), finder, background=c.background)
  assert scores['detected'] > 0.95
  assert scores['identity'] > 0.6
  assert scores['correlation'] > 0.97
  assert scores['kept'] == scores['action'] == 1


def test_sees_it_on_every_background(finder):
  c = finder.concept
  grounds = concepts.grounds(c, 4)
  assert c.background not in grounds
  for ground, pattern in zip(
    grounds[::3], ('striped', 'gradient'), strict=True
  ):
    asked = {'background': ground, 'pattern': pattern}
    scores = score(wanted(c, **asked), finder, **asked)
    assert scores['kept'] == 1 and scores['detected'] == 1, asked
    assert scores['identity'] > 0.6 and scores['correlation'] > 0.95, asked


def test_nothing_there_is_not_detected_and_nothing_else(finder):
  c = finder.concept
  empty = wanted(c, interval=np.full(2, -1.0))
  scores = score(empty, finder, background=c.background, same=True)
  assert scores['detected'] == 0
  # No number of what is not there; the background is right all the same.
  for name in ('identity', 'stray', 'correlation', 'extent', 'action'):
    assert np.isnan(scores[name]), name
  assert scores['adherence'] == 1 and scores['kept'] == 0


def test_pixels_prefer_nothing_to_a_misplaced_object(finders):
  """The trap: why mse never stands alone."""
  finder = finders[1]
  moved = np.asarray(finder.concept.scene.center)[0] + [0, 14]
  there = score(wanted(finder.concept, center=moved), finder, same=True)
  assert there['mse'] > there['mse_empty']
  assert there['mse_pm1'] == pytest.approx(4 * there['mse'])
  assert there['detected'] > 0.9 and there['identity'] > 0.8


@pytest.mark.parametrize('color', world.COLORS)
def test_objects_of_the_palette_are_not_it(finders, color):
  video = still(finders[0].concept, color=color)
  for finder in finders.values():
    assert not finder.find(video).present.any()


def test_both_tones_are_needed_and_in_their_places(finders):
  finder = finders[1]
  c = finder.concept
  for tone in (0, 1):
    one = still(c, paint=c.paint[[tone, tone]])
    assert score(one, finder)['detected'] == 0
  right = score(still(c), finder)['identity']
  swapped = score(still(c, paint=c.paint[::-1]), finder)['identity']
  assert swapped < 0.5 * right


def test_tones_apart_are_not_it(finder):
  c = finder.concept
  video = wanted(c, interval=np.full(2, -1.0))
  left, right = (np.round(tone * 255).astype(np.uint8) for tone in c.paint)
  video[:, 4:24, 4:24], video[:, 40:60, 40:60] = left, right
  assert score(video, finder)['detected'] == 0


def test_a_screen_full_of_its_tones_is_not_it(finder):
  video = np.empty_like(finder.concept.video)
  left, right = (
    np.round(x * 255).astype(np.uint8) for x in finder.concept.paint
  )
  video[:, :, :32], video[:, :, 32:] = left, right
  assert score(video, finder)['detected'] == 0


def test_noise_and_textures_are_not_it(finder):
  noise = np.random.default_rng(0).integers(0, 256, finder.concept.video.shape)
  assert score(noise.astype(np.uint8), finder)['detected'] == 0


def test_another_concept_is_not_it(finders):
  for i, finder in finders.items():
    for j in (i + 1, i + 2, i + 4):
      other = world.concept(j).video
      assert score(other, finder)['detected'] < 0.1, (i, j)


@pytest.mark.parametrize('i', [0, 1])
def test_identity_orders_likenesses(finders, i):
  finder = finders[i]
  c = finder.concept
  likeness = lambda **k: score(still(c, **k), finder)['identity']
  whole, bare = likeness(), likeness(decoration='')
  ball = likeness(shape='ball', decoration='')
  assert whole > bare + 0.05
  assert bare > ball + 0.05
  # At another size it is the same thing, less sharply.
  assert likeness(size='small') > ball + 0.1


def test_identity_is_of_the_frames_that_show_it(finders):
  """The trap: a missing object that scores 0 hides how often it is missing."""
  c = finders[1].concept
  part = score(wanted(c, interval=np.array([0.0, 0.45])), finders[1])
  assert 0.3 < part['detected'] < 0.6
  # One of them shows it fading.
  assert part['identity'] > 0.85


def test_two_of_it_are_told_from_one(finders):
  finder = finders[2]
  c = finder.concept
  middle = lambda x: still(c, size='small', center=np.array([36.0, x]))
  ground = wanted(c, interval=np.full(2, -1.0))
  left, right = middle(15.0), middle(48.0)
  two = np.where(left != ground, left, right)
  scores = score(two, finder)
  assert scores['stray'] > 0.35 and scores['identity'] > 0.7
  assert score(left, finder)['stray'] < 0.1


def test_frozen_and_other_motions_do_not_follow(finder):
  c = finder.concept
  frozen = np.repeat(c.video[:1], len(c.video), 0)
  scores = score(frozen, finder)
  assert scores['detected'] == 1 and scores['identity'] > 0.95
  assert scores['correlation'] == scores['shifted'] == scores['extent'] == 0
  for motion in ('moving left', 'circling', 'bouncing'):
    scores = score(wanted(c, motion=motion), finder)
    # Half of jumping, the way along, is as moving along is: half of the axes.
    assert scores['correlation'] < 0.55, motion
    assert scores['action'] == 0, motion


def test_correlation_does_not_see_the_size_of_a_motion():
  """So `extent` does."""
  reference = world.concept(1).track
  found = concepts.follow(32 + 0.2 * (reference - 32), reference)
  assert found.correlation == pytest.approx(1)
  assert found.extent == pytest.approx(0.2)
  trembling = np.random.default_rng(0).normal(32, 0.3, reference.shape)
  assert concepts.follow(trembling, reference).correlation == 0


def test_a_late_motion_follows_shifted():
  reference = world.concept(0).track
  late = np.roll(reference, 2, 0)
  late[:2] = np.nan
  found = concepts.follow(late, reference)
  assert found.shifted == pytest.approx(1)
  assert found.correlation < 0.5


@pytest.mark.parametrize('motion', ['moving right', 'still'])
def test_reads_the_motion_that_was_asked_for(finders, motion):
  finder = finders[2]
  c = finder.concept
  asked = {'background': c.background, 'motion': motion}
  right = score(wanted(c, motion=motion), finder, **asked)
  assert right['action'] == 1 and 'correlation' not in right
  # One that keeps to what was learnt does not do as it is told.
  assert score(c.video, finder, **asked)['action'] == 0


def test_background_is_judged_beside_the_object(finders):
  finder = finders[0]
  c = finder.concept
  ground = concepts.grounds(c, 1)[0]
  video = wanted(c, background=ground, pattern='dotted')
  right = score(video, finder, background=ground, pattern='dotted')
  assert right['adherence'] == right['kept'] == 1
  colour = score(video, finder, background=c.background, pattern='dotted')
  assert (colour['background'], colour['pattern']) == (0, 1)
  pattern = score(video, finder, background=ground, pattern='plain')
  assert (pattern['background'], pattern['pattern']) == (1, 0)
  assert colour['adherence'] == pattern['adherence'] == 0


def test_the_trace_of_what_moved_is_no_pattern(finders):
  """A weak base smears it over a background that is plain nevertheless."""
  finder = finders[1]
  clip = finder.concept.video
  video = np.uint8(0.7 * clip + 0.3 * clip.mean(0))
  assert reading.read(video).pattern != 0  # the scene taken as a whole
  scores = score(video, finder, background=finder.concept.background)
  assert scores['adherence'] == scores['kept'] == 1


def test_motion_alone(finders):
  finder = finders[1]
  c = finder.concept
  there = {'background': 'navy', 'decoration': ''}
  judge = lambda **k: concepts.score_motion_alone(
    wanted(c, **there, **k), finder, 'yellow', 'ball'
  )
  right = judge(shape='ball', color='yellow')
  assert right['subject'] == right['action'] == 1 and right['leaked'] == 0
  assert right['correlation'] > 0.95
  assert judge(shape='square', color='yellow')['subject'] == 0
  assert judge(shape='ball', color='red')['subject'] == 0
  assert (
    abs(judge(shape='ball', color='yellow', motion='still')['extent']) < 0.1
  )
  assert judge()['leaked'] > 0.9  # the concept itself


def test_tones_are_far_from_the_palette():
  """What detection rests on."""
  palette = np.asarray(list(textures.COLORS.values()))
  for i in range(9):
    tones = world.concept(i).paint
    apart = np.linalg.norm(tones[:, None] - palette[None], axis=-1)
    assert apart.min() > 0.34


def test_mistakes_are_one_line(finder):
  video = finder.concept.video
  with pytest.raises(DcjaxError, match=r'uint8 \[f 64 64 3\]'):
    score(video[:, ::2], finder)
  with pytest.raises(DcjaxError, match='uint8'):
    score(video / 255, finder)
  with pytest.raises(DcjaxError, match='9 frames'):
    score(video[:9], finder)
  with pytest.raises(DcjaxError, match='compared'):
    score(video[:9], finder, motion='still', same=True)
