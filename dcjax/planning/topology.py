"""Chips that a run is planned for, and devices to compile for them.

  h100            one chip               h200:8          eight GPUs of a machine
  v6e:4x4         a slice, 16 chips      h200:16         two machines
  v5p:4x4x4       64 chips               v6e:16x16*4     four slices

Compiling needs no chip: libtpu compiles for any slice, the CUDA plugin for the
GPUs of one machine.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import math
import os
import re
from typing import Any

import jax

from dcjax.errors import DcjaxError
from dcjax.planning import devices
from dcjax.planning.devices import DEVICES, LOCAL, Device

# Slices that can be had (docs.cloud.google.com/tpu/docs: v5e, v6e, v5p).
_FLAT = '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'.split()
_CUBES = '2x2x1 2x2x2 2x2x4 2x4x4'.split() + [
  f'{a}x{b}x{c}'
  for a, b, c in itertools.combinations_with_replacement((4, 8, 12, 16, 24), 3)
  if b <= 16
]
SLICES = {'v5e': _FLAT, 'v6e': _FLAT, 'v5p': _CUBES}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips, and how they are joined.

  Attributes:
    name: as options spell it.
    device: each of them.
    chips: how many.
    shape: of a slice, '' for GPUs and a single chip.
    slices: of TPUs, joined by the network.
  """

  name: str
  device: Device
  chips: int = 1
  shape: str = ''
  slices: int = 1

  @property
  def joined(self) -> int:
    """Chips that the fast interconnect joins."""
    return self.device.joined or self.chips // self.slices

  @property
  def units(self) -> int:
    """Slices or machines, between which only 'data' may go: see `mesh.make`."""
    return max(1, self.chips // self.joined)

  @property
  def title(self) -> str:
    if self.chips == 1:
      return self.device.title
    kind = self.device.title.removesuffix(', one chip')
    return f'{self.chips} x {kind}' + (f' ({self.shape})' if self.shape else '')


def find(name: str) -> Topology:
  """The topology of a name, such as 'h200:8' or 'v5p:4x4x4'.

  Raises:
    DcjaxError: there is no such chip or slice.
  """
  chip, colon, size = name.partition(':')
  if not colon:
    return Topology(name, devices.find(name))
  where = f'config.plan.topology is {name!r}'
  if chip not in DEVICES:
    raise DcjaxError(
      f'{where}; there is no chip {chip!r}, use one of {", ".join(DEVICES)}'
    )
  device = DEVICES[chip]
  if device.platform == 'gpu':
    if not re.fullmatch('[1-9][0-9]{0,4}', size):
      raise DcjaxError(f'{where}; expected a number of GPUs, such as {chip}:8')
    if int(size) > device.joined and int(size) % device.joined:
      raise DcjaxError(
        f'{where}; more than {device.joined} GPUs are whole machines of '
        f'{device.joined}'
      )
    return Topology(name, device, int(size))
  found = re.fullmatch(r'([0-9x]+)(?:\*([1-9][0-9]{0,3}))?', size)
  if not found or found[1] not in SLICES[chip]:
    raise DcjaxError(
      f'{where}; slices of {chip} are {_some(SLICES[chip])}, and several of '
      f'them {chip}:{SLICES[chip][4]}*2'
    )
  slices = int(found[2] or 1)
  chips = math.prod(int(x) for x in found[1].split('x')) * slices
  return Topology(name, device, chips, found[1], slices)


def _some(shapes: Sequence[str]) -> str:
  if len(shapes) < 12:
    return ', '.join(shapes)
  return f'{", ".join(shapes[:9])} and so on to {shapes[-1]}'


# ---- devices that are not here -----------------------------------------------


def targets(topology: Topology) -> tuple[list[Any] | None, str]:
  """(devices to compile for or None, why there are none)."""
  device = topology.device
  if device.name in LOCAL:
    return jax.devices()[:1], ''
  try:
    if device.platform == 'tpu':
      return _tpus(topology), ''
    return _gpus(topology), ''
  except Exception as error:  # of the plugin, of its absence
    package = {
      'gpu': 'jax-cuda13-plugin and jax-cuda13-pjrt',
      'tpu': 'libtpu',
    }[device.platform]
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return None, (
      f'memory is counted, not compiled: no compiler for {device.name} here '
      f'({package}; {reason[:80]})'
    )


def _tpus(topology: Topology) -> list[Any]:
  from jax.experimental import topologies

  # There is no machine to ask, and several programs may compile at once.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', f'{topology.device.name}-8')
  small = '2x2x1' if topology.device.name == 'v5p' else '2x2'
  shape = small if topology.chips == 1 else topology.shape
  options = {'num_slices': topology.slices} if topology.slices > 1 else {}
  found = topologies.get_topology_desc(
    f'{topology.device.name}:{shape}', 'tpu', **options
  )
  return list(found.devices)[: topology.chips]


def _gpus(topology: Topology) -> list[Any]:
  from jax.experimental import topologies

  joined = topology.joined
  machines = -(-topology.chips // joined)
  found = topologies.get_topology_desc(
    platform='cuda',
    target_config=_gpu_config(topology.device),
    topology=f'1x{machines}x{min(topology.chips, joined)}',
  )
  return list(found.devices)[: topology.chips]


# Compute capability, multiprocessors and L2 cache: what XLA:GPU asks about.
_GPUS = {
  'h200': ((9, 0), 132, 50 << 20),
  'h100': ((9, 0), 132, 50 << 20),
  'a100-80': ((8, 0), 108, 40 << 20),
  'rtx4090': ((8, 9), 128, 72 << 20),
}


def _gpu_config(device: Device) -> str:
  """XLA's description of a GPU, as a text proto."""
  (major, minor), cores, cache = _GPUS[device.name]
  shared = {8: 163840, 9: 232448}[major] if minor == 0 else 101376
  return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024
      threads_per_warp: 32
      shared_memory_per_block: 49152
      shared_memory_per_core: {shared + 1024}
      shared_memory_per_block_optin: {shared}
      threads_per_core_limit: 2048
      core_count: {cores}
      fpus_per_core: 128
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      memory_bandwidth: {int(device.bandwidth)}
      l2_cache_size: {cache}
      clock_rate_ghz: 1.8
      device_memory_size: {device.memory}
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    device_description_str: "{device.title}"
  """
