"""A file at true speed, as the samples of its bucket; masks as loss weights."""

from collections.abc import Iterator
import itertools
from pathlib import Path

import numpy as np

from dcjax.data import coverage, decode
from dcjax.data import video as video_lib
from dcjax.data.buckets import Bucket, Place
from dcjax.errors import DcjaxError

OVER_TIME = ('max', 'mean')


def windows(path: Path, place: Place, fps: float) -> Iterator[np.ndarray]:
  """Samples of a file, one after the other: uint8 [f h w 3] of its bucket.

  Args:
    path: of the file.
    place: its bucket and number of windows.
    fps: the base's rate: at each multiple of 1/fps the frame nearest in time.

  Raises:
    DcjaxError: the file cannot be decoded, or is shorter than it was.
  """
  frames = _fitted(path, place.bucket, fps)
  for _ in range(place.windows):
    images = list(itertools.islice(frames, place.bucket.frames))
    if len(images) < place.bucket.frames:
      raise DcjaxError(f'{path} has changed: it is shorter than it was')
    yield np.stack(images)


def masks(path: Path, place: Place, fps: float) -> Iterator[np.ndarray]:
  """The mask of each of those samples: float32 [f h w], 1 for the subject.

  A still mask holds for the whole clip, and the last frame of a mask stays.

  Raises:
    DcjaxError: the mask cannot be decoded.
  """
  frames = _fitted(path, place.bucket, fps)
  image = None
  for _ in range(place.windows):
    taken = []
    for _ in range(place.bucket.frames):
      image = next(frames, image)
      taken.append(image.mean(axis=-1, dtype=np.float32) / 255)
    yield np.stack(taken)


def loss_weight(
  mask: np.ndarray,
  height: int,
  width: int,
  time: int,
  *,
  outside: float,
  over_time: str = 'max',
) -> np.ndarray:
  """A mask of pixels -> a weight for each position of the latents.

  With m of `coverage.on_latents`,

    w = outside + (1 - outside) m,   divided by its mean.

  Args:
    mask: [1+k time, h, w] in 0..1.
    height: of the latents.
    width: of the latents.
    time: frames of a latent frame.
    outside: weight where the mask is black, before the division; 0..1.
    over_time: 'max', a position counts if the subject is there in any of its
      frames, or 'mean'.

  Returns:
    float32 [1+k, height, width, 1] of mean 1.

  Raises:
    DcjaxError: the weights are all zero.
  """
  f, h, w = mask.shape
  if (f - 1) % time or h % height or w % width:
    raise ValueError(f'a mask {mask.shape} over {height}x{width} latents')
  share = coverage.on_latents(mask[None], height, width, time, over_time)[0]
  x = outside + (1 - outside) * share
  if x.mean() <= 0:
    raise DcjaxError(
      'a mask is black throughout and data.mask.outside is 0: nothing is left '
      'to learn'
    )
  return (x / x.mean())[..., None].astype(np.float32)


def _fitted(path: Path, bucket: Bucket, fps: float) -> Iterator[np.ndarray]:
  """Frames at the rate, scaled to cover the bucket and cropped."""
  timed = decode.decode(path)
  if bucket.frames > 1:
    timed = decode.at_rate(timed, fps)
  last, image = None, None
  for frame in timed:
    if frame is not last:  # a slow file repeats its frames
      video = video_lib.Video(frame.image[None], fps)
      image = video_lib.fit(video, bucket.height, bucket.width).frames[0]
      last = frame
    yield image
