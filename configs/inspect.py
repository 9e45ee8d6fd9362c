"""One page about a folder of captioned files, before any training.

  python -m dcjax.main --config=configs/inspect.py --config.data.path=FOLDER

Writes runs/inspect/inspection.html: every file as the model will see it, with
its bucket, its caption and what is wrong with it, problems first. The options
`data` and `format` are those of configs/lora.py; no weights are read.

Variants: `wan_1_3b` and `wan_14b` show what that variant of configs/lora.py
would see; `tiny` embeds the previews of two files only.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError

VARIANTS = ('tiny', *recipes.WAN)


def get_config(variant: str = '') -> ConfigDict:
  training = recipes.finetune(variant if variant in recipes.WAN else 'world')
  c = ConfigDict()
  c.task = 'inspect'
  c.name = 'inspect'
  c.base = training.base  # or a folder in diffusers layout
  c.format = training.format
  c.data = training.data
  c.batch = training.train.batch  # for the steps of an epoch
  c.previews = 60  # moving previews on the page; the other files get a strip
  if variant == 'tiny':
    c.previews = 2
  elif variant and variant not in VARIANTS:
    raise DcjaxError(
      f'inspect.py has no variant {variant!r}; '
      f'use {", ".join(VARIANTS)} or none'
    )
  return c
