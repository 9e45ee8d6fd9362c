"""Finding a concept of the world in a clip, by its colours and its look.

A concept has two tones that nothing else in the world has. A frame shows it if
both are there close together; how alike it is, is a number of its own, of the
frames that show it. So what is missing never passes for what is unlike.
"""

from typing import NamedTuple

import numpy as np

from dcjax.data.concepts import Concept
from dcjax.data.scene import BACKGROUNDS
from dcjax.errors import DcjaxError
from dcjax.evals import templates
from dcjax.evals.reading import read, read_pattern

# As far as this in RGB from every mixture with a tone, it is another colour.
_REACH = 0.25
# Nearer than this to the background, or with less than this part of a tone, a
# pixel is background.
_OFF, _THIN = 0.12, 0.2
# Where on the way between its two tones a background may be, by its pattern.
_PLACES = (-0.35, 0.0, 0.5, 1.0, 1.25)
# Of the body's light and rim.
_LIGHTS = (0.7, 0.85, 1.0, 1.1)
# A frame shows the concept if one window holds this part of both its tones.
_ENOUGH = 0.2
# More than this many times the concept's own area is no object.
_TOO_MUCH = 2.5
_CROP = 24  # side of what is compared
# An object may lean this much more than in any frame of its clip. Not all the
# way round: a gear on its head is the gear with its halves swapped.
_TURNS = np.deg2rad(np.arange(-60, 61, 15))
# Staying, and steps up and down, left and right, and in size.
_NEAR = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])


class Sighting(NamedTuple):
  """What a clip shows of a concept."""

  present: np.ndarray  # [f] bool
  identity: np.ndarray  # [f] in [0, 1], nan where absent
  track: np.ndarray  # [f 2] (y, x) of the centre in pixels, nan where absent
  stray: np.ndarray  # [f] part of the concept's colours elsewhere, nan: absent
  background: int  # index into BACKGROUNDS
  pattern: int  # index into PATTERNS


class Look(NamedTuple):
  """What a finder has to know of a concept."""

  video: np.ndarray  # [f h w 3] uint8
  mask: np.ndarray  # [f h w] bool, the pixels of the concept
  background: str
  paint: np.ndarray  # [2 3] RGB in [0, 1]


class Finder:
  """Finds one concept in clips.

  Args:
    concept: what to look for.

  Attributes:
    concept: the same.
    track: [f 2] (y, x), where its own clip shows it.
  """

  def __init__(self, concept: Concept | Look):
    self.concept = concept
    _, self._h, self._w, _ = concept.video.shape
    pixels = concept.video.astype(np.float32) / 255
    ground = BACKGROUNDS.index(concept.background)
    tones = self._tones(pixels, ground)
    self._areas = np.median(tones.sum((2, 3)), 1)
    box = max(np.ptp(np.argwhere(frame), 0).max() for frame in concept.mask)
    # Its tones lie together in a window of this side, and all of it within this
    # way of its centre.
    self._side, self._reach = 2 * int(0.3 * box) + 1, 0.6 * box
    masks, present, _ = self._locate(tones)
    if not present.all():
      raise DcjaxError('the clip of the concept does not show both its tones')
    images = _with_mask(pixels, masks)
    self.track, radius = templates.moments(masks)
    crops = [_crops(images, self.track, radius, turn) for turn in _TURNS]
    self._bank = np.concatenate(crops)

  def find(self, video: np.ndarray) -> Sighting:
    """Where the concept is, and how alike.

    A frame shows the concept if a window of 0.6 times its size holds at least
    0.2 of the area of each of its tones, and the frame no more than 2.5 times
    as much. Identity is, over the pixels of object and concept, brought to the
    same centre and size,

      sum min(m, m') a / sum max(m, m'),   a = max(0, 1 - |rgb - rgb'| / 0.5)

    with the masks m, m' of both, and the best of all frames of the concept's
    clip, leaning up to 60 degrees further: overlap of shape times agreement of
    colour.

    Args:
      video: [f h w 3] uint8 of the size of the concept's clip.

    Raises:
      DcjaxError: it is not.
    """
    video = np.asarray(video)
    size = (self._h, self._w, 3)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] != size:
      raise DcjaxError(
        f'the finder of this concept reads uint8 [f {self._h} {self._w} 3], '
        f'got {video.dtype} {video.shape}'
      )
    pixels = video.astype(np.float32) / 255
    reading = read(video)
    ground = reading.background
    masks, present, stray = self._locate(self._tones(pixels, ground))
    identity = np.full(len(video), np.nan)
    track = np.full((len(video), 2), np.nan)
    if present.any():
      center, radius = templates.moments(masks[present])
      track[present] = center
      images = _with_mask(pixels[present], masks[present])
      identity[present] = [
        self._likeness(*frame)
        for frame in zip(images, center, radius, strict=True)
      ]
    stray = np.where(present, stray, np.nan)
    # The concept may leave a faint trace where it moves: that is no pattern.
    ever = self._about(track[present]).any(0)
    pattern = read_pattern(pixels, reading.covered | ever, ground)
    return Sighting(present, identity, track, stray, ground, pattern)

  def _about(self, center: np.ndarray) -> np.ndarray:
    """[f h w], whether a pixel is within reach of a centre [f 2]."""
    y, x = np.mgrid[: self._h, : self._w]
    center = center[:, :, None, None]
    off = np.maximum(np.abs(y - center[:, 0]), np.abs(x - center[:, 1]))
    return off <= self._reach

  def _tones(self, pixels: np.ndarray, ground: int) -> np.ndarray:
    """Opacities [2 f h w] of each tone before a background of the world.

    A pixel is a mixture of background and one colour: a tone's or, if that
    explains it better, one of the palette. So soft and pale objects count, by
    as much as they cover.
    """
    start, end = templates.tones()
    along = (end - start)[ground]
    grounds = start[ground] + np.array(_PLACES)[:, None] * along
    seen = _distance(pixels, grounds[0], grounds[-1]) > _OFF
    mixed = lambda color: _mixture(pixels[seen], grounds, color)
    tones = [mixed(tone) for tone in self.concept.paint]
    residual = np.stack([tone[0] for tone in tones])
    others = np.min([mixed(color)[0] for color in templates.paints()], 0)
    right = (residual < _REACH) & (residual <= residual.min(0))
    right &= residual < others
    result = np.zeros((2, *seen.shape), np.float32)
    result[:, seen] = np.stack([tone[1] for tone in tones]) * right
    return np.where(result > _THIN, result, 0)

  def _locate(
    self, tones: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(soft mask [f h w] of the object, present [f], stray [f])."""
    areas = self._areas[:, None]
    whole = tones.sum((2, 3))
    held = np.stack([_in_windows(tone, self._side) for tone in tones])
    both = np.minimum(held / areas[..., None, None], 1).min(0)
    best, masks = both.max((1, 2)), tones.sum(0)
    # Of windows that are equally full, the one about which most lies. One, not
    # the middle of several: there may be two of it.
    about = _in_windows(masks, 2 * int(self._reach) + 1)
    fullest = (both + 1e-3 * about / areas.sum()).reshape(len(both), -1)
    near = np.zeros_like(both)
    near.reshape(len(both), -1)[np.arange(len(both)), fullest.argmax(1)] = 1
    for _ in range(3):
      near = masks * self._about(templates.moments(near)[0])
    present = (best >= _ENOUGH) & (whole < _TOO_MUCH * areas).all(0)
    stray = 1 - near.sum((1, 2)) / np.maximum(masks.sum((1, 2)), 1e-6)
    return near, present, stray

  def _likeness(
    self, image: np.ndarray, center: np.ndarray, radius: float
  ) -> float:
    """Best agreement with the bank of the object of an image [h w 4]."""
    crop = _crops(image[None], center[None], np.array([radius]))
    agreement = _agreement(crop, self._bank)
    best, scores = self._bank[agreement.argmax()][None], [agreement.max()]
    # What is missing moves the centre and the size of the rest. So the rest is
    # aligned by how it looks: first by much, then by little.
    for step in (0.3, 0.15, 0.15):
      centers = center + step * radius * _NEAR[:, :2]
      radii = radius * np.exp(step * _NEAR[:, 2])
      many = np.broadcast_to(image, (len(_NEAR), *image.shape))
      agreement = _agreement(_crops(many, centers, radii), best)
      center, radius = centers[agreement.argmax()], radii[agreement.argmax()]
      scores.append(agreement.max())
    return float(max(scores))


def margin(concept: Concept, background: str) -> float:
  """How far in RGB a concept's tones, lit or not, are from a background."""
  start, end = templates.tones()
  i = BACKGROUNDS.index(background)
  tones = np.concatenate([concept.paint, 0.8 * concept.paint])
  return float(_distance(tones, start[i], end[i]).min())


def _mixture(
  pixels: np.ndarray, grounds: np.ndarray, color: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """How pixels [n 3] are mixed of a background and a colour, lit or shaded.

  Args:
    pixels: [n 3].
    grounds: [g 3] colours that the background has.
    color: [3].

  Returns:
    (distance [n] from the nearest mixture, part [n] of the colour in it).
  """
  best, part = np.full(len(pixels), np.inf), np.zeros(len(pixels))
  for light in _LIGHTS:
    for ground in grounds:
      along = np.minimum(light * color, 1) - ground
      t = np.clip((pixels - ground) @ along / (along @ along), 0, 1)
      apart = pixels - ground - t[:, None] * along
      apart = np.sqrt((apart**2).sum(-1))
      nearer = apart < best
      best, part = np.where(nearer, apart, best), np.where(nearer, t, part)
  return best, part


def _distance(
  pixels: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
  """Distance [...] of colours [... 3] from a segment [3] to [3]."""
  along = end - start
  t = np.clip((pixels - start) @ along / (along @ along), 0, 1)
  return np.sqrt(((pixels - start - t[..., None] * along) ** 2).sum(-1))


def _in_windows(mask: np.ndarray, side: int) -> np.ndarray:
  """Pixels [f h w] of a mask in the square about each pixel; side is odd."""
  half = side // 2
  edge = (half + 1, half)
  sums = np.pad(mask, ((0, 0), edge, edge))
  sums = sums.cumsum(1).cumsum(2)
  sums = sums[:, side:] - sums[:, :-side]
  return sums[:, :, side:] - sums[:, :, :-side]


def _agreement(ours: np.ndarray, bank: np.ndarray) -> np.ndarray:
  """[n] of crops [n i j 4], of which one side may be one for all."""
  mask, other = ours[..., 3], bank[..., 3]
  apart = np.sqrt(((ours[..., :3] - bank[..., :3]) ** 2).sum(-1))
  agree = np.clip(1 - apart / 0.5, 0, 1) * np.minimum(mask, other)
  return agree.sum((1, 2)) / np.maximum(mask, other).sum((1, 2))


def _with_mask(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """Colours [f h w 3] and masks [f h w] as images [f h w 4]."""
  return np.concatenate([pixels, masks[..., None]], -1).astype(np.float32)


def _crops(
  images: np.ndarray,
  center: np.ndarray,
  radius: np.ndarray,
  turn: float = 0.0,
) -> np.ndarray:
  """Parts [f CROP CROP c] of images [f h w c], as `templates.crop` cuts them.

  Args:
    images: [f h w c].
    center: [f 2] (y, x) of the middle.
    radius: [f] root mean square radius in pixels; sets the scale.
    turn: radians, clockwise.
  """
  step = (np.arange(_CROP) + 0.5) / _CROP * 2 - 1
  dy, dx = np.meshgrid(step, step, indexing='ij')
  c, s = np.cos(turn), np.sin(turn)
  reach = templates.EXTENT * radius[:, None, None]
  y = center[:, 0, None, None] + reach * (c * dy - s * dx)
  x = center[:, 1, None, None] + reach * (s * dy + c * dx)
  return _bilinear(images, y, x)


def _bilinear(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Values [f i j c] of images [f h w c] at (y, x) [f i j]; 0 outside."""
  images = np.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
  _, h, w, _ = images.shape
  y, x = np.clip(y + 1, 0, h - 2), np.clip(x + 1, 0, w - 2)
  top, left = np.floor(y).astype(int), np.floor(x).astype(int)
  dy, dx = (y - top)[..., None], (x - left)[..., None]
  f = np.arange(len(images))[:, None, None]
  row = lambda i: images[f, i, left] * (1 - dx) + images[f, i, left + 1] * dx
  return (row(top) * (1 - dy) + row(top + 1) * dy).astype(np.float32)
