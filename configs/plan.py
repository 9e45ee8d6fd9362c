"""What a personalisation will need, before anything is loaded.

  python -m dcjax.main --config=configs/plan.py \
    --config.plan.job=configs/set_seq.py:wan_14b --config.plan.device=h100

Prints parameters, peak memory and time of every program of the job; and, if one
does not fit, settings with which it does. The same is written to plan.json.
A published base need not be here. One chip: what several share is not planned.

Options of the job are given as --config.plan.options="('sequence.batch=4',)".
"""

from ml_collections import ConfigDict

from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  c = ConfigDict()
  c.task = 'plan'
  c.name = 'plan'
  c.plan = ConfigDict(
    dict(
      job='configs/set_seq.py:wan_1_3b',
      options=(),
      # local, cpu, h200, h100, a100-80, rtx4090, v5e, v5p or v6e
      device='h100',
      # compile: ask XLA what the steps of training take; count: count it in
      # their traces; nothing: compile where that is quick and can be done.
      memory='',
    )
  )
  if variant == 'tiny':
    c.plan.update(dict(job='configs/set_seq.py:tiny', device='cpu'))
  elif variant:
    raise DcjaxError(f'plan.py has no variant {variant!r}; use tiny or none')
  return c
