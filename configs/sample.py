"""Makes videos of prompts, with or without concepts, and of storyboards.

  python -m dcjax.main --config=configs/sample.py \
    --config.prompt=\
    "a large red star on a plain navy background. the star is bouncing."
  python -m dcjax.main --config=configs/sample.py \
    --config.concepts=runs/set_seq/concept.safetensors \
    --config.prompt=\
    "a [v] thing on a striped teal background. the thing is [u] moving."

  python -m dcjax.main --config=configs/sample.py \
    --config.storyboard=examples/two_subjects.json

Several concepts are separated by commas; their words are then [v1] [u1] [v2]
[u2]. A number left at 0 is the base's own, or that of the storyboard.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  c = ConfigDict()
  c.task = 'sample'
  c.name = 'sample'
  c.base = 'world'
  c.mesh = recipes.mesh()
  c.prompt = ''
  c.prompts = ()  # further ones
  c.negative = ''
  c.concepts = ''  # concept files, or LoRA files of other tools
  c.identity = 1.0  # weight of the look, times that of its file
  c.motion = 1.0  # weight of the motion, times that of its file
  # JSON: prompt, references with intervals, concepts and timed captions.
  c.storyboard = ''
  c.references = ''  # folder of trained references; empty: the base's own
  c.seed = 0
  c.steps = 0
  c.guidance = 0.0
  c.shift = 0.0
  # unipc, euler or diffusers_euler. Empty is unipc; for a storyboard on another
  # base than the embedded one, euler.
  c.sampler = ''
  c.frames = 0
  c.height = 0
  c.width = 0
  c.format = 'mp4'  # or gif, webp
  c.scale = 0  # pixels a pixel of the file; 0 enlarges small videos
  if variant == 'tiny':
    c.prompt, c.steps = 'a red star on a plain navy background', 2
  elif variant:
    raise DcjaxError(f'sample.py has no variant {variant!r}; use tiny or none')
  return c
