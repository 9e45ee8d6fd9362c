"""Shape of a text encoder, UMT5 or T5, in the names of its config.json."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from dcjax.errors import DcjaxError


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of an encoder, in the spelling of transformers' configs.

  Attributes:
    vocab_size: rows of the embedding.
    d_model: width d of the features.
    d_kv: head dim e; num_heads * d_kv need not be d_model.
    d_ff: hidden width of the gated MLP.
    num_layers: encoder layers.
    num_heads: attention heads k.
    relative_attention_num_buckets: rows of a layer's position bias.
    relative_attention_max_distance: tokens; farther ones share a bucket.
    layer_norm_epsilon: of the RMS norms.
    model_type: 'umt5', or 't5', whose layers share one position bias.
    feed_forward_proj: 'gated-gelu', or 'relu' for T5 1.0.
  """

  vocab_size: int = 256384
  d_model: int = 4096
  d_kv: int = 64
  d_ff: int = 10240
  num_layers: int = 24
  num_heads: int = 64
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  layer_norm_epsilon: float = 1e-6
  model_type: str = 'umt5'
  feed_forward_proj: str = 'gated-gelu'

  def __post_init__(self):
    for key, accepted in _KINDS.items():
      value = getattr(self, key)
      if value not in accepted:
        raise DcjaxError(
          f'text encoder: {key} {value!r} is not supported, expected '
          f'{" or ".join(accepted)}'
        )
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name in _KINDS:
        continue
      number = (int, float) if field.type is float else int
      if isinstance(value, bool) or not isinstance(value, number) or value <= 0:
        raise DcjaxError(
          f'text encoder: {field.name} is {value!r}, expected a positive '
          f'{field.type.__name__}'
        )
    buckets = self.relative_attention_num_buckets
    if buckets % 4 or self.relative_attention_max_distance <= buckets // 4:
      raise DcjaxError(
        'text encoder: relative_attention_num_buckets must be a multiple of 4 '
        'and relative_attention_max_distance more than a quarter of it, got '
        f'{buckets} and {self.relative_attention_max_distance}'
      )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> 'TextConfig':
    """Reads the content of the `config.json` of a UMT5 or T5.

    Keys that do not change an encoder's features (dropout, the decoder) are
    ignored; absent ones take the defaults of transformers.

    Raises:
      DcjaxError: it is another architecture or MLP, or a size is impossible.
    """
    kind = config.get('model_type', 'umt5')
    defaults = _T5 if kind == 't5' else _UMT5
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(
      **{name: config.get(name, defaults[name]) for name in names}
      | {'model_type': kind}
    )

  def to_json(self) -> dict[str, Any]:
    """A `config.json` that UMT5EncoderModel or T5EncoderModel reads."""
    return {
      'architectures': [self.architecture],
      **dataclasses.asdict(self),
      'dropout_rate': 0.0,
      'eos_token_id': 1,
      'pad_token_id': 0,
      'tie_word_embeddings': True,
    }

  @property
  def architecture(self) -> str:
    """The class of transformers."""
    return f'{self.model_type.upper()}EncoderModel'

  @property
  def shares_bias(self) -> bool:
    """Whether all layers have one position bias."""
    return self.model_type == 't5'

  @property
  def gated(self) -> bool:
    """Whether the MLP is."""
    return self.feed_forward_proj == 'gated-gelu'


_KINDS = {
  'model_type': ('umt5', 't5'),
  'feed_forward_proj': ('gated-gelu', 'relu'),
}
_UMT5 = {
  'vocab_size': 250112,
  'd_model': 512,
  'd_kv': 64,
  'd_ff': 1024,
  'num_layers': 8,
  'num_heads': 6,
  'relative_attention_num_buckets': 32,
  'relative_attention_max_distance': 128,
  'layer_norm_epsilon': 1e-6,
  'model_type': 'umt5',
  'feed_forward_proj': 'gated-gelu',
}
_T5 = _UMT5 | {
  'vocab_size': 32128,
  'd_ff': 2048,
  'num_layers': 6,
  'num_heads': 8,
  'feed_forward_proj': 'relu',
}


# The encoder of T5 1.0 at 11B, which has the 1024 channels of the paper's DiT.
T5_11B = TextConfig(
  vocab_size=32128,
  d_model=1024,
  d_kv=128,
  d_ff=65536,
  num_layers=24,
  num_heads=128,
  model_type='t5',
  feed_forward_proj='relu',
)
