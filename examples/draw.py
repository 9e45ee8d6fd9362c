"""Draws the reference pictures of the examples with the world's renderer.

python examples/draw.py
"""

from pathlib import Path

import numpy as np

from dcjax.data import video
from dcjax.data.scene import COLORS, DECORATIONS, SHAPES
from dcjax.data.textures import COLORS as PAINTS
from dcjax.evals import world_scenes

# File -> colour, shape and decoration.
PICTURES = {
  'star': ('orange', 'star', 'with eyes'),
  'ring': ('cyan', 'ring', ''),
}


def draw(color: str, shape: str, decoration: str) -> np.ndarray:
  """One object alone on white, uint8 [h w 3]."""
  scene = world_scenes.sample('one', np.random.default_rng(0))
  index = DECORATIONS.index(decoration)
  scene = scene._replace(
    color=np.full(2, COLORS.index(color), np.int32),
    shape=np.full(2, SHAPES.index(shape), np.int32),
    decoration=np.full(2, index, np.int32),
    motion=np.zeros(2, np.int32),
    size=np.full(2, 2, np.int32),
    paint=np.full((2, 2, 3), PAINTS[color], np.float32),
  )
  return world_scenes.picture(scene, 0)


def main() -> None:
  """Writes NAME.png beside this file."""
  for name, look in PICTURES.items():
    path = Path(__file__).parent / f'{name}.png'
    video.write_video(path, draw(*look)[None])
    print(path)


if __name__ == '__main__':
  main()
