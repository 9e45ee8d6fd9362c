"""One page about a folder of captioned files, before any training.

  python -m dcjax.main --config=configs/inspect.py --config.data.path=FOLDER

Writes runs/inspect/inspection.html: every file as the model will see it, with
its bucket, its caption and what is wrong with it, problems first. The options
`data` and `format` are those of configs/lora.py; no weights are read.

Variant: `tiny` embeds the previews of two files only.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  c = ConfigDict()
  c.task = 'inspect'
  c.name = 'inspect'
  c.base = 'world'  # or a folder in diffusers layout
  c.format = ConfigDict(dict(frames=0, height=0, width=0, fps=0.0))
  c.data = recipes.files()
  c.batch = 8  # of the training, for the steps of an epoch
  c.previews = 60  # moving previews on the page; the other files get a strip
  if variant == 'tiny':
    c.previews = 2
  elif variant:
    raise DcjaxError(f'inspect.py has no variant {variant!r}; use tiny or none')
  return c
