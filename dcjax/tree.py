"""Parameter names: the one mechanism that freezing, loading and sharding use.

A tree is a nested dict of arrays. The name of a leaf is its path joined with
slashes, for example `transformer/blocks/attn1/q/lora/a1`. Patterns are regular
expressions that are searched for in names (`re.search`), and they are strict: a
pattern that matches nothing is an error, because a typing mistake in one would
otherwise train nothing, silently.
"""

from collections.abc import Mapping
import re
from typing import Any

from dcjax.errors import DcjaxError

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
  """Nested dict -> {name: leaf}, in the order of the tree."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat.update({f'{key}/{name}': x for name, x in flatten(value).items()})
    else:
      flat[key] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{name: leaf} -> nested dict, the inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *path, last = name.split('/')
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def names(tree: Tree) -> list[str]:
  """The names of all leaves."""
  return list(flatten(tree))


def match(tree: Tree, pattern: str) -> list[str]:
  """The names in which `pattern` is found; at least one, or a DcjaxError."""
  try:
    found = [name for name in names(tree) if re.search(pattern, name)]
  except re.error as error:
    raise DcjaxError(f'pattern {pattern!r}: {error}') from error
  if not found:
    raise DcjaxError(
      f'pattern {pattern!r} matches no parameter; the tree has '
      f'{some(names(tree), ", ", 6)}'
    )
  return found


def partition(tree: Tree, pattern: str) -> tuple[dict, dict]:
  """Splits a tree into (leaves that match, the rest); `combine` undoes it."""
  found = set(match(tree, pattern))
  flat = flatten(tree)
  chosen = {name: x for name, x in flat.items() if name in found}
  rest = {name: x for name, x in flat.items() if name not in found}
  return unflatten(chosen), unflatten(rest)


def combine(*trees: Tree) -> dict[str, Any]:
  """Joins trees that share no leaf."""
  flat: dict[str, Any] = {}
  for tree in trees:
    leaves = flatten(tree)
    twice = flat.keys() & leaves.keys()
    if twice:
      raise ValueError(
        f'leaves in more than one tree: {some(sorted(twice), ", ", 6)}'
      )
    flat.update(leaves)
  return unflatten(flat)


def some(items: list[str], separator: str = '; ', limit: int = 8) -> str:
  """The first few of a list, in one line."""
  shown = separator.join(items[:limit])
  more = len(items) - limit
  return shown + (f'{separator}and {more} more' if more > 0 else '')
