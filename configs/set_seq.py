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

Variants, separated by commas: `wan_1_3b` and `wan_14b` teach Wan 2.1, with the
numbers of the paper and the flow times that Wan samples with, at `480p` (if
nothing is said) or `720p`; `snap_dit_11b` is the paper's own base, of which
--config.base gives the folder; `tiny` runs a few steps of everything.

  python -m dcjax.main --config=configs/set_seq.py:wan_1_3b,720p \
    --config.data.video=cat.mp4 --config.prompts.appearance="a [v] cat ..." \
    --config.prompts.motion="the cat is doing [u] boxing"

What that takes on one chip, for 33 frames, as forecast by

  python -m dcjax.main --config=configs/plan.py \
    --config.plan.job=configs/set_seq.py:wan_14b,720p --config.plan.device=h100

  wan_1_3b        16 GB    3 hours on an H100, 16 on an RTX 4090, 4 on a v6e
  wan_1_3b,720p   31 GB   12 hours on an H100
  wan_14b         47 GB   20 hours on an H100
  wan_14b,720p    67 GB   70 hours on an H100

TPUs pad: there, a tenth to a quarter more. A v5e chip (16 GB) takes wan_1_3b at
--config.format.height=384 --config.format.width=656. Half of the hours is prior
preservation: --config.prior.videos=0 does without. On a CPU, add
--config.base_dtype=float32, which takes less there than bfloat16.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError

VARIANTS = ('tiny', recipes.SNAP, *recipes.WAN, *recipes.RESOLUTIONS)


def get_config(variant: str = '') -> ConfigDict:
  chosen = [x.strip() for x in variant.split(',') if x.strip()]
  unknown = [x for x in chosen if x not in VARIANTS]
  if unknown:
    raise DcjaxError(
      f'set_seq.py has no variant {unknown[0]!r}; use {", ".join(VARIANTS)} '
      'or none'
    )
  wan = [x for x in chosen if x in recipes.WAN]
  snap = recipes.SNAP in chosen
  sizes = [x for x in chosen if x in recipes.RESOLUTIONS]
  if len(wan) + snap > 1 or len(sizes) > len(wan):
    raise DcjaxError(
      f'set_seq.py:{variant} does not go together; use one of '
      f'{", ".join((recipes.SNAP, *recipes.WAN))}, and with a Wan one of '
      f'{", ".join(recipes.RESOLUTIONS)}'
    )
  if snap:
    c = recipes.snap()
  else:
    c = recipes.wan(*wan, *sizes) if wan else recipes.personalize('world')
  return recipes.shrink(c) if 'tiny' in chosen else c
