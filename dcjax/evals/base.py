"""The `evaluate` task: does a base do what its prompts say?

Clips of held-out prompts (triples of colour, shape and motion that training
never showed) are sampled and read by the oracle, from pixels alone. The same
clips rendered instead of sampled give the oracle's ceiling, and decoded from
their own latents, the autoencoder's.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from dcjax import machine, material, sampling
from dcjax.data import captions, world
from dcjax.data import video as video_lib
from dcjax.data.render import to_uint8
from dcjax.evals import oracle
from dcjax.weights.base import Base, load_base


def run(config: ConfigDict, workdir: str) -> None:
  """Writes `evaluation.json` and a sheet of clips, and prints the scores."""
  base = load_base(config.base)
  scenes = held_out_scenes(config.clips, config.seed)
  rendered = render(scenes)
  decoded = sampling.decode(base, sampling.encode_video(base, rendered))
  sampled = material.sample_many(
    base,
    [captions.caption(scene) for scene in _unstack(scenes)],
    seed=config.seed,
    steps=config.steps or None,
    guidance=config.guidance or None,
    shift=config.shift or None,
  )
  record = {
    'clips': config.clips,
    'rendered': oracle.score(rendered, scenes),
    'decoded': oracle.score(decoded, scenes)
    | {'psnr': psnr(rendered, decoded)},
    'textures decoded': {'psnr': _texture_psnr(base, min(config.clips, 32))},
    'sampled': oracle.score(sampled, scenes),
    'fingerprint': base.fingerprint,
    'machine': machine.describe(),
  }
  folder = Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(_without_nan(record), indent=2, allow_nan=False)
  (folder / 'evaluation.json').write_text(text + '\n')
  video_lib.write_video(
    folder / 'sheet.gif', sheet(sampled), base.format.fps, scale=2
  )
  for name in ('rendered', 'decoded', 'sampled'):
    scores = ', '.join(f'{k} {v:.3f}' for k, v in record[name].items())
    print(f'{name}: {scores}')


def _without_nan(value: Any) -> Any:
  """JSON has no NaN: what nothing was judged for is null."""
  if isinstance(value, dict):
    return {key: _without_nan(x) for key, x in value.items()}
  if isinstance(value, float) and math.isnan(value):
    return None
  return value


def held_out_scenes(n: int, seed: int) -> world.Scene:
  """n scenes [n ...] of one object that is there all the time."""
  key = jax.random.fold_in(jax.random.key(seed), 1000)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(n))
  draw = lambda k: world.sample_scene(
    k, objects=(1.0, 0.0), intervals=0.0, split='test'
  )
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))


def render(scenes: world.Scene) -> np.ndarray:
  """uint8 [n f h w 3]."""
  one = jax.jit(lambda scene: world.render(scene).video)
  return np.stack([to_uint8(one(scene)) for scene in _unstack(scenes)])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  """Mean over clips, in dB, of uint8 videos [n f h w 3]."""
  error = (a.astype(np.float32) - b.astype(np.float32)) / 255.0
  mse = np.square(error).mean((1, 2, 3, 4))
  return float((-10.0 * np.log10(np.maximum(mse, 1e-10))).mean())


def sheet(videos: np.ndarray, columns: int = 8) -> np.ndarray:
  """Clips side by side: [n f h w 3] -> [f H W 3]."""
  rows = min(len(videos) // columns, columns) or 1
  videos = videos[: rows * min(columns, len(videos))]
  n, f, h, w, _ = videos.shape
  grid = videos.reshape(rows, n // rows, f, h, w, 3)
  return grid.transpose(2, 0, 3, 1, 4, 5).reshape(f, rows * h, -1, 3)


def _texture_psnr(base: Base, n: int) -> float:
  """How well pictures of anything but the world survive the autoencoder."""
  keys = jax.random.split(jax.random.key(7), n)
  one = jax.jit(lambda key: world.texture(key, base.format.frames))
  videos = np.stack([to_uint8(one(key)) for key in keys])
  decoded = sampling.decode(base, sampling.encode_video(base, videos))
  return psnr(videos, decoded)


def _unstack(scenes: world.Scene) -> list[world.Scene]:
  n = len(scenes.count)
  return [jax.tree.map(lambda x, i=i: x[i], scenes) for i in range(n)]
