"""The timeline of a video: who was asked for when, and who was seen when.

On top a strip of frames; below it a lane for each subject and timed caption,
with the asked interval as an outlined bar and, under it, the frames in which
the subject was seen as a filled one. Everything stands on one axis of seconds.
"""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dcjax.errors import DcjaxError

# Pixels of the picture; it is drawn at twice that and scaled down, for smooth
# edges.
WIDTH, _FINE = 1280, 2
_LEFT, _RIGHT, _TOP = 268, 36, 28
_THUMB, _LANE, _AXIS = 52, 76, 34
_STRIP_MAX = 132
_GROUND, _INK, _QUIET, _LINE = '#fbfaf8', '#22262b', '#767c85', '#e4e1db'
# Of lanes whose thumbnail has no colour, in turn; timed captions are grey.
_COLORS = ('#2f6fd0', '#d9772b', '#2a9d7c', '#b8478f', '#7a61c9', '#a1862a')
_CAPTION = '#7b828c'
KINDS = ('reference', 'concept', 'event')


@dataclasses.dataclass(frozen=True, eq=False)
class Lane:
  """One row of the picture.

  Attributes:
    name: the word of a subject, or the text of a timed caption.
    kind: one of `KINDS`.
    intervals: seconds, as asked for.
    thumbnail: uint8 [h w 3], what it looks like, or None.
    present: [f] bool, in which frames it was seen; None: not measured.
  """

  name: str
  kind: str
  intervals: Sequence[tuple[float, float]]
  thumbnail: np.ndarray | None = None
  present: np.ndarray | None = None


class _Sheet(NamedTuple):
  """What is drawn on, and how seconds become pixels."""

  image: Any
  draw: Any
  seconds: float

  def x(self, seconds: float) -> float:
    wide = WIDTH - _LEFT - _RIGHT
    return _LEFT + wide * seconds / self.seconds

  def bar(self, span, y: float, height: float, **options) -> None:
    left, right = (self.x(s) * _FINE for s in span)
    box = (left, y * _FINE, max(right, left + 4), (y + height) * _FINE)
    radius = min(height * _FINE / 2, 6 * _FINE, (box[2] - left) / 2)
    self.draw.rounded_rectangle(box, radius, **options)

  def text(self, x, y, text, size, color=_INK, anchor='lm') -> None:
    place = (x * _FINE, y * _FINE)
    self.draw.text(place, text, color, _font(size), anchor)

  def paste(self, picture, x, y, size) -> None:
    self.image.paste(
      _scaled(picture, size), (round(x * _FINE), round(y * _FINE))
    )


def draw(
  video: np.ndarray,
  fps: float,
  lanes: Sequence[Lane],
  *,
  title: str = '',
  note: str = '',
) -> np.ndarray:
  """Draws the timeline.

  Args:
    video: uint8 [f h w 3]; frame i is the instant i / fps.
    fps: frames a second.
    lanes: from top to bottom.
    title: such as the prompt.
    note: below the axis, beside what the bars mean.

  Returns:
    uint8 [height WIDTH 3].

  Raises:
    DcjaxError: the video has fewer than two frames, or a lane is of an unknown
      kind or has another number of frames.
  """
  from PIL import Image, ImageDraw

  _check(video, lanes)
  seconds = (len(video) - 1) / fps
  lines = _wrapped(title, WIDTH - 2 * _TOP, 17)[:3]
  strip_top = _TOP + 25 * len(lines) + (12 if lines else 0)
  strip = _strip_size(video)
  lanes_top = strip_top + round(strip[0]) + 18
  bottom = lanes_top + _LANE * len(lanes)
  height = bottom + _AXIS + 44
  image = Image.new('RGB', (WIDTH * _FINE, height * _FINE), _GROUND)
  sheet = _Sheet(image, ImageDraw.Draw(image), seconds)
  for i, line in enumerate(lines):
    sheet.text(_TOP, _TOP + 9 + 25 * i, line, 17)
  _draw_strip(sheet, video, strip_top, strip)
  _draw_axis(sheet, strip_top + strip[0] + 6, bottom)
  colors = iter(_COLORS * (1 + len(lanes) // len(_COLORS)))
  for i, lane in enumerate(lanes):
    color = _CAPTION
    if lane.kind != 'event':
      color = _color_of(lane.thumbnail) or next(colors)
    _draw_lane(sheet, lane, lanes_top + _LANE * i, color, fps)
  measured = any(lane.present is not None for lane in lanes)
  _draw_legend(sheet, bottom + _AXIS + 18, measured, note)
  small = image.resize((WIDTH, height), Image.Resampling.BOX)
  return np.array(small)


def write(path: str | os.PathLike, *args: Any, **options: Any) -> Path:
  """Writes what `draw` draws as a PNG."""
  from PIL import Image

  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(draw(*args, **options)).save(path)
  return path


def spans(present: np.ndarray, fps: float) -> list[tuple[float, float]]:
  """Seconds of every run of frames; a frame is half of it to either side.

  Args:
    present: [f] bool.
    fps: frames a second.
  """
  padded = np.concatenate([[False], np.asarray(present, bool), [False]])
  changes = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
  last = len(present) - 1
  return [
    (float(max(a - 0.5, 0) / fps), float(min(b - 0.5, last) / fps))
    for a, b in changes
  ]


def _check(video: np.ndarray, lanes: Sequence[Lane]) -> None:
  if video.ndim != 4 or len(video) < 2:
    raise DcjaxError(
      f'a timeline is of a video [f h w 3] of two frames or more, not '
      f'{list(video.shape)}'
    )
  for lane in lanes:
    if lane.kind not in KINDS:
      raise DcjaxError(
        f'lane {lane.name!r} is of kind {lane.kind!r}; use one of '
        f'{", ".join(KINDS)}'
      )
    if lane.present is not None and len(lane.present) != len(video):
      raise DcjaxError(
        f'lane {lane.name!r} has {len(lane.present)} frames, the video '
        f'{len(video)}'
      )


# ---- parts -------------------------------------------------------------------


def _strip_size(video: np.ndarray) -> tuple[float, float, int]:
  """(height, width, count) of the tiles: as many as fill the axis."""
  h, w = video.shape[1:3]
  wide = WIDTH - _LEFT - _RIGHT
  count = int(np.clip(round(wide / (_STRIP_MAX * w / h)), 1, len(video)))
  tile = wide / count
  return min(tile * h / w, 2 * _STRIP_MAX), tile, count


def _draw_strip(sheet: _Sheet, video: np.ndarray, top: float, size) -> None:
  """Each tile shows the frame at the middle of the time that it covers."""
  height, tile, count = size
  for i in range(count):
    frame = round((i + 0.5) / count * (len(video) - 1))
    sheet.paste(video[frame], _LEFT + i * tile, top, (height, tile - 3))


def _draw_axis(sheet: _Sheet, top: float, bottom: float) -> None:
  step = next(
    s for s in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 1e9) if sheet.seconds / s <= 12
  )
  for i in range(int(sheet.seconds / step + 1e-6) + 1):
    x = sheet.x(i * step)
    line = (x * _FINE, top * _FINE, x * _FINE, (bottom + 6) * _FINE)
    sheet.draw.line(line, _LINE, _FINE)
    sheet.text(x, bottom + 18, f'{i * step:g}', 13, _QUIET, 'mm')
  sheet.text(_LEFT - 22, bottom + 18, 'seconds', 13, _QUIET, 'rm')


def _draw_lane(
  sheet: _Sheet, lane: Lane, top: float, color: str, fps: float
) -> None:
  middle = top + _LANE / 2
  left = _TOP
  if lane.thumbnail is not None:
    box = (left, middle - _THUMB / 2, left + _THUMB, middle + _THUMB / 2)
    sheet.paste(lane.thumbnail, box[0], box[1], (_THUMB, _THUMB))
    box = tuple(v * _FINE for v in box)
    sheet.draw.rectangle(box, outline=_LINE, width=_FINE)
    left += _THUMB + 12
  room = _LEFT - left - 16
  lines = _wrapped(lane.name, room, 15)
  if len(lines) > 2:
    lines = [lines[0], lines[1].rstrip('.') + ' ...']
  times = ', '.join(
    f'{round(s, 2):g} to {round(e, 2):g} s' for s, e in lane.intervals
  )
  if lane.kind == 'concept':
    times = f'concept, {times}'
  rows = len(lines) + 1
  for i, line in enumerate(lines):
    sheet.text(left, middle + 19 * (i - (rows - 1) / 2), line, 15)
  sheet.text(left, middle + 19 * (rows - 1) / 2, times, 12, _QUIET)
  bar = 22
  seen = lane.present is not None
  y = middle - (bar + 14) / 2 if seen else middle - bar / 2
  for span in lane.intervals:
    fill = _mixed(color, 0.12)
    sheet.bar(span, y, bar, fill=fill, outline=color, width=2 * _FINE)
  for span in spans(lane.present, fps) if seen else ():
    sheet.bar(span, y + bar + 5, 9, fill=color)


def _draw_legend(sheet: _Sheet, y: float, measured: bool, note: str) -> None:
  color = _CAPTION
  at = lambda pixels: sheet.seconds * pixels / (WIDTH - _LEFT - _RIGHT)
  sheet.bar(
    (0.0, at(34)),
    y - 7,
    14,
    fill=_mixed(color, 0.12),
    outline=color,
    width=2 * _FINE,
  )
  sheet.text(_LEFT + 42, y, 'asked for', 13, _QUIET)
  left = 128
  if measured:
    sheet.bar((at(left), at(left + 34)), y - 4, 8, fill=color)
    sheet.text(_LEFT + left + 42, y, 'seen in the video', 13, _QUIET)
    left += 182
  sheet.text(_LEFT + left, y, note, 13, _QUIET)


# ---- drawing -----------------------------------------------------------------


def _font(size: int) -> Any:
  from PIL import ImageFont

  return ImageFont.load_default(size * _FINE)


def _wrapped(text: str, room: float, size: int) -> list[str]:
  """Lines that are no wider than the room, if no single word is."""
  font, lines = _font(size), []
  for word in text.split():
    longer = f'{lines[-1]} {word}' if lines else word
    if lines and font.getlength(longer) <= room * _FINE:
      lines[-1] = longer
    else:
      lines.append(word)
  return lines


def _scaled(picture: np.ndarray, size: tuple[float, float]) -> Any:
  """A picture of (height, width): small ones in sharp pixels."""
  from PIL import Image

  height, width = (max(round(v * _FINE), 1) for v in size)
  small = picture.shape[0] < height / 2
  kind = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
  return Image.fromarray(picture).resize((width, height), kind)


def _color_of(picture: np.ndarray | None) -> str | None:
  """A picture's own colour, dark enough for a light ground; None for greys."""
  if picture is None:
    return None
  pixels = picture.reshape(-1, 3).astype(np.float32)
  vivid = pixels[np.ptp(pixels, axis=-1) > 60]
  if len(vivid) < 0.02 * len(pixels):
    return None
  color = np.median(vivid, axis=0)
  light = color @ np.array([0.299, 0.587, 0.114])
  color = color * min(1.0, 130 / light)
  return '#' + ''.join(f'{round(float(x)):02x}' for x in color)


def _mixed(color: str, part: float) -> tuple[int, ...]:
  """The colour, thinned with the ground."""
  from PIL import ImageColor

  pair = zip(ImageColor.getrgb(color), ImageColor.getrgb(_GROUND), strict=True)
  return tuple(round(part * a + (1 - part) * b) for a, b in pair)
