"""Reference pictures on white: cut out, centred, one size."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
import pytest

from dcjax.data import canvas as canvas_lib
from dcjax.data.canvas import canvas, load_reference, read_picture
from dcjax.errors import DcjaxError

RED = (200, 30, 40)


def with_box(background, h=60, w=80, box=(10, 30, 50, 60)):
  """A red rectangle 20 high and 10 wide on a plain colour, and its mask."""
  image = np.full((h, w, 3), background, np.uint8)
  mask = np.zeros((h, w), bool)
  top, bottom, left, right = box
  mask[top:bottom, left:right] = True
  image[mask] = RED
  return image, mask


def noise(h=60, w=80):
  return np.random.default_rng(0).integers(0, 256, (h, w, 3)).astype(np.uint8)


def extent(image):
  """(top, bottom, left, right) of what is not white."""
  rows = np.flatnonzero((image < 250).any((1, 2)))
  columns = np.flatnonzero((image < 250).any((0, 2)))
  return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def assert_centred(image, height=38, width=19):
  top, bottom, left, right = extent(image)
  h, w, _ = image.shape
  assert abs(bottom - top - height) <= 1 and abs(right - left - width) <= 1
  assert abs(top + bottom - h) <= 1 and abs(left + right - w) <= 1
  middle = image[h // 2 - 3 : h // 2 + 3, w // 2 - 3 : w // 2 + 3]
  assert np.abs(middle.astype(int) - np.reshape(RED, (1, 1, 3))).max() <= 2


def test_a_mask_is_cut_out_centred_and_scaled():
  image, mask = with_box((0, 0, 0))
  image[~mask] = noise()[~mask]
  out = canvas(image, (64, 64), mask)
  assert out.shape == (64, 64, 3) and out.dtype == np.uint8
  assert_centred(out)  # 0.6 of 64 and, at the same scale, half of that
  assert (out[:10] == 255).all() and (out[:, :20] == 255).all()


def test_the_place_in_the_picture_does_not_matter():
  outs = []
  for top, left in ((0, 0), (40, 70), (17, 33)):
    image, mask = with_box((9, 9, 9), box=(top, top + 20, left, left + 10))
    outs.append(canvas(image, (64, 64), mask))
  np.testing.assert_array_equal(outs[0], outs[1])
  np.testing.assert_array_equal(outs[0], outs[2])


def test_a_wide_canvas_is_filled_by_its_shorter_side():
  image, mask = with_box((9, 9, 9))
  assert_centred(canvas(image, (64, 128), mask))


def test_opacity_is_a_mask():
  image, mask = with_box((0, 255, 0))
  alpha = np.where(mask, 255, 0).astype(np.uint8)[..., None]
  assert_centred(canvas(np.concatenate([image, alpha], -1), (64, 64)))
  # An opaque picture is as one without opacity.
  opaque = np.concatenate([image, np.full_like(alpha, 255)], -1)
  np.testing.assert_array_equal(
    canvas(opaque, (64, 64)), canvas(image, (64, 64))
  )


@pytest.mark.parametrize('background', [(255, 255, 255), (10, 20, 90)])
def test_a_plain_border_is_flooded_away(background):
  image, _ = with_box(background)
  stray = np.random.default_rng(1).integers(-4, 5, image.shape)
  image = np.clip(image + stray, 0, 255).astype(np.uint8)
  out = canvas(image, (64, 64))
  top, bottom, left, right = extent(out)
  assert abs(bottom - top - 38) <= 1 and abs(right - left - 19) <= 1


def test_what_is_enclosed_is_not_border():
  image, _ = with_box((10, 20, 90))
  image[15:25, 53:57] = (10, 20, 90)
  out = canvas(image, (64, 64))
  middle = out[32, 32].astype(int)
  assert np.abs(middle - (10, 20, 90)).max() <= 12


def test_the_flood_follows_every_turn():
  """A spiral of one pixel is emptied to its middle."""
  free = np.zeros((41, 41), bool)
  y, x, dy, dx = 0, 20, 1, 0
  free[0:2, 20] = True
  y, x, dy, dx = 1, 20, 0, 1
  # Turn right where two steps ahead is taken or outside, until walled in.
  path = 0
  inside = lambda y, x: 1 <= y < 40 and 1 <= x < 40
  while path < 2000:
    ahead = y + 2 * dy, x + 2 * dx
    if not inside(*ahead) or free[ahead]:
      dy, dx = dx, -dy
      ahead = y + 2 * dy, x + 2 * dx
      if not inside(*ahead) or free[ahead]:
        break
    y, x = y + dy, x + dx
    free[y, x] = True
    path += 1
  assert path > 400
  np.testing.assert_array_equal(canvas_lib._reached(free), free)
  free[1, 20] = False  # the way in is closed
  assert canvas_lib._reached(free).sum() == 1


def test_a_photograph_is_fitted_whole():
  out = canvas(noise(), (64, 64))
  assert extent(out) == (8, 56, 0, 64)  # 60 x 80 becomes 48 x 64


def test_a_plain_picture_is_fitted_whole():
  out = canvas(np.full((20, 20, 3), 90, np.uint8), (64, 64))
  assert (out == 90).all()


@pytest.mark.parametrize(
  'image, mask, message',
  [
    (noise(), np.zeros((60, 80), bool), 'shows nothing'),
    (noise(), np.ones((60, 81), bool), 'mask is 60x81.* picture is 60x80'),
    (noise().astype(np.float32), None, r'float32 \[60, 80, 3\], expected'),
    (noise()[..., 0], None, r'uint8 \[60, 80\], expected'),
    (np.zeros((9, 9, 4), np.uint8), None, 'shows nothing'),
  ],
)
def test_pictures_that_cannot_be_used(image, mask, message):
  with pytest.raises(DcjaxError, match=message):
    canvas(image, (64, 64), mask)


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'gif', 'bmp'])
def test_files_of_any_kind(tmp_path, suffix):
  image, _ = with_box((255, 255, 255))
  Image.fromarray(image).save(tmp_path / f'x.{suffix}', quality=95)
  out = load_reference(tmp_path / f'x.{suffix}', (64, 64))
  top, bottom, left, right = extent(out)
  assert abs(bottom - top - 38) <= 2 and abs(right - left - 19) <= 2


def test_files_are_turned_as_they_say(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown turned clockwise
  Image.fromarray(noise()).save(tmp_path / 'x.png', exif=exif)
  np.testing.assert_array_equal(
    read_picture(tmp_path / 'x.png'), np.rot90(noise(), -1)
  )


def test_palettes_may_be_clear(tmp_path):
  _, mask = with_box((0, 255, 0))
  palette = Image.fromarray(np.where(mask, 0, 1).astype(np.uint8), 'P')
  palette.putpalette([*RED, 0, 255, 0])
  palette.save(tmp_path / 'x.png', transparency=1)
  assert read_picture(tmp_path / 'x.png').shape == (60, 80, 4)
  assert_centred(load_reference(tmp_path / 'x.png', (64, 64)))


def _bytes(name):
  side = Path(name).stem
  image = Image.fromarray(noise())
  if name == 'clear.png':
    image = Image.new('RGBA', (8, 8))
  elif side.isdecimal():
    image = Image.new('1', (int(side), int(side)))
  file = io.BytesIO()
  image.save(file, 'png')
  data = file.getvalue()
  return {
    'text.png': b'not a picture',
    'empty.png': b'',
    'cut.png': data[: len(data) // 2],
  }.get(name, data)


@pytest.mark.parametrize(
  'name, message',
  [
    ('missing.png', 'missing.png does not exist, expected a picture'),
    ('folder', 'folder is a folder, expected a picture'),
    ('text.png', 'text.png cannot be read as a picture; save it as PNG'),
    ('empty.png', 'empty.png cannot be read as a picture'),
    ('cut.png', 'cut.png cannot be read as a picture'),
    ('clear.png', 'clear.png: the picture shows nothing'),
    ('11000.png', '11000.png is 11000x11000, expected at most 64 million'),
    ('15000.png', '15000.png is far too large, expected at most 64 million'),
  ],
)
def test_files_that_cannot_be_used(tmp_path, name, message):
  path = Path(tmp_path, name)
  if name == 'folder':
    path.mkdir()
  elif name != 'missing.png':
    path.write_bytes(_bytes(name))
  with pytest.raises(DcjaxError, match=message) as caught:
    load_reference(path, (64, 64))
  assert '\n' not in str(caught.value)
