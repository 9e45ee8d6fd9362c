"""Changes of reference pictures: small, exact in amount, and pure."""

import numpy as np
import pytest

from dcjax.data import augment


def rng(seed=0):
  return np.random.default_rng(seed)


def picture(h=96, w=128, top=30, left=40, high=24, wide=30):
  """Noise, and a mask of a rectangle that is red."""
  image = rng(9).integers(0, 256, (h, w, 3)).astype(np.uint8)
  mask = np.zeros((h, w), bool)
  mask[top : top + high, left : left + wide] = True
  image[mask] = (200, 30, 40)
  return image, mask


@pytest.mark.parametrize('change', augment.ALL, ids=lambda x: x.__name__)
def test_changes_are_pure(change):
  image, mask = picture()
  before = image.copy(), mask.copy()
  results = [change(image, mask, rng(seed)) for seed in (1, 1, 2)]
  for new, cut in results:
    assert new.dtype == np.uint8 and new.shape == (*cut.shape, 3)
    assert cut.dtype == bool and cut.any()
  np.testing.assert_array_equal(image, before[0])
  np.testing.assert_array_equal(mask, before[1])
  for one, again in zip(*results[:2], strict=True):
    np.testing.assert_array_equal(one, again)


def test_flip_is_every_other_time_and_undoes_itself():
  image, mask = picture()
  flipped = [augment.flip(image, mask, rng(i)) for i in range(200)]
  same = [np.array_equal(x, image) for x, _ in flipped]
  assert 75 < sum(same) < 125
  new, cut = flipped[same.index(False)]
  np.testing.assert_array_equal(new[:, ::-1], image)
  np.testing.assert_array_equal(cut[:, ::-1], mask)


def test_brightness_and_jitter_are_within_their_ranges():
  image = np.full((8, 8, 3), 100, np.uint8)
  mask = np.ones((8, 8), bool)
  bright = [augment.brightness(image, mask, rng(i))[0] for i in range(200)]
  levels = np.asarray([x[0, 0] for x in bright])
  assert levels.min() == 90 and levels.max() == 110
  assert (levels == levels[:, :1]).all(), 'it changes the hue'
  shifted = [augment.jitter(image, mask, rng(i))[0] for i in range(200)]
  levels = np.asarray([x[0, 0] for x in shifted])
  assert 87 <= levels.min() <= 89 and 111 <= levels.max() <= 113
  assert (levels != levels[:, :1]).any()


def test_only_large_pictures_lose_detail():
  small = picture(96, 112)
  np.testing.assert_array_equal(augment.downscale(*small, rng())[0], small[0])
  image, mask = picture(448, 448)
  contrast = [augment.downscale(image, mask, rng(i))[0].std() for i in range(9)]
  # To a quarter at most: sixteen pixels of noise become one.
  assert image.std() > max(contrast) > 1.4 * min(contrast)
  assert min(contrast) > image.std() / 6


def test_blur_keeps_the_mean_and_grows_with_the_picture():
  for side, strongest in ((48, 1.0), (480, 0.25)):
    image = rng(3).integers(0, 256, (side, side, 3)).astype(np.uint8)
    mask = np.ones((side, side), bool)
    blurred = [augment.blur(image, mask, rng(i))[0] for i in range(8)]
    contrast = np.asarray([x.std() / image.std() for x in blurred])
    assert contrast.min() == pytest.approx(strongest, abs=0.12)
    means = [x.mean() for x in blurred]
    np.testing.assert_allclose(means, image.mean(), atol=0.6)


def angle(mask):
  """Of the long axis of a mask, in degrees clockwise."""
  y, x = np.nonzero(mask)
  (a, b), (_, c) = np.cov(x, y)
  return np.degrees(np.arctan2(2 * b, a - c) / 2)


def test_rotation_is_of_20_degrees_at_most_and_both_ways():
  image, mask = picture(high=6, wide=60)
  turned = [augment.rotate(image, mask, rng(i)) for i in range(60)]
  angles = [angle(cut) for _, cut in turned]
  assert -20.5 < min(angles) < -15 and 15 < max(angles) < 20.5
  areas = [cut.sum() for _, cut in turned]
  np.testing.assert_allclose(areas, mask.sum(), rtol=0.05)


def test_shear_leans_by_a_20th_at_most():
  image, mask = picture(100, 100, 20, 40, 60, 20)
  leans = []
  for i in range(60):
    _, cut = augment.shear(image, mask, rng(i))
    y, x = np.nonzero(cut)
    leans.append(np.polyfit(y, x, 1)[0])
    assert cut.sum() == pytest.approx(mask.sum(), rel=0.06)
  assert -0.06 < min(leans) < -0.03 and 0.03 < max(leans) < 0.06


@pytest.mark.parametrize('change', [augment.rotate, augment.shear])
@pytest.mark.parametrize('top, left', [(0, 0), (72, 98), (0, 98)])
def test_nothing_is_turned_out_of_the_picture(change, top, left):
  image, mask = picture(top=top, left=left)
  for i in range(8):
    new, cut = change(image, mask, rng(i))
    assert cut.sum() == pytest.approx(mask.sum(), rel=0.06)
    # The mask still lies on what is red.
    assert np.abs(new[cut].mean(0) - image[mask].mean(0)).max() < 12


def test_crop_is_a_window_of_the_box_of_the_mask():
  image, mask = picture()
  sizes = []
  for i in range(100):
    new, cut = augment.crop(image, mask, rng(i))
    assert cut.all() and (new == (200, 30, 40)).all()
    sizes.append(cut.shape)
  sizes = np.asarray(sizes) / (24, 30)
  assert 0.63 < sizes.min() < 0.75 and 0.95 < sizes.max() <= 1.0


def test_crop_never_keeps_nothing():
  image, _ = picture()
  mask = np.zeros(image.shape[:2], bool)
  mask[0, 0] = mask[-1, -1] = True
  for i in range(20):
    assert augment.crop(image, mask, rng(i))[1].any()


def test_all_are_made_in_order():
  image, mask = picture()
  step = image, mask
  one = rng(4)
  for change in augment.ALL:
    step = change(*step, one)
  whole = augment.augment(image, mask, rng(4))
  np.testing.assert_array_equal(step[0], whole[0])
  np.testing.assert_array_equal(step[1], whole[1])
  assert augment.augment(image, mask, rng(), ())[0] is image


def test_box():
  _, mask = picture()
  assert augment.box(mask) == (30, 54, 40, 70)
  with pytest.raises(ValueError, match='the mask is empty'):
    augment.box(mask & False)
