"""Writes a concept as LoRA files of other tools, or examines any LoRA file.

  python -m dcjax.main --config=configs/export.py \
    --config.file=runs/set_seq/concept.safetensors \
    --config.style=diffusers,comfyui
  python -m dcjax.main --config=configs/export.py \
    --config.file=lora_of_another_tool.safetensors --config.base=FOLDER

Files are written to the workdir, merged into one LoRA or, with `split`, as two
that are weighed apart. A LoRA of another tool can be written in other keys.
"""

from ml_collections import ConfigDict

from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  c = ConfigDict()
  c.task = 'export'
  c.name = 'export'
  c.file = ''  # a concept, or a LoRA of another tool
  c.base = 'world'  # what it was learnt on, or what a LoRA of others is for
  c.style = ''  # diffusers, comfyui, musubi; several with commas
  c.split = False  # two files, look and motion
  c.identity = 1.0  # weight of the look, times that of its file
  c.motion = 1.0  # weight of the motion, times that of its file
  c.dtype = 'float32'  # or bfloat16, float16
  if variant == 'tiny':
    c.style, c.dtype = 'diffusers', 'bfloat16'
  elif variant:
    raise DcjaxError(f'export.py has no variant {variant!r}; use tiny or none')
  return c
