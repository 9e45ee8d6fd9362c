"""Captioned clips -> latents and text features on disk, once for all steps.

The autoencoder and the text encoder are frozen, so what they give never
changes. Of a clip of 121 frames of 576x1024 the encoder takes a fifth of what
the transformer's step takes, and its latents are as large as the clip's MP4;
one pass ahead saves that fifth in all epochs, and the memory of both networks.

The autoencoder is causal: the first frames of a clip's latents are the latents
of its first frames, and the first of all is that of a picture. So clips are
encoded once, at the greatest length they have, and serve every stage.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from dcjax import latents as latents_lib
from dcjax import text_features
from dcjax.data import buckets as buckets_lib
from dcjax.data import latent_records, subjects
from dcjax.data import prompts as prompts_lib
from dcjax.data import video as video_lib
from dcjax.data.buckets import Bucket, Grid, Size
from dcjax.data.cache import content_hash
from dcjax.data.latent_records import Encoded
from dcjax.data.subjects import AnnotatedClip
from dcjax.data.timeline import World
from dcjax.errors import DcjaxError
from dcjax.weights.base import Base


@dataclasses.dataclass(frozen=True)
class Plan:
  """How clips become samples.

  Attributes:
    buckets: compiled shapes, in frames and pixels.
    fps: rate at which clips are learnt.
    windows: samples that a long clip may give; 0 for all.
    held_out: clips, the first ones, that are only looked at.
    chunk: clips whose samples are written at once.
  """

  buckets: tuple[Bucket, ...]
  fps: float
  windows: int
  held_out: int
  chunk: int

  def __post_init__(self):
    for key, least in (('windows', 0), ('held_out', 0), ('chunk', 1)):
      if getattr(self, key) < least:
        raise DcjaxError(
          f'data.{key} is {getattr(self, key)}; expected {least} or more'
        )


def plan(base: Base, data: Mapping[str, Any], frames: Sequence[int]) -> Plan:
  """The plan of a config's `data`.

  Args:
    base: whose sizes and rate are used.
    data: of the config.
    frames: of a sample, in any stage; 1 stands for pictures.

  Raises:
    DcjaxError: a size cannot be made, or there is none.
  """
  clips = sorted({n for n in frames if n > 1})
  shapes = [Bucket(n, *size) for n in clips for size in data['sizes']]
  shapes += [Bucket(1, *size) for size in data['stills']]
  for shape in shapes:
    base.latent_shape(*shape)
  if not shapes:
    raise DcjaxError('data.sizes is empty; expected (height, width) pairs')
  return Plan(
    tuple(sorted(set(shapes))),
    base.format.fps,
    data['windows'],
    data['held_out'],
    data['chunk'],
  )


def source(data: Mapping[str, Any], frames: int, seed: int) -> Any:
  """The captioned clips of a config's `data`: `len`, and by number.

  Args:
    data: of the config: `path`, a dataset that `data.subjects` reads, or the
      procedural world, of `clips` clips.
    frames: of a clip of the world.
    seed: of the world.

  Raises:
    DcjaxError: there is no such dataset.
  """
  if data['path']:
    return subjects.Dataset(data['path'])
  return World(data['clips'], seed=seed, frames=frames)


def identity(
  base: Base, data: Mapping[str, Any], how: Plan, *, clips: int, seed: int
) -> dict[str, Any]:
  """What must be the same for latents on disk to be used.

  Args:
    base: with both frozen networks on disk.
    data: of the config.
    how: from `plan`.
    clips: their number.
    seed: of the world.
  """
  short = lambda *parts: content_hash(*parts)[:16]
  vae, text = (base.on_disk[x].digest for x in ('vae', 'text_encoder'))
  path = data['path']
  # A dataset that is written anew says other sizes of its files.
  info = Path(path) / 'dataset_info.json'
  return {
    'version': 2,
    # The scale of the latents is in the config, not in the weights.
    'autoencoder': short(vae, base.vae),
    'text_encoder': short(text, base.text),
    'text_length': base.format.text_length,
    'path': str(path) or 'world',
    'clips': clips,
    **({'dataset': short(info)} if path else {'seed': seed}),
    **dataclasses.asdict(how),
  }


def encode(
  base: Base,
  clips: Any,
  folder: Path,
  how: Plan,
  *,
  process: tuple[int, int] = (0, 1),
) -> None:
  """Encodes what of the clips is not in the folder yet.

  Args:
    base: with both frozen networks on disk; they are read if there is anything
      to do, and freed.
    clips: from `source`.
    folder: that `latent_records.claim` was called for.
    how: from `plan`.
    process: (this process, of how many); each takes its share of the chunks.

  Raises:
    DcjaxError: the disk refuses.
  """
  index, count = process
  # Shared out before it is known what is there: others are at work meanwhile.
  todo = [
    (split, chunk, numbers)
    for split, chunk, numbers in chunks(len(clips), how)[index::count]
    if not latent_records.chunk_folder(folder, split, chunk).exists()
  ]
  if not todo and (Path(folder) / 'null.safetensors').exists():
    return
  encoder = _Encoder(base, how)
  if index == 0:
    latent_records.write_null(folder, encoder.texts([''])[''])
  for i, (split, chunk, numbers) in enumerate(todo):
    examples, skipped = encoder.examples(clips, numbers)
    latent_records.write_chunk(
      latent_records.chunk_folder(folder, split, chunk), examples, skipped
    )
    print(
      f'encoded chunk {i + 1} of {len(todo)}: {len(examples)} samples of '
      f'{len(numbers)} clips',
      flush=True,
    )


def chunks(clips: int, how: Plan) -> list[tuple[str, int, range]]:
  """(split, chunk, numbers of its clips) of all clips.

  Raises:
    DcjaxError: there are too few clips to hold any out.
  """
  if clips <= how.held_out:
    raise DcjaxError(
      f'there are {clips} clips and data.held_out is {how.held_out}; expected '
      'fewer, as something must be left to learn from'
    )
  bounds = {'held_out': (0, how.held_out), 'train': (how.held_out, clips)}
  return [
    (split, i, range(start, min(start + how.chunk, last)))
    for split, (first, last) in bounds.items()
    for i, start in enumerate(range(first, last, how.chunk))
  ]


class _Encoder:
  """Both networks, loaded: one copy of the autoencoder a device."""

  def __init__(self, base: Base, how: Plan):
    self._how = how
    size = how.buckets[-1]
    space, patch = base.vae.scale_factor_spatial, base.dit.patch
    self._grid = Grid(
      max(x.frames for x in how.buckets),
      size.height,
      size.width,
      space * patch[1],
      space * patch[2],
      base.vae.scale_factor_temporal,
    )
    parts = {name: base.part(name) for name in ('vae', 'text_encoder')}
    self._base = dataclasses.replace(base, params=parts, on_disk={})
    self._bases = latents_lib.copies(self._base)

  def examples(
    self, clips: Any, numbers: Sequence[int]
  ) -> tuple[list[Encoded], dict[str, str]]:
    """(samples, {clip: why it gave none}) of some clips."""
    work = functools.partial(self._windows, clips)
    found = list(latents_lib.side_by_side(work, self._bases, numbers))
    good = [(text, x) for text, x in found if not isinstance(x, str)]
    texts = self.texts([text for text, _ in good])
    examples = [Encoded(x, texts[text], text) for text, xs in good for x in xs]
    skipped = {
      str(number): reason
      for number, (_, reason) in zip(numbers, found, strict=True)
      if isinstance(reason, str)
    }
    for number, reason in skipped.items():
      print(f'  skipped clip {number}: {reason}', flush=True)
    return examples, skipped

  def texts(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
    """{caption: features [n d] without padding}."""
    unique = list(dict.fromkeys(captions))
    if not unique:
      return {}
    encoded = prompts_lib.encode(
      self._base.tokenizer, unique, self._base.format.text_length, {}
    )
    rows = text_features.text_features(self._base, encoded.ids, encoded.mask)
    return {
      text: row[:n].astype(latent_records.STORED)
      for text, row, n in zip(
        unique, np.asarray(rows), encoded.mask.sum(1), strict=True
      )
    }

  def _windows(
    self, clips: Any, base: Base, number: int
  ) -> tuple[str, list[np.ndarray] | str]:
    """(caption, latents of each window), or a reason instead of them."""
    try:
      clip = clips[number]
      videos = windows(clip, self._how, self._grid)
    except DcjaxError as error:
      return '', str(error)
    return clip.caption, [
      latents_lib.encode_video(base, video[None])[0].astype(
        latent_records.STORED
      )
      for video in videos
    ]


def windows(clip: AnnotatedClip, how: Plan, grid: Grid) -> list[np.ndarray]:
  """Samples of a clip, one after the other, at its true speed.

  Args:
    clip: to learn.
    how: its buckets; the clip goes where it loses least.
    grid: what the base can make.

  Returns:
    uint8 [f h w 3] of one bucket.

  Raises:
    DcjaxError: the clip is shorter than all buckets, or it is a picture and
      there are none for pictures.
  """
  total, height, width, _ = clip.video.shape
  frames = 1
  if total > 1:
    # Frame i of the window is the instant i / fps; the last is still shown.
    frames = int(np.floor((total - 0.5) * how.fps / clip.fps + 1e-6)) + 1
  size = Size(frames, height, width)
  place = buckets_lib.place(size, how.buckets, grid, how.windows)
  if place is None:
    shapes = ', '.join(map(str, how.buckets))
    raise DcjaxError(
      f'its {frames} frames at {how.fps:g} fps fit none of the shapes {shapes}'
    )
  b = place.bucket
  found = []
  for i in range(place.windows):
    steps = (np.arange(b.frames) + i * b.frames) * clip.fps / how.fps
    index = np.floor(steps + 0.5 + 1e-6).astype(int).clip(0, total - 1)
    picture = video_lib.Video(clip.video[index], how.fps)
    found.append(video_lib.fit(picture, b.height, b.width).frames)
  return found
