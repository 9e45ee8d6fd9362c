"""Videos and masks as bytes, for records of a dataset."""

from collections.abc import Iterator
import io
import itertools
from pathlib import Path
import tempfile

import numpy as np

from dcjax.data import decode
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError

# Pillow takes a larger picture for an attack.
MAX_MASK_PIXELS = 89_000_000
_TICK = 100  # milliseconds of a frame of a WebP file


def _mp4(video: np.ndarray, fps: float) -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'clip.mp4')
    video_lib.write_video(path, video, fps)
    return path.read_bytes()


def _webp(video: np.ndarray, fps: float) -> bytes:
  from PIL import Image

  first, *rest = (Image.fromarray(x) for x in video)
  options = {'lossless': True, 'method': 3}
  if rest:
    # Equal frames become one long one, so the time is what tells their number.
    options |= {'save_all': True, 'append_images': rest, 'duration': _TICK}
  file = io.BytesIO()
  first.save(file, 'webp', **options)
  return file.getvalue()


# Each turns (uint8 [f h w 3], fps) into the bytes of a file.
ENCODINGS = {'mp4': _mp4, 'webp': _webp}


def decode_video(
  data: bytes, shape: tuple[int, int, int], where: str
) -> np.ndarray:
  """Frames of what an encoding of `ENCODINGS` gave.

  Args:
    data: the bytes of an MP4 or WebP file; its own clock is of no account.
    shape: (f, h, w) that it must have.
    where: how messages call it.

  Returns:
    uint8 [f h w 3].

  Raises:
    DcjaxError: it does not decode, or has another shape.
  """
  f, h, w = shape
  webp = data[8:12] == b'WEBP'
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'clip.webp' if webp else 'clip.mp4')
    path.write_bytes(data)
    try:
      frames = list(itertools.islice(_frames(path, webp and f > 1), f + 1))
    except DcjaxError as error:
      raise DcjaxError(f'{where}: its video does not decode') from error
  # H.264 repeats the last row or column of odd sides.
  video = np.stack(frames)[:, :h, :w]
  if video.shape != (f, h, w, 3):
    raise DcjaxError(
      f'{where}: its video decodes as {list(video.shape)}, expected '
      f'{[f, h, w, 3]}'
    )
  return video


def _frames(path: Path, is_timed: bool) -> Iterator[np.ndarray]:
  for x in decode.decode(path):
    held = max(round(1000 * x.seconds / _TICK), 1) if is_timed else 1
    yield from itertools.repeat(x.image, held)


def encode_mask(mask: np.ndarray) -> bytes:
  """A 1-bit PNG of the frames of [f h w] bool, below one another."""
  from PIL import Image

  f, h, w = mask.shape
  file = io.BytesIO()
  Image.fromarray(mask.reshape(f * h, w)).save(file, 'png')
  return file.getvalue()


def decode_mask(
  data: bytes, shape: tuple[int, int, int], where: str
) -> np.ndarray:
  """What `encode_mask` gave: [f h w] bool.

  Raises:
    DcjaxError: it is no PNG, or has another shape.
  """
  from PIL import Image

  f, h, w = shape
  try:
    with Image.open(io.BytesIO(data), formats=['PNG']) as image:
      # Its header is read first: a broken one must not fill the memory.
      if (image.mode, image.size) != ('1', (w, f * h)):
        raise DcjaxError(
          f'{where}: a mask is {image.mode} {image.size[0]}x{image.size[1]}, '
          f'expected 1 bit of {w}x{f * h}, the frames below one another'
        )
      return np.array(image).reshape(f, h, w)
  except (OSError, ValueError, SyntaxError) as error:
    raise DcjaxError(f'{where}: a mask does not decode as PNG') from error
