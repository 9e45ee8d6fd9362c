"""What a file really holds, found by decoding it: size, times, rate.

Headers lie about lengths and rates, so every frame is looked at once. A survey
of a folder keeps the result, see `finetuning.survey`.
"""

from collections.abc import Callable
import dataclasses
import os
from pathlib import Path

import numpy as np

from dcjax.data import decode
from dcjax.errors import DcjaxError

_NOTHING = np.zeros((0, 0, 3), np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
  """A file as it was decoded.

  Attributes:
    height: of the first frame, upright, in square pixels.
    width: of the same.
    times: [n] seconds at which the frames appear, the first at 0.
    last: seconds that the last frame stays; 0 if the file does not say.
  """

  height: int
  width: int
  times: np.ndarray
  last: float

  @property
  def is_still(self) -> bool:
    return len(self.times) == 1

  @property
  def fps(self) -> float:
    """Frames a second: the rate of the usual gap if they are uneven."""
    return decode.steady(self._frames())[1]

  @property
  def is_even(self) -> bool:
    """Whether the frames keep one rate."""
    timed = self._frames()
    return decode.steady(timed)[0] is timed

  @property
  def seconds(self) -> float:
    """How long it plays; 0 for a still."""
    if self.is_still:
      return 0.0
    gap = self.times[-1] - self.times[-2]
    return float(self.times[-1] + (self.last or gap))

  def count(self, fps: float) -> int:
    """Frames of `decode.at_rate` at this rate; 1 for a still."""
    if self.is_still:
      return 1
    return sum(1 for _ in decode.at_rate(self._frames(), fps))

  def _frames(self) -> list[decode.Frame]:
    stays = np.zeros(len(self.times))
    stays[-1] = self.last
    pairs = zip(self.times.tolist(), stays.tolist(), strict=True)
    return [decode.Frame(_NOTHING, time, seconds) for time, seconds in pairs]


def probe(
  path: str | os.PathLike, see: Callable[[np.ndarray], None] | None = None
) -> Probe:
  """Decodes a file from end to end; keeps no picture.

  Args:
    path: of a video, an image or a folder of images.
    see: called with each frame, uint8 [h w 3].

  Raises:
    DcjaxError: if it cannot be decoded, see `decode.decode`.
  """
  size, times, last = (0, 0), [], 0.0
  for frame in decode.decode(Path(path)):
    size = size if times else frame.image.shape[:2]
    times.append(frame.time)
    last = frame.seconds
    if see is not None:
      see(frame.image)
  return Probe(*size, np.asarray(times, np.float64), last)


def to_arrays(x: Probe) -> dict[str, np.ndarray]:
  """For the cache; `from_arrays` undoes it."""
  return {
    'size': np.asarray([x.height, x.width], np.int64),
    'times': x.times,
    'last': np.asarray([x.last]),
  }


def from_arrays(arrays: dict[str, np.ndarray]) -> Probe:
  """A probe from the cache."""
  height, width = arrays['size'].tolist()
  return Probe(height, width, arrays['times'], float(arrays['last'][0]))


def rotation(path: Path) -> int:
  """Degrees, clockwise, by which a player turns the stored picture.

  Raises:
    DcjaxError: if the file cannot be opened.
  """
  if path.is_dir():
    return 0
  if path.suffix.lower() in decode.IMAGES:
    return _exif_rotation(path)
  import av

  try:
    with av.open(
      str(path.resolve()), options={'protocol_whitelist': 'file'}
    ) as container:
      frame = next(container.decode(video=0))
  except (av.error.FFmpegError, OSError, ValueError, StopIteration) as error:
    raise DcjaxError(f'{path} cannot be opened: {error}') from error
  matrix = frame.side_data.get('DISPLAYMATRIX')
  if matrix is None:
    return 0
  # Column 1 of the matrix: where a step to the right in the file leads.
  a, b = np.frombuffer(matrix, np.int32)[:2].tolist()
  return round(np.degrees(np.arctan2(b, a)) / 90) * 90 % 360


def _exif_rotation(path: Path) -> int:
  from PIL import Image

  try:
    with Image.open(path) as image:
      orientation = image.getexif().get(0x0112, 1)
  except (OSError, ValueError, SyntaxError) as error:
    raise DcjaxError(f'{path} cannot be opened: {error}') from error
  return {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(orientation, 0)
