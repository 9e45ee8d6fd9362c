"""What a job will need, before anything is loaded.

  python -m dcjax.main --config=configs/plan.py \
    --config.plan.job=configs/set_seq.py:wan_14b --config.plan.device=h100
  python -m dcjax.main --config=configs/plan.py \
    --config.plan.job=configs/set_seq.py:snap_dit_11b \
    --config.plan.topology=v5p:4x4x4

Prints parameters, memory of a chip, collectives and time of every program of
the job; and, if one does not fit, settings with which it does. The same is
written to plan.json. A published base need not be here, nor any of the chips:
with libtpu (pip install -e ".[tpu]") programs are compiled for TPU slices,
with the CUDA plugin for GPUs; else what they take is counted, and said to be.

Options of the job are given as --config.plan.options="('sequence.batch=64',)".
docs/scaling.md says what the figures mean.
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
      # One chip: local, cpu, h200, h100, a100-80, rtx4090, v5e, v5p or v6e.
      device='h100',
      # Or several: h200:8, h100:16, v5e:4x8, v5p:4x4x4, v6e:16x16*4 (slices).
      topology='',
      # auto: chosen and explained, unless the job asks for one; job: its own.
      mesh='auto',
      # compile: ask XLA what training and sampling take; count: count it in
      # their traces; nothing: ask about the largest step of training, if it can
      # be asked here, and count the rest.
      memory='',
    )
  )
  if variant == 'tiny':
    c.plan.update(dict(job='configs/set_seq.py:tiny', device='cpu'))
  elif variant:
    raise DcjaxError(f'plan.py has no variant {variant!r}; use tiny or none')
  return c
