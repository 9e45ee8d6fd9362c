"""Which mesh a job gets on a topology, and why.

Moving samples to devices costs least, so they are shared out first; the frozen
base is then on every device. Where it does not fit, its kernels are split over
as few devices as need be ('fsdp'). Tokens are shared out ('context') where
there are fewer samples than devices, or one does not fit.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from dcjax import mesh
from dcjax.errors import DcjaxError
from dcjax.planning.topology import Topology

# {program: bytes on a device} of a job on a mesh.
Peaks = Callable[[ConfigDict, dict[str, int]], Mapping[str, int]]
ALONE = dict.fromkeys(mesh.AXES, 1)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh for a job.

  Attributes:
    sizes: {axis: devices}.
    options: of the job, with which it runs on it: {option: value}.
    why: in a line; '' for a single device.
  """

  sizes: dict[str, int]
  options: dict[str, Any]
  why: str


def of_job(config: ConfigDict, topology: Topology) -> Layout:
  """The mesh that the job itself asks for.

  Raises:
    DcjaxError: it is not one of as many devices, or goes beyond a slice or a
      machine with more than 'data'.
  """
  chips = topology.chips
  sizes = mesh.filled(config.mesh, chips)
  if min(sizes.values()) < 1 or math.prod(sizes.values()) != chips:
    has = f'{chips} chips' if chips > 1 else 'one chip'
    raise DcjaxError(
      f'config.mesh is {sizes}, and {topology.name} has {has}; the product of '
      'the axes is their number, and at most one axis is 0'
    )
  if sizes['data'] % topology.units:
    what = 'slices' if topology.slices > 1 else 'machines'
    raise DcjaxError(
      f'config.mesh.data is {sizes["data"]}; expected a multiple of '
      f'{topology.units}, the {what} of {topology.name}'
    )
  return Layout(sizes, {}, 'as the job says' if chips > 1 else '')


def is_asked(config: ConfigDict) -> bool:
  """Whether a job asks for a mesh that is not the usual one."""
  return any(config.mesh[axis] != n for axis, n in mesh.USUAL.items())


def choose(
  config: ConfigDict, topology: Topology, heads: int, peaks: Peaks
) -> Layout:
  """A mesh of all chips on which a job fits, or the one nearest to it.

  Args:
    config: of the job.
    topology: that it is to run on.
    heads: of the transformer.
    peaks: the bytes of each program on a device.

  Raises:
    DcjaxError: the batches are too small for so many chips.
  """
  chips, usable = topology.chips, topology.device.usable
  if chips == 1:
    return Layout(dict(ALONE), {}, '')
  tried: list[tuple[int, Layout]] = []
  reason = ''
  for context in _divisors(chips):
    rows = chips // context
    if heads % context or not _shared_out(config, rows):
      continue
    if context > 1 and not reason:
      reason = f'batches of {_batches(config)} are too few for {chips} chips'
    for fsdp in _divisors(rows):
      # Only 'data' goes beyond a slice or a machine's fast links.
      if rows // fsdp % topology.units:
        continue
      sizes = ALONE | {'data': rows // fsdp, 'fsdp': fsdp, 'context': context}
      options = {
        f'mesh.{a}': n for a, n in sizes.items() if n > 1 or a == 'data'
      }
      found = peaks(with_options(config, options), sizes)
      name, most = max(found.items(), key=lambda x: x[1])
      tried.append((most, Layout(sizes, options, _why(tried, sizes, reason))))
      if most <= usable:
        return tried[-1][1]
      reason_now = f'{name} takes {most / 1e9:.1f} GB with less'
      tried[-1] = (most, dataclasses.replace(tried[-1][1], why=reason_now))
    reason = reason or f'one sample does not fit: {tried[-1][1].why}'
  if not tried:
    fits = lambda k: heads % k == 0 and chips // k % topology.units == 0
    most = max(filter(fits, _divisors(chips)))
    raise DcjaxError(
      f'batches of {_batches(config)} cannot be shared out among the {chips} '
      f'chips of {topology.name}; use a multiple of '
      f'{chips // most} samples, or fewer chips'
    )
  most, layout = min(tried, key=lambda x: x[0])
  why = f'the nearest: it takes {most / 1e9:.1f} GB of {usable / 1e9:.1f}'
  return dataclasses.replace(layout, why=why)


def _why(tried: list, sizes: dict[str, int], reason: str) -> str:
  fsdp, context = sizes['fsdp'], sizes['context']
  base = 'every chip holds the whole base'
  if fsdp > 1:
    base = f'kernels are split over fsdp={fsdp}, as {tried[-1][1].why}'
  if context == 1:
    return base
  return f'{base}; tokens are split over context={context}, as {reason}'


def _divisors(n: int) -> list[int]:
  return [k for k in range(1, n + 1) if n % k == 0]


def _batches(config: ConfigDict) -> str:
  sizes = sorted({n for _, n in mesh.batches(config)})
  return ' and '.join(str(n) for n in sizes)


def _shared_out(config: ConfigDict, rows: int) -> bool:
  """Whether every batch can be shared out over so many rows."""
  return not any(n % rows for _, n in mesh.batches(config))


def with_options(config: ConfigDict, options: Mapping[str, Any]) -> ConfigDict:
  """A copy of a config with some options changed."""
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(dict(options))
  return copy
