"""The timeline picture: bars stand where the seconds are."""

import numpy as np
from PIL import Image, ImageColor
import pytest

from dcjax.errors import DcjaxError
from dcjax.report import timeline
from dcjax.report.timeline import Lane

FPS = 8.0
VIDEO = np.full((17, 16, 24, 3), 90, np.uint8)  # 2 s
AXIS = timeline.WIDTH - timeline._LEFT - timeline._RIGHT


def lane(start=0.5, end=1.5, **options):
  return Lane('cat', 'reference', [(start, end)], **options)


def columns(picture, color):
  """[width] bool: where a colour stands, exactly."""
  rgb = np.array(ImageColor.getrgb(color), np.uint8)
  return (picture == rgb[None, None]).all(-1).any(0)


def filled(picture, color):
  """(first, last) second of the lowest row of that colour, the measured bar."""
  rgb = np.array(ImageColor.getrgb(color), np.uint8)
  rows = (picture == rgb[None, None]).all(-1)
  (low,) = np.nonzero(rows.sum(1) > 20)
  (x,) = np.nonzero(rows[low[-4]])
  return [(v - timeline._LEFT) / AXIS * 2.0 for v in (x[0], x[-1] + 1)]


def present(first, last):
  frames = np.arange(17)
  return (frames >= first) & (frames <= last)


# ---- seconds -----------------------------------------------------------------


def test_a_frame_stands_for_half_of_it_on_either_side():
  assert timeline.spans(present(4, 8), FPS) == [(3.5 / 8, 8.5 / 8)]


def test_the_ends_are_those_of_the_video():
  assert timeline.spans(present(0, 16), FPS) == [(0.0, 2.0)]
  assert timeline.spans(present(16, 16), FPS) == [(15.5 / 8, 2.0)]
  assert timeline.spans(np.zeros(17, bool), FPS) == []


def test_who_comes_back_has_two_bars():
  twice = present(0, 3) | present(10, 12)
  assert timeline.spans(twice, FPS) == [(0.0, 3.5 / 8), (9.5 / 8, 12.5 / 8)]


# ---- the picture -------------------------------------------------------------


def test_the_measured_bar_is_where_it_was_seen():
  picture = timeline.draw(VIDEO, FPS, [lane(present=present(4, 8))])
  assert picture.dtype == np.uint8 and picture.shape[1:] == (1280, 3)
  start, end = filled(picture, timeline._COLORS[0])
  assert start == pytest.approx(3.5 / 8, abs=0.02)
  assert end == pytest.approx(8.5 / 8, abs=0.02)


@pytest.mark.parametrize('start, end', [(0.0, 2.0), (0.5, 1.5), (1.75, 2.0)])
def test_the_asked_bar_is_where_it_was_asked_for(start, end):
  picture = timeline.draw(VIDEO, FPS, [lane(start, end)])
  (x,) = np.nonzero(columns(picture, timeline._COLORS[0]))
  seconds = (x - timeline._LEFT) / AXIS * 2.0
  assert seconds[0] == pytest.approx(start, abs=0.02)
  assert seconds[-1] == pytest.approx(end, abs=0.02)


def test_every_lane_has_its_colour_and_place():
  lanes = [lane(), Lane('dog', 'concept', [(0, 1)]), Lane('x', 'event', [])]
  picture = timeline.draw(VIDEO, FPS, lanes)
  first, second = (columns(picture, c) for c in timeline._COLORS[:2])
  assert first.any() and second.any()
  assert not columns(picture, timeline._COLORS[2]).any()
  taller = timeline.draw(VIDEO, FPS, [*lanes, lane()])
  assert taller.shape[0] - picture.shape[0] == timeline._LANE


def test_thumbnails_and_frames_are_shown():
  red = np.full((8, 8, 3), (250, 10, 20), np.uint8)
  with_it = timeline.draw(VIDEO, FPS, [lane(thumbnail=red)])
  left = columns(with_it, '#fa0a14')[: timeline._LEFT]
  assert left.sum() == pytest.approx(52, abs=2)
  # The strip fills the axis but for the gaps between its tiles.
  assert columns(with_it, '#5a5a5a').sum() > 0.95 * AXIS


def test_a_lane_has_the_colour_of_its_thumbnail():
  one = lambda *rgb: lane(thumbnail=np.full((8, 8, 3), rgb, np.uint8))
  axis = lambda lane: timeline.draw(VIDEO, FPS, [lane])[:, timeline._LEFT :]
  assert columns(axis(one(200, 10, 20)), '#c80a14').any()
  # Light colours are made darker, and greys have none.
  assert columns(axis(one(0, 255, 0)), '#00dd00').any()
  assert columns(axis(one(240, 240, 230)), timeline._COLORS[0]).any()


def test_the_strip_goes_from_the_first_to_the_last_frame():
  video = VIDEO.copy()
  video[-4:] = (0, 255, 0)
  (x,) = np.nonzero(columns(timeline.draw(video, FPS, []), '#00ff00'))
  # The last 3.5 of 16 frame distances, to the precision of a tile.
  assert len(x) and x[0] > timeline._LEFT + 0.6 * AXIS


def test_long_texts_are_wrapped():
  words = 'a very long caption of a cat that says everything ' * 3
  picture = timeline.draw(
    VIDEO, FPS, [Lane(words, 'event', [(0, 1)])], title=words * 3, note=words
  )
  assert picture.shape[0] < 700


@pytest.mark.parametrize('shape', [(2, 64, 64, 3), (81, 832, 480, 3)])
def test_any_shape_has_a_picture(shape):
  picture = timeline.draw(np.zeros(shape, np.uint8), FPS, [lane()])
  assert picture.shape[1] == timeline.WIDTH


def test_it_is_written_as_a_file(tmp_path):
  path = timeline.write(tmp_path / 'new' / 'x.png', VIDEO, FPS, [lane()])
  expected = timeline.draw(VIDEO, FPS, [lane()])
  np.testing.assert_array_equal(np.array(Image.open(path)), expected)


def test_what_does_not_fit_is_refused():
  for video, lanes, line in (
    (VIDEO[:1], [], 'two frames or more'),
    (VIDEO, [Lane('cat', 'person', [])], "of kind 'person'; use one of"),
    (VIDEO, [lane(present=present(0, 3)[:5])], 'has 5 frames, the video 17'),
  ):
    with pytest.raises(DcjaxError, match=line):
      timeline.draw(video, FPS, lanes)
