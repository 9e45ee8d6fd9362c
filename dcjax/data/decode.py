"""Media files -> upright RGB frames with their times.

Whatever a person points at (a clip, an animation, a folder, a picture) becomes
a stream of upright `Frame`s with square pixels, over white where transparent.
`at_rate` and `steady` make its rate constant, `data/video.py` makes clips.
"""

from collections.abc import Iterable, Iterator
import logging
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from dcjax.errors import DcjaxError

_log = logging.getLogger(__name__)

IMAGES = frozenset(('.avif', '.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm'))
IMAGES |= {'.tif', '.tiff', '.webp'}
# Other formats with several frames hold pages, or the gain map of a photograph.
ANIMATED = frozenset(('AVIF', 'GIF', 'PNG', 'WEBP'))
# FFmpeg "formats" that turn text into pictures or open further files.
REFUSED = frozenset(('tty', 'concat', 'hls', 'dash'))
# swscale: bilinear, whole chroma, accurate rounding. Its default loses about
# one level of 255 on the average, and darkens what is read and written again.
SWSCALE = 0x2 | 0x2000 | 0x4000 | 0x40000
DEFAULT_FPS = 8.0  # of folders and stills, which have no clock
MAX_FPS = 60.0  # at which uneven clips are laid out


class Frame(NamedTuple):
  """One frame of a stream.

  Attributes:
    image: uint8 [h w 3].
    time: seconds at which it appears; increases strictly along a stream.
    seconds: how long the file says that it stays; 0 if it does not say.
  """

  image: np.ndarray
  time: float
  seconds: float


def decode(path: pathlib.Path, fps: float | None = None) -> Iterator[Frame]:
  """Frames of a clip, an animated image, a folder of images or one image.

  Args:
    path: file or folder.
    fps: rate of the images of a folder, `DEFAULT_FPS` if None.

  Yields:
    `Frame`s, at least one. A file that ends early gives what can be decoded,
    with a logged warning.

  Raises:
    DcjaxError: if the path is missing or empty or holds no frame that decodes.
  """
  if not path.exists():
    raise DcjaxError(f'{path} does not exist; expected a video or image file')
  if path.is_dir():
    yield from _decode_folder(path, fps or DEFAULT_FPS)
    return
  if not path.stat().st_size:
    raise DcjaxError(f'{path} is empty (0 bytes); expected a video or image')
  # By content: much of what is called .gif on the web is a video.
  if path.suffix.lower() in IMAGES and _is_image(path):
    yield from _decode_image(path)
  else:
    yield from _decode_video(path)


def at_rate(timed: Iterable[Frame], fps: float) -> Iterator[Frame]:
  """At each multiple of 1/fps the frame nearest in time, to the end.

  Streams: holds two frames at a time.
  """
  k, last, gap = 0, None, 0.0
  for frame in timed:
    if last is not None:
      gap = frame.time - last.time
      while k / fps < (last.time + frame.time) / 2:
        yield last
        k += 1
    last = frame
  if last is None:
    return
  end = last.time + (last.seconds or gap)
  # Half a frame counts, so that 17 frames at half the rate are 9.
  count = int(end * fps + 0.5)
  for _ in range(k, max(count, k, 1)):
    yield last


def steady(timed: list[Frame]) -> tuple[Iterable[Frame], float]:
  """A stream of the file's own rate, and that rate in frames a second.

  Even frames pass as they are. Uneven ones are laid out at the rate of their
  usual gap, so that a screen recording that mostly rests keeps its speed.
  """
  if len(timed) < 2:
    return timed, DEFAULT_FPS
  gaps = np.diff([x.time for x in timed])
  even = 1 / gaps.mean()
  if _is_even(timed, even):
    meant = _meant(even)
    return timed, meant if _is_even(timed, meant) else even
  rate = _meant(min(1 / float(np.median(gaps)), MAX_FPS))
  return at_rate(timed, rate), rate


def _meant(rate: float) -> float:
  """The usual rate near `rate`: containers that count milliseconds blur it."""
  usual = [round(rate) or rate]
  usual += [base / 1.001 for base in (24, 30, 48, 60, 120)]
  nearest = min(usual, key=lambda x: abs(x - rate))
  return float(nearest if abs(nearest - rate) < 0.005 * rate else rate)


def _is_even(timed: list[Frame], fps: float) -> bool:
  """Whether each frame is within a third of a gap of k/fps."""
  times = np.array([x.time for x in timed]) * fps
  return bool((np.abs(times - times[0] - np.arange(len(timed))) < 1 / 3).all())


def _decode_folder(path: pathlib.Path, fps: float) -> Iterator[Frame]:
  files = [x for x in path.iterdir() if x.suffix.lower() in IMAGES]
  if not files:
    raise DcjaxError(f'{path} holds no images; expected one a frame (png, jpg)')
  for i, file in enumerate(sorted(files, key=_natural)):
    if not _is_image(file):
      raise DcjaxError(f'{file} is not an image that can be read; remove it')
    yield next(_decode_image(file))._replace(time=i / fps, seconds=1 / fps)


def _natural(path: pathlib.Path) -> list:
  """Sort key under which frame2 comes before frame10."""
  parts = re.split(r'(\d+)', path.name.lower())
  return [int(x) if i % 2 else x for i, x in enumerate(parts)]


def image_errors() -> tuple[type[Exception], ...]:
  """How Pillow tells of broken or boundless files; all are about the file."""
  from PIL.Image import DecompressionBombError

  return (OSError, ValueError, SyntaxError, EOFError, DecompressionBombError)


def _is_image(path: pathlib.Path) -> bool:
  from PIL import Image

  try:
    Image.open(path).close()
  except image_errors():
    return False
  return True


def _decode_image(path: pathlib.Path) -> Iterator[Frame]:
  from PIL import Image

  time, index = 0.0, 0
  try:
    with Image.open(path) as image:
      count = getattr(image, 'n_frames', 1)
      count = count if image.format in ANIMATED else 1
      for index in range(count):
        image.seek(index)
        image.load()
        seconds = image.info.get('duration', 0) / 1000
        if seconds <= 0.01:
          seconds = 0.1  # browsers read "as fast as you can" as 10 a second
        yield Frame(_upright_rgb(image), time, seconds)
        time += seconds
  except image_errors() as error:
    if not index:
      raise DcjaxError(f'{path} cannot be decoded: {_reason(error)}') from error
    _log.warning('%s breaks off after %d frames', path, index)


def _upright_rgb(image: Any) -> np.ndarray:
  """Pillow image -> uint8 [h w 3], EXIF-upright, over white."""
  from PIL import Image, ImageOps

  image = ImageOps.exif_transpose(image)
  if image.mode.startswith('I'):  # 16-bit grey, which Pillow would clip
    x = np.asarray(image, np.int64)
    x = (x >> 8 if x.max(initial=0) > 255 else x).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(x)
  return _over_white(np.asarray(image.convert('RGBA')))


def _over_white(x: np.ndarray) -> np.ndarray:
  """Straight-alpha RGBA uint8 [h w 4] -> RGB uint8 [h w 3]."""
  if (x[..., 3] == 255).all():
    return np.ascontiguousarray(x[..., :3])
  alpha = x[..., 3:].astype(np.float32) / 255
  return np.rint(x[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _decode_video(path: pathlib.Path) -> Iterator[Frame]:
  import av

  container = _open(path)
  with container:
    stream = _video_stream(container, path)
    decoder = _decoder(stream)
    first, last, count, broken = 0.0, -np.inf, 0, False
    for packet in _packets(container, stream):
      if packet is not None and packet.is_corrupt:  # read only in part
        broken = True
        continue
      try:
        frames = decoder.decode(packet)
      except av.error.FFmpegError:
        # One bad packet does not end a video: players show what follows it.
        broken = True
        continue
      for frame in frames:
        time = _time(frame, stream, last)
        if getattr(frame, 'is_corrupt', False) or time <= last:
          broken = True
          continue
        first, last, count = first if count else time, time, count + 1
        seconds = float((frame.duration or 0) * stream.time_base)
        yield Frame(_frame_rgb(frame, stream), time - first, seconds)
  if not count:
    raise DcjaxError(
      f'{path} holds no frame that can be decoded: it is cut off, or not what '
      'its name says'
    )
  if broken:
    _log.warning('%s is cut off or damaged: %d frames decoded', path, count)


def _open(path: pathlib.Path) -> Any:
  import av

  # Absolute, or a colon in the name would read as a protocol.
  name, options = str(path.resolve()), {'protocol_whitelist': 'file'}
  try:
    container = av.open(name, options=options)
  except (av.error.FFmpegError, OSError, ValueError) as error:
    raise DcjaxError(
      f'{path} cannot be read as a video or an image ({_reason(error)}): it is '
      'of another kind, or cut off'
    ) from error
  if REFUSED & set(container.format.name.split(',')):
    container.close()
    raise DcjaxError(f'{path} is text, not a video or an image')
  return container


def _reason(error: Exception) -> str:
  text = getattr(error, 'strerror', None) or str(error) or repr(error)
  return text.splitlines()[0]


def _video_stream(container: Any, path: pathlib.Path) -> Any:
  """The first video stream that is not the cover picture of a song."""
  import av

  cover = av.stream.Disposition.attached_pic
  streams = [x for x in container.streams.video if not x.disposition & cover]
  if not streams:
    has = 'only sound' if container.streams.audio else 'no video stream'
    raise DcjaxError(f'{path} holds {has}; expected a video or an image')
  streams[0].thread_type = 'AUTO'
  return streams[0]


def _decoder(stream: Any) -> Any:
  """The stream's decoder, or one that sees the alpha of VP8 and VP9.

  FFmpeg's own VP8 and VP9 decoders drop the alpha plane; libvpx keeps it.
  """
  import av

  name = {'vp8': 'libvpx', 'vp9': 'libvpx-vp9'}.get(stream.codec_context.name)
  transparent = stream.metadata.get('alpha_mode') == '1'
  if not transparent or name not in av.codecs_available:
    return stream.codec_context
  return av.CodecContext.create(name, 'r')


def _packets(container: Any, stream: Any) -> Iterator[Any]:
  """Packets up to the end or to where the file breaks, then None to flush."""
  import av

  try:
    for packet in container.demux(stream):
      if packet.size:
        yield packet
  except av.error.FFmpegError as error:
    _log.warning('%s breaks off: %s', container.name, _reason(error))
  yield None


def _time(frame: Any, stream: Any, last: float) -> float:
  if frame.pts is not None:
    return float(frame.pts * stream.time_base)
  # Raw streams carry no clock, only a rate.
  step = float(1 / (stream.average_rate or stream.guessed_rate or DEFAULT_FPS))
  return last + step if np.isfinite(last) else 0.0


def _frame_rgb(frame: Any, stream: Any) -> np.ndarray:
  """Decoded frame -> uint8 [h w 3] as a player would show it."""
  if any(x.is_alpha for x in frame.format.components):
    x = _over_white(frame.to_ndarray(format='rgba', interpolation=SWSCALE))
  else:
    x = frame.to_ndarray(format='rgb24', interpolation=SWSCALE)
  aspect = stream.sample_aspect_ratio
  if aspect and aspect != 1:
    x = _stretch(x, max(1, round(x.shape[1] * aspect)))
  matrix = frame.side_data.get('DISPLAYMATRIX')
  return x if matrix is None else orient(x, np.frombuffer(matrix, np.int32))


def _stretch(x: np.ndarray, width: int) -> np.ndarray:
  from PIL import Image

  size = (width, x.shape[0])
  return np.asarray(Image.fromarray(x).resize(size, Image.Resampling.LANCZOS))


def orient(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Turns and flips a frame as its display matrix says.

  Args:
    x: uint8 [h w 3].
    matrix: 9 integers (a b u c d v x y w) of ISO 14496-12: a stored pixel
      (p, q), right and down, is shown at (a p + c q, b p + d q) but for a
      shift. The nearest of the eight quarter turns and flips is taken.

  Returns:
    uint8 [h w 3] or [w h 3].
  """
  a, b, _, c, d = (int(value) for value in matrix[:5])
  if abs(b) + abs(c) > abs(a) + abs(d):
    x, right, down = x.swapaxes(0, 1), c, b
  else:
    right, down = a, d
  if right < 0:
    x = x[:, ::-1]
  if down < 0:
    x = x[::-1]
  return np.ascontiguousarray(x)
