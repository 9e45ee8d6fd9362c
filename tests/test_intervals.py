"""WeRoPE, MidRoPE and ReRoPE against hand-computed values and their meaning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.models import intervals, rope

# METHOD: profiles of equal content, interval by interval.
GOLDEN = {
  (44, 21, 3, 8): (
    (0, 3, 5, 8, 12, 20),
    (0.7189, 0.8460, 1.1812, 0.8853, 0.7121, 0.5017),
  ),
  (64, 31, 8, 10): (
    (0, 8, 9, 10, 14, 30),
    (0.6731, 1.1387, 1.2013, 1.1456, 0.7595, 0.5073),
  ),
  (64, 31, 1, 17): (
    (0, 1, 9, 17, 21, 30),
    (0.5893, 0.6503, 1.2323, 0.7188, 0.6408, 0.5115),
  ),
  (64, 16, 4, 9): (
    (0, 4, 6, 9, 13, 15),
    (0.7063, 0.8710, 1.1573, 0.8905, 0.6808, 0.6562),
  ),
}
MIDROPE = (0.7373, 0.8255, 0.9901, 0.8255, 0.7332, 0.5841)


def profile(channels, frames, interval, **options):
  """Mean score of a reference with equal content in each frame [t]."""
  options.setdefault('border', 'keep')
  times, weights = intervals.anchors(
    jnp.asarray(interval, jnp.float32), frames, **options
  )
  frame = rope.table(np.arange(frames)[:, None], (channels,))
  turns = rope.table(times[:, None], (channels,))
  c = (weights[:, None] * turns.cos).sum(0)[None]
  s = (weights[:, None] * turns.sin).sum(0)[None]
  return np.asarray((frame.cos * c + frame.sin * s).mean(-1))


@pytest.mark.parametrize('case', GOLDEN)
def test_golden_profiles(case):
  channels, frames, *interval = case
  at, expected = GOLDEN[case]
  got = profile(channels, frames, interval)[list(at)]
  np.testing.assert_allclose(got, expected, atol=6e-5)


def test_golden_profile_of_midrope():
  got = profile(44, 21, (3, 8), scheme='midrope')[[0, 3, 5, 8, 12, 20]]
  np.testing.assert_allclose(got, MIDROPE, atol=6e-5)


def test_werope_tells_intervals_of_one_midpoint_apart_and_midrope_does_not():
  wide, narrow = (1, 17), (8, 10)
  for scheme, same in (('midrope', True), ('werope', False)):
    a = profile(64, 31, wide, scheme=scheme)
    b = profile(64, 31, narrow, scheme=scheme)
    assert np.allclose(a, b, atol=1e-6) == same


def test_where_time_is_short_a_longer_interval_is_a_sharper_peak():
  """What docs/results.md derives of five latent frames, from one frequency."""
  channels, frames = 12, 5
  turns = 10000.0 ** (-np.arange(channels // 2) / (channels // 2))
  d = np.arange(frames) - 2.0
  slopes = []
  for start, end in ((1.5, 2.5), (1.0, 3.0), (0.5, 3.5)):
    s = 2.0 - start / 2
    weights = 5 / 3 - 2 / 3 * np.cos(turns * s)
    expected = (weights[:, None] * np.cos(np.outer(turns, d))).mean(0)
    got = profile(channels, frames, (start, end))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    slopes.append(got[2] - got[3])
  assert slopes == sorted(slopes)
  assert slopes[2] > 1.15 * slopes[0]


def test_anchors_beyond_half_a_turn_make_a_longer_interval_a_flatter_peak():
  slopes = []
  for interval in ((1.5, 2.5), (1.0, 3.0), (0.5, 3.5)):
    got = profile(12, 5, interval, kind='margin')
    slopes.append(got[2] - got[3])
  assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize('kind', intervals.ANCHORS)
def test_a_table_is_the_sum_of_rotated_vectors(kind):
  split, frames = (12, 10, 10), 9
  interval = jnp.asarray([[1.5, 6.25], [2.0, 3.0]])
  times, weights = intervals.anchors(interval, frames, kind=kind)
  places = np.array([[0, 0], [3, 5], [8, 8]])
  table = intervals.table(times, weights, places, split)
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 32))
  got = rope.rotate(x, table)
  expected = 0.0
  for a in range(3):
    positions = jnp.concatenate(
      [
        jnp.broadcast_to(times[:, None, a, None], (2, 3, 1)),
        jnp.broadcast_to(places[None].astype(np.float32), (2, 3, 2)),
      ],
      -1,
    )
    turned = rope.rotate(x, rope.table(positions, split))
    expected += weights[:, a, None, None, None] * turned
  # The weights sum to 1, so the spatial channels come out unweighted.
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_the_whole_video_is_midrope_if_borders_are_absorbed():
  whole = jnp.asarray([0.0, 20.0])
  times, weights = intervals.anchors(whole, 21)
  np.testing.assert_allclose(weights, [1.0, 0.0, 0.0], atol=1e-6)
  assert times[0] == 10.0
  _, kept = intervals.anchors(whole, 21, border='keep')
  np.testing.assert_allclose(kept, [5 / 3, -1 / 3, -1 / 3], rtol=1e-6)


def test_one_border_is_absorbed_alone():
  _, weights = intervals.anchors(jnp.asarray([0.0, 5.0]), 21)
  np.testing.assert_allclose(weights, [4 / 3, 0.0, -1 / 3], rtol=1e-6)
  _, weights = intervals.anchors(jnp.asarray([4.0, 20.0]), 21)
  np.testing.assert_allclose(weights, [4 / 3, -1 / 3, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
  'kind, symmetric',
  [('outside', True), ('ends', True), ('margin', True), ('printed', False)],
)
def test_time_reversal(kind, symmetric):
  """A film played backwards has the profile backwards."""
  frames, start, end = 21, 3.0, 8.0
  forward = profile(44, frames, (start, end), kind=kind)
  back = profile(44, frames, (frames - 1 - end, frames - 1 - start), kind=kind)
  assert np.allclose(forward, back[::-1], atol=1e-5) == symmetric


def test_the_printed_anchor_falls_into_a_long_interval():
  times, _ = intervals.anchors(
    jnp.asarray([1.0, 17.0]), 31, kind='printed', border='keep'
  )
  assert times[2] == 7.0
  times, _ = intervals.anchors(jnp.asarray([1.0, 17.0]), 31, border='keep')
  assert times[2] == 23.5


def test_without_temporal_rope_time_is_zero():
  times, weights = intervals.anchors(
    jnp.asarray([3.0, 8.0]), 21, scheme='norope'
  )
  assert (times[0], weights[0], weights[1:].any()) == (0.0, 1.0, False)


def test_latent_time_is_continuous_and_stays_inside():
  seconds = np.array([-1.0, 0.0, 0.3, 1.0, 99.0])
  got = intervals.latent_time(seconds, fps=16, stride=4, frames=21)
  np.testing.assert_allclose(got, [0.0, 0.0, 1.2, 4.0, 20.0])


def test_events_have_equal_length_and_gaps_hold():
  times = jnp.arange(9.0)
  interval = jnp.asarray([[[1.0, 3.0], [4.0, 8.0], [0.0, 0.0]]])
  valid = jnp.asarray([[True, True, False]])
  got = intervals.stretch(times, interval, valid, 8.0)
  points = ([1, 3, 4, 8], [0, 8, 8, 16])
  np.testing.assert_allclose(got[0], np.interp(times, *points), atol=1e-5)


# ---- presence ----------------------------------------------------------------


def test_presence_is_the_part_of_a_frame_that_is_covered():
  """Five latent frames are frames 0, 1 to 4, 5 to 8, ... of a video."""
  # From frame 3 to frame 6.
  there = intervals.presence(jnp.array([0.75, 1.5]), 5, 4)
  expected = np.zeros((5, 4))
  expected[1, 2:] = 1.0
  expected[2, :2] = 1.0
  np.testing.assert_allclose(there, expected)
  # The first latent frame is one frame.
  first = intervals.presence(jnp.array([0.0, 0.25]), 5, 4)
  np.testing.assert_allclose(first[0], 1.0)
  np.testing.assert_allclose(first[1], [1.0, 0.0, 0.0, 0.0])


def test_presence_ends_softly_within_a_frame():
  there = intervals.presence(jnp.array([[1.0, 2.1], [1.1, 2.0]]), 4, 4)
  np.testing.assert_allclose(there[0, 3], [0.4, 0.0, 0.0, 0.0], atol=1e-6)
  np.testing.assert_allclose(there[1, 1, 3], 0.6, atol=1e-6)


def test_presence_tells_lengths_of_one_midpoint_apart():
  """Where time is short, rotations hardly do."""
  spans = jnp.array([[1.5, 2.5], [1.0, 3.0], [0.5, 3.5]])
  total = intervals.presence(spans, 5, 4).sum(axis=(1, 2))
  np.testing.assert_allclose(total, [5.0, 9.0, 13.0])


def test_presence_turns_with_time():
  """Reversed, a video of frames after the first is present in reverse."""
  interval = jnp.array([1.25, 2.75])
  there = intervals.presence(interval, 5, 4)[1:].reshape(-1)
  # Frames 1 .. 16 reversed: frame i becomes 17 - i.
  turned = intervals.presence(17 / 4 - interval[::-1], 5, 4)[1:].reshape(-1)
  np.testing.assert_allclose(turned, there[::-1])
