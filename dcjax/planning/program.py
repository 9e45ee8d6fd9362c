"""A program by its shapes, and where they lie on a mesh."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from dcjax.planning import flops
from dcjax.weights.outline import nbytes

Shape = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Passes:
  """How often a run of a program goes through the transformer.

  Attributes:
    samples: of one device, in one pass.
    tokens: of a sample.
    forward: passes whose results are used.
    backward: passes for gradients.
    again: forward passes that rematerialisation repeats.
  """

  samples: int
  tokens: int
  forward: int
  backward: int = 0
  again: int = 0

  @property
  def reads(self) -> int:
    """How often all parameters are read."""
    return self.forward + self.backward + self.again


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a job.

  Attributes:
    name: of a stage, or 'sample', 'encode text', 'encode video', 'decode'.
    what: its work, in words.
    jitted: the function.
    arguments: of it, as shapes.
    specs: `PartitionSpec` of every argument.
    resident: bytes that lie beside its arguments on a device.
    mesh: {axis: size} that it was made for.
    work: operations of one run; None where they are not counted.
    runs: how often it runs.
    passes: through the transformer; None of programs without it.
    spread: devices that do different parts of its work.
    trains: whether it is a step of training.
    alone: the same for the samples of one device, without a mesh; None where
      this one has none.
    key: what its trace follows from, beside the mesh.
  """

  name: str
  what: str
  jitted: Callable
  arguments: tuple[Any, ...]
  specs: tuple[Any, ...]
  resident: int
  mesh: dict[str, int]
  work: flops.Step | None = None
  runs: int = 1
  passes: Passes | None = None
  spread: int = 1
  trains: bool = False
  alone: 'Program | None' = None
  key: str = ''

  def trace(self, place: Callable[[P], Any] | None = None) -> Any:
    """`jax.stages.Traced`; `place` makes shardings of specs."""
    if place is None:
      return self.jitted.trace(*self.arguments)

    def placed(x, spec):
      return Shape(x.shape, x.dtype, sharding=place(spec))

    return self.jitted.trace(*jax.tree.map(placed, self.arguments, self.specs))

  @property
  def held(self) -> int:
    """Bytes of the arguments on one device."""
    return sum(shard_bytes(x, spec, self.mesh) for _, x, spec in self.leaves)

  @property
  def leaves(self) -> list[tuple[str, Any, P]]:
    """(name, shape, spec) of every argument."""
    named, _ = jax.tree_util.tree_flatten_with_path(self.arguments)
    return [
      (jax.tree_util.keystr(path, simple=True, separator='/'), x, spec)
      for (path, x), spec in zip(named, spec_leaves(self.specs), strict=True)
    ]


def spec_leaves(tree: Any) -> list[P]:
  """Every spec of a tree of them, in the order of `jax.tree.leaves`."""
  return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, P))


def shard_bytes(x: Any, spec: P, sizes: dict[str, int]) -> int:
  """Bytes of an array on one device of a mesh."""
  axes = [a for entry in spec if entry for a in names(entry)]
  return nbytes(x) // math.prod(sizes[a] for a in axes)


def names(entry: Any) -> tuple[str, ...]:
  """The axes of one entry of a spec, which is not None."""
  return (entry,) if isinstance(entry, str) else tuple(entry)
