"""Clips: read from any file, fit to a size, take frames, write.

A clip is uint8 [f h w 3] at one constant rate. Files have varying rates, sizes
and lengths; everything uneven is settled here, so that no later stage thinks of
time stamps.
"""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
from fractions import Fraction
import itertools
import logging
import math
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from dcjax.data import decode
from dcjax.errors import DcjaxError

_log = logging.getLogger(__name__)

# More than this decoded is a mistake (a whole film), not a clip.
MAX_BYTES = 4 << 30
H264 = frozenset(('.mp4', '.m4v', '.mov', '.mkv'))
PICTURES = frozenset(('.gif', '.webp', '.png'))


@dataclasses.dataclass(frozen=True)
class Video:
  """A clip.

  Attributes:
    frames: uint8 [f h w 3].
    fps: frames a second.
  """

  frames: np.ndarray
  fps: float

  @property
  def seconds(self) -> float:
    return len(self.frames) / self.fps


def read_video(
  path: str | os.PathLike,
  *,
  fps: float | None = None,
  max_frames: int | None = None,
  size: tuple[int, int] | None = None,
  min_frames: int = 1,
) -> Video:
  """Reads a clip, an animated image, a folder of images or one image.

  Frames are turned as the file says, have square pixels, and lie over white
  where they are transparent. Variable rates become constant: at each multiple
  of 1/fps the frame nearest in time.

  Args:
    path: a file that FFmpeg or Pillow reads, or a folder of images, which are
      taken in the order of their names, numbers counted as numbers.
    fps: frames a second of the result. None keeps the file's rate, or the rate
      of its usual gap if its frames are uneven. A folder has no clock: its
      images are 1/fps apart, 1/8 s if None.
    max_frames: stop after this many frames.
    size: (height, width) to `fit` each frame to while reading, which is how a
      long or large video fits in memory.
    min_frames: 2 if a clip is needed and a still is of no use.

  Returns:
    Video of `min_frames` frames or more.

  Raises:
    DcjaxError: if the file is missing, empty, cut off before its first frame,
      only sound, not a video, too short, or too large for memory; if its frames
      differ in size and `size` is None; or if an argument is impossible.
  """
  path = pathlib.Path(path)
  _check_rate(fps)
  if max_frames is not None and max_frames < 1:
    raise DcjaxError(f'max_frames is {max_frames}; at least 1 is needed')
  timed: Iterable[decode.Frame] = decode.decode(path, fps)
  if size is not None:
    _check_size(*size)
    timed = (x._replace(image=_cover(x.image, *size)) for x in timed)
  if fps is None:
    timed = list(itertools.islice(_bounded(timed, path), max_frames))
    timed, fps = decode.steady(timed)
  else:
    timed = decode.at_rate(timed, fps)
  images = [
    x.image for x in itertools.islice(_bounded(timed, path), max_frames)
  ]
  if len(images) < min_frames:
    have = '1 frame (a still)' if len(images) == 1 else f'{len(images)} frames'
    raise DcjaxError(
      f'{path} has {have}; a clip of at least {min_frames} frames is needed'
    )
  return Video(np.stack(images), float(fps))


def fit(video: Video, height: int, width: int) -> Video:
  """Scales to cover height x width, then crops the centre.

  Downscaling is antialiased (Lanczos over the source's footprint).

  Raises:
    DcjaxError: if a side is below 1.
  """
  _check_size(height, width)
  frames = [_cover(x, height, width) for x in video.frames]
  return Video(np.stack(frames), video.fps)


def take(
  video: Video, frames: int, fps: float | None = None, *, at: str = 'centre'
) -> Video:
  """A clip of exactly `frames` frames.

  Args:
    video: the source, of any rate.
    frames: how many.
    fps: None spreads them evenly from the first frame to the last, so the whole
      action is learnt whatever its length; the result's `fps` is then the rate
      that plays at true speed. A number samples at that rate, so a video
      that is longer than frames/fps is cut.
    at: which part of a longer video is kept, 'centre' or 'start'.

  Returns:
    Video of `frames` frames, each the nearest in time; frames are repeated (and
    a warning logged) where the source has too few.

  Raises:
    DcjaxError: if the video is shorter than frames/fps, or is a still.
  """
  index, rate = places(video, frames, fps, at=at)
  return Video(video.frames[index], rate)


def places(
  video: Video, frames: int, fps: float | None = None, *, at: str = 'centre'
) -> tuple[np.ndarray, float]:
  """Which frames `take` takes, [frames] ascending; and the clip's `fps`."""
  if frames < 1 or at not in ('centre', 'start'):
    raise DcjaxError(
      f'frames is {frames} and at is {at!r}; expected frames >= 1 and at '
      "'centre' or 'start'"
    )
  _check_rate(fps)
  count = len(video.frames)
  if frames > 1 and count < 2:
    raise DcjaxError(f'a still cannot become a clip of {frames} frames')
  # In units of source frames.
  if fps is None:
    step = (count - 1) / max(frames - 1, 1)
    rate = video.fps / step if frames > 1 else video.fps
  else:
    step, rate = video.fps / fps, float(fps)
  # The last frame may fall on the very end: 81 frames at 16 fps fit in 5 s.
  if step * (frames - 1) > count + 1e-6:
    raise DcjaxError(
      f'{frames} frames at {rate:g} fps span {(frames - 1) / rate:.2f} s, but '
      f'the video lasts {video.seconds:.2f} s: take at most '
      f'{math.floor(count / step + 1e-6) + 1} frames, or leave fps unset to '
      'spread them over the whole video'
    )
  spare = max(count - 1 - step * (frames - 1), 0)
  start = spare / 2 if at == 'centre' else 0
  # Half a frame is rounded up always, or even and odd frames would differ.
  index = np.floor(start + step * np.arange(frames) + 0.5 + 1e-6)
  index = index.astype(int).clip(0, count - 1)
  if len(set(index.tolist())) < frames:
    _log.warning(
      'the video has too few frames (%d at %g fps) for %d at %g fps: some are '
      'repeated',
      *(count, video.fps, frames, rate),
    )
  return index, rate


def write_video(
  path: str | os.PathLike,
  video: np.ndarray,
  fps: float = 8,
  *,
  scale: int = 1,
) -> None:
  """Writes a clip that browsers play.

  H.264 (yuv420p, BT.709, visually lossless) for .mp4, .m4v, .mov and .mkv, an
  endless animation for .gif, .webp and .png. The file appears whole or not at
  all. H.264 has even sides: an odd one gets its last row or column twice.

  Args:
    path: where; its folder is made if missing.
    video: uint8 [f h w 3].
    fps: frames a second.
    scale: each pixel becomes scale x scale, for small videos on large screens.

  Raises:
    DcjaxError: if the array or the suffix is of another kind, or if the disk
      refuses.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix not in H264 | PICTURES:
    known = ' '.join(sorted(H264 | PICTURES))
    raise DcjaxError(f'cannot write {path}: expected a name ending in {known}')
  video = np.asarray(video)
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
    raise DcjaxError(
      f'a video is uint8 [f h w 3], not {video.dtype} {list(video.shape)}'
    )
  if not video.size or scale < 1:
    raise DcjaxError(f'nothing to write: {list(video.shape)}, scale {scale}')
  _check_rate(fps)
  video = video.repeat(scale, axis=1).repeat(scale, axis=2)
  write = _write_h264 if suffix in H264 else _write_pictures
  try:
    with _replacing(path) as temporary:
      write(temporary, video, fps)
  except OSError as error:
    reason = error.strerror or error
    raise DcjaxError(f'cannot write {path}: {reason}') from error


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[str]:
  """A temporary name beside `path` that becomes `path` on success."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.tmp-') as folder:
    temporary = os.path.join(folder, f'video{path.suffix.lower()}')
    yield temporary
    os.replace(temporary, path)


def _write_h264(path: str, video: np.ndarray, fps: float) -> None:
  import av

  _, h, w, _ = video.shape
  video = np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode='edge')
  # The matrix is written down, as players guess it from the size otherwise.
  bt709 = 'colorprim=bt709:transfer=bt709:colormatrix=bt709'
  with av.open(path, 'w', options={'movflags': '+faststart'}) as container:
    rate = Fraction(fps).limit_denominator(1001)
    stream = container.add_stream('libx264', rate=rate)
    stream.width, stream.height = video.shape[2], video.shape[1]
    stream.pix_fmt = 'yuv420p'
    stream.options = {'crf': '12', 'preset': 'fast', 'x264-params': bt709}
    for x in video:
      frame = av.VideoFrame.from_ndarray(x, format='rgb24')
      frame = frame.reformat(
        format='yuv420p',
        dst_colorspace='ITU709',
        interpolation=decode.SWSCALE,
      )
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _write_pictures(path: str, video: np.ndarray, fps: float) -> None:
  from PIL import Image

  first, *rest = (Image.fromarray(x) for x in video)
  # GIF counts in 10 ms: rounding the times, not the gaps, keeps the length.
  unit = 10 if path.endswith('.gif') else 1
  times = np.rint(np.arange(len(video) + 1) * 1000 / fps / unit) * unit
  options: dict[str, Any] = {}
  if path.endswith('.webp'):
    options = {'quality': 95}
  if rest:
    options |= {'save_all': True, 'append_images': rest, 'loop': 0}
    options['duration'] = np.diff(times).astype(int).tolist()
  first.save(path, **options)


def _cover(x: np.ndarray, height: int, width: int) -> np.ndarray:
  """[h w 3] -> [height width 3], scaled to cover, centre kept."""
  from PIL import Image

  h, w, _ = x.shape
  if (h, w) == (height, width):
    return x
  scale = max(height / h, width / w)
  crop_h, crop_w = min(height / scale, h), min(width / scale, w)
  top, left = (h - crop_h) / 2, (w - crop_w) / 2
  box = (left, top, left + crop_w, top + crop_h)
  resized = Image.fromarray(x).resize(
    (width, height), Image.Resampling.LANCZOS, box=box
  )
  return np.asarray(resized)


def _bounded(
  timed: Iterable[decode.Frame], path: pathlib.Path
) -> Iterator[decode.Frame]:
  """Passes frames of one size on, until they are too many for memory."""
  shape, total = None, 0
  for frame in timed:
    shape, total = shape or frame.image.shape, total + frame.image.nbytes
    if frame.image.shape != shape:
      sizes = [f'{x[1]}x{x[0]}' for x in (shape, frame.image.shape)]
      raise DcjaxError(
        f'{path} changes from {sizes[0]} to {sizes[1]}; pass size=(height, '
        'width) to bring all frames to one'
      )
    if total > MAX_BYTES:
      fit = MAX_BYTES // frame.image.nbytes
      raise DcjaxError(
        f'{path} is too long for memory, which has room for {fit} frames of '
        f'{shape[1]}x{shape[0]}: cut it, or make it smaller'
      )
    yield frame


def _check_rate(fps: float | None) -> None:
  if fps is not None and not (math.isfinite(fps) and fps > 0):
    raise DcjaxError(f'fps is {fps}; expected a number above 0')


def _check_size(height: int, width: int) -> None:
  if height < 1 or width < 1:
    raise DcjaxError(f'size is {height}x{width}; each side must be 1 or more')
