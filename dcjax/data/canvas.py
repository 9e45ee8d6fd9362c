"""Reference pictures: a subject cut out and centred on plain white.

In training and when sampling a reference looks the same: what is cropped and
centred cannot be copied to its place (AlcheMinT, Sec. 4).
"""

import os
from pathlib import Path
from typing import Any
import warnings

import numpy as np

from dcjax.data import decode
from dcjax.data.augment import box
from dcjax.errors import DcjaxError

FILL = 0.6  # of the side of the canvas
# Of 255: how far a plain border may stray, as JPEG files do.
_PLAIN = 14
_MAX_PIXELS = 64_000_000


def canvas(
  image: np.ndarray, size: tuple[int, int], mask: np.ndarray | None = None
) -> np.ndarray:
  """Puts the subject of a picture on a white canvas, centred.

  The subject is where the mask is true; without a mask, where the picture is
  opaque; in an opaque picture with a plain border, all but what joins the
  border in its colour. If none of these tells it, the whole picture is fitted
  into the canvas.

  Args:
    image: uint8 [h w 3], or [h w 4] with opacity.
    size: (height, width) of the canvas.
    mask: [h w] bool.

  Returns:
    uint8 [height width 3]; the subject is scaled to fill `FILL` of the side.

  Raises:
    DcjaxError: the mask is of another size or empty, or nothing is opaque.
  """
  image, opacity = _over_white(image)
  if mask is not None and mask.shape != image.shape[:2]:
    raise DcjaxError(
      f'the mask is {_by(mask)}, but the picture is {_by(image)}'
    )
  if mask is None and opacity is not None:
    mask = opacity
  if mask is None:
    mask = _without_border(image)
  if mask is None:
    return _centre(image, size, 1.0)
  if not mask.any():
    raise DcjaxError('the picture shows nothing: its mask or opacity is empty')
  top, bottom, left, right = box(mask)
  cut = np.where(mask[..., None], image, np.uint8(255))
  return _centre(cut[top:bottom, left:right], size, FILL)


def load_reference(
  path: str | os.PathLike, size: tuple[int, int]
) -> np.ndarray:
  """Reads a picture and puts its subject on a canvas.

  Args:
    path: of a PNG, JPEG, WebP or any other file that Pillow reads.
    size: (height, width) of the canvas.

  Returns:
    uint8 [height width 3], see `canvas`.

  Raises:
    DcjaxError: the file is missing, not a picture, cut off, too large, or
      shows nothing.
  """
  try:
    return canvas(read_picture(path), size)
  except DcjaxError as error:
    if str(path) in str(error):
      raise
    raise DcjaxError(f'{path}: {error}') from error


def read_picture(path: str | os.PathLike) -> np.ndarray:
  """A picture file, turned as it says: uint8 [h w 3], or [h w 4] with opacity.

  Raises:
    DcjaxError: the file is missing, not a picture, cut off, or too large.
  """
  from PIL import Image, ImageOps

  too_many = f'expected at most {_MAX_PIXELS // 1_000_000} million pixels'
  path = Path(path)
  if not path.exists():
    raise DcjaxError(f'{path} does not exist, expected a picture')
  if not path.is_file():
    raise DcjaxError(f'{path} is a folder, expected a picture')
  try:
    with _open(path) as opened:
      w, h = opened.size
      if w * h > _MAX_PIXELS:
        raise DcjaxError(f'{path} is {w}x{h}, {too_many}')
      turned = ImageOps.exif_transpose(opened)
      clear = turned.has_transparency_data
      return np.array(turned.convert('RGBA' if clear else 'RGB'))
  except Image.DecompressionBombError as error:
    raise DcjaxError(f'{path} is far too large, {too_many}') from error
  except decode.image_errors() as error:
    raise DcjaxError(
      f'{path} cannot be read as a picture; save it as PNG or JPEG'
    ) from error


def _open(path: Path) -> Any:
  """A Pillow image, whose size is ours to judge: no warning of a large one."""
  from PIL import Image

  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    return Image.open(path)


def _over_white(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
  """(uint8 [h w 3], opaque [h w] or None if all is)."""
  if (
    image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (3, 4)
  ):
    raise DcjaxError(
      f'the picture is {image.dtype} {list(image.shape)}, expected uint8 '
      '[h w 3] or [h w 4]'
    )
  if image.shape[-1] == 3:
    return image, None
  alpha = image[..., 3:]
  if alpha.min() == 255:
    return image[..., :3], None
  part = alpha.astype(np.float32) / 255
  white = image[..., :3] * part + 255 * (1 - part)
  # Soft edges belong to it: over white they look as they should.
  return np.round(white).astype(np.uint8), alpha[..., 0] > 15


def _without_border(image: np.ndarray) -> np.ndarray | None:
  """[h w] bool without what joins a plain border; None if there is none."""
  rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
  color = np.median(rim, 0).astype(np.int16)
  like = lambda x: (np.abs(x.astype(np.int16) - _as(color, x)) <= _PLAIN).all(
    -1
  )
  if not like(rim).all():
    return None
  mask = ~_reached(like(image))
  return mask if mask.any() else None


def _as(color: np.ndarray, image: np.ndarray) -> np.ndarray:
  return color.reshape((1,) * (image.ndim - 1) + (3,))


def _reached(free: np.ndarray) -> np.ndarray:
  """What of [h w] can be reached from outside through what is true.

  A whole free stretch of a row or of a column is reached at once, so that only
  the number of turns of the longest way counts.
  """
  reached = np.zeros_like(free)
  for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
    reached[edge] = free[edge]
  stretches = [_stretches(free), _stretches(free.T).T]
  count = -1
  while count != (count := int(reached.sum())):
    for names in stretches:
      hit = np.bincount(names[reached], minlength=names.max() + 1) > 0
      reached = free & hit[names]
  return reached


def _stretches(free: np.ndarray) -> np.ndarray:
  """A number for each place [h w], the same along a free stretch of a row."""
  h, w = free.shape
  starts = ~free
  starts[:, 0] = True
  return np.cumsum(starts.ravel()).reshape(h, w)


def _centre(
  image: np.ndarray, size: tuple[int, int], fill: float
) -> np.ndarray:
  """Scales a picture to `fill` of the canvas and centres it on white."""
  from PIL import Image

  height, width = size
  h, w = image.shape[:2]
  scale = fill * min(height / h, width / w)
  high, wide = max(round(h * scale), 1), max(round(w * scale), 1)
  scaled = Image.fromarray(np.ascontiguousarray(image)).resize(
    (wide, high), Image.Resampling.LANCZOS
  )
  out = np.full((height, width, 3), 255, np.uint8)
  top, left = (height - high) // 2, (width - wide) // 2
  out[top : top + high, left : left + wide] = np.array(scaled)
  return out


def _by(image: np.ndarray) -> str:
  return 'x'.join(str(n) for n in image.shape[:2])
