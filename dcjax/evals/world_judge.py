"""The judge of S2VTime for the procedural world, from pixels alone.

A subject is known by the colour of its reference picture: no two subjects of an
item share one. Where that colour is, the subject is. Whether it is the right
one is another question: the picture says red, the word says 'small star', the
caption that it moves left. So each colour is read (shape, motion, size) and
compared with what the words say of each subject. If the colour of one subject
has the shape, size and motion of another, references were exchanged.
"""

from collections.abc import Sequence
import re
from typing import NamedTuple

import numpy as np

from dcjax.data.scene import COLORS, MOTIONS, SHAPES, SIZES
from dcjax.errors import DcjaxError
from dcjax.evals import oracle, templates
from dcjax.evals.items import Item, Subject
from dcjax.evals.judging import Verdict
from dcjax.evals.reading import Reading

# A motion is read from this many frames or more.
_FRAMES = 6
# Of two sizes: the larger area is more than this many times the smaller one.
_LARGER = 1.25
_PALE = 0.25  # distance in RGB from the white of the canvas
_NAN = float('nan')
_GROWS = ('growing', 'shrinking')


class Said(NamedTuple):
  """What the words say of a subject; '' where they say nothing."""

  shape: str
  motion: str
  size: str


def judge(
  video: np.ndarray,
  fps: float,
  item: Item,
  pictures: Sequence[np.ndarray | None],
) -> Verdict:
  """Reads a clip of the procedural world.

  Args:
    video: uint8 [f h w 3].
    fps: not needed; motions are known by the clip.
    item: of what was asked for.
    pictures: of its subjects, uint8 [h w 3], on white.

  Returns:
    Verdict: `similarity[s, m]` is the part of what the words say of subject s
    (shape, motion, size) that is true of what has the colour of m; `text` its
    diagonal; `reference` 1 where the shape is that of the picture, else 0.

  Raises:
    DcjaxError: two subjects have one colour, a picture shows none or is
      missing, or the video is too small or of another form.
  """
  del fps
  if any(picture is None for picture in pictures):
    raise DcjaxError(
      f'item {item.id}: the judge of the world knows subjects by the colour of '
      'their pictures, and one has none'
    )
  colors = [_color_in(item, picture) for picture in pictures]
  _check_size(item, video)
  if len(set(colors)) < len(colors):
    raise DcjaxError(
      f'item {item.id}: its references are of one colour, '
      f'{COLORS[colors[0]]}; the judge of the world tells them by colour'
    )
  readings = [oracle.read(video, color) for color in colors]
  subjects = item.subjects
  said = [words_of(item, subject) for subject in subjects]
  count = len(subjects)
  similarity = np.full((count, count), _NAN)
  for s in range(count):
    if readings[s].present.any():
      for m in range(count):
        similarity[s, m] = _agreement(said[s], readings, m)
  shapes = [
    _shape_of(x, color) for x, color in zip(pictures, colors, strict=True)
  ]
  alike = [
    float(x.shape == shape) if x.present.any() else _NAN
    for x, shape in zip(readings, shapes, strict=True)
  ]
  return Verdict(
    masks=np.stack([x.mask for x in readings]),
    text=np.diagonal(similarity).copy(),
    reference=np.array(alike),
    similarity=similarity,
    # What is said of two subjects may be true of both.
    between=np.array([[_shared(a, b) for b in said] for a in said]),
  )


def color_of(picture: np.ndarray) -> int:
  """Index into COLORS of what a reference picture [h w 3] shows on white.

  Raises:
    DcjaxError: there is nothing but white.
  """
  pixels = picture.reshape(-1, 3).astype(np.float32) / 255
  seen = pixels[np.abs(pixels - 1).max(-1) > _PALE]
  if not len(seen):
    raise DcjaxError('a reference picture shows nothing but white')
  paints = templates.paints()
  # Lit on one side and darker at the rim: along the way to the colour's shade.
  nearest = np.stack(
    [
      np.sqrt(((seen[:, None] - light * paints) ** 2).sum(-1))
      for light in (0.8, 1.0, 1.1)
    ]
  ).min(0)
  weight = np.exp(-((nearest.min(-1) / 0.2) ** 2))
  votes = np.bincount(nearest.argmin(-1), weight, len(paints))
  return int(votes.argmax())


def _color_in(item: Item, picture: np.ndarray) -> int:
  try:
    return color_of(picture)
  except DcjaxError as error:
    raise DcjaxError(f'item {item.id}: {error}') from error


def _check_size(item: Item, video: np.ndarray) -> None:
  """Shapes are read by their form: neither squeezed nor of a few pixels."""
  (h, w), (height, width) = video.shape[1:3], item.size
  form = h * width / (w * height)
  if min(h / height, w / width) < 0.5 or not 0.9 < form < 1.1:
    raise DcjaxError(
      f'the video of {item.id} has {h}x{w} pixels, but {height}x{width} were '
      'asked for; the judge of the world reads that form, at half the size or '
      'more'
    )


def words_of(item: Item, subject: Subject) -> Said:
  """What prompt and word say of a subject."""
  words = subject.word.split()
  shape = next((x for x in words if x in SHAPES), '')
  size = next((x for x in words if x in SIZES), '')
  motion = ''
  # 'the star is bouncing' speaks of 'red star', if of one subject only.
  for phrase, moves in re.findall(
    rf'the ([a-z ]+?) is ({"|".join(MOTIONS)})\b', item.prompt
  ):
    speaks = [x for x in item.subjects if x.word.endswith(phrase)]
    if speaks == [subject]:
      motion = moves
  return Said(shape, motion, size)


def _agreement(said: Said, readings: Sequence[Reading], m: int) -> float:
  """Part of what is said that is true of reading m; nan if nothing is said."""
  reading = readings[m]
  if not reading.present.any():
    return 0.0
  answers = []
  if said.shape:
    answers.append(SHAPES[reading.shape] == said.shape)
  if said.motion and reading.present.sum() >= _FRAMES:
    answers.append(MOTIONS[reading.motion] == said.motion)
  if said.size and said.motion not in _GROWS:
    larger = _is_larger(readings, m)
    if larger is not None:
      answers.append(said.size == ('large' if larger else 'small'))
  return float(np.mean(answers)) if answers else _NAN


def _is_larger(readings: Sequence[Reading], m: int) -> bool | None:
  """Whether m is the larger of two; None if they cannot be compared."""
  if len(readings) != 2:
    return None
  areas = [
    np.median(x.mask[x.present].sum((1, 2))) if x.present.any() else 0.0
    for x in readings
  ]
  if min(areas) == 0 or max(areas) < _LARGER * min(areas):
    return None
  return int(np.argmax(areas)) == m


def _shared(one: Said, other: Said) -> float:
  """Part of what is said of one that is said of the other too."""
  said = [(a, b) for a, b in zip(one, other, strict=True) if a]
  return float(np.mean([a == b for a, b in said])) if said else 0.0


def _shape_of(picture: np.ndarray, color: int) -> int:
  """Index into SHAPES of what a reference picture shows."""
  return oracle.read(on_grey(picture)[None], color).shape


def on_grey(picture: np.ndarray) -> np.ndarray:
  """The picture with the grey of the world in the place of white."""
  white = np.clip((picture.astype(np.float32).min(-1) - 215) / 40, 0, 1)
  # Only what is connected with the border: not the whites of eyes.
  outside = _from_border(white > 0)
  alpha = (white * outside)[..., None]
  grey = 255 * np.asarray(templates.tones()[0][1], np.float32)
  return np.round(picture * (1 - alpha) + grey * alpha).astype(np.uint8)


def _from_border(mask: np.ndarray) -> np.ndarray:
  """Part of a mask [h w] that is connected with the border."""
  found = np.zeros_like(mask)
  found[[0, -1]], found[:, [0, -1]] = mask[[0, -1]], mask[:, [0, -1]]
  while True:
    wide = found.copy()
    wide[1:] |= found[:-1]
    wide[:-1] |= found[1:]
    wide[:, 1:] |= found[:, :-1]
    wide[:, :-1] |= found[:, 1:]
    wide &= mask
    if (wide == found).all():
      return found
    found = wide
