"""Set-and-Sequence: teaches a base the look and the motion of one video.

  python -m dcjax.main --config=configs/set_seq.py
  python -m dcjax.main --config=configs/set_seq.py --config.data.video=cat.mp4 \
    --config.prompts.appearance="a [v] thing on a plain brown background" \
    --config.prompts.motion="the thing is [u] moving" --workdir=runs/cat

Stage `set` learns the appearance (basis A1, coefficients B1, word [v]) from the
unordered frames; stage `sequence` freezes them and learns the motion (B2, [u])
from the clip. The result is runs/NAME/concept.safetensors, and report.html
shows it in new scenes. Every value of `dcjax/recipes.py` is an option, for
example --config.sequence.steps=400.

Variants: `tiny` runs a few steps of everything.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  c = recipes.personalize('world')
  if variant == 'tiny':
    return recipes.shrink(c)
  if variant:
    raise DcjaxError(f'set_seq.py has no variant {variant!r}; use tiny or none')
  return c
