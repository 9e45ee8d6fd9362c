"""Where parameters, optimizer states and batches lie on the current mesh.

A rule is a pair of a regular expression, searched for in the name of a leaf,
and axes of the mesh, one for each of the last dimensions of the leaf: so the
leading axis of scanned layers needs no mention. Names begin with the part of
the base, also where a state has something before it: so an optimizer's moments
lie as their parameters do. The first rule that matches counts; what no rule
matches, every device has. So does an axis that does not divide its dimension.
"""

from collections.abc import Callable, Iterable, Sequence
import re
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from dcjax import mesh
from dcjax.errors import DcjaxError

Rule = tuple[str, tuple[str | None, ...]]

# Kernels that are read once a sample, not once a token: what they are given is
# small beside them. It is gathered, and they stay where they are if frozen.
BY_SAMPLE = r'modulation/(dense/)?kernel$'
RULES: tuple[Rule, ...] = (
  # Every device has its own copy of what a LoRA trains.
  (r'/lora/', ()),
  (BY_SAMPLE, (None, 'fsdp')),
  # Heads and the MLP's width: columns of what makes them, rows of what reads.
  (r'attn/[qkv]/kernel$|mlp/up/kernel$', ('fsdp', 'tensor')),
  (r'attn/o/kernel$|mlp/down/kernel$', ('tensor', 'fsdp')),
  (r'(transformer|text_encoder)/.*(kernel|embedding)$', ('fsdp', None)),
)
MOST_RULES = 10
# Where the name of a parameter begins in that of a leaf of a state.
_PART = re.compile(r'(?:^|/)(?=(?:transformer|text_encoder|vae|tokens)/)')


def check_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
  """The rules of a config, or `RULES` if it has none.

  Raises:
    DcjaxError: if they are not rules.
  """
  rules = tuple(rules) or RULES
  if len(rules) > MOST_RULES:
    raise DcjaxError(
      f'config.mesh.rules has {len(rules)} rules; expected at most {MOST_RULES}'
    )
  for rule in rules:
    if not _is_rule(rule):
      raise DcjaxError(
        f'config.mesh.rules has {rule!r}; expected pairs of a regular '
        "expression and different axes, such as ('kernel$', ('fsdp', None))"
      )
    pattern, axes = rule
    unknown = [x for x in axes if x is not None and x not in mesh.AXES]
    if unknown:
      raise DcjaxError(
        f'config.mesh.rules: {pattern!r} asks for the axis {unknown[0]!r}; use '
        f'{", ".join(mesh.AXES)}'
      )
    try:
      re.compile(pattern)
    except re.error as error:
      raise DcjaxError(f'config.mesh.rules: {pattern!r}: {error}') from error
  return tuple((pattern, tuple(axes)) for pattern, axes in rules)


def _is_rule(rule: Any) -> bool:
  try:
    pattern, axes = rule
    used = [axis for axis in axes if axis is not None]
    return (
      isinstance(pattern, str)
      and not isinstance(axes, str)
      and len(set(used)) == len(used)
    )
  except (TypeError, ValueError):
    return False


def spec(name: str, shape: Sequence[int], rules: Sequence[Rule] = RULES) -> P:
  """Where a leaf lies on the current mesh.

  Args:
    name: such as 'transformer/blocks/mlp/up/kernel', or with something before.
    shape: of the leaf.
    rules: the first that matches counts.
  """
  part = _PART.search(name)
  name = name[part.end() :] if part else name
  axes = next((axes for regex, axes in rules if re.search(regex, name)), ())
  axes = axes[len(axes) - min(len(axes), len(shape)) :]
  axes = (None,) * (len(shape) - len(axes)) + tuple(axes)
  fits = lambda n, axis: axis is not None and n % mesh.size(axis) == 0
  return P(
    *(a if fits(n, a) else None for n, a in zip(shape, axes, strict=True))
  )


def specs(tree: Any, rules: Sequence[Rule] = RULES) -> Any:
  """The `spec` of every leaf of a tree of arrays or shapes."""

  def of(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return spec(name, x.shape, rules)

  return jax.tree_util.tree_map_with_path(of, tree)


def constrain(tree: Any, rules: Sequence[Rule] = RULES) -> Any:
  """Inside a program: has the leaves lie as the rules say."""
  if mesh.size() == 1:
    return tree
  return jax.lax.with_sharding_constraint(tree, specs(tree, rules))


def create(make: Callable, *args: Any, rules: Sequence[Rule] = RULES) -> Any:
  """`make(*args)`, born where it is to lie: no device ever holds all of it."""
  if not spread():
    return make(*args)
  shardings = named(specs(jax.eval_shape(make, *args), rules))
  return jax.jit(make, out_shardings=shardings)(*args)


def place(tree: Any, rules: Sequence[Rule] = RULES) -> Any:
  """Puts arrays that every process has onto the devices, as the rules say."""
  if not spread():
    return jax.device_put(tree)
  return jax.tree.map(_put, tree, named(specs(tree, rules)))


def placement(rules: Sequence[Rule] = RULES) -> Callable | None:
  """(leaf name, shape) -> sharding, for `load_base`; None on one device."""
  if not spread():
    return None
  return lambda name, shape: named(spec(name, shape, rules))


def spread() -> bool:
  """Whether there is a mesh of more than one device, or process."""
  return mesh.size() > 1 or jax.process_count() > 1


def named(tree: Any) -> Any:
  """PartitionSpecs -> shardings on the current mesh."""
  current = jax.sharding.get_mesh()
  return jax.tree.map(
    lambda x: NamedSharding(current, x),
    tree,
    is_leaf=lambda x: isinstance(x, P),
  )


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
  if isinstance(x, jax.Array) and x.sharding == sharding:
    return x
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _put(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  # Not `device_put`, which would compare the processes' copies.
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])


# ---- batches -----------------------------------------------------------------


def local_rows(n: int) -> range | list[int]:
  """Which samples of a batch of n this process is to have ready.

  Raises:
    DcjaxError: if the mesh cannot share them out.
  """
  shares = mesh.size(*mesh.ROWS)
  if n < 1 or n % shares:
    raise DcjaxError(
      f'batch is {n}; expected a multiple of {shares}, the shares that '
      'config.mesh.data and fsdp make of it'
    )
  if jax.process_count() == 1:
    return range(n)
  return sorted(set(_rows_of(named(P(mesh.ROWS)), n)))


def _rows_of(sharding: NamedSharding, n: int) -> Iterable[int]:
  for (index,) in sharding.addressable_devices_indices_map((n,)).values():
    yield from range(*index.indices(n))


def batch(local: Any) -> Any:
  """The arrays of a step over all processes, samples over the rows of the mesh.

  Args:
    local: what `local_rows` named, in that order, on the host.
  """
  if not spread():
    return local
  sharding = named(P(mesh.ROWS))
  here = len(set(_rows_of(sharding, mesh.size(*mesh.ROWS))))

  def one(x):
    x = np.asarray(x)
    n = len(x) * mesh.size(*mesh.ROWS) // here
    places = {row: place for place, row in enumerate(local_rows(n))}

    def shard(index):
      return x[[places[row] for row in range(*index[0].indices(n))]]

    return jax.make_array_from_callback((n, *x.shape[1:]), sharding, shard)

  return jax.tree.map(one, local)


def fetch(tree: Any) -> Any:
  """Arrays as numpy, whole, in every process."""

  def whole(x):
    here = not isinstance(x, jax.Array) or x.is_fully_addressable
    if not (here or x.is_fully_replicated):
      x = jax.jit(lambda x: x, out_shardings=named(P()))(x)
    return np.asarray(x)

  return jax.tree.map(whole, tree)
