"""Where a base lies: in this package, in a folder, or on the hub."""

import os
from pathlib import Path

from dcjax.errors import DcjaxError
from dcjax.weights import hub

ASSETS = Path(__file__).parents[1] / 'assets'
PARTS = ('transformer', 'vae', 'text_encoder')


def find(name: str | os.PathLike) -> Path:
  """The folder that a name stands for, as of `load_base`.

  Raises:
    DcjaxError: if there is none, or its weights are pickled.
  """
  folder = ASSETS / name if name == 'world' else Path(name)
  if folder.is_dir():
    pickles = sorted(path.name for path in folder.glob('*.pth'))
    if pickles and not (folder / 'transformer').is_dir():
      raise DcjaxError(
        f'{folder} has the original layout of Wan, with pickles '
        f'({", ".join(pickles)}), which are refused; give the same model in '
        'diffusers layout (hub ids that end in -Diffusers); only the '
        'safetensors of the original may lie in its transformer folder'
      )
    return folder
  if folder.suffix == '.safetensors' and folder.is_file():
    raise DcjaxError(
      f'{folder} is one file, and a base has {", ".join(PARTS)}; put it into '
      'the transformer folder of a base in diffusers layout, in place of the '
      'files there, and give the base'
    )
  if isinstance(name, str) and hub.is_id(name):
    return hub.fetch(name)
  raise DcjaxError(
    f'no base model at {folder}; give "world", a folder in diffusers layout '
    f'with {", ".join(PARTS)}, tokenizer and scheduler, or the id of one on '
    'the Hugging Face hub'
  )
