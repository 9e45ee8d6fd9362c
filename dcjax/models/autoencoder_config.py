"""Shape of the causal video autoencoder of Set-and-Sequence (Table 4)."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from dcjax.errors import DcjaxError
from dcjax.models.vae_config import check_statistics

CLASS = 'CausalVideoAutoencoder'
UPSAMPLING = ('nearest', 'depth_to_space')


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Shape of the autoencoder; the defaults are the paper's.

  All lists go from pixels to latents, the decoder's too: it runs backwards.

  Attributes:
    base_channels: width at full resolution.
    multipliers: width of each stage, as a multiple of the base width.
    encoder_blocks: residual blocks of each stage of the encoder.
    decoder_blocks: those of the decoder.
    temporal_strides: frames that become one after a stage, 1 or 2.
    spatial_strides: pixels a side that become one after a stage, 1 or 2.
    z_dim: latent channels c.
    upsampling: 'nearest', repeats and convolves; 'depth_to_space', convolves to
      more channels and deals them out (MAGVIT-2), 261 M parameters more.
    latents_mean: [c] of raw latents, for `wan_vae.normalize`; () is zeros.
    latents_std: [c] likewise; () is ones.

  Raises:
    DcjaxError: if the values do not fit each other.
  """

  base_channels: int = 16
  multipliers: tuple[int, ...] = (1, 4, 16, 32, 64)
  encoder_blocks: tuple[int, ...] = (1, 1, 2, 8, 8)
  decoder_blocks: tuple[int, ...] = (4, 4, 4, 4, 4)
  temporal_strides: tuple[int, ...] = (1, 2, 2, 2, 1)
  spatial_strides: tuple[int, ...] = (2, 2, 2, 2, 1)
  z_dim: int = 32
  upsampling: str = 'nearest'
  latents_mean: tuple[float, ...] = ()
  latents_std: tuple[float, ...] = ()

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, list):
        object.__setattr__(self, field.name, tuple(value))
      _check_type(field.name, getattr(self, field.name))
    fill = {'latents_mean': 0.0, 'latents_std': 1.0}
    for name, value in fill.items():
      if not getattr(self, name):
        object.__setattr__(self, name, (value,) * self.z_dim)
    _check(self)

  @property
  def widths(self) -> tuple[int, ...]:
    """Of the stages."""
    return tuple(self.base_channels * m for m in self.multipliers)

  @property
  def strides(self) -> tuple[tuple[int, int], ...]:
    """(frames, pixels a side) that become one after each stage."""
    return tuple(zip(self.temporal_strides, self.spatial_strides, strict=True))

  @property
  def scale_factor_spatial(self) -> int:
    """Pixels a latent pixel, along h and along w."""
    return math.prod(self.spatial_strides)

  @property
  def scale_factor_temporal(self) -> int:
    """Frames a latent frame, after the first."""
    return math.prod(self.temporal_strides)

  def layer_size(self, frames: int, height: int, width: int) -> int:
    """Numbers in the largest layer: what the last upsampling gives."""
    return frames * height * width * max(self.widths[:2])

  def latent_shape(
    self, frames: int, height: int, width: int
  ) -> tuple[int, int, int, int]:
    """(f', h', w', c) of a clip's latents."""
    space = self.scale_factor_spatial
    f = 1 + (frames - 1) // self.scale_factor_temporal
    return f, height // space, width // space, self.z_dim

  @classmethod
  def from_json(cls, raw: Mapping[str, Any]) -> 'AutoencoderConfig':
    """Reads what `to_json` writes.

    Raises:
      DcjaxError: for another class, an unknown key or an impossible value.
    """
    if not isinstance(raw, Mapping):
      raise DcjaxError('the autoencoder config is not a JSON object')
    if raw.get('_class_name', CLASS) != CLASS:
      raise DcjaxError(
        f'the autoencoder is a {raw["_class_name"]}, not a {CLASS}'
      )
    given = {key: x for key, x in raw.items() if not key.startswith('_')}
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(given) - set(known))
    if unknown:
      raise DcjaxError(
        f'unknown key {unknown[0]!r} in the autoencoder config; known are '
        f'{", ".join(known)}'
      )
    return cls(**given)

  def to_json(self) -> dict[str, Any]:
    """The config.json of the folder `vae` of a base."""
    values = dataclasses.asdict(self)
    return {'_class_name': CLASS} | {
      key: list(x) if isinstance(x, tuple) else x for key, x in values.items()
    }


def _check_type(name: str, value: Any) -> None:
  if name == 'upsampling':
    if value not in UPSAMPLING:
      raise DcjaxError(
        f'upsampling is {value!r} in the autoencoder config; use '
        f'{" or ".join(UPSAMPLING)}'
      )
    return
  if name.startswith('latents_'):
    number = lambda x: isinstance(x, int | float) and math.isfinite(x)
    many, word = True, 'a list of finite numbers'
  else:
    number = lambda x: isinstance(x, int) and x > 0
    many = name not in ('base_channels', 'z_dim')
    word = 'positive whole numbers' if many else 'a positive whole number'
  values = value if many and isinstance(value, tuple) else (value,)
  fits = isinstance(value, tuple) == many
  if not fits or any(isinstance(x, bool) or not number(x) for x in values):
    raise DcjaxError(
      f'{name} is {value!r} in the autoencoder config; expected {word}'
    )


def _check(config: AutoencoderConfig) -> None:
  count = len(config.multipliers)
  for name in (
    'encoder_blocks',
    'decoder_blocks',
    'temporal_strides',
    'spatial_strides',
  ):
    if len(getattr(config, name)) != count or not count:
      raise DcjaxError(
        f'{name} has {len(getattr(config, name))} values and multipliers has '
        f'{count}; expected one a stage'
      )
  for name in ('temporal_strides', 'spatial_strides'):
    steps = getattr(config, name)
    if not set(steps) <= {1, 2} or steps[-1] != 1:
      raise DcjaxError(
        f'{name} is {steps}; expected 1 or 2, and 1 for the last stage'
      )
  for width in config.widths:
    if width % groups(width):
      raise DcjaxError(
        f'a stage has {width} channels, no multiple of {groups(width)}, the '
        'groups that are normalised apart'
      )
  check_statistics(config)


def groups(width: int) -> int:
  """Groups of a normalisation over that many channels."""
  return max(1, min(32, width // 2))
