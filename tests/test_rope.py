"""Rotary embedding: what a table holds and what a rotation keeps."""

import jax
import numpy as np
import pytest

from dcjax.models import rope

SPLIT = (12, 6, 6)


def rotate(x, positions, split=SPLIT):
  """x [n e] at positions [n 3], as float64."""
  table = rope.table(np.asarray(positions, np.float32), split)
  return np.float64(rope.rotate(x[None, :, None], table)[0, :, 0])


def test_table_is_the_formula():
  positions = rope.grid_positions(3, 4, 5)
  got = rope.table(positions, SPLIT, theta=100.0)
  assert got.cos.shape == got.sin.shape == (60, 12)
  for n, position in enumerate(positions):
    angles = [
      float(p) * 100.0 ** (-2 * j / channels)
      for p, channels in zip(position, SPLIT, strict=True)
      for j in range(channels // 2)
    ]
    np.testing.assert_allclose(got.cos[n], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(got.sin[n], np.sin(angles), atol=1e-6)


def test_rotation_is_the_formula():
  rng = np.random.default_rng(0)
  x, position = rng.normal(size=(1, 24)).astype(np.float32), (5, 2, 7)
  got, want = rotate(x, [position])[0], np.zeros(24)
  at = 0
  for p, channels in zip(position, SPLIT, strict=True):
    for j in range(channels // 2):
      a = p * 10000.0 ** (-2 * j / channels)
      even, odd = x[0, at], x[0, at + 1]
      want[at] = even * np.cos(a) - odd * np.sin(a)
      want[at + 1] = even * np.sin(a) + odd * np.cos(a)
      at += 2
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_grid_is_in_raster_order():
  grid = rope.grid_positions(2, 3, 4)
  assert grid.tolist() == [
    [f, h, w] for f in range(2) for h in range(3) for w in range(4)
  ]


@pytest.mark.parametrize(
  'split, head_dim, want',
  [
    (rope.wan_split, 128, (44, 42, 42)),
    (rope.wan_split, 24, (8, 8, 8)),
    (rope.wan_split, 16, (8, 4, 4)),
    (rope.paper_split, 128, (64, 32, 32)),
  ],
)
def test_splits(split, head_dim, want):
  assert split(head_dim) == want


def test_only_relative_positions_matter():
  rng = np.random.default_rng(1)
  q, k = rng.normal(size=(2, 1, 24)).astype(np.float32)
  p, p2 = rng.uniform(0, 9, (2, 1, 3))

  def score(shift):
    return (rotate(q, p + shift) * rotate(k, p2 + shift)).sum()

  for shift in ([3, 0, 0], [0, 2, 5], [7.5, 1.25, -4]):
    assert abs(score(np.array(shift)) - score(0.0)) < 1e-4
  # The same token elsewhere is something else.
  assert abs((rotate(q, p) * rotate(k, p2 + 1)).sum() - score(0.0)) > 1e-2


def test_rotation_keeps_lengths_and_the_origin():
  x = np.float32(np.random.default_rng(2).normal(size=(4, 24)))
  np.testing.assert_array_equal(rotate(x, np.zeros((4, 3))), x)
  far = rotate(x, np.full((4, 3), 30.5))
  np.testing.assert_allclose(
    np.linalg.norm(far, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
  )


@pytest.mark.parametrize('axis', range(3))
def test_every_axis_has_its_channels(axis):
  position = np.zeros((1, 3))
  position[0, axis] = 3.0
  moved = rotate(np.ones((1, 24), np.float32), position)[0] != 1.0
  ends = np.cumsum((0, *SPLIT))
  inside = (np.arange(24) >= ends[axis]) & (np.arange(24) < ends[axis + 1])
  np.testing.assert_array_equal(moved, inside)


def test_every_sample_may_have_a_table_of_its_own():
  x = jax.random.normal(jax.random.key(0), (2, 5, 3, 24))
  positions = np.random.default_rng(0).uniform(0, 9, (2, 5, 3))
  both = rope.rotate(x, rope.table(positions, SPLIT))
  for i in range(2):
    one = rope.rotate(x[i : i + 1], rope.table(positions[i], SPLIT))
    np.testing.assert_allclose(both[i], one[0], atol=1e-6)
