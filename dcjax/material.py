"""What the stages of a personalisation train on, computed once and cached.

Latents of the frames and of the clip; samples of the untouched base for prior
preservation. Everything is cached by the hash of what it was made from.
"""

from collections.abc import Sequence
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dcjax import latents as latents_lib
from dcjax import sampling
from dcjax.data import cache, captions
from dcjax.data import prompts as prompts_lib
from dcjax.data import scene as scene_lib
from dcjax.data import video as video_lib
from dcjax.weights.base import Base

# Samples made at once, and their tokens: both bound the memory of sampling.
CHUNK = 4
TOKENS = 1 << 15


@dataclasses.dataclass(frozen=True)
class Material:
  """One video as training data.

  Attributes:
    clip: the video at the base's size and length.
    frames: latents [n 1 h w c] of its frames, each encoded as a still.
    latents: latents [f h w c] of the clip.
    held_out: latents [m 1 h w c] of frames between those of the clip, which no
      stage sees; m = 0 if the video has none to spare.
  """

  clip: video_lib.Video
  frames: np.ndarray
  latents: np.ndarray
  held_out: np.ndarray

  @property
  def stills(self) -> np.ndarray:
    """Three frames that say what it looks like, uint8 [3 h w 3]."""
    places = np.linspace(0, len(self.clip.frames) - 1, 5).round().astype(int)
    return self.clip.frames[places[1:4]]


def prepare(
  base: Base, path: str | os.PathLike, fps: float | None, folder: Path
) -> Material:
  """Reads a video and encodes it.

  Args:
    base: whose size, length and autoencoder are used.
    path: of the video.
    fps: frames a second to take from it; None spreads the base's number of
      frames over the whole video.
    folder: of the cache.
  """
  f = base.format
  source = video_lib.read_video(path, size=(f.height, f.width), min_frames=2)
  index, rate = video_lib.places(source, f.frames, fps)
  clip = video_lib.Video(source.frames[index], rate)
  spare = source.frames[_between(index)]

  def compute():
    stills = sampling.encode_video(
      base, np.concatenate([clip.frames, spare])[:, None]
    )
    return {
      'frames': stills[: len(clip.frames)],
      'latents': sampling.encode_video(base, clip.frames[None])[0],
      'held_out': stills[len(clip.frames) :],
    }

  key = {
    'base': base.fingerprint,
    'types': latents_lib.types_of(base)['vae'],
    'clip': clip.frames,
    'spare': spare,
  }
  return Material(clip, **cache.cached(folder, key, compute))


@dataclasses.dataclass(frozen=True)
class Prior:
  """Samples of the untouched base for prior preservation.

  Attributes:
    prompts: (appearance sentence, motion sentence) of each.
    frames: latents [n 1 h w c] of the first frames.
    latents: latents [n f h w c].
  """

  prompts: list[tuple[str, str]]
  frames: np.ndarray
  latents: np.ndarray


def sample_prior(
  base: Base, *, noun: str, videos: int, seed: int, folder: Path, **options: Any
) -> Prior:
  """Samples videos of two-part prompts (Set-and-Sequence, Sec. 3.3).

  Args:
    base: the untouched base.
    noun: class of the concept, for the prompts; the embedded base has its own.
    videos: how many.
    seed: of prompts and noise.
    folder: of the cache.
    **options: of `sampling.sample`.
  """
  pairs = prior_prompts(base, noun, videos, seed)
  key = {
    'base': base.fingerprint,
    'types': latents_lib.types_of(base),
    'prompts': [list(pair) for pair in pairs],
    'seed': seed,
    'sample': {name: repr(value) for name, value in options.items()},
    'format': [repr(base.format), base.shift],
  }

  def compute():
    print(f'prior: sampling {len(pairs)} videos of the base', flush=True)
    texts = [prompts_lib.join(*pair) for pair in pairs]
    samples = sample_many(base, texts, seed=seed + 1, **options)
    return {
      'frames': sampling.encode_video(base, samples[:, :1]),
      'latents': sampling.encode_video(base, samples),
    }

  return Prior(pairs, **cache.cached(folder, key, compute))


def prior_prompts(
  base: Base, noun: str, count: int, seed: int
) -> list[tuple[str, str]]:
  """Pairs of an appearance and a motion sentence in words of the base."""
  if base.name != 'world':
    return prompts_lib.prior_prompts(noun, count)
  pairs = []
  for i in range(count):
    key = jax.random.fold_in(jax.random.key(seed), i)
    scene = scene_lib.sample_scene(key, objects=(1.0, 0.0), intervals=0.0)
    static = captions.caption(scene, captions.STATIC)
    pairs.append((static, captions.caption(scene).removeprefix(static).strip()))
  return pairs


def sample_many(
  base: Base,
  prompts: Sequence[str],
  *,
  seed: int,
  frames: int | None = None,
  height: int | None = None,
  width: int | None = None,
  **options: Any,
) -> np.ndarray:
  """`sampling.sample` a few prompts at a time; noise i depends on i alone."""
  f = base.format
  size = (frames or f.frames, height or f.height, width or f.width)
  noise = sampling.draw_noise(base, len(prompts), seed, *size)
  n = videos_at_once(base, noise.shape[1:])
  return np.concatenate(
    [
      sampling.sample(
        base, prompts[i : i + n], noise=noise[i : i + n], **options
      )
      for i in range(0, len(prompts), n)
    ]
  )


def videos_at_once(base: Base, latents: tuple[int, ...]) -> int:
  """How many videos of latents [f h w c] are sampled at once."""
  tokens = math.prod(latents[:3]) // math.prod(base.dit.patch)
  return max(1, min(CHUNK, TOKENS // tokens))


def _between(index: np.ndarray) -> np.ndarray:
  """Up to 4 places half-way between two that are taken, spread over all.

  Args:
    index: [n] places that are taken, ascending.
  """
  gaps = np.diff(index)
  free = (index[:-1] + gaps // 2)[gaps > 1]
  spread = np.unique((2 * np.arange(4) + 1) * len(free) // 8)
  return free[spread[: len(free)]]
