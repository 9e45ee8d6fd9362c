"""The numbers of S2VTime, by hand, by symmetry and by simulation."""

import math

import numpy as np
import pytest

from dcjax.errors import DcjaxError
from dcjax.evals import bootstrap, chance, timing

FPS, FRAMES, SECONDS = 8, 33, 4.0


def frames(*spans, n=FRAMES):
  """[n] bool, true in frames first to last of each span."""
  present = np.zeros(n, bool)
  for first, last in spans:
    present[first : last + 1] = True
  return present


# ---- frames and time ---------------------------------------------------------


def test_a_frame_stands_for_half_a_frame_on_either_side():
  assert timing.span(frames((4, 11)), FPS) == (3.5 / 8, 11.5 / 8)
  assert timing.span(frames((5, 5)), FPS) == (4.5 / 8, 5.5 / 8)


def test_the_borders_of_the_video_are_reached():
  assert timing.span(frames((0, 32)), FPS) == (0.0, 4.0)
  # Also if the last frame is shown for as long as the others.
  assert timing.span(frames((30, 32)), FPS, 33 / 8) == (29.5 / 8, 33 / 8)
  assert timing.span(frames(), FPS) is None


def test_a_perfect_rendering_scores_one_midway_between_frames():
  for first in range(0, 30, 3):
    for last in range(first, 33, 4):
      start = max(first - 0.5, 0) / FPS
      end = (last + 0.5) / FPS if last < 32 else SECONDS
      asked = [(start, end)]
      present = timing.asked_frames(asked, FRAMES, FPS)
      assert present.sum() == last - first + 1
      (row,) = timing.score(present, asked, FPS)
      assert row.iou == pytest.approx(1) and row.l2 == pytest.approx(0)


def test_perfect_renderings_are_neither_early_nor_late():
  rng = np.random.default_rng(0)
  errors, ious = [], []
  for _ in range(2000):
    start = rng.uniform(0.2, 1.5)
    end = start + rng.uniform(0.5, 2.2)
    present = timing.asked_frames([(start, end)], FRAMES, FPS)
    (row,) = timing.score(present, [(start, end)], FPS)
    errors.append((row.start - start, row.end - end))
    ious.append(row.iou)
  assert np.abs(np.mean(errors, 0)).max() < 0.1 / FPS
  assert np.abs(errors).max() <= 0.5 / FPS + 1e-3
  assert np.mean(ious) > 0.93


def test_presence_is_more_than_half_a_percent():
  masks = np.zeros((2, 3, 40, 50), bool)
  masks[0, 1].flat[:10] = True  # 0.5% exactly
  masks[1, 2].flat[:11] = True
  expected = np.zeros((2, 3), bool)
  expected[1, 2] = True
  np.testing.assert_array_equal(timing.presence(masks), expected)


# ---- scores by hand ----------------------------------------------------------


def test_overlap_by_hand():
  assert timing.t_iou((1, 3), (2, 4)) == pytest.approx(1 / 3)
  assert timing.t_iou((1, 2), (3, 4)) == 0
  assert timing.t_iou((0, 4), (1, 2)) == 0.25
  assert timing.t_iou(None, (1, 2)) == 0


def test_l2_is_the_root_mean_square_over_the_duration():
  # Errors of 0.6 and 0.8 s: sqrt((.36 + .64) / 2) / 4.
  assert timing.t_l2((1.6, 2.2), (1, 3), 4) == pytest.approx(math.sqrt(0.5) / 4)
  assert timing.t_l2(None, (1, 3), 4) == 1
  # The worst there is: at the wrong end of the video.
  assert timing.t_l2((4, 4), (0, 0), 4) == 1


def test_a_missing_subject_counts_and_is_told():
  (row,) = timing.score(frames(), [(1, 2)], FPS)
  assert (row.iou, row.l2, row.detected) == (0, 1, 0)
  assert math.isnan(row.start)


def test_reversing_time_changes_nothing():
  present, asked = frames((4, 9), (20, 25)), (0.7, 2.1)
  (row,) = timing.score(present, [asked], FPS)
  (back,) = timing.score(
    present[::-1], [(SECONDS - asked[1], SECONDS - asked[0])], FPS
  )
  assert row.iou == pytest.approx(back.iou)
  assert row.l2 == pytest.approx(back.l2)


def test_a_stray_frame_costs_iou_more_than_frame_iou():
  asked = [(7.5 / 8, 15.5 / 8)]
  wanted = timing.asked_frames(asked, FRAMES, FPS)
  present = frames((8, 15), (31, 31))
  (row,) = timing.score(present, asked, FPS)
  assert row.iou == pytest.approx(8 / 24)
  assert timing.frame_iou(present, wanted) == pytest.approx(8 / 9)
  assert math.isnan(timing.frame_iou(frames(), frames()))


def test_runs():
  assert timing.runs(frames((0, 2), (5, 5), (31, 32))) == [
    (0, 2),
    (5, 5),
    (31, 32),
  ]
  assert timing.runs(frames()) == []


# ---- subjects that come back -------------------------------------------------

TWICE = [(3.5 / 8, 8.5 / 8), (20.5 / 8, 26.5 / 8)]  # frames 4-8 and 21-26


def test_runs_go_to_the_interval_that_they_meet():
  rows = timing.score(frames((4, 8), (12, 26)), TWICE, FPS)
  assert rows[0].iou == pytest.approx(1)
  assert rows[1].iou == pytest.approx(6 / 15)
  # A run that meets neither belongs to the nearer one.
  rows = timing.score(frames((10, 11), (21, 26)), TWICE, FPS)
  assert (rows[0].detected, rows[0].iou) == (1, 0)
  assert rows[1].iou == pytest.approx(1)


def test_a_run_through_both_is_cut_in_the_middle_of_the_gap():
  rows = timing.score(frames((0, 32)), TWICE, FPS)
  middle = (8.5 + 20.5) / 2  # frames 14 and 15 lie on its two sides
  assert rows[0].end * FPS == middle == rows[1].start * FPS
  assert rows[0].iou == pytest.approx(5 / 14.5)


def test_two_halves_of_one_interval_are_one_prediction():
  (row,) = timing.score(frames((4, 5), (8, 9)), [(3.5 / 8, 9.5 / 8)], FPS)
  assert row.iou == pytest.approx(1)


def test_reentry():
  came = timing.reentry(frames((4, 8), (21, 26)), TWICE, FPS)
  assert came == (1, 1)
  stayed = timing.reentry(frames((0, 32)), TWICE, FPS)
  assert stayed == (0, 0)
  never = timing.reentry(frames((4, 8)), TWICE, FPS)
  assert never == (0, 1)
  # Soft exits within a quarter of a second are no presence in the gap.
  soft = timing.reentry(frames((4, 10), (19, 26)), TWICE, FPS)
  assert soft == (1, 1)
  late = timing.reentry(frames((4, 8), (14, 14), (21, 26)), TWICE, FPS)
  assert late == (1, 0)
  assert all(map(math.isnan, timing.reentry(frames(), TWICE[:1], FPS)))


@pytest.mark.parametrize(
  'asked, word',
  [
    ([(1, 1)], '1 to 1 s; expected 0 <= start < end'),
    ([(2, 1)], '2 to 1'),
    ([(-1, 1)], '-1 to 1'),
    ([(float('nan'), 1)], 'nan to 1'),
    ([(1, 3), (2, 4)], 'starts at 2 s before another ends at 3 s'),
    ([(2, 3), (0, 1)], 'in order'),
  ],
)
def test_impossible_intervals(asked, word):
  with pytest.raises(DcjaxError, match=word):
    timing.score(frames((1, 2)), asked, FPS)


def test_intervals_outside_the_video():
  timing.check([(0, 4)], seconds=4)
  with pytest.raises(DcjaxError, match='1 to 5 s.*< end <= 4'):
    timing.check([(1, 5)], seconds=4)


# ---- who is who --------------------------------------------------------------


def test_swaps_and_leaks_by_hand():
  similarity = [[0.9, 0.2, 0.1], [0.7, 0.3, 0.0], [np.nan] * 3]
  np.testing.assert_array_equal(timing.swaps(similarity), [0, 1, np.nan])
  np.testing.assert_allclose(timing.leaks(similarity), [0.2, 0.7, np.nan])


def test_leak_is_beyond_what_references_share():
  between = np.array([[1.0, 0.6], [0.6, 1.0]])
  assert (timing.leaks(between, between) == 0).all()
  half = [[0.8, 0.8], [0.5, 0.9]]
  np.testing.assert_allclose(timing.leaks(half, between), [0.5, 0.0])


def test_exchanged_references_are_swaps_of_all():
  similarity = np.array([[0.1, 0.9], [0.8, 0.2]])
  assert timing.swaps(similarity).tolist() == [1, 1]
  assert timing.swaps(similarity[::-1]).tolist() == [0, 0]
  assert timing.swaps(np.full((2, 2), 0.5)).tolist() == [0, 0]


def test_one_subject_cannot_be_exchanged():
  assert np.isnan(timing.swaps([[0.3]])).all()
  assert np.isnan(timing.leaks([[0.3]])).all()
  with pytest.raises(DcjaxError, match=r'\[s s\], got \(1, 2\)'):
    timing.swaps([[0.3, 0.2]])


# ---- baselines ---------------------------------------------------------------


def test_always_present_scores_the_length_asked_for():
  rows, overlap = chance.always_present([(1, 2.6)], FRAMES, FPS, SECONDS)
  assert rows[0].iou == pytest.approx(0.4)
  assert rows[0].l2 == pytest.approx(math.sqrt((1 + 1.4**2) / 2) / 4)
  assert overlap == pytest.approx(13 / 33)  # frames 8 to 20


@pytest.mark.parametrize('asked', [(1.0, 2.6), (0.0, 1.3), (3.1, 4.0), (0, 4)])
def test_random_interval_is_its_expectation(asked):
  rng = np.random.default_rng(0)
  ends = np.sort(rng.uniform(0, SECONDS, (40_000, 2)), 1)
  iou = np.mean([timing.t_iou(tuple(x), asked) for x in ends])
  l2 = np.mean([timing.t_l2(tuple(x), asked, SECONDS) for x in ends])
  wanted = timing.asked_frames([asked], FRAMES, FPS)
  overlap = np.mean(
    [
      timing.frame_iou(timing.asked_frames([tuple(x)], FRAMES, FPS), wanted)
      for x in ends[:5000]
    ]
  )
  (row,), expected = chance.random_interval([asked], FRAMES, FPS, SECONDS)
  assert row.iou == pytest.approx(iou, abs=0.006)
  assert row.l2 == pytest.approx(l2, abs=0.004)
  assert expected == pytest.approx(overlap, abs=0.015)


# ---- means -------------------------------------------------------------------


def test_bootstrap_is_seeded_and_leaves_nans_out():
  values = [0.0, 1.0, 0.34, float('nan'), 0.66, 0.43, 0.57]
  one = bootstrap.mean(values, seed=1)
  assert one == bootstrap.mean(values, seed=1)
  assert one != bootstrap.mean(values, seed=2)
  assert one.mean == pytest.approx(0.5) and one.n == 6
  assert one.low < 0.5 < one.high
  empty = bootstrap.mean([float('nan')])
  assert empty.n == 0 and math.isnan(empty.mean)


def test_bootstrap_covers_as_often_as_it_says():
  rng = np.random.default_rng(3)
  held = 0
  for i in range(200):
    found = bootstrap.mean(rng.normal(size=50), seed=i, draws=400)
    held += found.low <= 0 <= found.high
  assert 175 <= held <= 200


def test_values_of_one_video_are_drawn_together():
  """Saying everything ten times adds nothing."""
  values = np.random.default_rng(0).uniform(size=30)
  once = bootstrap.mean(values)
  often = bootstrap.mean(np.repeat(values, 10), np.repeat(np.arange(30), 10))
  assert often[:3] == pytest.approx(once[:3])
  naive = bootstrap.mean(np.repeat(values, 10))
  assert naive.high - naive.low < 0.5 * (once.high - once.low)
