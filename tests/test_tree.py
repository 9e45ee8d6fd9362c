"""Names of parameters: nothing is lost, nothing is silent."""

import jax
import numpy as np
import pytest

from dcjax import tree
from dcjax.errors import DcjaxError

TREE = {
  'blocks': {
    'attn': {'kernel': np.zeros((3, 4)), 'bias': np.ones(4)},
    'mlp': {'kernel': np.full((4, 2), 2.0)},
  },
  'head': {'kernel': np.full((2, 5), 3.0)},
  'scale': np.arange(3.0),
}
NAMES = [
  'blocks/attn/kernel',
  'blocks/attn/bias',
  'blocks/mlp/kernel',
  'head/kernel',
  'scale',
]


def same(a, b):
  """The same structure, holding the very same arrays."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(x is y for x, y in pairs)


def test_flat_and_nested_are_inverse():
  assert tree.names(TREE) == NAMES
  assert same(tree.unflatten(tree.flatten(TREE)), TREE)


@pytest.mark.parametrize(
  'pattern, found',
  [
    ('kernel$', ['blocks/attn/kernel', 'blocks/mlp/kernel', 'head/kernel']),
    ('^head', ['head/kernel']),
    ('blocks/(attn|mlp)/kernel', ['blocks/attn/kernel', 'blocks/mlp/kernel']),
    ('.*', NAMES),
  ],
)
def test_combine_undoes_partition(pattern, found):
  chosen, rest = tree.partition(TREE, pattern)
  assert tree.names(chosen) == found == tree.match(TREE, pattern)
  assert sorted(tree.names(chosen) + tree.names(rest)) == sorted(NAMES)
  assert same(tree.combine(chosen, rest), TREE)
  assert same(tree.combine(rest, chosen), TREE)


def test_a_pattern_that_matches_nothing_is_an_error():
  for function in (tree.match, tree.partition):
    with pytest.raises(DcjaxError, match=r"'kernal' matches no .*head/kernel"):
      function(TREE, 'kernal')


def test_combine_refuses_to_overwrite():
  with pytest.raises(ValueError, match='blocks/mlp/kernel'):
    tree.combine(TREE, {'blocks': {'mlp': {'kernel': np.zeros(1)}}})
