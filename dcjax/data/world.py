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

from dcjax.data.captions import ALL
from dcjax.data.captions import caption
from dcjax.data.captions import caption_ids
from dcjax.data.captions import LONGEST
from dcjax.data.captions import Said
from dcjax.data.captions import sample_said
from dcjax.data.captions import STATIC
from dcjax.data.captions import VOCABULARY
from dcjax.data.concepts import Concept
from dcjax.data.concepts import concept
from dcjax.data.render import Clip
from dcjax.data.render import FPS
from dcjax.data.render import FRAMES
from dcjax.data.render import render
from dcjax.data.render import SIZE
from dcjax.data.scene import BACKGROUNDS
from dcjax.data.scene import COLORS
from dcjax.data.scene import DECORATIONS
from dcjax.data.scene import is_held_out
from dcjax.data.scene import MOTIONS
from dcjax.data.scene import PATTERNS
from dcjax.data.scene import PRESENCES
from dcjax.data.scene import RADII
from dcjax.data.scene import sample_scene
from dcjax.data.scene import Scene
from dcjax.data.scene import SHAPES
from dcjax.data.scene import SIZES
from dcjax.data.scene import TRAIN_MOTIONS
from dcjax.data.scene import TRAIN_SHAPES
from dcjax.data.textures import texture

__all__ = [
  'ALL',
  'BACKGROUNDS',
  'COLORS',
  'Clip',
  'Concept',
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
  'Said',
  'Scene',
  'TRAIN_MOTIONS',
  'TRAIN_SHAPES',
  'VOCABULARY',
  'caption',
  'caption_ids',
  'concept',
  'is_held_out',
  'render',
  'sample_said',
  'sample_scene',
  'texture',
]
