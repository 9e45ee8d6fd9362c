"""The `export` task: a concept as the LoRA files of other tools, and proven.

Also the LoRA doctor: without a style to write, a file is only examined. Every
file that is written is read back and merged, and the weights are compared with
those of the concept. Beside it lies a JSON file with what was found.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import concept_shapes as shapes
from dcjax import doctor, formats, lora, tree
from dcjax.concept import Concept, is_concept
from dcjax.errors import DcjaxError
from dcjax.weights import container, lora_file
from dcjax.weights.base import Base, load_base
from dcjax.weights.lora_file import LoraFile, Pairs
from dcjax.weights.lora_names import STYLES, Place

# Relative error of a float32 file.
EXACT = 1e-5


@dataclasses.dataclass(frozen=True)
class Source:
  """A LoRA to be examined or exported.

  Attributes:
    path: of its file.
    origin: the concept or the file of another tool that it is.
    weights: {'merged': (identity, motion)}; of a concept, 'identity' and
      'motion' too.
    parts: the pairs of each.
  """

  path: Path
  origin: Concept | LoraFile
  weights: dict[str, tuple[float, float]]
  parts: dict[str, Pairs]


def run(config: ConfigDict, workdir: str) -> None:
  """Examines a LoRA, and writes it in the styles that are asked for."""
  styles = _styles(config)
  base = load_base(config.base)
  source = open_source(Path(config.file), config.identity, config.motion)
  found = examine(source, base)
  print('\n'.join(describe(source, found)))
  if found['problems']:
    raise DcjaxError(
      f'{source.path} is of no use on base {base.name!r}: '
      f'{tree.some(found["problems"])}'
    )
  if not styles:
    print(f'nothing written; ask with --config.style={",".join(STYLES)}')
    return
  parts = _parts(source, found, config.split)
  for style, part in itertools.product(styles, parts):
    suffix = style if part == 'merged' else f'{style}_{part}'
    path = Path(workdir) / f'{source.path.stem}_{suffix}.safetensors'
    about = _about(source, base, part) | {'style': style, 'dtype': config.dtype}
    record = about | write(source, part, path, base, about)
    record |= {'effects': found['effects'][part]}
    text = json.dumps(record, indent=2)
    path.with_suffix('.json').write_text(text + '\n')
    print('\n'.join(_written(path, record)))
  if isinstance(source.origin, Concept) and source.origin.tokens:
    prompts = source.origin.meta.get('prompts') or {}
    print(formats.write_words(source.origin.tokens, prompts, Path(workdir)))
    print(
      '  note: other tools cannot use learned words by themselves; a concept '
      'trained with --config.train_tokens=False needs none'
    )


def open_source(
  path: Path, identity: float = 1.0, motion: float = 1.0
) -> Source:
  """Opens a concept, or the LoRA file of another tool with whatever faults.

  Args:
    path: of the file.
    identity: factor of the look, or of the whole LoRA of another tool.
    motion: factor of the motion, which the LoRA of another tool has not.

  Raises:
    DcjaxError: it is missing, broken or no LoRA, or has no motion to weigh.
  """
  head, tensors = container.read(path)
  if not is_concept(head):
    if motion != 1.0:
      raise DcjaxError(
        f'{path} is the LoRA of another tool and has no motion to weigh by '
        f'{motion:g}; give config.identity, the weight of all of it'
      )
    file = lora_file.parse(head, tensors, path)
    pairs = {
      place: dataclasses.replace(pair, up=np.float32(identity) * pair.up)
      for place, pair in file.pairs.items()
    }
    weights = {'merged': (identity, 1.0)}
    return Source(path, file, weights, {'merged': pairs})
  concept = Concept.load(path).times(identity, motion)
  if not concept.lora:
    raise DcjaxError(
      f'{path} has learned words and no LoRA: there is nothing to export'
    )
  weights = {
    'merged': (concept.identity, concept.motion),
    'identity': (concept.identity, 0.0),
    'motion': (0.0, concept.motion),
  }
  parts = {
    name: formats.to_pairs(concept.lora, *both)
    for name, both in weights.items()
  }
  return Source(path, concept, weights, parts)


def examine(source: Source, base: Base) -> dict[str, Any]:
  """What the doctor finds, as JSON values.

  Raises:
    DcjaxError: a concept was learnt on another base.
  """
  transformer, origin = base.params['transformer'], source.origin
  pairs = source.parts['merged']
  problems, notes, loaders = [], [], {}
  if isinstance(origin, Concept):
    origin.put_into(base, transformer)
  else:
    problems = [*origin.faults, *doctor.not_finite(pairs)]
    problems += doctor.misfits(pairs, transformer)
    notes, loaders = doctor.notes(origin), doctor.loaders(origin)
  norms = doctor.kernel_norms(pairs, transformer)
  parts = {
    name: doctor.summary(doctor.effects(part, norms))
    for name, part in source.parts.items()
  }
  if parts['merged']['targets'] and not parts['merged']['all']:
    problems.append(doctor.silence(parts['merged']))
  return {
    'problems': problems,
    'notes': notes,
    'loaders': loaders,
    'effects': parts,
  }


def describe(source: Source, found: Mapping[str, Any]) -> list[str]:
  """The examination as lines of aligned text."""
  pairs = source.parts['merged']
  blocks = doctor.spans(b for _, b in pairs if b is not None)
  targets = dict.fromkeys(doctor.target(layer) for layer, _ in pairs)
  facts = {
    'layers': f'{len(pairs)}, in blocks {blocks or "none"}',
    'targets': ' '.join(targets),
    'rank': doctor.counted(pair.rank for pair in pairs.values()),
    **_facts(source.origin),
    **{f'in {name}': text for name, text in found['loaders'].items()},
  }
  text = [str(source.path)]
  text += [f'  {name:<16} {fact}' for name, fact in facts.items()]
  parts = found['effects']
  if parts['merged']['targets']:
    text += doctor.lines(parts)
  for name in ('identity', 'motion'):
    if name in parts and not parts[name]['all']:
      text.append(f'  {"note":<16} the {name} is zero and has no effect')
  text += [f'  {"note":<16} {note}' for note in found['notes']]
  text += [f'  {"PROBLEM":<16} {problem}' for problem in found['problems'][:12]]
  loud = doctor.silence(parts['merged'])
  if loud and loud not in found['problems']:
    text.append(f'  {loud}')
  return text


def write(
  source: Source, part: str, path: Path, base: Base, about: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes a part as a LoRA file, reads it back and merges it.

  Args:
    source: what to write.
    part: 'merged', 'identity' or 'motion'.
    path: of the new file.
    base: whose kernels it is merged into.
    about: 'style' and 'dtype'; and what else the header says, as `dcjax.KEY`.

  Returns:
    'proof', of `doctor.prove`, and what the 'loaders' say.

  Raises:
    DcjaxError: it cannot be written, or does not give the weights of the
      source; there is no file then.
  """
  dtype = about['dtype']
  pairs, transformer = source.parts[part], base.params['transformer']
  if about['style'] == 'musubi':
    pairs = formats.filled(pairs, transformer)
  tensors = formats.to_tensors(pairs, about['style'], dtype)
  head = {'format': 'pt'} | {
    f'dcjax.{key}': x if isinstance(x, str) else json.dumps(x, sort_keys=True)
    for key, x in about.items()
  }
  container.write(path, tensors, head)
  file = lora_file.read(path)
  # Both factors are rounded.
  bound = max(EXACT, 2 * formats.DTYPES[dtype])
  wanted = {place: lambda: 0.0 for place in pairs} | updates(source, part)
  proof = doctor.prove(file.pairs, wanted, transformer, bound)
  # A NaN is above every bound.
  if not all(proof[key] <= bound for key in ('weights', 'update')):
    path.unlink()
    raise DcjaxError(
      f'{path} as {dtype} would differ from {source.path} by '
      f'{proof["update"]:.1e}, more than {bound:.1e}; use float32'
    )
  return {'proof': proof, 'loaders': doctor.loaders(file)}


def updates(source: Source, part: str) -> dict[Place, Callable[[], np.ndarray]]:
  """The update of every layer, of a concept as `lora.fuse` makes it."""
  if isinstance(source.origin, LoraFile):
    pairs = source.parts[part]
    return {p: lambda p=p: pairs[p].down @ pairs[p].up for p in pairs}
  layers = shapes.layers(lora.scale(source.origin.lora, *source.weights[part]))

  def fused(layer, block):
    leaves = layers[layer]
    if block is not None:
      leaves = {name: x[block] for name, x in leaves.items()}
    kernel = np.zeros(shapes.kernel_shape(leaves), np.float32)
    whole = {'layer': {'kernel': kernel, 'lora': leaves}}
    return np.asarray(lora.fuse(whole)['layer']['kernel'])

  return {p: functools.partial(fused, *p) for p in source.parts[part]}


def _styles(config: ConfigDict) -> list[str]:
  """The styles that are asked for; DcjaxError for what is not known."""
  if not config.file:
    raise DcjaxError('there is no file; give --config.file=concept.safetensors')
  styles = [style.strip() for style in config.style.split(',')]
  styles = list(dict.fromkeys(filter(None, styles)))
  for style in styles:
    if style not in STYLES:
      raise DcjaxError(
        f'config.style has {style!r}; use {", ".join(STYLES)} or several with '
        'commas'
      )
  if config.dtype not in formats.DTYPES:
    raise DcjaxError(
      f'config.dtype is {config.dtype!r}; use {", ".join(formats.DTYPES)}'
    )
  return styles


def _parts(
  source: Source, found: Mapping[str, Any], split: bool
) -> tuple[str, ...]:
  """Names of the files to write of each style."""
  if not split:
    return ('merged',)
  if isinstance(source.origin, LoraFile):
    raise DcjaxError(
      f'{source.path} is one LoRA, without look and motion apart; leave '
      'config.split out'
    )
  for name in ('identity', 'motion'):
    if not found['effects'][name]['all']:
      raise DcjaxError(
        f'the {name} of {source.path} is zero, a file of it would do nothing; '
        'leave config.split out'
      )
  return ('identity', 'motion')


def _facts(origin: Concept | LoraFile) -> dict[str, str]:
  """What only a concept, or only a file of another tool, can say."""
  if isinstance(origin, Concept):
    words = ' '.join(f'[{name}]' for name in sorted(origin.tokens))
    return {
      'keys': 'a concept of dcjax',
      'base': '{name} ({fingerprint})'.format(**origin.meta['base']),
      'weights': f'identity {origin.identity:g}, motion {origin.motion:g}',
      'learned words': words or 'none',
    }
  down, up = origin.spelling
  pairs = origin.pairs.values()
  config = ' of the PEFT config' if origin.configured else ''
  alphas = doctor.counted(
    'none' if pair.alpha is None else f'{pair.alpha:g}' for pair in pairs
  )
  return {
    'alpha': f'{alphas}{config}',
    'keys': f'{origin.style}: {origin.prefix}*.{down}.weight, {up}',
    'stored': ', '.join(origin.dtypes),
  }


def _about(source: Source, base: Base, part: str) -> dict[str, Any]:
  """What the header and the record of a file say of it."""
  about = {
    'source': source.path.name,
    'part': part,
    'base': base.name,
    'fingerprint': base.fingerprint,
    'weights': source.weights[part],
  }
  if isinstance(source.origin, Concept):
    about['prompts'] = source.origin.meta.get('prompts', {})
  return about


def _written(path: Path, record: Mapping[str, Any]) -> list[str]:
  proof = record['proof']
  lines = [
    str(path),
    f'  {"read and merged":<16} weights differ by {proof["weights"]:.1e}, the '
    f'update by {proof["update"]:.1e}; at most {proof["bound"]:.1e}',
  ]
  return lines + [
    f'  {f"in {name}":<16} {text}' for name, text in record['loaders'].items()
  ]
