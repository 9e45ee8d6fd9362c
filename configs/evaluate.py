r"""Measures how well a base of the procedural world follows its prompts.

  python -m dcjax.main --config=configs/evaluate.py --workdir=runs/evaluate
  python -m dcjax.main --config=configs/evaluate.py \
    --config.base=runs/world/base

256 clips of held-out prompts; about 15 minutes on two cores.
"""

from ml_collections import ConfigDict

from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  c = ConfigDict()
  c.task = 'evaluate'
  c.name = 'evaluate'
  c.base = 'world'
  c.clips = 256
  c.seed = 0
  c.steps = 0  # 0: the base's own
  c.guidance = 0.0
  c.shift = 0.0
  if variant == 'tiny':
    c.clips, c.steps = 4, 2
  elif variant:
    raise DcjaxError(f'evaluate.py has no variant {variant!r}; use tiny')
  return c
