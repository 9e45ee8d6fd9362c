"""Accelerators that a run can be planned for: what their makers state."""

import dataclasses
import os

import jax

from dcjax.errors import DcjaxError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """One chip.

  Attributes:
    name: as options spell it.
    platform: 'gpu', 'tpu' or 'cpu'.
    memory: bytes.
    peak: stated bfloat16 products, dense, in operations a second.
    sustained: part of that peak that time is predicted at. Training of video
      transformers is published at 0.18 to 0.4 of it with stock kernels.
    title: its full name.
    bandwidth: of its memory, bytes a second.
    link: bytes a second that a chip sends along one axis of its fast
      interconnect, both ways round a ring: ICI, or NVLink.
    network: bytes a second that it sends beyond: to other slices or machines.
    joined: chips that the fast interconnect joins; 0: a whole slice.
  """

  name: str
  platform: str
  memory: int
  peak: float
  sustained: float
  title: str
  bandwidth: float = 5e10
  link: float = 1e10
  network: float = 1e9
  joined: int = 0

  @property
  def usable(self) -> int:
    """Bytes that programs may fill: the rest is the runtime's."""
    return int(0.92 * self.memory)

  @property
  def rate(self) -> float:
    """Operations a second that time is predicted at."""
    return self.peak * self.sustained


# Rates. GPUs: NVIDIA's data sheets for memory and NVLink, one direction (450
# GB/s of Hopper, 300 of A100), of which large collectives reach about 370 and
# 240; one 400 Gb/s adapter a GPU beyond (A100: 200). The RTX 4090 has PCIe 4
# only. TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, read 2026-11-21:
# memory 819, 2765 and 1638 GB/s; interconnect of 400, 1200 and 800 GB/s, both
# directions of all 4, 6 and 4 ports, so that the two ports of an axis send 100,
# 200 and 200; network of 6.4 Tb/s for 256 v5e, 50 Gb/s a v5p, and 25.6 Tb/s
# for 256 v6e. A collective over several axes of a torus can be faster.
_TABLE = (
  ('h200', 'gpu', 140, 989e12, 0.4, 'NVIDIA H200 141 GB')
  + (4.8e12, 370e9, 50e9, 8),
  ('h100', 'gpu', 80, 989e12, 0.4, 'NVIDIA H100 SXM 80 GB')
  + (3.35e12, 370e9, 50e9, 8),
  ('a100-80', 'gpu', 80, 312e12, 0.45, 'NVIDIA A100 80 GB')
  + (2.04e12, 240e9, 25e9, 8),
  ('rtx4090', 'gpu', 24, 165e12, 0.45, 'NVIDIA RTX 4090 24 GB')
  + (1.01e12, 20e9, 1.2e9, 8),
  ('v5e', 'tpu', 16, 197e12, 0.3, 'TPU v5e, one chip')
  + (819e9, 100e9, 3.1e9, 0),
  ('v5p', 'tpu', 95, 459e12, 0.3, 'TPU v5p, one chip')
  + (2765e9, 200e9, 6.2e9, 0),
  ('v6e', 'tpu', 32, 918e12, 0.3, 'TPU v6e, one chip')
  + (1638e9, 200e9, 12.5e9, 0),
)
DEVICES = {
  name: Device(name, platform, memory * GIB, *rest)
  for name, platform, memory, *rest in _TABLE
}
LOCAL = ('local', 'cpu')
# Parts of the kinds that jax knows, 'TPU v6 lite' or 'NVIDIA A100-SXM4-80GB'.
# The first that is found counts.
_KINDS = {name.partition('-')[0]: name for name in DEVICES} | {
  'v6lite': 'v6e',
  'v5lite': 'v5e',
  'v5': 'v5p',
}


def find(name: str) -> Device:
  """The device of a name; 'local' and 'cpu' are this machine's.

  Raises:
    DcjaxError: there is no such device.
  """
  if name in DEVICES:
    return DEVICES[name]
  if name == 'cpu' or (name == 'local' and jax.default_backend() == 'cpu'):
    return _processor()
  if name == 'local':
    return _accelerator()
  raise DcjaxError(
    f'config.plan.device is {name!r}; use {", ".join((*LOCAL, *DEVICES))}'
  )


def _processor() -> Device:
  """This machine's processor; a core does about 50 GFLOP/s in float32."""
  cores = os.cpu_count() or 1
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return Device('cpu', 'cpu', memory, 1e11 * cores, 0.5, f'{cores} CPU cores')


def _accelerator() -> Device:
  """This machine's accelerator: its memory, and the rates of its kind."""
  here = jax.devices()[0]
  limit = (here.memory_stats() or {}).get('bytes_limit')
  kind = here.device_kind.lower().replace(' ', '')
  name = next((name for part, name in _KINDS.items() if part in kind), None)
  like = DEVICES[name or ('h100' if here.platform == 'gpu' else 'v5e')]
  title = here.device_kind
  if name is None:
    title += f', which is unknown: at the rates of {like.title}'
  # What the runtime gives is all usable.
  memory = int(limit / 0.92) if limit else like.memory
  return dataclasses.replace(like, name='local', memory=memory, title=title)
