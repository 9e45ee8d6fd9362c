"""Floating-point operations of the transformer: the project's one formula.

Every product of the model counts two operations a multiply-add; norms, softmax,
rotations and other elementwise work do not count. For n video tokens and l text
tokens of a sample, width d, MLP width m and L blocks, forward:

  (1)  linear     2 L [ n (6 d^2 + 2 d m) + l 2 d d_text ]
  (2)  attention  4 L d ( pairs + n l )
  (3)  outside    2 n d (c_in + c_out) patch + text MLP + time and modulation

d_text is what cross-attention reads: d behind Wan's text MLP, else the width of
the features. `pairs` is n^2, or what a window leaves of it. A backward pass
through frozen layers has the product with their kernels but not the one that
makes their gradient:

  (4)  backward   linear x 1 (of a trained kernel: x 2) + attention x 2 + LoRA

References and words put m more tokens into the stream, to be multiplied and
attended to as n + m tokens are; timed captions of e tokens add to each block

  (5)  timed      2 L (2 n d^2 + 2 e d d_text) + 4 L d n e

The `model` operations of a step are (1-4), whatever the machine then does; the
`executed` ones add what rematerialisation computes again, and the half product
that flash attention does. Rates are quoted for model operations.
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from dcjax import tree
from dcjax.models.dit_config import DiTConfig
from dcjax.stage import Stage


@dataclasses.dataclass(frozen=True)
class Forward:
  """Operations of a forward pass: its linear layers and its attention."""

  linear: float
  attention: float

  @property
  def total(self) -> float:
    return self.linear + self.attention

  def times(self, factor: float) -> 'Forward':
    """The same for `factor` times as many samples."""
    return Forward(self.linear * factor, self.attention * factor)


@dataclasses.dataclass(frozen=True)
class Step:
  """Operations of an optimizer step: those of the model, and those done."""

  model: float
  executed: float


def forward(
  dit: DiTConfig,
  latents: tuple[int, ...],
  text_length: int,
  *,
  beside: int = 0,
  timed: int = 0,
) -> Forward:
  """Eq. (1-3) and (5) for one sample.

  Args:
    dit: the transformer.
    latents: (f, h, w, ...) of the sample.
    text_length: l.
    beside: m, tokens of references and words.
    timed: e, tokens of timed captions.
  """
  d, n, l = dit.width, tokens(dit, latents) + beside, text_length
  patch = math.prod(dit.patch) * dit.channels
  read = d if dit.text_mlp else dit.text_width
  block = n * (6 * d * d + 2 * d * dit.mlp_width) + 2 * l * d * read
  if timed:
    block += 2 * (n - beside) * d * d + 2 * timed * d * read
  if dit.modulation == 'block':
    block += dit.vectors * d * d
  twice = 2 if dit.self_cond else 1
  outside = n * d * patch * (1 + twice) + dit.time_width * d + d * d
  outside += (6 if dit.modulation == 'table' else 2) * d * d
  if dit.text_mlp:
    outside += l * (dit.text_width * d + d * d)
  seen = pairs(n, dit.window, beside) + n * l + (n - beside) * timed
  return Forward(
    linear=2.0 * (dit.layers * block + outside),
    attention=4.0 * dit.layers * d * seen,
  )


def tokens(dit: DiTConfig, latents: tuple[int, ...]) -> int:
  """n of a sample of latents (f, h, w, ...)."""
  return math.prod(
    size // patch for size, patch in zip(latents[:3], dit.patch, strict=True)
  )


def pairs(n: int, window: int | None, exempt: int = 0) -> int:
  """(query, key) pairs with |i - j| <= window, or one of the last exempt."""
  inside = n - exempt
  if window is None or window >= inside - 1:
    return n * n
  near = inside * (2 * window + 1) - window * (window + 1)
  return near + n * n - inside * inside


def lora(
  params: tree.Tree, latents: tuple[int, ...], text_length: int, dit: DiTConfig
) -> float:
  """Operations of the LoRA products of one sample, forward.

  Args:
    params: a transformer with LoRA leaves, or their shapes.
    latents: (f, h, w, ...) of the sample.
    text_length: l, the rows that keys and values of cross-attention read.
    dit: the transformer.
  """
  n, total = tokens(dit, latents), 0.0
  for name, leaf in tree.flatten(params).items():
    if re.search(r'lora/(a1|b1)$', name):
      total += 2.0 * _rows(name, n, text_length) * math.prod(leaf.shape)
  return total


def _rows(
  name: str, n: int, text_length: int, beside: int = 0, timed: int = 0
) -> int:
  """Rows of a sample that a kernel multiplies; n counts those beside."""
  if re.search(r'cross_attn/[kv]/|text_(in|out)/', name):
    return text_length
  if re.search(r'timed_attn/[kv]/', name):
    return timed
  if re.search(r'modulation/|time_(in|out)/', name):
    return 1
  return n - beside if 'timed_attn/' in name else n


def step(
  dit: DiTConfig,
  stage: Stage,
  params: Mapping[str, Any],
  latents: tuple[int, ...],
  text_length: int,
  *,
  remat: str = 'none',
  prior: bool = False,
  beside: int = 0,
  timed: int = 0,
) -> Step:
  """Eq. (4): operations of one optimizer step.

  Args:
    dit: the transformer.
    stage: what is trained, and on how many samples.
    params: {'transformer': shapes}, with LoRA leaves if it has them.
    latents: (f, h, w, ...) of a sample.
    text_length: l.
    remat: a key of `dit.REMAT_POLICIES`.
    prior: whether each sample has one of prior preservation beside it.
    beside: as of `forward`.
    timed: as of `forward`.
  """
  samples = stage.batch * (2 if prior else 1)
  once = forward(dit, latents, text_length, beside=beside, timed=timed)
  once = once.times(samples)
  side = lora(params['transformer'], latents, text_length, dit) * samples
  n, leaves = tokens(dit, latents) + beside, tree.flatten(params)
  # Those of `forward`: the words of references are few.
  kernels = sum(
    2.0
    * _rows(name, n, text_length, beside, timed)
    * math.prod(leaves[name].shape)
    for name in tree.match(params, stage.train)
    if re.match(r'transformer/(?!reference/).*/kernel$', name)
  )
  # The estimate of self-conditioning is a forward pass without gradient.
  passes = 2 if dit.self_cond else 1
  backward = once.linear + samples * kernels + 2 * once.attention
  model = passes * (once.total + side) + backward + 2 * side
  # Nothing reads again what `down` makes, which leaves the block; nor, where
  # the stream is kept, what the two `o` make.
  d = dit.width
  down = 2.0 * dit.layers * samples * n * d * dit.mlp_width
  outs = 4.0 * dit.layers * samples * n * d * d
  again = {
    'none': 0.0,
    'products': 0.0,
    'dots': once.attention,
    'attention': once.linear + side - down - outs,
    'full': once.total + side - down,
  }[remat]
  return Step(model, model + again + 0.5 * once.attention)
