"""A base model: one diffusers-layout folder, read and written strictly.

What lies in the folder:

    model_index.json
    transformer/   config.json + safetensors      the video DiT
    vae/           config.json + safetensors      the causal autoencoder
    text_encoder/  config.json + safetensors      UMT5, or T5
    tokenizer/     tokenizer.json ...
    scheduler/     scheduler_config.json
    reference/     what AlcheMinT adds, if it was trained (`weights.reference`)
    dcjax.json     name, default size and length; folders of others have none
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dcjax import sharding
from dcjax.data.tokenizer import load_tokenizer
from dcjax.errors import DcjaxError
from dcjax.models import vae as vae_lib
from dcjax.models.dit_config import DiTConfig
from dcjax.models.reference_config import ReferenceConfig
from dcjax.models.text_config import TextConfig
from dcjax.weights import (
  container,
  fingerprint,
  names,
  networks,
  original,
)
from dcjax.weights import folder as folder_lib
from dcjax.weights.folder import Format
from dcjax.weights.location import PARTS, find
from dcjax.weights.part import Part, Placement

# Bytes of a text encoder that is read for a few prompts and forgotten.
LARGE_ENCODER = 2**30


@dataclasses.dataclass(frozen=True)
class Base:
  """A text-to-video model: three networks, their parameters, a tokenizer.

  Attributes:
    name: of the folder or hub repository.
    dit: shape of the transformer.
    vae: shape of the autoencoder, with the statistics of its latents.
    text: shape of the text encoder.
    tokenizer: of transformers.
    params: {'transformer', 'vae', 'text_encoder'}, without those on disk.
    format: the videos that it makes by default.
    shift: time shift of its sampler.
    on_disk: parts that are not loaded; a large text encoder is read when a
      prompt is new, and forgotten.
    reference_folder: with what AlcheMinT adds, or None.
    reference: how references enter, once that is loaded.
  """

  name: str
  dit: DiTConfig
  vae: vae_lib.AnyConfig
  text: TextConfig
  tokenizer: Any
  params: dict[str, Any]
  format: Format = dataclasses.field(default_factory=Format)
  shift: float = 3.0
  on_disk: Mapping[str, Part] = dataclasses.field(default_factory=dict)
  reference_folder: Path | None = None
  reference: ReferenceConfig | None = None

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hash of shapes and weights: what a concept file was trained on."""
    digest = hashlib.sha256()
    for config in (self.dit, self.vae, self.text):
      digest.update(repr(_not_default(config)).encode())
    for part, table in networks.tables(self.dit, self.vae, self.text).items():
      if part in self.params:
        found = fingerprint.of_params(table, self.params[part])
      elif part in self.on_disk:
        found = self.on_disk[part].digest
      else:
        found = 'none'
      digest.update(f'{part}{found}'.encode())
    return digest.hexdigest()[:16]

  def part(self, name: str) -> dict[str, Any]:
    """Parameters of one network, read from disk if they are not loaded.

    What is read is not kept: it is freed with the last reference to it.
    """
    if name in self.params:
      return self.params[name]
    return self.on_disk[name].load()

  def latent_shape(
    self, frames: int, height: int, width: int
  ) -> tuple[int, ...]:
    """[f h w c] of a video's latents; DcjaxError if the size cannot be made."""
    time, space = self.vae.scale_factor_temporal, self.vae.scale_factor_spatial
    rows, columns = space * self.dit.patch[1], space * self.dit.patch[2]
    if (
      min(frames, height, width) < 1
      or frames % time != 1 % time
      or height % rows
      or width % columns
    ):
      raise DcjaxError(
        f'{self.name} cannot make {frames} frames of {height}x{width}; it '
        f'takes 1 + {time}k frames, heights in multiples of {rows} and '
        f'widths in multiples of {columns}, above 0'
      )
    return self.vae.latent_shape(frames, height, width)

  def with_format(self, **changes: float) -> 'Base':
    """The same base with another default size, length or speed.

    Args:
      **changes: fields of `Format`; 0 leaves a value as it is.

    Raises:
      DcjaxError: for a negative number, or a size that cannot be made.
    """
    for key, value in changes.items():
      if value < 0:
        raise DcjaxError(
          f'format.{key} is {value}; expected a positive number, or 0 for that '
          'of the base'
        )
    changes = {key: value for key, value in changes.items() if value}
    new = dataclasses.replace(self.format, **changes)
    self.latent_shape(new.frames, new.height, new.width)
    return dataclasses.replace(self, format=new)


def load_base(
  name: str | os.PathLike = 'world',
  *,
  weights: bool = True,
  text_encoder: bool | None = None,
  dtype: Any = None,
  sharding: Placement | None = None,
) -> Base:
  """Loads a base model, tensor by tensor onto the devices.

  Args:
    name: 'world', the base embedded in this package; a diffusers-layout folder
      of Wan 2.1 form, or one that `save_base` wrote; or an id on the Hugging
      Face hub.
    weights: False leaves all on disk, for what needs only shapes and words.
    text_encoder: whether to load it. False reads it only while prompts are
      encoded that no earlier run has encoded. By default a small one is loaded
      and a large one is not.
    dtype: of the large matrices; by default float32 on a CPU and bfloat16 on
      accelerators, and bfloat16 for a text encoder that stays on disk.
    sharding: (leaf name, shape) -> `jax.sharding.Sharding`, for names such as
      'transformer/blocks/mlp/up/kernel'; by default all is on one device.

  Raises:
    DcjaxError: if a file is missing, a tensor is missing, extra or misshapen,
      weights are pickled, or there are two transformers.
  """
  folder = find(name)
  folder_lib.refuse_two_experts(folder)
  raw = original.config(folder_lib.config(folder, 'transformer'))
  dit = DiTConfig.from_json(raw)
  vae = vae_lib.config_from_json(folder_lib.config(folder, 'vae'))
  text = TextConfig.from_json(folder_lib.config(folder, 'text_encoder'))
  # All headers are checked before any number is read.
  parts = {
    part: _part(folder, part, config, dtype or _working_dtype(), sharding)
    for part, config in zip(PARTS, (dit, vae, text), strict=True)
  }
  left = set() if weights else set(PARTS)
  encoder = parts['text_encoder']
  if text_encoder is None:
    text_encoder = encoder.nbytes <= LARGE_ENCODER
  if not text_encoder:
    left.add('text_encoder')
    parts['text_encoder'] = dataclasses.replace(
      encoder, dtype=dtype or jnp.bfloat16
    )
  ours = folder_lib.ours(folder / 'dcjax.json')
  references = folder / 'reference'
  return Base(
    name=ours.get('name', str(name)),
    dit=dit,
    vae=vae,
    text=text,
    tokenizer=load_tokenizer(folder / 'tokenizer'),
    params={part: x.load() for part, x in parts.items() if part not in left},
    format=ours.get('format', Format()),
    shift=folder_lib.shift(folder),
    on_disk={part: x for part, x in parts.items() if part in left},
    reference_folder=references if references.is_dir() else None,
  )


def load_part(
  name: str | os.PathLike, part: str, *, dtype: Any = None
) -> tuple[vae_lib.AnyConfig | TextConfig, Part]:
  """One frozen network of a base, of which the others need not be there.

  Args:
    name: as of `load_base`.
    part: 'vae' or 'text_encoder'.
    dtype: of its large matrices once they are loaded, as of `load_base`.

  Returns:
    Its config, and what is on disk; no number is read.

  Raises:
    DcjaxError: as `load_base`.
  """
  folder = find(name)
  read = {'vae': vae_lib.config_from_json, 'text_encoder': TextConfig.from_json}
  config = read[part](folder_lib.config(folder, part))
  return config, _part(folder, part, config, dtype or _working_dtype(), None)


def tokenizer_of(name: str | os.PathLike) -> Any:
  """The tokenizer of a base; DcjaxError as `load_base`."""
  return load_tokenizer(find(name) / 'tokenizer')


def _part(
  folder: Path,
  part: str,
  config: networks.PartConfig,
  dtype: Any,
  sharding: Placement | None,
) -> Part:
  tensors, table = container.stored_in(folder / part), networks.table(config)
  if part == 'text_encoder':
    tensors = names.without_tied_text(tensors)
  if part == 'transformer':
    table = original.fitting(table, tensors)
  expected = networks.shapes(config)
  where = str(folder / part)
  return Part(part, where, table, tensors, expected, dtype, sharding)


def _working_dtype() -> Any:
  """Float32 on a CPU, where bfloat16 is slow and less exact."""
  return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16


def _not_default(config: Any) -> dict[str, Any]:
  """Options as they matter: one that is added later changes no old model."""
  return {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != field.default
  }


def save_base(
  base: Base, folder: str | os.PathLike, *, dtype: Any = jnp.bfloat16
) -> None:
  """Writes a base as a folder that `load_base` and diffusers open.

  Args:
    base: what to write.
    folder: created; existing files of the same names are replaced, and shards.
    dtype: of the stored weights.

  Raises:
    DcjaxError: as `save_part`.
  """
  folder = Path(folder)
  configs = dict(zip(PARTS, (base.dit, base.vae, base.text), strict=True))
  for part, config in configs.items():
    save_part(folder, part, config, base.part(part), dtype=dtype)
  base.tokenizer.save_pretrained(folder / 'tokenizer')
  folder_lib.write_json(
    folder / 'scheduler' / 'scheduler_config.json',
    folder_lib.scheduler(base.shift),
  )
  index = folder_lib.model_index(
    base.dit.to_json()['_class_name'],
    base.text.architecture,
    base.vae.to_json()['_class_name'],
  )
  folder_lib.write_json(folder / 'model_index.json', index)
  folder_lib.write_json(
    folder / 'dcjax.json',
    {'name': base.name, 'format': dataclasses.asdict(base.format)},
  )


def save_part(
  folder: str | os.PathLike,
  part: str,
  config: networks.PartConfig,
  params: dict[str, Any],
  *,
  dtype: Any = jnp.bfloat16,
) -> None:
  """Writes one network, as `load_part` reads it.

  Args:
    folder: of the base; existing files of the same names are replaced, and
      shards.
    part: one of `PARTS`.
    config: of the network.
    params: of the network.
    dtype: of the stored weights.

  Raises:
    DcjaxError: shards are there already, with an index that is broken.
  """
  from safetensors.numpy import save_file

  folder = Path(folder) / part
  old = container.sharded_in(folder)
  folder_lib.write_json(folder / 'config.json', config.to_json())
  params = jax.tree.map(lambda x: sharding.fetch(x).astype(dtype), params)
  tensors = names.write_tensors(networks.table(config), params)
  of = 'model' if part == 'text_encoder' else 'diffusion_pytorch_model'
  path = folder / f'{of}.safetensors'
  save_file(tensors, path, {'format': 'pt'})
  # An index would be read instead of the new file.
  for shard in set(old) - {path}:
    shard.unlink(missing_ok=True)
