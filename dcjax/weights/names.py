"""Tables between our parameter names and those of published checkpoints.

A model has one table: our leaf name -> `Entry`, which says under which names
the checkpoint holds that leaf and how the axes differ. A leaf of scanned layers
has one checkpoint name a layer, in order. The same table reads and writes.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dcjax import tree
from dcjax.errors import DcjaxError

# Axes of ours in the order of the checkpoint's: checkpoint = ours.transpose(p).
LAYOUTS = {
  'same': None,
  'linear': (1, 0),  # [in out] -> (out, in)
  'conv2d': (3, 2, 0, 1),  # [h w in out] -> (out, in, h, w)
  'conv3d': (4, 3, 0, 1, 2),  # [f h w in out] -> (out, in, f, h, w)
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a checkpoint holds one of our leaves.

  Attributes:
    keys: checkpoint name of each layer of a scanned leaf; else just one.
    layout: a key of `LAYOUTS`.
    stacked: whether our leaf has a leading layer axis.
    shape: the checkpoint's shape where reshaping is needed after the layout (a
      norm scale of shape (c, 1, 1), for instance); None otherwise.
  """

  keys: tuple[str, ...]
  layout: str = 'same'
  stacked: bool = False
  shape: tuple[int, ...] | None = None

  def layer_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one layer of a leaf of ours."""
    return shape[1:] if self.stacked else shape

  def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The checkpoint's shape of a layer that has this shape with us."""
    if self.shape is not None:
      return self.shape
    axes = LAYOUTS[self.layout]
    return shape if axes is None else tuple(shape[axis] for axis in axes)

  def to_ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A view of the checkpoint's tensor as a layer of this shape."""
    axes = LAYOUTS[self.layout]
    if axes is None:
      return x.reshape(shape)
    x = x.reshape([shape[axis] for axis in axes])
    return x.transpose(np.argsort(axes))

  def to_theirs(self, x: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    axes = LAYOUTS[self.layout]
    x = x if axes is None else x.transpose(axes)
    return x if self.shape is None else x.reshape(self.shape)


Table = dict[str, Entry]


def check_tensors(
  table: Table, tensors: Mapping[str, Any], expected: tree.Tree, *, what: str
) -> None:
  """Whether a checkpoint's tensors are those of a model; reads no number.

  Args:
    table: the model's table.
    tensors: {checkpoint name: anything with a shape}.
    expected: our tree of `jax.ShapeDtypeStruct`.
    what: where the tensors came from, for the message.

  Raises:
    DcjaxError: with the +/- list, if a tensor is missing, extra or misshapen.
  """
  wanted = {key for entry in table.values() for key in entry.keys}
  problems = [f'- {key} (missing)' for key in sorted(wanted - set(tensors))]
  problems += [
    f'+ {key} (not expected)' for key in sorted(set(tensors) - wanted)
  ]
  for name, x in tree.flatten(expected).items():
    shape = table[name].their_shape(table[name].layer_shape(x.shape))
    problems += [
      f'~ {key} is {tuple(tensors[key].shape)}, expected {shape}'
      for key in table[name].keys
      if key in tensors and tuple(tensors[key].shape) != shape
    ]
  if problems:
    shown = tree.some(problems, limit=12)
    raise DcjaxError(f'{what} does not fit this model: {shown}')


def read_tensors(
  table: Table, tensors: Mapping[str, Any], expected: tree.Tree, *, what: str
) -> dict[str, Any]:
  """Checkpoint tensors -> our tree of numpy arrays in the checkpoint's dtype.

  Args and errors: those of `check_tensors`.
  """
  check_tensors(table, tensors, expected, what=what)
  flat = {}
  for name, x in tree.flatten(expected).items():
    entry = table[name]
    shape = entry.layer_shape(x.shape)
    layers = [
      entry.to_ours(np.asarray(tensors[key]), shape) for key in entry.keys
    ]
    flat[name] = np.stack(layers) if entry.stacked else layers[0]
  return tree.unflatten(flat)


def write_tensors(table: Table, params: tree.Tree) -> dict[str, np.ndarray]:
  """Our tree -> {checkpoint name: array}, the inverse of `read_tensors`."""
  tensors = {}
  for name, leaf in tree.flatten(params).items():
    entry, leaf = table[name], np.asarray(leaf)
    for key, x in zip(
      entry.keys, leaf if entry.stacked else leaf[None], strict=True
    ):
      tensors[key] = np.ascontiguousarray(entry.to_theirs(x))
  return tensors


def transformer_table(config) -> Table:
  """Names of diffusers' `WanTransformer3DModel` for our Wan-form `DiT`."""
  table = {
    'patch/kernel': Entry(
      ('patch_embedding.weight',),
      'linear',
      shape=(config.width, config.channels, *config.patch),
    ),
    'patch/bias': Entry(('patch_embedding.bias',)),
    'head_modulation': Entry(
      ('scale_shift_table',), shape=(1, 2, config.width)
    ),
    'head/kernel': Entry(('proj_out.weight',), 'linear'),
    'head/bias': Entry(('proj_out.bias',)),
  }
  embedder = {
    'time_in': 'time_embedder.linear_1',
    'time_out': 'time_embedder.linear_2',
    'time_modulation': 'time_proj',
    'text_in': 'text_embedder.linear_1',
    'text_out': 'text_embedder.linear_2',
  }
  for ours, theirs in embedder.items():
    table |= _linear(ours, [f'condition_embedder.{theirs}'])
  for ours, theirs in BLOCK_LINEARS.items():
    table |= _linear(
      f'blocks/{ours}',
      [f'blocks.{i}.{theirs}' for i in range(config.layers)],
      stacked=True,
    )
  vectors = {
    'self_attn/norm_q/scale': 'attn1.norm_q.weight',
    'self_attn/norm_k/scale': 'attn1.norm_k.weight',
    'cross_attn/norm_q/scale': 'attn2.norm_q.weight',
    'cross_attn/norm_k/scale': 'attn2.norm_k.weight',
    'cross_norm/scale': 'norm2.weight',
    'cross_norm/bias': 'norm2.bias',
    'modulation/table': 'scale_shift_table',
  }
  for ours, theirs in vectors.items():
    table[f'blocks/{ours}'] = Entry(
      tuple(f'blocks.{i}.{theirs}' for i in range(config.layers)),
      stacked=True,
      shape=(1, 6, config.width) if ours.startswith('modulation') else None,
    )
  return table


# The linear layers of a block, the ones that LoRA may extend.
BLOCK_LINEARS = {
  'self_attn/q': 'attn1.to_q',
  'self_attn/k': 'attn1.to_k',
  'self_attn/v': 'attn1.to_v',
  'self_attn/o': 'attn1.to_out.0',
  'cross_attn/q': 'attn2.to_q',
  'cross_attn/k': 'attn2.to_k',
  'cross_attn/v': 'attn2.to_v',
  'cross_attn/o': 'attn2.to_out.0',
  'mlp/up': 'ffn.net.0.proj',
  'mlp/down': 'ffn.net.2',
}


def _linear(ours: str, theirs: list[str], *, stacked: bool = False) -> Table:
  """Kernel and bias of a linear layer, of every block if stacked."""
  return {
    f'{ours}/kernel': Entry(
      tuple(f'{name}.weight' for name in theirs), 'linear', stacked
    ),
    f'{ours}/bias': Entry(
      tuple(f'{name}.bias' for name in theirs), stacked=stacked
    ),
  }


def text_table(config) -> Table:
  """UMT5Encoder (`models.text`) <-> transformers' UMT5 and T5EncoderModel."""
  block = 'encoder.block.{}.layer.'
  attn, mlp = block + '0.SelfAttention.', block + '1.DenseReluDense.'
  parts = {'gate': 'wi_0', 'up': 'wi_1'} if config.gated else {'up': 'wi'}
  linear = {f'attn/{x}/kernel': f'{attn}{x}.weight' for x in 'qkvo'} | {
    f'mlp/{ours}/kernel': f'{mlp}{theirs}.weight'
    for ours, theirs in {**parts, 'down': 'wo'}.items()
  }
  bias = attn + 'relative_attention_bias.weight'
  same = {
    'attn_norm/scale': block + '0.layer_norm.weight',
    'mlp_norm/scale': block + '1.layer_norm.weight',
  }
  table = {
    'embedding': Entry(('shared.weight',)),
    'norm/scale': Entry(('encoder.final_layer_norm.weight',)),
  }
  if config.shares_bias:
    table['position_bias'] = Entry((bias.format(0),))
  else:
    same['attn/position_bias'] = bias
  for layout, leaves in (('linear', linear), ('same', same)):
    for name, key in leaves.items():
      keys = tuple(key.format(i) for i in range(config.num_layers))
      table[f'layers/{name}'] = Entry(keys, layout, stacked=True)
  return table


def without_tied_text(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """UMT5 tensors with one name for the embedding, whichever names it has.

  transformers writes `shared.weight` alone; other tools write its tied copy
  `encoder.embed_tokens.weight` beside it or instead of it.
  """
  tensors = dict(tensors)
  tied = tensors.pop('encoder.embed_tokens.weight', None)
  if tied is not None:
    tensors.setdefault('shared.weight', tied)
  return tensors


def vae_table(config) -> Table:
  """The Wan autoencoder (`VAEConfig`) in diffusers' AutoencoderKLWan names."""
  table = _vae_conv('quant_conv', 'quant_conv')
  table |= _vae_conv('post_quant_conv', 'post_quant_conv')
  for side, widths in (
    ('encoder', config.encoder_widths),
    ('decoder', config.decoder_widths),
  ):
    last, middle = widths[-1], widths[-1 if side == 'encoder' else 0]
    table |= _vae_conv(f'{side}/conv_in', f'{side}.conv_in')
    table |= _vae_middle(f'{side}/mid', f'{side}.mid_block', middle)
    table |= _vae_norm(f'{side}/norm_out', f'{side}.norm_out', last)
    table |= _vae_conv(f'{side}/conv_out', f'{side}.conv_out')
  return table | _vae_down(config) | _vae_up(config)


def _vae_down(config) -> Table:
  """The encoder's levels: in diffusers blocks, or for Wan2.1 one flat list."""
  table, at, before = {}, 0, config.base_dim
  for i, width in enumerate(config.encoder_widths):
    level = f'encoder.down_blocks.{i}'
    for j in range(config.num_res_blocks):
      flat = f'encoder.down_blocks.{at}'
      theirs = f'{level}.resnets.{j}' if config.is_residual else flat
      table |= _vae_res(f'encoder/down_{i}_res_{j}', theirs, before, width)
      at, before = at + 1, width
    if i + 1 < len(config.encoder_widths):
      flat = f'encoder.down_blocks.{at}'
      theirs = f'{level}.downsampler' if config.is_residual else flat
      time = config.temporal_downsample[i]
      table |= _vae_resample(f'encoder/down_{i}_sample', theirs, time)
      at += 1
  return table


def _vae_up(config) -> Table:
  """The decoder's levels; in Wan2.1, upsampling halves the width as well."""
  table, before = {}, config.decoder_widths[0]
  times = config.temporal_downsample[::-1]
  sampler = 'upsampler' if config.is_residual else 'upsamplers.0'
  for i, width in enumerate(config.decoder_widths):
    theirs = f'decoder.up_blocks.{i}'
    for j in range(config.num_res_blocks + 1):
      ours = f'decoder/up_{i}_res_{j}'
      table |= _vae_res(ours, f'{theirs}.resnets.{j}', before, width)
      before = width
    if i + 1 < len(config.decoder_widths):
      ours = f'decoder/up_{i}_sample'
      table |= _vae_resample(ours, f'{theirs}.{sampler}', times[i])
      before = width if config.is_residual else width // 2
  return table


def _vae_middle(ours: str, theirs: str, width: int) -> Table:
  attention, square = f'{theirs}.attentions.0', (width, width, 1, 1)
  return {
    **_vae_res(f'{ours}/res_0', f'{theirs}.resnets.0', width, width),
    **_vae_res(f'{ours}/res_1', f'{theirs}.resnets.1', width, width),
    f'{ours}/attn/norm/scale': Entry(
      (f'{attention}.norm.gamma',), shape=(width, 1, 1)
    ),
    f'{ours}/attn/qkv/kernel': Entry(
      (f'{attention}.to_qkv.weight',), 'linear', shape=(3 * width, *square[1:])
    ),
    f'{ours}/attn/qkv/bias': Entry((f'{attention}.to_qkv.bias',)),
    f'{ours}/attn/proj/kernel': Entry(
      (f'{attention}.proj.weight',), 'linear', shape=square
    ),
    f'{ours}/attn/proj/bias': Entry((f'{attention}.proj.bias',)),
  }


def _vae_res(ours: str, theirs: str, before: int, width: int) -> Table:
  table = {
    **_vae_norm(f'{ours}/norm1', f'{theirs}.norm1', before),
    **_vae_conv(f'{ours}/conv1', f'{theirs}.conv1'),
    **_vae_norm(f'{ours}/norm2', f'{theirs}.norm2', width),
    **_vae_conv(f'{ours}/conv2', f'{theirs}.conv2'),
  }
  if before != width:
    table |= _vae_conv(f'{ours}/shortcut', f'{theirs}.conv_shortcut')
  return table


def _vae_resample(ours: str, theirs: str, time: bool) -> Table:
  table = _vae_conv(f'{ours}/conv', f'{theirs}.resample.1', 'conv2d')
  if time:
    table |= _vae_conv(f'{ours}/time_conv', f'{theirs}.time_conv')
  return table


def _vae_norm(ours: str, theirs: str, width: int) -> Table:
  return {f'{ours}/scale': Entry((f'{theirs}.gamma',), shape=(width, 1, 1, 1))}


def _vae_conv(ours: str, theirs: str, layout: str = 'conv3d') -> Table:
  return {
    f'{ours}/kernel': Entry((f'{theirs}.weight',), layout),
    f'{ours}/bias': Entry((f'{theirs}.bias',)),
  }
