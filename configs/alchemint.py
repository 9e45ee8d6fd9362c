"""Teaches a base references with intervals, word tags and timed captions.

  python -m dcjax.main --config=configs/alchemint.py --workdir=runs/alchemint
  python -m dcjax.main --config=configs/sample.py \
    --config.references=runs/alchemint/reference \
    --config.storyboard=examples/two_subjects.json

Without --config.data.path it learns from the procedural world: about eighty
minutes on two cores, of which five draw and encode the clips. A dataset of
annotated clips is described in docs/dataset.md.

The references that come with the embedded base were trained so in parts, the
first 700 steps with a train_shift of 3, in which little was learnt of who and
when, and only the last 2,700 with presence; training.json beside them has the
configs.

Variants: `lora` leaves the base's weights as they are and learns a LoRA beside
what is added; `wan_1_3b` and `wan_14b` fine-tune all weights of Wan as the
paper does (Sec. 4: 30,000 steps of 32 clips; for many accelerators), and
`snap_dit_11b` all of the base of Set-and-Sequence, of which --config.base gives
the folder; `tiny` runs two steps.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.alchemint import recipe
from dcjax.errors import DcjaxError

VARIANTS = ('tiny', 'lora', *recipes.WAN, recipes.SNAP)


def get_config(variant: str = '') -> ConfigDict:
  if variant in (*recipes.WAN, recipes.SNAP):
    return recipe.alchemint(variant)
  c = recipe.alchemint('world')
  if variant == 'tiny':
    c.subjects.update(dict(steps=2, batch=2))
    c.data.update(dict(clips=4, views=2, held_out=2))
    c.format.frames, c.log_every = 9, 1
    c.save_every = c.eval_every = c.preview_every = 2
  elif variant == 'lora':
    c.lora.rank, c.subjects.train = 32, recipe.WITH['lora']
    c.subjects.optimizer.update(dict(kind='adamw', lr=2e-3))
  elif variant:
    raise DcjaxError(
      f'alchemint.py has no variant {variant!r}; use {", ".join(VARIANTS)} or '
      'none'
    )
  return c
