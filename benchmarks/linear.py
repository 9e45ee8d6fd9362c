"""What the best linear autoencoder of the world keeps, by size of latents.

  python benchmarks/linear.py
  python benchmarks/linear.py --base=runs/world/base

Patches of frames and pixels become their principal components, and pixels
again; the first frame has its own, as a causal autoencoder has. No linear code
of so many numbers a patch loses less. A trained one that is below it has learnt
too little, and latents whose linear code fails the judge are too few for one
that learns in a hurry.
"""

import argparse
from typing import Any

from einops import rearrange
import jax
import numpy as np
import record

from dcjax import sampling
from dcjax.data import world
from dcjax.evals import base as evaluation
from dcjax.evals import oracle
from dcjax.weights.base import load_base

# {(pixels a side, frames) of a latent pixel: channels}.
SIZES = {(4, 4): (16, 24), (8, 4): (48, 64, 96), (8, 2): (48, 64)}
SHOWN = ('pattern', 'color', 'shape', 'motion', 'present')


def patches(video: np.ndarray, side: int, frames: int) -> np.ndarray:
  """[b f h w 3] -> [b f' h' w' p], p numbers of a patch."""
  return rearrange(
    video,
    'b (f t) (h r) (w s) c -> b f h w (t r s c)',
    t=frames,
    r=side,
    s=side,
  )


def pixels(x: np.ndarray, side: int, frames: int) -> np.ndarray:
  """The inverse of `patches`."""
  return rearrange(
    x,
    'b f h w (t r s c) -> b (f t) (h r) (w s) c',
    t=frames,
    r=side,
    s=side,
  )


def components(
  seen: np.ndarray, side: int, frames: int
) -> tuple[np.ndarray, np.ndarray]:
  """(mean [p], principal components [p p], the largest first) of patches."""
  rows = patches(seen, side, frames)
  rows = rows.reshape(-1, rows.shape[-1])
  middle = rows.mean(0)
  rows = rows - middle
  _, found = np.linalg.eigh(rows.T @ rows / len(rows))
  return middle, found[:, ::-1]


def coded(
  video: np.ndarray,
  side: int,
  frames: int,
  middle: np.ndarray,
  kept: np.ndarray,
) -> np.ndarray:
  """`video` by the components [p c] that are kept, [b f h w 3]."""
  x = patches(video, side, frames) - middle
  return pixels(x @ kept @ kept.T + middle, side, frames)


class Code:
  """The best linear codes of a size of patches, the first frame apart."""

  def __init__(self, seen: np.ndarray, side: int, frames: int):
    self.side, self.frames = side, frames
    self.first = components(seen[:, :1], side, 1)
    self.later = components(seen[:, 1:], side, frames)

  def __call__(self, video: np.ndarray, channels: int) -> np.ndarray:
    """[b f h w 3] in [-1, 1] -> what `channels` numbers a patch keep, uint8."""
    parts = []
    for x, frames, (middle, found) in (
      (video[:, :1], 1, self.first),
      (video[:, 1:], self.frames, self.later),
    ):
      parts.append(coded(x, self.side, frames, middle, found[:, :channels]))
    video = np.clip(np.concatenate(parts, axis=1), -1.0, 1.0)
    return np.uint8(np.round((video + 1.0) * 127.5))


def measured(drawn: np.ndarray, found: np.ndarray, scenes: Any) -> dict:
  """PSNR in dB of first and later frames, and what the judge reads."""
  scores = oracle.score(found, scenes)
  return {
    'psnr, first': evaluation.psnr(drawn[:, :1], found[:, :1]),
    'psnr, later': evaluation.psnr(drawn[:, 1:], found[:, 1:]),
  } | {key: scores[key] for key in SHOWN}


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--clips', type=int, default=128, help='that are judged')
  parser.add_argument('--fit', type=int, default=384, help='that are fitted')
  parser.add_argument('--base', default='world', help='name or folder, beside')
  options = parser.parse_args()
  scenes = evaluation.held_out_scenes(options.clips, 0)
  drawn = evaluation.render(scenes)
  to_unit = lambda x: np.float32(x) / 127.5 - 1.0
  keys = jax.random.split(jax.random.key(1), options.fit)
  seen = jax.tree.map(np.asarray, jax.vmap(world.sample_scene)(keys))
  seen = to_unit(evaluation.render(seen))
  base = load_base(options.base)
  decoded = sampling.decode(base, sampling.encode_video(base, drawn))
  found = {'trained': measured(drawn, decoded, scenes)}
  for (side, frames), channels in SIZES.items():
    code = Code(seen, side, frames)
    for c in channels:
      kept = code(to_unit(drawn), c)
      found[f'{side}x{side}x{frames} to {c}'] = measured(drawn, kept, scenes)
  keys = list(found['trained'])
  print(f'{"":14}' + ''.join(f'{key:>13}' for key in keys))
  for name, values in found.items():
    row = ''.join(f'{values[key]:13.3f}' for key in keys)
    print(f'{name:14}{row}')
  path = record.write(
    'linear',
    {'base': base.fingerprint, 'clips': options.clips, 'fit': options.fit}
    | {'found': found},
  )
  print(f'\n{path}')


if __name__ == '__main__':
  record.run(main)
