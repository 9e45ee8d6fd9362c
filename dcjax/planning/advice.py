"""What to change when a run does not fit: settings, tried, cheapest first.

Nothing here is a rule of thumb. A setting is changed in a copy of the job, the
programs that were too large are forecast again, and so on until all of them
fit; then every change that turns out not to be needed is taken back.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from dcjax import mesh
from dcjax.models.dit import REMAT_POLICIES

# The least rank, frames and pixels a side that are proposed.
RANK, FRAMES, SIDE = 4, 5, 192
# Options that are changed together, so that none can be taken back alone.
_TOGETHER = ('format.height', 'format.width', 'mesh.')
# {option: value} of the next smaller setting; empty at the end.
Changes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Advice:
  """Settings with which a run fits, or how far it gets.

  Attributes:
    options: {option: value}.
    peak: bytes of the largest program with them.
    fits: whether that is little enough.
  """

  options: dict[str, Any]
  peak: int
  fits: bool


@dataclasses.dataclass(frozen=True)
class _Run:
  """What a lever knows of a run beside its config, as of `find`."""

  format: tuple[int, int, int]
  large: Sequence[str]
  sizes: Mapping[str, int]
  units: int


def find(
  config: ConfigDict,
  format: tuple[int, int, int],
  large: Sequence[str],
  peak: Callable[[ConfigDict, Sequence[str]], int],
  usable: int,
  sizes: Mapping[str, int] | None = None,
  units: int = 1,
) -> Advice:
  """Settings with which the large programs fit.

  Args:
    config: of the job.
    format: (frames, height, width) that it comes to.
    large: names of the programs that do not fit.
    peak: the bytes of the largest of these programs for a config.
    usable: bytes of the device.
    sizes: of the job's mesh; one device by default.
    units: of which its axis 'data' is to be a multiple.
  """
  changed: Changes = {}
  run = _Run(format, large, sizes or {}, units)

  def bytes_with(options):
    return peak(_with(config, options), large)

  most, fits = bytes_with(changed), False
  for lever in LEVERS:
    while not fits:
      step = lever(_with(config, changed), run)
      if not step:
        break
      changed |= step
      most = bytes_with(changed)
      fits = most <= usable
  if not fits:
    return Advice(changed, most, False)
  for key in reversed(list(changed)):
    fewer = {k: v for k, v in changed.items() if k != key}
    if not key.startswith(_TOGETHER):
      found = bytes_with(fewer)
      if found <= usable:
        changed, most = fewer, found
  return Advice(changed, most, True)


def _with(config: ConfigDict, options: Changes) -> ConfigDict:
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(options)
  return copy


def _accumulate(config, run) -> Changes:
  """Twice as many microbatches: costs nothing."""
  shares = math.prod(run.sizes.get(axis, 1) for axis in mesh.ROWS)
  return {
    f'{name}.accumulate': shares * _next_divisor(own, parts)
    for name in _stages(config)
    for own in [_samples(config[name]) // shares]
    for parts in [-(-config[name].accumulate // shares)]
    if name in run.large and parts < own
  }


def _split(config, run) -> Changes:
  """Kernels over twice as many chips: they are gathered when they are used."""
  return _moved(config, run, 'data', 'fsdp')


def _tokens(config, run) -> Changes:
  """Tokens over twice as many chips, which exchange them in every block."""
  if not {*_stages(config), 'sample'} & set(run.large):
    return {}
  return _moved(config, run, 'data', 'context') or _moved(
    config, run, 'fsdp', 'context'
  )


def _moved(config, run, source: str, target: str) -> Changes:
  """Half of the chips along one axis go to another."""
  chips = math.prod(run.sizes.values())
  now = mesh.filled(config.mesh, chips)
  if chips == 1 or now[source] % 2:
    return {}
  now |= {source: now[source] // 2, target: now[target] * 2}
  if now['data'] % run.units:
    return {}
  return {f'mesh.{axis}': n for axis, n in now.items()}


def _stages(config) -> list[str]:
  """Keys of the stages of training of a job."""
  return [
    key
    for key, part in config.items()
    if isinstance(part, ConfigDict) and 'accumulate' in part
  ]


def _samples(stage) -> int:
  """What microbatches must divide: samples of each loss of a step."""
  return math.gcd(*(n for _, n in stage.get('mix', ()))) or stage.batch


def _next_divisor(batch: int, accumulate: int) -> int:
  return next(n for n in range(accumulate + 1, batch + 1) if batch % n == 0)


def _remat(config, run) -> Changes:
  """Computes more of a block again: up to a third more time."""
  # 'dots' keeps more than 'products' and computes more.
  order = [name for name in REMAT_POLICIES if name != 'dots']
  usual = 'products' if config.remat == 'dots' else config.remat
  if not set(run.large) & set(_stages(config)) or usual not in order[:-1]:
    return {}
  return {'remat': order[order.index(usual) + 1]}


def _dtype(config, run) -> Changes:
  """Half of the base's bytes."""
  del run
  if 'base_dtype' not in config or config.base_dtype == 'bfloat16':
    return {}
  return {'base_dtype': 'bfloat16'}


def _rank(config, run) -> Changes:
  """A smaller LoRA, its gradients and its optimizer state."""
  del run
  if 'lora' not in config or not config.lora.rank:
    return {}
  rank = config.lora.rank // 2
  return {'lora.rank': rank} if rank >= RANK else {}


def _frames(config, run) -> Changes:
  """A shorter clip; a large one is encoded and decoded in chunks anyway."""
  if not set(run.large) & {*_stages(config), 'sample'}:
    return {}
  frames = config.format.frames or run.format[0]
  shorter = frames * 3 // 4 // 4 * 4 + 1
  return {'format.frames': shorter} if FRAMES <= shorter < frames else {}


def _size(config, run) -> Changes:
  """A smaller picture."""
  if not set(run.large) - {'encode text'}:
    return {}
  sides = (
    config.format.height or run.format[1],
    config.format.width or run.format[2],
  )
  smaller = [side * 4 // 5 // 16 * 16 for side in sides]
  if min(smaller) < SIDE:
    return {}
  return dict(zip(('format.height', 'format.width'), smaller, strict=True))


LEVERS = (
  _accumulate,
  _split,
  _remat,
  _tokens,
  _dtype,
  _rank,
  _frames,
  _size,
)
