"""Shape of a video DiT, and the shapes of the published ones."""

import dataclasses
from typing import Any

from dcjax.errors import DcjaxError
from dcjax.models import rope as rope_lib

CLASS = 'VideoDiT'  # in the config.json of shapes that diffusers has not
# Options that diffusers' class of Wan 2.1 has at our defaults, always.
_OF_WAN = (
  *('modulation', 'vectors', 'text_mlp', 'text_mask', 'cross_affine'),
  *('qk_norm', 'rope_split', 'window', 'self_cond'),
)


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Shape of a video DiT.

  Attributes:
    width: d.
    layers: number of blocks.
    heads: k; head dim e = width / heads.
    mlp_width: hidden width of the MLP.
    channels: latent channels c, in and out.
    text_width: channels of the text features.
    patch: latent pixels of a token along (f, h, w).
    modulation: 'table', 6 vectors from a global projection plus a learned table
      in each block; 'block', `vectors` from a projection in each block.
    vectors: modulation vectors of a block: 6; 7 adds a gate on cross-attention;
      9 adds its shift and scale as well.
    text_mlp: text features pass a two-layer MLP before the blocks.
    text_mask: padded text is hidden from cross-attention (Wan shows zeros).
    cross_affine: the norm before cross-attention has scale and bias.
    qk_norm: 'full' or 'head'.
    rope_split: channels of a head dealt to the axes (f, h, w).
    window: half width of the self-attention window in tokens, or None.
    self_cond: 'x0_concat' appends the previous estimate of x0 to the input
      channels (METHOD of bit diffusion); None if the base has none.
    time_width: width of the sinusoid.
    eps: of all norms.

  Raises:
    DcjaxError: the width does not share out over heads, or their channels over
      the axes.
  """

  width: int
  layers: int
  heads: int
  mlp_width: int
  channels: int
  text_width: int
  patch: tuple[int, int, int] = (1, 2, 2)
  modulation: str = 'table'
  vectors: int = 6
  text_mlp: bool = True
  text_mask: bool = False
  cross_affine: bool = True
  qk_norm: str = 'full'
  rope_split: tuple[int, int, int] | None = None
  window: int | None = None
  self_cond: str | None = None
  time_width: int = 256
  eps: float = 1e-6

  def __post_init__(self):
    # What is rotated is pairs of channels.
    if (
      self.heads < 1
      or self.width % self.heads
      or sum(self.split) != self.head_dim
      or any(part % 2 for part in self.split)
    ):
      raise DcjaxError(
        f'width {self.width} and rope_split {self.rope_split} of a transformer '
        f'do not share out over {self.heads} heads; expected a multiple of the '
        'heads, and even numbers that add up to the channels of each'
      )

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def split(self) -> tuple[int, int, int]:
    return self.rope_split or rope_lib.wan_split(self.head_dim)

  @property
  def is_wan(self) -> bool:
    """Whether diffusers' class of Wan 2.1 builds this shape."""
    return all(
      getattr(self, field.name) == field.default
      for field in dataclasses.fields(self)
      if field.name in _OF_WAN
    )

  @classmethod
  def from_json(cls, config: dict[str, Any]) -> 'DiTConfig':
    """Reads the `transformer/config.json` of a base.

    Of diffusers' class of Wan 2.1, or of ours, whose keys are those of here.

    Raises:
      DcjaxError: for another form of it, or an impossible value.
    """
    if config.get('_class_name') == CLASS:
      return _of_ours(config)
    unsupported = {
      'image_dim': None,
      'added_kv_proj_dim': None,
      'pos_embed_seq_len': None,
      'qk_norm': 'rms_norm_across_heads',
      'cross_attn_norm': True,
    }
    for key, value in unsupported.items():
      if config.get(key, value) != value:
        raise DcjaxError(
          f'transformer/config.json: {key}={config[key]!r} is not supported; '
          f'a Wan 2.1 text-to-video transformer has {key}={value!r}'
        )
    wrong = [key for key in _SIZES if not _is_size(config.get(key))]
    patch = config.get('patch_size')
    if not (isinstance(patch, list | tuple) and len(patch) == 3):
      wrong.append('patch_size')
    if wrong:
      raise DcjaxError(
        f'transformer/config.json: {", ".join(wrong)} should be positive '
        'numbers (patch_size: three)'
      )
    if config['in_channels'] != config['out_channels']:
      raise DcjaxError(
        'transformer/config.json: in_channels and out_channels differ '
        f'({config["in_channels"]}, {config["out_channels"]}); only '
        'text-to-video transformers are supported'
      )
    return cls(
      width=config['num_attention_heads'] * config['attention_head_dim'],
      layers=config['num_layers'],
      heads=config['num_attention_heads'],
      mlp_width=config['ffn_dim'],
      channels=config['in_channels'],
      text_width=config['text_dim'],
      patch=tuple(config['patch_size']),
      time_width=config['freq_dim'],
      eps=config['eps'],
    )

  def to_json(self) -> dict[str, Any]:
    """The inverse of `from_json`; that of diffusers where it builds this."""
    if not self.is_wan:
      return {'_class_name': CLASS, **dataclasses.asdict(self)}
    return {
      '_class_name': 'WanTransformer3DModel',
      'added_kv_proj_dim': None,
      'attention_head_dim': self.head_dim,
      'cross_attn_norm': self.cross_affine,
      'eps': self.eps,
      'ffn_dim': self.mlp_width,
      'freq_dim': self.time_width,
      'image_dim': None,
      'in_channels': self.channels,
      'num_attention_heads': self.heads,
      'num_layers': self.layers,
      'out_channels': self.channels,
      'patch_size': list(self.patch),
      'pos_embed_seq_len': None,
      'qk_norm': 'rms_norm_across_heads',
      'rope_max_seq_len': 1024,
      'text_dim': self.text_width,
    }


def _of_ours(raw: dict[str, Any]) -> DiTConfig:
  """Reads the keys of `DiTConfig` itself."""
  where = 'transformer/config.json'
  given = {
    key: tuple(x) if isinstance(x, list) else x
    for key, x in raw.items()
    if not key.startswith('_')
  }
  fields = {field.name: field for field in dataclasses.fields(DiTConfig)}
  unknown = sorted(set(given) - set(fields))
  missing = [
    name
    for name, field in fields.items()
    if field.default is dataclasses.MISSING and name not in given
  ]
  if unknown or missing:
    raise DcjaxError(
      f'{where}: unknown {", ".join(unknown) or "none"}, missing '
      f'{", ".join(missing) or "none"}; known are {", ".join(fields)}'
    )
  wrong = [
    name
    for name, x in given.items()
    if not _fits(x, fields[name].type) or x not in _CHOICES.get(name, (x,))
  ]
  if wrong:
    shown = ', '.join(f'{name}={given[name]!r}' for name in wrong)
    raise DcjaxError(f'{where}: {shown} cannot be')
  return DiTConfig(**given)


_CHOICES = {
  'modulation': ('table', 'block'),
  'vectors': (6, 7, 9),
  'qk_norm': ('full', 'head'),
  'self_cond': (None, 'x0_concat'),
}


def _fits(value: Any, kind: Any) -> bool:
  """Whether a value of JSON is of an annotated type, and positive."""
  text = kind.__name__ if isinstance(kind, type) else str(kind)
  if value is None:
    return 'None' in text
  if 'tuple' in text:
    whole = isinstance(value, tuple) and len(value) == 3
    return whole and all(map(_is_size, value))
  if text == 'bool' or text.startswith('str'):
    return isinstance(value, bool if text == 'bool' else str)
  whole = isinstance(value, int) or text == 'float'
  return _is_size(value) and whole


_SIZES = (
  *('num_attention_heads', 'attention_head_dim', 'num_layers', 'ffn_dim'),
  *('in_channels', 'out_channels', 'text_dim', 'freq_dim', 'eps'),
)


def _is_size(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and value > 0


WAN_1_3B = DiTConfig(
  width=1536,
  layers=30,
  heads=12,
  mlp_width=8960,
  channels=16,
  text_width=4096,
)
WAN_14B = dataclasses.replace(
  WAN_1_3B, width=5120, layers=40, heads=40, mlp_width=13824
)
SNAP_DIT_11B = DiTConfig(
  width=4096,
  layers=32,
  heads=32,
  mlp_width=4 * 4096,
  channels=32,
  text_width=1024,
  modulation='block',
  vectors=7,
  text_mlp=False,
  text_mask=True,
  cross_affine=False,
  qk_norm='head',
  rope_split=rope_lib.paper_split(128),
  window=3072,
  self_cond='x0_concat',
)
PRESETS = {
  'wan_t2v_1_3b': WAN_1_3B,
  'wan_t2v_14b': WAN_14B,
  'snap_dit_11b': SNAP_DIT_11B,
}
