"""What devices have to say to each other, by arithmetic.

For programs that cannot be compiled here, and to hold compiled ones against.
Per run of a program, for s samples of n tokens on a device at once, width d,
and activations in bfloat16:

  data      every leaf that is trained, and that every device has: its gradient
            is summed over the devices of all axes, once; that of one that is
            split, in each pass, over those that share out samples or tokens
  fsdp      every kernel is gathered in each pass, forward, backward and, at
            the most, again, but for frozen ones that are read once a sample;
            the gradient of one that is trained is summed and shared out in each
  context   an attention exchanges q, k, v and its result: 4 s n / c d; where
            the heads do not divide, k and v go to all that have the same ones
  tensor    attention and MLP each sum s n d, forward and backward
"""

import math
import re
from typing import Any

from dcjax import mesh, sharding
from dcjax.models import attention
from dcjax.models.dit_config import DiTConfig
from dcjax.planning.collectives import Collective
from dcjax.planning.program import Program, names, shard_bytes

# Parameters of the transformer among the arguments of a program.
PARAMETER = re.compile('[01]/(trainable/)?(transformer|params)/')
_HALF = {'bfloat16': 'bf16', 'float32': 'f32', 'float16': 'f16'}


def expected(program: Program, dit: DiTConfig) -> list[Collective]:
  """The collectives of a run of a program.

  Args:
    program: on a mesh; one without `passes` is taken to need none.
    dit: the transformer.
  """
  sizes = {axis: n for axis, n in program.mesh.items() if n > 1}
  if not sizes or program.passes is None:
    return []
  found = [*_kernels(program)]
  if program.trains:
    found += _gradients(program, tuple(sizes)) + _split_gradients(program)
  found += _activations(program, dit)
  return found


def is_trained(name: str) -> bool:
  """Whether an argument of a step is a parameter that it trains."""
  return name.startswith('0/trainable')


def _gradients(program: Program, axes: tuple[str, ...]) -> list[Collective]:
  """Of leaves that all devices have, as one sum."""
  copied = [
    math.prod(x.shape) * 4
    for name, x, spec in program.leaves
    if is_trained(name) and not any(spec)
  ]
  total = sum(copied)
  if not total:
    return []
  group = math.prod(program.mesh[a] for a in axes)
  return [
    Collective('all-reduce', 'f32', (total // 4,), total, group, axes, 1, False)
  ]


def _split_gradients(program: Program) -> list[Collective]:
  """Of a part of a leaf, over the devices that have the same part."""
  found = []
  for name, x, spec in program.leaves:
    if not is_trained(name) or not any(spec):
      continue
    # Over 'tensor' too there may be copies; they have all samples and tokens.
    axes = tuple(
      axis
      for axis in (*mesh.ROWS, 'context')
      if program.mesh[axis] > 1 and axis not in _axes(spec)
    )
    if axes:
      part = shard_bytes(x, spec, program.mesh) // x.dtype.itemsize
      group = math.prod(program.mesh[axis] for axis in axes)
      count = program.passes.backward
      found.append(
        Collective(
          'all-reduce', 'f32', x.shape, part * 4, group, axes, count, False
        )
      )
  return found


def _kernels(program: Program) -> list[Collective]:
  """Gathered in each pass; gradients of trained ones shared out."""
  passes, group = program.passes, program.mesh['fsdp']
  if group == 1:
    return []
  found = []
  for name, x, spec in program.leaves:
    if not PARAMETER.match(name) or not is_gathered(name, spec):
      continue
    whole = shard_bytes(x, spec, program.mesh) * group
    dtype = _HALF.get(str(x.dtype), str(x.dtype))

    def one(kind, count, x=x, whole=whole, dtype=dtype):
      axes = ('fsdp',)
      return Collective(kind, dtype, x.shape, whole, group, axes, count, True)

    found.append(one('all-gather', passes.reads))
    if is_trained(name):
      found.append(one('reduce-scatter', passes.backward))
  return found


def is_gathered(name: str, spec: Any) -> bool:
  """Whether a leaf is split over 'fsdp' and whole where it is read."""
  if 'fsdp' not in _axes(spec):
    return False
  by_sample = re.search(sharding.BY_SAMPLE, name) and spec[-1] == 'fsdp'
  return is_trained(name) or not by_sample


def _axes(spec: Any) -> set[str]:
  return {a for entry in spec if entry for a in names(entry)}


def _activations(program: Program, dit: DiTConfig) -> list[Collective]:
  """What attention exchanges and what split products sum."""
  passes, found = program.passes, []
  context, tensor = program.mesh['context'], program.mesh['tensor']
  tokens = -(-passes.tokens // context)
  shape = (passes.samples, tokens, dit.width)
  size = math.prod(shape) * 2
  if context > 1:
    parts = attention.same_heads(dit.heads, tensor, context)
    found.append(
      Collective(
        'all-to-all',
        'bf16',
        shape,
        size // tensor,
        context,
        ('context',),
        (2 + 2 * parts) * dit.layers * passes.reads,
        False,
      )
    )
  if tensor > 1:
    count = 2 * dit.layers * passes.reads
    axes = ('tensor',)
    found.append(
      Collective('all-reduce', 'bf16', shape, size, tensor, axes, count, False)
    )
  return found
