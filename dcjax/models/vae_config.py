"""Shape of a Wan autoencoder, in our names and in those of its config.json."""

from collections.abc import Mapping
import dataclasses
import itertools
import math
from typing import Any

from dcjax.errors import DcjaxError

_CLASS = 'AutoencoderKLWan'

# Options of the published class that this project does not build, with the
# values that mean "not used".
_UNSUPPORTED = {
  'attn_scales': ((), 'attention in the down blocks is not supported'),
  'dropout': ((0, 0.0), 'dropout is not supported'),
}

# Statistics of the Wan2.1 latents.
_MEAN = (
  *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
  *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD = (
  *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
  *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Shape of the autoencoder; the defaults are Wan2.1's.

  Attributes:
    base_dim: width of the encoder at full resolution.
    decoder_base_dim: that of the decoder; None is `base_dim`.
    z_dim: latent channels c.
    dim_mult: width of each level, as a multiple of the base width; there is a
      factor 2 in h and w between levels.
    num_res_blocks: residual blocks a level; the decoder has one more.
    attn_scales: levels with attention; only () is supported.
    temporal_downsample: between which levels time is halved as well.
    is_residual: Wan2.2's levels, with a parameter-free shortcut around each
      one that changes the size, rather than Wan2.1's.
    patch_size: pixels a side that are channels of one position; None is 1.
    latents_mean: [c] of raw latents, for `normalize`.
    latents_std: [c] likewise.

  Raises:
    DcjaxError: if the values do not fit each other.
  """

  base_dim: int = 96
  decoder_base_dim: int | None = None
  z_dim: int = 16
  dim_mult: tuple[int, ...] = (1, 2, 4, 4)
  num_res_blocks: int = 2
  attn_scales: tuple[float, ...] = ()
  temporal_downsample: tuple[bool, ...] = (False, True, True)
  is_residual: bool = False
  patch_size: int | None = None
  latents_mean: tuple[float, ...] = _MEAN
  latents_std: tuple[float, ...] = _STD

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check_type(field.name, getattr(self, field.name), field.type)
      if isinstance(getattr(self, field.name), list):
        object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
    _refuse({'attn_scales': self.attn_scales})
    _check(self)

  @property
  def scale_factor_spatial(self) -> int:
    """Pixels a latent pixel, along h and along w."""
    return 2 ** (len(self.dim_mult) - 1) * (self.patch_size or 1)

  @property
  def scale_factor_temporal(self) -> int:
    """Frames a latent frame, after the first."""
    return 2 ** sum(self.temporal_downsample)

  @property
  def pixel_channels(self) -> int:
    """Channels of a position at full width: three a pixel of the patch."""
    return 3 * (self.patch_size or 1) ** 2

  @property
  def derived(self) -> dict[str, int]:
    """What a config.json repeats although it follows from the rest."""
    return {
      'in_channels': self.pixel_channels,
      'out_channels': self.pixel_channels,
      'scale_factor_spatial': self.scale_factor_spatial,
      'scale_factor_temporal': self.scale_factor_temporal,
    }

  @property
  def encoder_widths(self) -> tuple[int, ...]:
    """Widths of the encoder's levels, from pixels to latents."""
    return tuple(self.base_dim * m for m in self.dim_mult)

  @property
  def decoder_widths(self) -> tuple[int, ...]:
    """Widths of the decoder's levels, from latents to pixels."""
    base = self.decoder_base_dim or self.base_dim
    return tuple(base * m for m in reversed(self.dim_mult))

  def step(self, level: int) -> int:
    """Positions that become one after a level of the encoder."""
    if level == len(self.temporal_downsample):
      return 1
    return 8 if self.temporal_downsample[level] else 4

  def layer_size(self, frames: int, height: int, width: int) -> int:
    """Numbers in the largest layer, one at full width."""
    positions = frames * height * width // (self.patch_size or 1) ** 2
    return positions * max(self.encoder_widths[0], self.decoder_widths[-1])

  def latent_shape(
    self, frames: int, height: int, width: int
  ) -> tuple[int, int, int, int]:
    """(f', h', w', c) of a clip's latents."""
    space = self.scale_factor_spatial
    f = 1 + (frames - 1) // self.scale_factor_temporal
    return f, height // space, width // space, self.z_dim

  @classmethod
  def from_json(cls, raw: Mapping[str, Any]) -> 'VAEConfig':
    """Reads the config.json of diffusers' AutoencoderKLWan.

    Raises:
      DcjaxError: for another class, an unknown key, a value of the wrong type,
        or one that this project does not build.
    """
    if not isinstance(raw, Mapping):
      raise DcjaxError('the autoencoder config is not a JSON object')
    if raw.get('_class_name', _CLASS) != _CLASS:
      raise DcjaxError(
        f'the autoencoder is a {raw["_class_name"]}; only {_CLASS} is supported'
      )
    # The published Wan2.2 file says clip_output, which the class does not read.
    raw = {
      key: x
      for key, x in raw.items()
      if not key.startswith('_') and key != 'clip_output'
    }
    _refuse(raw)
    names = {_spelling(field.name) for field in dataclasses.fields(cls)}
    derived = set(cls().derived)
    unknown = sorted(set(raw) - names - derived - set(_UNSUPPORTED))
    if unknown:
      raise DcjaxError(
        f'unknown key {unknown[0]!r} in the autoencoder config; known are '
        f'{", ".join(sorted(names | derived | set(_UNSUPPORTED)))}'
      )
    config = cls(
      **{
        field.name: raw[_spelling(field.name)]
        for field in dataclasses.fields(cls)
        if _spelling(field.name) in raw
      }
    )
    for key, value in config.derived.items():
      if raw.get(key, value) != value:
        raise DcjaxError(
          f'{key} is {raw[key]!r} in the autoencoder config, but its other '
          f'values give {value}'
        )
    return config

  def to_json(self) -> dict[str, Any]:
    """The config.json that diffusers' AutoencoderKLWan reads."""
    values = {
      _spelling(key): list(x) if isinstance(x, tuple) else x
      for key, x in dataclasses.asdict(self).items()
    }
    return {
      '_class_name': _CLASS,
      **values,
      **self.derived,
      'dropout': 0.0,
    }


def _spelling(name: str) -> str:
  """The published key; one of them has a slip of the pen."""
  return 'temperal_downsample' if name == 'temporal_downsample' else name


def _refuse(raw: Mapping[str, Any]) -> None:
  for key, (accepted, why) in _UNSUPPORTED.items():
    if key not in raw:
      continue
    value = raw[key]
    empty = accepted == () and isinstance(value, (list, tuple)) and not value
    if not empty and value not in accepted:
      shown = ' or '.join(repr(x) for x in accepted) or '[]'
      raise DcjaxError(
        f'{key} is {value!r} in the autoencoder config: {why}, expected {shown}'
      )


def _check_type(name: str, value: Any, kind: Any) -> None:
  """One value against its annotation: a scalar, or a list or tuple of them."""
  text = str(kind if not isinstance(kind, type) else kind.__name__)
  if value is None and 'None' in text:
    return
  many = 'tuple' in text
  if many and not isinstance(value, (list, tuple)):
    raise DcjaxError(f'{_spelling(name)} must be a list, not {value!r}')
  for x in value if many else (value,):
    if 'bool' in text:
      fits, word = isinstance(x, bool), 'true or false'
    elif 'float' in text:
      fits = isinstance(x, (int, float)) and not isinstance(x, bool)
      fits, word = fits and math.isfinite(x), 'finite numbers'
    else:
      fits = isinstance(x, int) and not isinstance(x, bool) and x > 0
      word = 'positive whole numbers' if many else 'a positive whole number'
    if not fits:
      raise DcjaxError(f'{_spelling(name)} must be {word}, not {value!r}')


def _check(config: VAEConfig) -> None:
  steps = len(config.dim_mult) - 1
  if steps < 0:
    raise DcjaxError('dim_mult is empty; expected one multiple a level')
  if len(config.temporal_downsample) != steps:
    raise DcjaxError(
      f'temperal_downsample has {len(config.temporal_downsample)} values; '
      f'dim_mult has {steps + 1} levels, so {steps} are expected'
    )
  if config.is_residual:
    _check_shortcuts(config)
  elif any(width % 2 for width in config.decoder_widths[:-1]):
    raise DcjaxError(
      f'the decoder widths are {config.decoder_widths}; all but the last must '
      'be even'
    )
  check_statistics(config)


def check_statistics(config: Any) -> None:
  """Refuses statistics of latents that are not one a channel, or no scale."""
  for name in ('latents_mean', 'latents_std'):
    if len(getattr(config, name)) != config.z_dim:
      raise DcjaxError(
        f'{name} has {len(getattr(config, name))} values; z_dim is '
        f'{config.z_dim}'
      )
  if min(config.latents_std) <= 0:
    raise DcjaxError(f'latents_std must be positive, not {config.latents_std}')


def _check_shortcuts(config: VAEConfig) -> None:
  """Channels must be shared out evenly where a shortcut changes the size."""
  widths = (config.base_dim, *config.encoder_widths)
  for i, (before, width) in enumerate(itertools.pairwise(widths)):
    if before * config.step(i) % width:
      raise DcjaxError(
        f'the encoder widths are {widths}: {before} channels times '
        f'{config.step(i)} positions are no multiple of {width}'
      )
  widths = (config.decoder_widths[0], *config.decoder_widths)
  for i, (before, width) in enumerate(itertools.pairwise(widths[:-1])):
    step = config.step(len(config.dim_mult) - 2 - i)
    if width * step % before:
      raise DcjaxError(
        f'the decoder widths are {widths}: {width} channels times {step} '
        f'positions are no multiple of {before}'
      )
