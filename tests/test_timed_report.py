"""Lanes of a storyboard: who was asked for, and who is seen in the pixels."""

import dataclasses

import numpy as np
import pytest
import tiny

from dcjax import timed_plan, timed_report
from dcjax.concept import Concept
from dcjax.data import concepts
from dcjax.data import video as video_lib
from dcjax.data.render import render, to_uint8
from dcjax.report import timeline
from dcjax.storyboard import Event, Reference, Storyboard, TimedConcept

RED, BLUE = (230, 41, 41), (41, 89, 230)
PROMPT = 'a red star, a blue star and a [v] thing'


def disc(color, size=64, radius=12, at=(32, 32)):
  y, x = np.mgrid[:size, :size]
  inside = (y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2
  return inside, np.array(color, np.uint8)


def picture(color):
  """A disc on white."""
  image = np.full((64, 64, 3), 255, np.uint8)
  inside, paint = disc(color)
  image[inside] = paint
  return image


@pytest.fixture(scope='module')
def world():
  return dataclasses.replace(tiny.trainable_base(), name='world')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('pictures')
  for name, color in (('red', RED), ('blue', BLUE), ('other', RED)):
    video_lib.write_video(path / f'{name}.png', picture(color)[None])
  return path


def video():
  """Frames 2 to 5 show red, 4 to 8 blue."""
  frames = np.full((9, 64, 64, 3), (235, 225, 190), np.uint8)
  for first, last, color, x in ((2, 5, RED, 14), (4, 8, BLUE, 44)):
    inside, paint = disc(color, radius=9, at=(20, x))
    frames[first : last + 1, inside] = paint
  return frames


def story(base, folder, **changes):
  references = [
    Reference(str(folder / 'red.png'), 'red star', 0.25, 0.5),
    Reference(str(folder / 'blue.png'), 'blue star', 0.5, 1.0),
  ]
  kwargs = {'references': references, 'seconds': 1.0, 'size': (64, 64)}
  return timed_plan.resolve(base, Storyboard(PROMPT, **(kwargs | changes)))


def seen(lane):
  return np.flatnonzero(lane.present).tolist()


def test_presence_is_read_by_colour(world, folder):
  lanes, note = timed_report.lanes(world, story(world, folder), video())
  assert [(x.name, x.kind) for x in lanes] == [
    ('red star', 'reference'),
    ('blue star', 'reference'),
  ]
  assert seen(lanes[0]) == [2, 3, 4, 5]
  assert seen(lanes[1]) == [4, 5, 6, 7, 8]
  assert 'by colour' in note


def test_what_is_pale_has_no_colour_to_be_known_by(world, folder):
  video_lib.write_video(folder / 'pale.png', picture((215, 215, 215))[None])
  pale = [Reference(str(folder / 'pale.png'), 'red star', 0.0, 1.0)]
  asked = story(world, folder, references=pale)
  (lane,), note = timed_report.lanes(world, asked, video())
  assert lane.present is None and note == 'not told apart by colour: red star'


def test_who_comes_back_has_one_lane(world, folder):
  back = [
    Reference(str(folder / 'red.png'), 'red star', 0.75, 1.0),
    Reference(str(folder / 'red.png'), 'red star', 0.0, 0.25),
  ]
  events = [Event('b', 0.5, 1.0), Event('a', 0.0, 0.5)]
  asked = story(world, folder, references=back, events=events)
  lanes, _ = timed_report.lanes(world, asked, video())
  assert lanes[0].intervals == [(0.0, 0.25), (0.75, 1.0)]
  assert [x.name for x in lanes] == ['red star', 'a', 'b']
  assert lanes[1].present is None


def test_two_of_one_colour_are_not_told_apart(world, folder):
  twins = [
    Reference(str(folder / 'red.png'), 'red star'),
    Reference(str(folder / 'other.png'), 'blue star'),
  ]
  asked = story(world, folder, references=twins)
  lanes, note = timed_report.lanes(world, asked, video())
  assert [x.present for x in lanes] == [None, None]
  assert note == 'not told apart by colour: red star, blue star'


def test_other_bases_have_no_judge(world, folder):
  base = dataclasses.replace(world, name='tiny')
  lanes, note = timed_report.lanes(base, story(base, folder), video())
  assert [x.present for x in lanes] == [None, None]
  assert 'not measured' in note
  timeline.draw(video(), 8.0, lanes, note=note)


def concept(frames):
  return Concept({}, {'v': np.zeros((1, 16), np.float32)}, {}, frames=frames)


@pytest.mark.parametrize('number', [0, 4])
def test_a_concept_is_known_by_its_two_tones(world, folder, number):
  placed = [TimedConcept('c', start=0.5, end=1.5, word='thing')]
  asked = story(world, folder, references=[], concepts=placed, seconds=2.0)
  drawn = concepts.concept(number)
  learnt = concept(drawn.video[::8])
  spans = np.broadcast_to(np.float32([0.25, 0.75]), (2, 2))
  clip = to_uint8(render(drawn.scene._replace(interval=spans), 17).video)
  (lane,), note = timed_report.lanes(world, asked, clip, [learnt])
  assert (lane.name, lane.kind) == ('thing', 'concept')
  assert seen(lane) == list(range(4, 13)) and 'by colour' in note
  unnamed = dataclasses.replace(asked, concepts=[TimedConcept('c')])
  unnamed = timed_plan.resolve(world, unnamed)
  (other,), _ = timed_report.lanes(world, unnamed, clip, [learnt])
  assert other.name == '[v] thing'


def test_what_has_one_tone_of_a_concept_is_not_it(world, folder):
  """Of the sample concept, half is near the second tone of striped navy."""
  asked = story(world, folder, references=[], concepts=[TimedConcept('c')])
  learnt = concept(concepts.concept(4).video[::8])
  others = [
    concepts.concept(3).video,
    np.repeat(picture(RED)[None], 9, 0),
    np.full((9, 64, 64, 3), (166, 191, 255), np.uint8),
  ]
  for clip in others:
    (lane,), _ = timed_report.lanes(world, asked, clip, [learnt])
    assert seen(lane) == []


def test_without_a_plain_ground_a_concept_is_not_measured(world, folder):
  asked = story(world, folder, references=[], concepts=[TimedConcept('c')])
  busy = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
  for frames in (busy, None):
    (lane,), note = timed_report.lanes(world, asked, video(), [concept(frames)])
    assert lane.present is None and 'not told apart' in note
