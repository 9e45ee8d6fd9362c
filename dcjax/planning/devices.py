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
  """

  name: str
  platform: str
  memory: int
  peak: float
  sustained: float
  title: str

  @property
  def usable(self) -> int:
    """Bytes that programs may fill: the rest is the runtime's."""
    return int(0.92 * self.memory)

  @property
  def rate(self) -> float:
    """Operations a second that time is predicted at."""
    return self.peak * self.sustained


DEVICES = {
  device.name: device
  for device in (
    Device('h200', 'gpu', 140 * GIB, 989e12, 0.4, 'NVIDIA H200 141 GB'),
    Device('h100', 'gpu', 80 * GIB, 989e12, 0.4, 'NVIDIA H100 SXM 80 GB'),
    Device('a100-80', 'gpu', 80 * GIB, 312e12, 0.45, 'NVIDIA A100 80 GB'),
    Device('rtx4090', 'gpu', 24 * GIB, 165e12, 0.45, 'NVIDIA RTX 4090 24 GB'),
    Device('v5e', 'tpu', 16 * GIB, 197e12, 0.3, 'TPU v5e, one chip'),
    Device('v5p', 'tpu', 95 * GIB, 459e12, 0.3, 'TPU v5p, one chip'),
    Device('v6e', 'tpu', 32 * GIB, 918e12, 0.3, 'TPU v6e, one chip'),
  )
}
LOCAL = ('local', 'cpu')


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
  like = next(
    (d for d in DEVICES.values() if d.name.partition('-')[0] in kind),
    DEVICES['h100' if here.platform == 'gpu' else 'v5e'],
  )
  # What the runtime gives is all usable.
  memory = int(limit / 0.92) if limit else like.memory
  return dataclasses.replace(
    like, name='local', memory=memory, title=here.device_kind
  )
