"""LoRA training on a folder of captioned clips and pictures.

  python -m dcjax.main --config=configs/lora.py --config.data.path=FOLDER
  python -m dcjax.main --config=configs/lora.py:wan_1_3b \
    --config.data.path=data.jsonl --config.data.trigger="sks dog" \
    --config.lora.rank=32 --workdir=runs/dog

The folder holds NAME.mp4 or NAME.jpg with NAME.txt beside it, and NAME.mask.mp4
where the loss is to look at the subject. Look at it first with
configs/inspect.py. The result is runs/NAME/concept.safetensors, used like any
concept, and report.html.

Variants: `wan_1_3b` and `wan_14b` learn clips of 33 frames of 480x832 on one
device, --config.format says otherwise; `tiny` runs two steps.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError

VARIANTS = ('tiny', *recipes.WAN)


def get_config(variant: str = '') -> ConfigDict:
  if variant in recipes.WAN:
    return recipes.finetune(variant)
  c = recipes.finetune('world')
  if variant == 'tiny':
    c.train.update(dict(steps=2, batch=2))
    c.lora.rank = c.sample.steps = 2
    c.log_every = 1
    c.save_every = c.eval_every = c.preview_every = 2
  elif variant:
    raise DcjaxError(
      f'lora.py has no variant {variant!r}; use {", ".join(VARIANTS)} or none'
    )
  return c
