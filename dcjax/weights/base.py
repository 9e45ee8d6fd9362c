"""A base model: one diffusers-layout folder, read and written strictly.

What lies in the folder:

    model_index.json
    transformer/   config.json + safetensors      the video DiT
    vae/           config.json + safetensors      the causal autoencoder
    text_encoder/  config.json + safetensors      UMT5
    tokenizer/     tokenizer.json ...
    scheduler/     scheduler_config.json
    dcjax.json     name, default size and length; folders of others have none
"""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import tree
from dcjax.data.tokenizer import load_tokenizer
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT
from dcjax.models.dit_config import DiTConfig
from dcjax.models.text import TextConfig, UMT5Encoder
from dcjax.models.vae_config import VAEConfig
from dcjax.models.wan_vae import WanVAE
from dcjax.weights import container, names

ASSETS = Path(__file__).parents[1] / 'assets'
PARTS = ('transformer', 'vae', 'text_encoder')


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


@dataclasses.dataclass(frozen=True)
class Base:
  """A text-to-video model: three networks, their parameters, a tokenizer.

  Attributes:
    name: of the folder or hub repository.
    dit: shape of the transformer.
    vae: shape of the autoencoder, with the statistics of its latents.
    text: shape of the text encoder.
    tokenizer: of transformers.
    params: {'transformer', 'vae', 'text_encoder'}.
    format: the videos that it makes by default.
    shift: time shift of its sampler.
  """

  name: str
  dit: DiTConfig
  vae: VAEConfig
  text: TextConfig
  tokenizer: Any
  params: dict[str, Any]
  format: Format = Format()
  shift: float = 3.0

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of shapes and weights: what a concept file was trained on."""
    digest = hashlib.sha256()
    for config in (self.dit, self.vae, self.text):
      digest.update(repr(config).encode())
    for name, leaf in sorted(tree.flatten(self.params).items()):
      digest.update(f'{name}{leaf.shape}'.encode())
      digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]

  def latent_shape(
    self, frames: int, height: int, width: int
  ) -> tuple[int, ...]:
    """[f h w c] of a video's latents; DcjaxError if the size cannot be made."""
    time, space = self.vae.scale_factor_temporal, self.vae.scale_factor_spatial
    rows, columns = space * self.dit.patch[1], space * self.dit.patch[2]
    if (
      frames < 1
      or frames % time != 1 % time
      or height % rows
      or width % columns
    ):
      raise DcjaxError(
        f'{self.name} cannot make {frames} frames of {height}x{width}; it '
        f'takes 1 + {time}k frames, heights in multiples of {rows} and '
        f'widths in multiples of {columns}'
      )
    return self.vae.latent_shape(frames, height, width)


def expected_params(
  dit: DiTConfig, vae: VAEConfig, text: TextConfig
) -> dict[str, Any]:
  """Shapes of all parameters, as a tree of `jax.ShapeDtypeStruct`."""

  def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)

  key = jax.random.key(0)
  latents = shape(1, *dit.patch, dit.channels)
  space = vae.scale_factor_spatial
  ids, mask = shape(1, 2, dtype=jnp.int32), shape(1, 2, dtype=bool)
  trees = {
    'transformer': jax.eval_shape(
      DiT(dit).init, key, latents, shape(1), shape(1, 2, dit.text_width)
    ),
    'vae': jax.eval_shape(WanVAE(vae).init, key, shape(1, 1, space, space, 3)),
    'text_encoder': jax.eval_shape(UMT5Encoder(text).init, key, ids, mask),
  }
  return {part: variables['params'] for part, variables in trees.items()}


def init_params(
  dit: DiTConfig, vae: VAEConfig, text: TextConfig, key: jax.Array
) -> dict[str, Any]:
  """Fresh parameters of the same tree, for training from scratch."""
  return jax.jit(_init_params, static_argnums=(0, 1, 2))(dit, vae, text, key)


def _init_params(dit, vae, text, key):
  keys = jax.random.split(key, 3)
  space = vae.scale_factor_spatial
  x = jnp.zeros((1, *dit.patch, dit.channels))
  features = jnp.zeros((1, 2, dit.text_width))
  ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
  pixels = jnp.zeros((1, 1, space, space, 3))
  trees = {
    'transformer': DiT(dit).init(keys[0], x, jnp.zeros((1,)), features),
    'vae': WanVAE(vae).init(keys[1], pixels),
    'text_encoder': UMT5Encoder(text).init(keys[2], ids, mask),
  }
  return {part: variables['params'] for part, variables in trees.items()}


def load_base(name: str | os.PathLike = 'world') -> Base:
  """Loads a base model.

  Args:
    name: 'world', the base embedded in this package; or a diffusers-layout
      folder of Wan 2.1 form.

  Raises:
    DcjaxError: if a file is missing, a tensor is missing, extra or misshapen,
      or weights are pickled.
  """
  folder = ASSETS / name if name == 'world' else Path(name)
  if not folder.is_dir():
    raise DcjaxError(
      f'no base model at {folder}; give "world" or a folder in diffusers '
      f'layout with {", ".join(PARTS)}, tokenizer and scheduler'
    )
  dit = DiTConfig.from_json(_config(folder, 'transformer'))
  vae = VAEConfig.from_json(_config(folder, 'vae'))
  text = TextConfig.from_json(_config(folder, 'text_encoder'))
  expected = expected_params(dit, vae, text)
  tensors = {part: container.read_folder(folder / part) for part in PARTS}
  tensors['text_encoder'] = names.without_tied_text(tensors['text_encoder'])
  params = {
    part: names.read_tensors(
      table, tensors[part], expected[part], what=f'{folder / part}'
    )
    for part, table in tables(dit, vae, text).items()
  }
  ours = _ours(folder / 'dcjax.json')
  return Base(
    name=ours.get('name', str(name)),
    dit=dit,
    vae=vae,
    text=text,
    tokenizer=load_tokenizer(folder / 'tokenizer'),
    params=jax.tree.map(_working_dtype, params),
    format=ours.get('format', Format()),
    shift=_shift(folder),
  )


def save_base(
  base: Base, folder: str | os.PathLike, *, dtype: Any = jnp.bfloat16
) -> None:
  """Writes a base as a folder that `load_base` and diffusers open.

  Args:
    base: what to write.
    folder: created; existing files of the same names are replaced.
    dtype: of the stored weights.
  """
  from safetensors.numpy import save_file

  folder = Path(folder)
  weights = {
    'transformer': 'diffusion_pytorch_model.safetensors',
    'vae': 'diffusion_pytorch_model.safetensors',
    'text_encoder': 'model.safetensors',
  }
  configs = {
    'transformer': base.dit.to_json(),
    'vae': base.vae.to_json(),
    'text_encoder': base.text.to_json(),
  }
  for part, table in tables(base.dit, base.vae, base.text).items():
    _write_json(folder / part / 'config.json', configs[part])
    params = jax.tree.map(lambda x: np.asarray(x, dtype), base.params[part])
    tensors = names.write_tensors(table, params)
    save_file(tensors, folder / part / weights[part], {'format': 'pt'})
  base.tokenizer.save_pretrained(folder / 'tokenizer')
  _write_json(
    folder / 'scheduler' / 'scheduler_config.json', _scheduler(base.shift)
  )
  _write_json(folder / 'model_index.json', _MODEL_INDEX)
  _write_json(
    folder / 'dcjax.json',
    {'name': base.name, 'format': dataclasses.asdict(base.format)},
  )


def tables(
  dit: DiTConfig, vae: VAEConfig, text: TextConfig
) -> dict[str, names.Table]:
  """The name tables of the three networks."""
  return {
    'transformer': names.transformer_table(dit),
    'vae': names.vae_table(vae),
    'text_encoder': names.text_table(text),
  }


def _config(
  folder: Path, part: str, file: str = 'config.json'
) -> dict[str, Any]:
  path = folder / part / file
  if not path.is_file():
    raise DcjaxError(f'{path} is missing; {folder} is not a diffusers folder')
  return container.read_json(path)


def _ours(path: Path) -> dict[str, Any]:
  """Name and `Format` from our file; {} in a folder of others."""
  if not path.exists():
    return {}
  values = container.read_json(path)
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


def _shift(folder: Path) -> float:
  scheduler = _config(folder, 'scheduler', 'scheduler_config.json')
  shift = scheduler.get('flow_shift', scheduler.get('shift', 3.0))
  if (
    isinstance(shift, bool) or not isinstance(shift, int | float) or shift <= 0
  ):
    raise DcjaxError(
      f'{folder / "scheduler" / "scheduler_config.json"}: the time shift is '
      f'{shift!r}, expected a positive number'
    )
  return float(shift)


def _working_dtype(x: np.ndarray) -> np.ndarray:
  """Float32 on a CPU, where bfloat16 is slow and less exact; else as stored."""
  return x.astype(np.float32) if jax.default_backend() == 'cpu' else x


def _write_json(path: Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=2) + '\n')


def _scheduler(shift: float) -> dict[str, Any]:
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


_MODEL_INDEX = {
  '_class_name': 'WanPipeline',
  'boundary_ratio': None,
  'expand_timesteps': False,
  'scheduler': ['diffusers', 'UniPCMultistepScheduler'],
  'text_encoder': ['transformers', 'UMT5EncoderModel'],
  'tokenizer': ['transformers', 'T5Tokenizer'],
  'transformer': ['diffusers', 'WanTransformer3DModel'],
  'transformer_2': [None, None],
  'vae': ['diffusers', 'AutoencoderKLWan'],
}
