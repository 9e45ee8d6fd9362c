"""The concept file: what was learnt from one video, apart from its base.

A concept is a LoRA and a few learned words (Set-and-Sequence, Sec. 3). Its file
is one safetensors with the keys

    lora/<layer>/{a1,b1,b2}     basis, look and motion of a linear layer
    tokens/{v,u}                [n d] vectors of the words [v] and [u]
    frames                      uint8 [f h w 3], what it looks like; optional

and metadata, every value a JSON string: `format`, `version`, `identity`,
`motion` and what `Concept.meta` holds. Nothing in it is ever executed. The LoRA
file of another tool is read as a concept too: a look without words, for any
base that its shapes fit.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import numbers
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from dcjax import concept_shapes as shapes
from dcjax import formats, tree
from dcjax import lora as lora_lib
from dcjax.errors import DcjaxError
from dcjax.weights import container, lora_file
from dcjax.weights.base import Base

FORMAT = 'dcjax concept'
VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Concept:
  """A look and a way of moving, to be put into the base it was learnt on.

  Attributes:
    lora: tree of leaves `blocks/.../lora/{a1,b1,b2}`, relative to the
      transformer; empty if only words were learnt (textual inversion).
    tokens: {'v': [n d], 'u': [n d]} in the space of the text features; numbered
      (v1, u1, v2 ...) if several concepts were learnt together.
    meta: JSON values. 'base' {'name', 'fingerprint'} and 'rank' are always
      there; a training run adds prompts, stages, metrics and so on. The
      fingerprint is None for the LoRA of another tool.
    identity: weight of the look, A1 B1.
    motion: weight of the motion, A1 B2.
    frames: uint8 [f h w 3], a few of the video it was learnt from, or None.
  """

  lora: tree.Tree
  tokens: Mapping[str, Any]
  meta: Mapping[str, Any]
  identity: float = 1.0
  motion: float = 1.0
  frames: np.ndarray | None = None

  @classmethod
  def from_params(
    cls,
    params: tree.Tree,
    base: Base,
    meta: Mapping[str, Any] | None = None,
    frames: np.ndarray | None = None,
  ) -> 'Concept':
    """Takes the LoRA leaves and learned words out of trained parameters.

    Args:
      params: {'transformer': ..., 'tokens': ...} and whatever else.
      base: the base that was trained on.
      meta: JSON values: prompts, stages, metrics ...
      frames: uint8 [f h w 3], a few that show it.

    Raises:
      DcjaxError: there is neither LoRA nor a learned word, or a number is not
        finite.
      TypeError: a value of `meta` is not JSON.
    """
    flat = tree.flatten(params.get('transformer', {}))
    lora = tree.unflatten(
      {n: np.asarray(x, np.float32) for n, x in flat.items() if '/lora/' in n}
    )
    words = params.get('tokens', {})
    tokens = {n: np.asarray(x, np.float32) for n, x in words.items()}
    meta = {
      **(meta or {}),
      'base': {'name': base.name, 'fingerprint': base.fingerprint},
      'rank': _rank(lora),
    }
    # Through JSON: the meta of a new concept is what its file will say.
    concept = cls(lora, tokens, json.loads(json.dumps(meta)), frames=frames)
    concept._check('the trained parameters')
    return concept

  def save(self, path: str | os.PathLike) -> Path:
    """Writes the file in one move; equal concepts give equal bytes.

    Raises:
      DcjaxError: the folder cannot be written to.
    """
    tensors = {
      f'lora/{layer}/{leaf}': np.asarray(x)
      for layer, leaves in shapes.layers(self.lora).items()
      for leaf, x in leaves.items()
    } | {f'tokens/{name}': np.asarray(x) for name, x in self.tokens.items()}
    if self.frames is not None:
      tensors['frames'] = np.asarray(self.frames)
    head = {
      **self.meta,
      'format': FORMAT,
      'version': VERSION,
      'identity': self.identity,
      'motion': self.motion,
    }
    head = {key: json.dumps(x, sort_keys=True) for key, x in head.items()}
    container.write(Path(path), tensors, head)
    return Path(path)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Concept':
    """Reads a file that `save` wrote, or the LoRA file of another tool.

    Raises:
      DcjaxError: it is missing, broken, of another format, holds unknown keys,
        or its shapes do not fit each other.
    """
    head, tensors = container.read(Path(path))
    if not is_concept(head):
      return cls.from_lora_file(lora_file.parse(head, tensors, Path(path)))
    meta = {key: _decode(text) for key, text in head.items()}
    identity, motion = _check_head(meta, path)
    lora, tokens, frames = _unpack(tensors, path)
    concept = cls(lora, tokens, meta, identity, motion, frames)
    concept._check(str(path))
    if meta.get('rank') != _rank(lora):
      raise DcjaxError(
        f'{path} says that its rank is {meta.get("rank")}, but that of its '
        f'LoRA is {_rank(lora)}'
      )
    return concept

  @classmethod
  def from_lora_file(cls, file: lora_file.LoraFile) -> 'Concept':
    """The LoRA of another tool as a look, A1 B1, for any base that it fits.

    Raises:
      DcjaxError: the file has faults, or a number is not finite.
    """
    lora = formats.to_lora(file)
    meta = {
      'base': {'name': 'any that it fits', 'fingerprint': None},
      'rank': _rank(lora),
      'imported': {'file': Path(file.name).name, 'style': file.style},
    }
    concept = cls(lora, {}, meta)
    concept._check(file.name)
    return concept

  def scaled(self, identity: float = 1.0, motion: float = 1.0) -> 'Concept':
    """The same concept with W' = W + identity A1 B1 + motion A1 B2."""
    for name, x in (('identity', identity), ('motion', motion)):
      if not _is_number(x):
        raise DcjaxError(f'{name} is {x!r}, expected a number such as 0.7')
    return dataclasses.replace(
      self, identity=float(identity), motion=float(motion)
    )

  def times(self, identity: float, motion: float) -> 'Concept':
    """The same concept, its two weights multiplied: those of a file count."""
    return self.scaled(identity * self.identity, motion * self.motion)

  def put_into(
    self,
    base: Base,
    transformer: tree.Tree,
    tokens: Mapping[str, Any] | None = None,
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adds the weighed LoRA leaves and the learned words.

    Args:
      base: the base that `transformer` belongs to.
      transformer: its parameters, without LoRA.
      tokens: learned words that are there already.

    Returns:
      (transformer with LoRA leaves, tokens).

    Raises:
      DcjaxError: the concept was learnt on another base, does not fit it, or
        would meet another concept there.
    """
    learnt, here = self.meta['base'], _where(base)
    if learnt['fingerprint'] not in (None, here['fingerprint']):
      raise DcjaxError(
        f'the concept was learnt on {_say(learnt)} and cannot be put into '
        f'{_say(here)}; load the base it was learnt on, or train it on this one'
      )
    lora = self.lora
    if learnt['fingerprint'] is None:
      # A LoRA of others may leave out the last blocks.
      lora = shapes.with_depth(lora, base.dit.layers)
    found = shapes.misfits(lora, self.tokens, transformer, base.dit.text_width)
    if found:
      raise DcjaxError(
        f'the concept does not fit {_say(here)}: {tree.some(found)}'
      )
    tokens = dict(tokens or {})
    twice = sorted(f'[{name}]' for name in tokens.keys() & self.tokens.keys())
    if twice or any('/lora/' in name for name in tree.names(transformer)):
      raise DcjaxError(
        f'another concept is there already{": " if twice else ""}'
        f'{", ".join(twice)}; put several in at once: join(concepts).put_into'
      )
    weighed = lora_lib.scale(lora, self.identity, self.motion)
    return tree.combine(transformer, weighed), tokens | dict(self.tokens)

  def _check(self, what: str) -> None:
    found = shapes.problems(self.lora, self.tokens, self.frames)
    if found:
      raise DcjaxError(f'{what} make no concept: {tree.some(found)}')


def is_concept(head: Mapping[str, str]) -> bool:
  """Whether the metadata of a safetensors file is that of a concept."""
  return _decode(head.get('format')) == FORMAT


def join(concepts: Sequence[Concept]) -> Concept:
  """Several concepts of one base as one, to be used in the same prompt.

  The LoRAs of a layer stand side by side along the rank axis, which adds their
  updates: W' = W + sum_k A1_k (B1_k + B2_k), with the weights identity and
  motion multiplied in. The learned words are numbered in order: [v1] [u1] [v2]
  [u2] ...; a concept that was itself learnt as several takes as many numbers.
  One concept alone stays as it is.

  Raises:
    DcjaxError: there are none, they were learnt on different bases, or have
      more rank together than a layer has channels.
  """
  if not concepts:
    raise DcjaxError('no concepts to join, expected at least one')
  if len(concepts) == 1:
    return concepts[0]
  bases = [c.meta['base'] for c in concepts if c.meta['base']['fingerprint']]
  first = bases[0] if bases else concepts[0].meta['base']
  for base in bases:
    if base['fingerprint'] != first['fingerprint']:
      raise DcjaxError(
        'concepts of different bases cannot be joined: '
        f'{_say(first)} and {_say(base)}'
      )
  depth = max(shapes.depth(c.lora) for c in concepts)
  together: dict[str, list] = {}
  for c in concepts:
    weighed = lora_lib.scale(c.lora, c.identity, c.motion)
    weighed = shapes.with_depth(weighed, depth)
    for layer, leaves in shapes.layers(weighed).items():
      together.setdefault(layer, []).append(leaves)
  lora = tree.unflatten(
    {
      f'{layer}/lora/{leaf}': x
      for layer, several in together.items()
      for leaf, x in shapes.side_by_side(several).items()
    }
  )
  meta = {
    'base': first,
    'rank': _rank(lora),
    'joined': [dict(c.meta) for c in concepts],
  }
  return Concept(lora, shapes.renumber([c.tokens for c in concepts]), meta)


def _rank(lora: tree.Tree) -> int:
  """The highest rank of a layer; 0 without LoRA."""
  several = shapes.layers(lora).values()
  return max((shapes.rank(leaves) for leaves in several), default=0)


def _where(base: Base) -> dict[str, str]:
  return {'name': base.name, 'fingerprint': base.fingerprint}


def _say(base: Mapping[str, str]) -> str:
  return f'base {base["name"]!r} ({base["fingerprint"]})'


def _is_number(x: Any) -> bool:
  number = isinstance(x, numbers.Real) and not isinstance(x, bool)
  return number and math.isfinite(x)


def _decode(text: str | None) -> Any:
  """JSON, or the text itself where another tool wrote it."""
  try:
    return json.loads(text)
  except (TypeError, ValueError):
    return text


def _check_head(meta: dict[str, Any], path) -> tuple[float, float]:
  """Takes what is not `Concept.meta` out of the metadata; the two weights."""
  meta.pop('format')
  version = meta.pop('version', None)
  if version != VERSION:
    raise DcjaxError(
      f'{path} is a concept file of version {version}; this dcjax reads '
      f'version {VERSION}'
    )
  base = meta.get('base')
  if not isinstance(base, dict) or not {'name', 'fingerprint'} <= base.keys():
    raise DcjaxError(f'{path} does not say on which base it was learnt')
  identity, motion = meta.pop('identity', 1.0), meta.pop('motion', 1.0)
  if not (_is_number(identity) and _is_number(motion)):
    raise DcjaxError(
      f'{path} has the weights identity {identity!r} and motion {motion!r}, '
      'expected numbers'
    )
  return float(identity), float(motion)


def _unpack(
  tensors: Mapping[str, np.ndarray], path
) -> tuple[dict[str, Any], dict[str, Any], np.ndarray | None]:
  """Keys of the file -> (lora tree, tokens, frames)."""
  lora, tokens, unknown = {}, {}, []
  for key, x in tensors.items():
    layer = re.fullmatch(r'lora/(\w+(?:/\w+)*)/(a1|b1|b2)', key)
    word = re.fullmatch(r'tokens/([^/]+)', key)
    if layer:
      lora[f'{layer[1]}/lora/{layer[2]}'] = x
    elif word:
      tokens[word[1]] = x
    elif key != 'frames':
      unknown.append(key)
  if unknown:
    raise DcjaxError(
      f'{path} holds unknown keys: {tree.some(unknown, ", ")}; a concept has '
      'lora/<layer>/{a1,b1,b2}, tokens/{v,u} and frames'
    )
  return tree.unflatten(lora), tokens, tensors.get('frames')
