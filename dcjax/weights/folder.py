"""The JSON files of a base's folder: those of diffusers, and one of ours."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dcjax.errors import DcjaxError
from dcjax.weights.container import read_json


@dataclasses.dataclass(frozen=True)
class Format:
  """The videos that a base makes by default.

  Attributes:
    frames: 1 plus a multiple of the autoencoder's temporal factor.
    height: pixels.
    width: pixels.
    fps: frames a second.
    text_length: tokens of a prompt, including the end token.
    guidance: scale of classifier-free guidance.
    steps: of the sampler.
  """

  frames: int = 81
  height: int = 480
  width: int = 832
  fps: float = 16.0
  text_length: int = 512
  guidance: float = 5.0
  steps: int = 50


def config(
  folder: Path, part: str, file: str = 'config.json'
) -> dict[str, Any]:
  """The JSON of one part; DcjaxError if it is missing or malformed."""
  path = folder / part / file
  if not path.is_file():
    raise DcjaxError(f'{path} is missing; {folder} is not a diffusers folder')
  return read_json(path)


def refuse_two_experts(folder: Path) -> None:
  """Raises DcjaxError if its index names a second transformer.

  The first one of a Wan 2.2 has the shapes of Wan 2.1, and knows high noise
  only.
  """
  path = folder / 'model_index.json'
  index = read_json(path) if path.is_file() else {}
  second = index.get('transformer_2') not in (None, [None, None])
  if second or index.get('boundary_ratio') is not None:
    raise DcjaxError(
      f'{path} is of a model with two transformers, such as Wan 2.2 A14B, one '
      'for high and one for low noise; give a base of one, such as Wan 2.1'
    )


def ours(path: Path) -> dict[str, Any]:
  """Name and `Format` from our file; {} in a folder of others."""
  if not path.exists():
    return {}
  values = read_json(path)
  types = {field.name: field.type for field in dataclasses.fields(Format)}
  name, given = values.get('name'), values.get('format')
  if not isinstance(name, str) or not isinstance(given, dict):
    raise DcjaxError(f'{path} does not hold a "name" and a "format"')
  for key, value in given.items():
    if key not in types:
      raise DcjaxError(
        f'{path} has the unknown key {key!r}; known are {", ".join(types)}'
      )
    number = (int, float) if types[key] is float else int
    if isinstance(value, bool) or not isinstance(value, number) or value <= 0:
      raise DcjaxError(
        f'{path}: {key} is {value!r}, expected a positive {types[key].__name__}'
      )
  return {'name': name, 'format': Format(**given)}


def shift(folder: Path) -> float:
  """Time shift of the sampler."""
  scheduler = config(folder, 'scheduler', 'scheduler_config.json')
  value = scheduler.get('flow_shift', scheduler.get('shift', 3.0))
  if (
    isinstance(value, bool) or not isinstance(value, int | float) or value <= 0
  ):
    raise DcjaxError(
      f'{folder / "scheduler" / "scheduler_config.json"}: the time shift is '
      f'{value!r}, expected a positive number'
    )
  return float(value)


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file, and its folder if need be."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=2) + '\n')


def scheduler(shift: float) -> dict[str, Any]:
  """The scheduler_config.json of Wan's sampler."""
  return {
    '_class_name': 'UniPCMultistepScheduler',
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'beta_start': 0.0001,
    'disable_corrector': [],
    'dynamic_thresholding_ratio': 0.995,
    'final_sigmas_type': 'zero',
    'flow_shift': shift,
    'lower_order_final': True,
    'num_train_timesteps': 1000,
    'predict_x0': True,
    'prediction_type': 'flow_prediction',
    'sample_max_value': 1.0,
    'solver_order': 2,
    'solver_type': 'bh2',
    'steps_offset': 0,
    'thresholding': False,
    'timestep_spacing': 'linspace',
    'use_beta_sigmas': False,
    'use_exponential_sigmas': False,
    'use_flow_sigmas': True,
    'use_karras_sigmas': False,
  }


def model_index(
  transformer: str, text_encoder: str, vae: str
) -> dict[str, Any]:
  """The model_index.json of three classes.

  Args:
    transformer: class of the transformer, as in its config.json.
    text_encoder: class of transformers.
    vae: class of the autoencoder.
  """
  library = lambda name: 'diffusers' if name in _DIFFUSERS else 'dcjax'
  return {
    '_class_name': 'WanPipeline',
    'boundary_ratio': None,
    'expand_timesteps': False,
    'scheduler': ['diffusers', 'UniPCMultistepScheduler'],
    'text_encoder': ['transformers', text_encoder],
    'tokenizer': ['transformers', 'T5Tokenizer'],
    'transformer': [library(transformer), transformer],
    'transformer_2': [None, None],
    'vae': [library(vae), vae],
  }


_DIFFUSERS = ('WanTransformer3DModel', 'AutoencoderKLWan')
