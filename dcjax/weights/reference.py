"""What AlcheMinT adds to a base: a folder beside the transformer's.

    reference/config.json          how references enter, and for which base
    reference/model.safetensors    leaves of the transformer, in our names

The leaves are the added parameters (`models.reference.ADDED`) and whatever else
the training changed: a LoRA beside some kernels, or whole leaves.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import lora, sharding, tree
from dcjax.errors import DcjaxError
from dcjax.models import reference as reference_lib
from dcjax.models.reference_config import ReferenceConfig
from dcjax.weights import container
from dcjax.weights import folder as folder_lib
from dcjax.weights.base import Base

KIND = 'dcjax references'
VERSION = 1
FILE = 'model.safetensors'


def save(
  folder: str | os.PathLike,
  base: Base,
  config: ReferenceConfig,
  trained: tree.Tree,
  *,
  dtype: Any = jnp.bfloat16,
) -> None:
  """Writes the folder.

  Args:
    folder: created; existing files of the same names are replaced.
    base: that was trained on.
    config: how references enter.
    trained: leaves of the transformer that were added or changed.
    dtype: of the stored leaves.
  """
  folder = Path(folder)
  leaves = {
    name: sharding.fetch(x).astype(dtype)
    for name, x in tree.flatten(trained).items()
    # The second coefficients of a LoRA belong to another method.
    if not name.endswith('lora/b2')
  }
  folder.mkdir(parents=True, exist_ok=True)
  container.write(folder / FILE, leaves, {'format': 'pt'})
  folder_lib.write_json(
    folder / 'config.json',
    {
      'kind': KIND,
      'version': VERSION,
      'base': {'name': base.name, 'fingerprint': base.fingerprint},
      'references': dataclasses.asdict(config),
    },
  )


def equip(base: Base, folder: str | os.PathLike | None = None) -> Base:
  """The base with everything that it needs for references and events.

  Args:
    base: with its transformer loaded.
    folder: of `save`; default the one beside the base's transformer.

  Returns:
    The base with the added leaves in its transformer, a trained LoRA folded
    into the kernels, and `reference` set.

  Raises:
    DcjaxError: there is no such folder, it is of another base, or a tensor is
      missing, extra or misshapen.
  """
  folder = base.reference_folder if folder is None else Path(folder)
  if folder is None:
    raise DcjaxError(
      f'{base.name} has no trained references; train them with '
      'configs/alchemint.py and give their folder'
    )
  config = _config(base, folder)
  tensors = container.stored(folder / FILE)
  transformer = base.params['transformer']
  _check(folder, tensors, _expected(base, config))
  flat = tree.flatten(transformer)
  for name, x in tensors.items():
    flat[name] = jnp.asarray(np.asarray(x), _dtype(flat, name))
    if name.endswith('lora/b1'):
      flat[name.removesuffix('b1') + 'b2'] = jnp.zeros_like(flat[name])
  params = {**base.params, 'transformer': lora.fuse(tree.unflatten(flat))}
  return dataclasses.replace(base, params=params, reference=config)


def fresh(base: Base, config: ReferenceConfig, key: jax.Array) -> Base:
  """The base with untrained added parameters, to begin a training with."""
  transformer = reference_lib.attach(
    base.params['transformer'], base.dit, config, key
  )
  params = {**base.params, 'transformer': transformer}
  return dataclasses.replace(base, params=params, reference=config)


def with_presence(base: Base, parts: int) -> Base:
  """An equipped base with presence of so many parts, which says nothing yet."""
  if base.reference.presence or not parts:
    return base
  transformer = base.params['transformer']
  rows, width = transformer['reference']['index'].shape
  codes = {'reference': {'presence': jnp.zeros((rows, parts, width))}}
  params = {**base.params, 'transformer': tree.combine(transformer, codes)}
  config = dataclasses.replace(base.reference, presence=parts)
  return dataclasses.replace(base, params=params, reference=config)


def _dtype(flat: dict[str, Any], name: str) -> Any:
  """That of the leaf which is replaced; float32 for what is added."""
  return flat[name].dtype if name in flat else jnp.float32


def _config(base: Base, folder: Path) -> ReferenceConfig:
  path = folder / 'config.json'
  if not path.is_file():
    raise DcjaxError(f'{path} is missing; {folder} holds no trained references')
  values = container.read_json(path)
  if (values.get('kind'), values.get('version')) != (KIND, VERSION):
    raise DcjaxError(
      f'{path} is not version {VERSION} of {KIND!r}, which this program reads'
    )
  trained_on = values.get('base', {})
  if trained_on.get('fingerprint') != base.fingerprint:
    raise DcjaxError(
      f'{folder} was trained on {trained_on.get("name")!r}, fingerprint '
      f'{trained_on.get("fingerprint")}; this base is {base.name!r} with '
      f'{base.fingerprint}'
    )
  try:
    return ReferenceConfig(**values['references'])
  except (KeyError, TypeError) as error:
    raise DcjaxError(f'{path}: {error}') from error


def _expected(base: Base, config: ReferenceConfig) -> dict[str, Any]:
  """Shapes of all that the file may hold, except LoRA leaves."""
  transformer = base.params['transformer']
  added = jax.eval_shape(
    lambda: reference_lib.attach(
      transformer, base.dit, config, jax.random.key(0)
    )
  )
  return tree.flatten(added)


def _check(
  folder: Path, tensors: dict[str, Any], expected: dict[str, Any]
) -> None:
  """Added leaves must be there; others must be the base's, or its LoRA."""
  added = tree.match(tree.unflatten(expected), reference_lib.ADDED)
  problems = [f'- {name} (missing)' for name in added if name not in tensors]
  for name, x in tensors.items():
    layer, is_lora, leaf = name.partition('/lora/')
    if is_lora and leaf in ('a1', 'b1'):
      both = {f'{layer}/lora/a1', f'{layer}/lora/b1'} <= tensors.keys()
      if f'{layer}/kernel' not in expected or not both:
        problems.append(f'+ {name} (LoRA of no layer)')
    elif name not in expected:
      problems.append(f'+ {name} (not expected)')
    elif tuple(x.shape) != tuple(expected[name].shape):
      problems.append(
        f'~ {name} is {tuple(x.shape)}, expected {tuple(expected[name].shape)}'
      )
  if problems:
    shown = tree.some(problems, limit=12)
    raise DcjaxError(f'{folder / FILE} does not fit this base: {shown}')
