"""LoRA as tree surgery: low-rank leaves beside the kernels of a frozen model.

A layer y = x W with kernel W [in out] (scanned layers: [layers in out]) gets

  (1)  W' = W + A1 B1 + A1 B2        (Set-and-Sequence, Sec. 3)

with the basis A1 [in r], drawn at random, and the coefficients B1, B2 [r out],
zero at first. The leaves stand beside the kernel as `lora/{a1,b1,b2}`. The
model knows nothing of them: `with_lora` wraps its apply function so that a
linear layer which finds them adds x A1 (B1 + B2), and `fuse` folds them into
the kernels.

With `side='out'` the basis is the up-projection, A1 [r out], and the
coefficients are the down-projections, B [in r]: the other reading of the
paper's product.
"""

from collections.abc import Callable
import math
import re
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from dcjax import tree
from dcjax.errors import DcjaxError

LEAVES = ('a1', 'b1', 'b2')


def attach(
  params: tree.Tree,
  pattern: str,
  rank: int,
  key: jax.Array,
  *,
  side: str = 'in',
) -> dict[str, Any]:
  """Puts LoRA leaves beside every kernel whose name matches.

  Args:
    params: tree with kernels [in out] or [layers in out].
    pattern: searched for in the kernels' names.
    rank: r.
    key: draws the bases.
    side: 'in', the basis reads the input; 'out', it writes the output.

  Returns:
    The tree with float32 leaves `lora/{a1,b1,b2}` added.
  """
  if side not in ('in', 'out'):
    raise DcjaxError(f"LoRA side {side!r}; use 'in' or 'out'")
  flat = tree.flatten(params)
  kernels = [n for n in tree.match(params, pattern) if n.endswith('/kernel')]
  if not kernels:
    raise DcjaxError(f'LoRA pattern {pattern!r} matches no kernel')
  for index, name in enumerate(kernels):
    *layers, width_in, width_out = flat[name].shape
    layer = name.removesuffix('/kernel')
    # At the full rank the two sides could not be told apart by their shapes.
    if len(layers) > 1 or not 1 <= rank < min(width_in, width_out):
      raise DcjaxError(
        f'no LoRA of rank {rank} fits {name} of shape {flat[name].shape}; take '
        f'a rank from 1 to {min(width_in, width_out) - 1} and linear layers '
        'only'
      )
    down, up = (*layers, width_in, rank), (*layers, rank, width_out)
    basis, coefficients = (down, up) if side == 'in' else (up, down)
    draw = jax.random.normal(jax.random.fold_in(key, index), basis)
    flat[f'{layer}/lora/a1'] = draw / math.sqrt(basis[-2])
    flat[f'{layer}/lora/b1'] = jnp.zeros(coefficients)
    flat[f'{layer}/lora/b2'] = jnp.zeros(coefficients)
  return tree.unflatten(flat)


# Linear layers whose input has a row for every token of the video; the others
# read text or time.
ON_VIDEO = re.compile(
  r'(self_attn/[qkvo]|(cross|timed)_attn/[qo]|mlp/(up|down)|patch|head)$'
)


def with_lora(apply: Callable, gate: jax.Array | None = None) -> Callable:
  """Wraps a Linen `apply` so that linear layers add their LoRA, Eq. (1).

  The interceptor is entered inside the wrapped call, so the result is a pure
  function that can be jitted; entered outside, a cached trace would ignore it.

  Args:
    apply: of a transformer.
    gate: [b n g], how much of the LoRA each token of the stream gets, in the
      layers `ON_VIDEO`; a layer that reads fewer tokens reads the first ones.
      Which of the g columns a rank obeys, says a leaf `lora/group` [r]
      (scanned: [layers r]); without it, the first. What reads text is not
      gated. None: all of the LoRA, for every token.
  """

  def intercept(next_call, args, kwargs, context):
    y = next_call(*args, **kwargs)
    if not context.module.has_variable('params', 'lora'):
      return y
    leaves = context.module.get_variable('params', 'lora')
    gated = gate is not None and ON_VIDEO.search('/'.join(context.module.path))
    weights = _weights(gate, args[0], leaves) if gated else None
    return y + _residual(args[0], leaves, weights).astype(y.dtype)

  def wrapped(variables, *args, **kwargs):
    with nn.intercept_methods(intercept):
      return apply(variables, *args, **kwargs)

  return wrapped


def _weights(gate: jax.Array, x: jax.Array, leaves) -> jax.Array:
  """[b n r] of a layer with the input x [b n d]; r may be 1."""
  n = x.shape[1]
  if gate.shape[:2] != (len(x), gate.shape[1]) or gate.shape[1] < n:
    raise ValueError(
      f'a gate of {gate.shape} does not fit an input of {x.shape}'
    )
  if 'group' not in leaves:
    return gate[:, :n, :1]
  return jnp.take(gate[:, :n], leaves['group'], axis=-1)


def _residual(x: jax.Array, leaves, weights: jax.Array | None) -> jax.Array:
  """x A1 (B1 + B2), or x (B1 + B2) A1 for a basis on the output."""
  coefficients = leaves['b1'] + leaves['b2']
  down, up = leaves['a1'], coefficients
  if down.shape[0] != x.shape[-1]:
    down, up = coefficients, leaves['a1']
  inner = checkpoint_name(_project(x, down), 'product')
  if weights is not None:
    inner = inner * weights.astype(x.dtype)
  return _project(inner, up)


@jax.custom_vjp
def _project(x: jax.Array, leaf: jax.Array) -> jax.Array:
  """x W in the dtype of x; the gradient of W is summed, and stays, float32.

  Over tokens, and over the devices that they lie on: autodiff would round each
  of these sums to the dtype of x.
  """
  return x @ leaf.astype(x.dtype)


def _project_forward(x, leaf):
  return _project(x, leaf), (x, leaf)


def _project_backward(kept, slope):
  x, leaf = kept
  of_leaf = jnp.einsum(
    '...i,...o->io', x, slope, preferred_element_type=jnp.float32
  )
  return slope @ leaf.T.astype(slope.dtype), of_leaf.astype(leaf.dtype)


_project.defvjp(_project_forward, _project_backward)


def drop(
  params: tree.Tree, key: jax.Array, rate: float, pattern: str
) -> dict[str, Any]:
  """Drops single elements of the coefficients (Set-and-Sequence, Sec. 3.3).

    B' = B * M / (1 - p),   M_ij ~ Bernoulli(1 - p)

  One mask a leaf: called once an optimizer step, the whole batch shares it.

  The paper prints C * M, without the division, which is this with
  B = (1 - p) C. Adam does not see scales: but for clipping and decay, C is
  trained as printed where B is trained at (1 - p) of the rate, by a group of
  the optimizer. To sample with C whole, `scale` what was learnt by 1 / (1 - p).

  Args:
    params: tree with LoRA leaves.
    key: this step's key.
    rate: p.
    pattern: names of the leaves to drop from; the basis is never dropped.
  """
  if rate == 0.0:
    return dict(params)
  flat = tree.flatten(params)
  for index, name in enumerate(sorted(tree.match(params, pattern))):
    if name.endswith('/a1'):
      raise ValueError(f'the basis {name} is never dropped')
    keep = jax.random.bernoulli(
      jax.random.fold_in(key, index), 1.0 - rate, flat[name].shape
    )
    flat[name] = jnp.where(keep, flat[name] / (1.0 - rate), 0.0)
  return tree.unflatten(flat)


def fuse(params: tree.Tree) -> dict[str, Any]:
  """Folds every LoRA into its kernel and drops the leaves, in float32."""
  flat = tree.flatten(params)
  layers = [n.removesuffix('/a1') for n in flat if n.endswith('/lora/a1')]
  for layer in layers:
    a1, b1, b2 = (flat.pop(f'{layer}/{leaf}') for leaf in LEAVES)
    name = f'{layer.removesuffix("/lora")}/kernel'
    kernel = flat[name]
    down, up = (
      (a1, b1 + b2) if a1.shape[-2] == kernel.shape[-2] else (b1 + b2, a1)
    )
    flat[name] = (kernel.astype(jnp.float32) + down @ up).astype(kernel.dtype)
  return tree.unflatten(flat)


def scale(params: tree.Tree, identity: float, motion: float) -> dict[str, Any]:
  """W' = W + identity A1 B1 + motion A1 B2: weighs appearance and motion."""
  flat = tree.flatten(params)
  for name in flat:
    if name.endswith('lora/b1'):
      flat[name] = flat[name] * identity
    elif name.endswith('lora/b2'):
      flat[name] = flat[name] * motion
  return tree.unflatten(flat)
