"""Changes of a reference picture that keep who it shows.

Each is a pure function (image, mask, rng) -> (image, mask), of uint8 [h w 3]
and bool [h w], and gives a picture of any size. Without them a model pastes its
references: same place, same pose, same light (AlcheMinT, Sec. 4, with the
amounts of Video Alchemist).
"""

from collections.abc import Callable, Sequence
import math

import numpy as np

Picture = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], Picture]

_WHITE = 255


def downscale(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """Loses detail: to a side of 112 at least, and back to its size."""
  h, w = mask.shape
  factor = rng.uniform(min(112 / max(h, w), 1.0), 1.0)
  small = max(round(w * factor), 1), max(round(h * factor), 1)
  if small == (w, h):
    return image, mask
  from PIL import Image

  reduced = Image.fromarray(image).resize(small, Image.Resampling.LANCZOS)
  return np.array(reduced.resize((w, h), Image.Resampling.BICUBIC)), mask


def blur(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """A Gaussian whose kernel is 1 pixel to a 50th of the longer side wide."""
  from PIL import Image, ImageFilter

  kernel = rng.uniform(1.0, max(max(mask.shape) / 50, 1.0))
  # A kernel of one pixel is no blur; it reaches two deviations to each side.
  deviation = (kernel - 1) / 4
  blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(deviation))
  return np.array(blurred), mask


def jitter(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """Adds up to 5% of the range to each colour channel, or takes it away."""
  shift = rng.uniform(-0.05, 0.05, 3) * 255
  return _to_uint8(image + shift.reshape(1, 1, 3)), mask


def brightness(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """Up to a tenth brighter or darker."""
  return _to_uint8(image * rng.uniform(0.9, 1.1)), mask


def flip(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """Left for right, in half of the cases."""
  if rng.random() < 0.5:
    return image, mask
  return image[:, ::-1].copy(), mask[:, ::-1].copy()


def shear(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """By up to 5% of the width and of the height."""
  h, w = mask.shape
  x, y = rng.uniform(-0.05, 0.05, 2)
  return _affine(image, mask, np.asarray([[1.0, x * w / h], [y * h / w, 1.0]]))


def rotate(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """By up to 20 degrees."""
  angle = math.radians(rng.uniform(-20.0, 20.0))
  c, s = math.cos(angle), math.sin(angle)
  return _affine(image, mask, np.asarray([[c, -s], [s, c]]))


def crop(
  image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> Picture:
  """A window of 67 to 100% of each side of the box around the mask."""
  top, bottom, left, right = box(mask)
  scale = rng.uniform(0.67, 1.0)
  h = max(round((bottom - top) * scale), 1)
  w = max(round((right - left) * scale), 1)
  top += int(rng.integers(bottom - top - h + 1))
  left += int(rng.integers(right - left - w + 1))
  kept = mask[top : top + h, left : left + w]
  if not kept.any():  # between the parts of something hollow
    return image, mask
  return image[top : top + h, left : left + w], kept


# In the order in which they are made.
ALL: tuple[Change, ...] = (
  downscale,
  blur,
  jitter,
  brightness,
  flip,
  shear,
  rotate,
  crop,
)


def augment(
  image: np.ndarray,
  mask: np.ndarray,
  rng: np.random.Generator,
  changes: Sequence[Change] = ALL,
) -> Picture:
  """All changes, one after the other."""
  for change in changes:
    image, mask = change(image, mask, rng)
  return image, mask


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
  """(top, bottom, left, right) of what is true in [h w]; ends exclusive.

  Raises:
    ValueError: nothing is true.
  """
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(rows):
    raise ValueError('the mask is empty')
  return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def _to_uint8(image: np.ndarray) -> np.ndarray:
  return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _affine(image: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> Picture:
  """Maps the plane about the middle by [x y] -> matrix; nothing is cut off."""
  from PIL import Image

  h, w = mask.shape
  wide, high = np.ceil(np.abs(matrix) @ [w, h]).astype(int).tolist()
  # Pillow asks, of each pixel of the result, where it comes from.
  back = np.linalg.inv(matrix)
  offset = np.asarray([w / 2, h / 2]) - back @ [wide / 2, high / 2]
  rows = np.concatenate([back, offset[:, None]], 1).ravel().tolist()

  def move(picture, how, fill):
    moved = Image.fromarray(picture).transform(
      (wide, high), Image.Transform.AFFINE, rows, resample=how, fillcolor=fill
    )
    return np.array(moved)

  cover = move(
    np.where(mask, 255, 0).astype(np.uint8), Image.Resampling.BILINEAR, 0
  )
  moved = cover > 127
  if not moved.any():  # thinner than a pixel
    return image, mask
  fill = (_WHITE,) * 3
  return move(image, Image.Resampling.BICUBIC, fill), moved
