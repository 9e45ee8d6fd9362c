"""How much memory a program will take on a device that need not be here.

Two ways. *Compiled*: XLA compiles the very program for the device and says what
it allocates; possible for the device of this machine, and for others where
their plugin is installed (jax-cuda13-plugin and jax-cuda13-pjrt, or libtpu),
without the device. *Counted*: `liveness` counts what is alive at once in the
program's trace, for any device, in a second. Against what XLA allocates for
Wan, the count before `MARGIN` was 0.88 to 0.93 for steps of training on a CPU;
0.98 to 1.05 on an H100, where sampling came to 1.2 and the autoencoder to 1.3
and 1.5; and, by an earlier way of counting, 0.79 to 0.85 for steps of training
on a TPU v5e.
"""

import dataclasses
from typing import Any

import jax

from dcjax import machine
from dcjax.errors import DcjaxError
from dcjax.planning import liveness
from dcjax.planning.devices import LOCAL, Device
from dcjax.planning.programs import Program

METHODS = ('', 'compile', 'count')
# What a count leaves out: on TPUs, layouts that pad.
MARGIN = {'cpu': 1.05, 'gpu': 1.0, 'tpu': 1.3}
# There is no GPU to try kernels on: products are those of cuBLAS.
_NO_TRIALS = {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}
# Memory of Python, JAX and its compiler, where that is the device's.
PROCESS = {'cpu': 1_000_000_000, 'gpu': 0, 'tpu': 0}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes that are taken while a program runs.

  Attributes:
    arguments: of the program.
    beside: results and everything in between, at their peak.
    resident: what else is there at the same time.
    how: 'compiled' or 'counted'.
  """

  arguments: int
  beside: int
  resident: int
  how: str

  @property
  def total(self) -> int:
    return self.arguments + self.beside + self.resident


class Forecaster:
  """Forecasts for one device.

  Args:
    device: from `devices.find`.
    method: 'compile', 'count', or '': compile the steps of training if that
      can be done here, and count the rest.

  Attributes:
    device: as given.
    note: why something is not compiled that was to be, or ''.
  """

  def __init__(self, device: Device, method: str = ''):
    if method not in METHODS:
      raise DcjaxError(
        f'config.plan.memory is {method!r}; use compile, count, or nothing for '
        'what can be done here'
      )
    self.device, self.note = device, ''
    self._target, self._compiles = None, False
    # XLA takes minutes to compile for a TPU that is not there.
    wanted = method == 'compile' or (not method and device.platform != 'tpu')
    if device.name in LOCAL:
      self._compiles = method != 'count'
    elif wanted:
      self._target, self.note = _target(device)
      self._compiles = self._target is not None

  def memory(self, program: Program) -> Memory:
    """What the program takes; compiled only if it is a step of training."""
    training = program.work is not None and program.name != 'sample'
    with machine.programs_for(self.device.platform):
      if training and self._compiles:
        try:
          return self._compile(program)
        except jax.errors.JaxRuntimeError as error:
          reason = str(error).strip().splitlines()[0]
          self.note = f'{program.name} is counted: XLA says {reason[:100]}'
      return self.count(program)

  def count(self, program: Program) -> Memory:
    """What is alive at once in the program's trace."""
    platform = self.device.platform
    with machine.programs_for(platform):
      traced = program.trace()
    jaxpr = traced.jaxpr.jaxpr
    # Results that lie where a donated argument lay.
    again = sum(
      liveness.nbytes(v.aval)
      for v, info in zip(
        jaxpr.invars, jax.tree.leaves(traced.args_info), strict=True
      )
      if info.donated
    )
    beside = liveness.peak_bytes(jaxpr, widens=platform == 'cpu') - again
    beside = beside * MARGIN[platform]
    return Memory(
      sum(liveness.nbytes(v.aval) for v in jaxpr.invars),
      int(beside),
      program.resident + PROCESS[platform],
      'counted',
    )

  def _compile(self, program: Program) -> Memory:
    platform, target = self.device.platform, self._target
    if target is None:
      compiled = program.trace().lower().compile()
    else:
      here = jax.sharding.SingleDeviceSharding(target)
      name = 'cuda' if platform == 'gpu' else platform
      lowered = program.trace(here).lower(lowering_platforms=(name,))
      compiled = lowered.compile(
        compiler_options=_NO_TRIALS if platform == 'gpu' else None
      )
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
      found.argument_size_in_bytes,
      found.temp_size_in_bytes + results,
      program.resident + PROCESS[platform],
      'compiled',
    )


def _target(device: Device) -> tuple[Any, str]:
  """(a device to compile for that is not here or None, why there is none)."""
  from jax.experimental import topologies

  try:
    if device.platform == 'tpu':
      found = topologies.get_topology_desc(f'{device.name}:2x2', 'tpu')
    else:
      found = topologies.get_topology_desc(
        platform='cuda',
        target_config=_gpu_config(device),
        topology='1x1x1',
      )
    return found.devices[0], ''
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
      memory_bandwidth: 3000000000000
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
