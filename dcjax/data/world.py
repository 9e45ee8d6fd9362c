"""The procedural world: short clips of simple things that move.

Its data are exact functions of a key, drawn on the device: scenes
(`sample_scene`), pictures (`render`), captions (`caption`, `caption_ids`), free
textures for the autoencoder (`texture`) and held-out concepts for
personalisation (`concept`). 64x64 pixels, 8 frames a second.

  key = jax.random.fold_in(jax.random.key(seed), i)
  scene = world.sample_scene(key)
  clip = world.render(scene)       # clip.video [f h w 3] in [0, 1]
  text = world.caption(scene)
"""

from dcjax.data.captions import (
  ALL,
  LONGEST,
  STATIC,
  VOCABULARY,
  Said,
  caption,
  caption_ids,
  sample_said,
)
from dcjax.data.concepts import Concept, concept
from dcjax.data.render import FPS, FRAMES, SIZE, Clip, render
from dcjax.data.scene import (
  BACKGROUNDS,
  COLORS,
  DECORATIONS,
  MOTIONS,
  PATTERNS,
  PRESENCES,
  RADII,
  SHAPES,
  SIZES,
  TRAIN_MOTIONS,
  TRAIN_SHAPES,
  Scene,
  is_held_out,
  sample_scene,
)
from dcjax.data.textures import texture

__all__ = [
  'ALL',
  'BACKGROUNDS',
  'COLORS',
  'DECORATIONS',
  'FPS',
  'FRAMES',
  'LONGEST',
  'MOTIONS',
  'PATTERNS',
  'PRESENCES',
  'RADII',
  'SHAPES',
  'SIZE',
  'SIZES',
  'STATIC',
  'TRAIN_MOTIONS',
  'TRAIN_SHAPES',
  'VOCABULARY',
  'Clip',
  'Concept',
  'Said',
  'Scene',
  'caption',
  'caption_ids',
  'concept',
  'is_held_out',
  'render',
  'sample_said',
  'sample_scene',
  'texture',
]
