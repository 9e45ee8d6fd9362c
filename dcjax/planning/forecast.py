"""How much memory a program will take on devices that need not be here.

Two ways. *Compiled*: XLA compiles the very program for the devices, on their
mesh, and says what each allocates and what they say to each other; possible for
the device of this machine, and for others where their plugin is installed
(jax-cuda13-plugin and jax-cuda13-pjrt, or libtpu), without a device. *Counted*:
`liveness` counts what is alive at once in the trace of what one device does,
for any device, in a second; what devices then say to each other is arithmetic
(`traffic`). Against what XLA allocates for Wan, the count before `MARGIN` was
0.88 to 0.93 for steps of training on a CPU; and 0.98 to 1.05 on an H100, where
sampling came to 1.2 and the autoencoder to 1.3 and 1.5.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import NamedSharding

from dcjax import machine
from dcjax import mesh as mesh_lib
from dcjax.errors import DcjaxError
from dcjax.planning import collectives as collectives_lib
from dcjax.planning import liveness, traffic
from dcjax.planning import topology as topology_lib
from dcjax.planning.collectives import Collective
from dcjax.planning.devices import LOCAL
from dcjax.planning.program import Program, shard_bytes
from dcjax.planning.topology import Topology

METHODS = ('', 'compile', 'count')
# What a count leaves out: on TPUs, layouts that pad.
MARGIN = {'cpu': 1.05, 'gpu': 1.0, 'tpu': 1.3}
OPTIONS = {
  # There is no GPU to try kernels on: products are those of cuBLAS.
  'gpu': {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False},
  'tpu': machine.TPU_OPTIONS,
}
# Memory of Python, JAX and its compiler, where that is the device's.
PROCESS = {'cpu': 1_000_000_000, 'gpu': 0, 'tpu': 0}
# Programs that are compiled side by side.
THREADS = 2


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes that are taken on a device while a program runs.

  Attributes:
    arguments: of the program.
    beside: results and everything in between, at their peak.
    resident: what else is there at the same time.
    how: 'compiled' or 'counted'.
    collectives: of one run; None if they are not known.
  """

  arguments: int
  beside: int
  resident: int
  how: str
  collectives: tuple[Collective, ...] | None = None

  @property
  def total(self) -> int:
    return self.arguments + self.beside + self.resident


class Forecaster:
  """Forecasts for one topology.

  Args:
    topology: from `topology.find`.
    method: 'compile': steps of training, and sampling; 'count'; or '': if that
      can be done here, compile what a plan hangs on, and count the rest. That
      are the steps of training; for chips that are not here, where each takes
      a minute or two, the one that takes most.

  Attributes:
    topology: as given.
    note: why something is not compiled that was to be, or ''.
  """

  def __init__(self, topology: Topology, method: str = ''):
    if method not in METHODS:
      raise DcjaxError(
        f'config.plan.memory is {method!r}; use compile, count, or nothing for '
        'what can be done here'
      )
    self.topology, self.method, self.note = topology, method, ''
    self._targets, self._peaks = None, {}
    # One TPU needs no compiler: a count tells it well.
    alone = topology.device.platform == 'tpu' and topology.chips == 1
    if method == 'compile' or (not method and not alone):
      self._targets, self.note = topology_lib.targets(topology)

  def memories(self, programs: Sequence[Program]) -> list[Memory]:
    """What each program takes."""
    wanted = {id(x) for x in self._wanted(programs)}
    with machine.programs_for(self.topology.device.platform):
      lowered = [self._lower(x) if id(x) in wanted else None for x in programs]
    # Compilers work beside each other and beside a trace; traces would not.
    with ThreadPoolExecutor(THREADS) as pool:
      compiled = pool.map(self._compile, programs, lowered)
      counted = [
        None if x else self.count(program)
        for program, x in zip(programs, lowered, strict=True)
      ]
      return [
        memory or count or self.count(program)
        for memory, count, program in zip(
          compiled, counted, programs, strict=True
        )
      ]

  def memory(self, program: Program) -> Memory:
    """What one program takes."""
    return self.memories([program])[0]

  def _wanted(self, programs: Sequence[Program]) -> list[Program]:
    """Those that are to be compiled."""
    if self._targets is None:
      return []
    here = self.topology.device.name in LOCAL
    steps = [x for x in programs if x.trains]
    if here or not steps:
      return steps
    if self.method == 'compile':
      return [x for x in programs if x.work is not None]
    return [max(steps, key=lambda x: self.count(x).total)]

  # ---- counted ---------------------------------------------------------------

  def count(self, program: Program) -> Memory:
    """What is alive at once in the trace of what one device does."""
    platform = self.topology.device.platform
    own = program.alone or program
    trained = [
      (x, shard_bytes(x, spec, program.mesh))
      for name, x, spec in program.leaves
      if traffic.is_trained(name)
    ]
    shares = {x.shape: liveness.nbytes(x) // share for x, share in trained}
    arguments = tuple(jax.tree.leaves(own.arguments))
    key = (own.key, arguments, platform, tuple(shares.items()))
    if key not in self._peaks:
      self._peaks[key] = _beside(own, platform, shares)
    beside = self._peaks[key] * MARGIN[platform]
    # Gradients are as large as what they are of; the rest goes by the token.
    gradients = sum(share for _, share in trained)
    beside = max(beside - gradients, 0) / program.mesh['context']
    return Memory(
      program.held,
      int(beside) + gradients + _gathered(program),
      program.resident + PROCESS[platform],
      'counted',
    )

  # ---- compiled --------------------------------------------------------------

  def _lower(self, program: Program) -> Any:
    """`jax.stages.Lowered` for devices that are not here."""
    platform = self.topology.device.platform
    if self.topology.device.name in LOCAL:
      return program.trace().lower()
    name = 'cuda' if platform == 'gpu' else platform
    if math.prod(program.mesh.values()) == 1:
      here = jax.sharding.SingleDeviceSharding(self._targets[0])
      return program.trace(lambda _: here).lower(lowering_platforms=(name,))
    mesh = mesh_lib.make(program.mesh, self._targets)
    with mesh_lib.use(mesh):
      traced = program.trace(lambda spec: NamedSharding(mesh, spec))
      return traced.lower(lowering_platforms=(name,))

  def _compile(self, program: Program, lowered: Any) -> Memory | None:
    if lowered is None:
      return None
    platform = self.topology.device.platform
    resident = program.resident + PROCESS[platform]
    try:
      compiled = lowered.compile(compiler_options=OPTIONS.get(platform))
    except jax.errors.JaxRuntimeError as error:
      used = _used(str(error))
      if used:
        beside = max(used - program.held, 0)
        return Memory(program.held, beside, resident, 'compiled')
      reason = str(error).strip().splitlines()[0]
      self.note = f'{program.name} is counted: XLA says {reason[:100]}'
      return None
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    said = ()
    if math.prod(program.mesh.values()) > 1:
      said = tuple(collectives_lib.read(compiled.as_text(), program.mesh))
    return Memory(
      found.argument_size_in_bytes,
      found.temp_size_in_bytes + results,
      resident,
      'compiled',
      said,
    )


def _beside(program: Program, platform: str, shares: dict) -> int:
  """Most bytes alive at once beside the arguments, by `liveness`."""
  with machine.programs_for(platform):
    traced = program.trace()
  return liveness.peak_bytes(
    traced.jaxpr.jaxpr,
    widens=platform == 'cpu',
    donated=[x.donated for x in jax.tree.leaves(traced.args_info)],
    shares=shares,
  )


def _gathered(program: Program) -> int:
  """Bytes of the kernels of a layer that is there whole, and of the next."""
  once, layers = 0, 0
  for name, x, spec in program.leaves:
    if traffic.is_gathered(name, spec):
      whole = shard_bytes(x, spec, program.mesh | {'fsdp': 1})
      if 'blocks/' in name and 'opt_state' not in name:
        layers += whole // x.shape[0]
      elif 'opt_state' not in name:
        once = max(once, whole)
  return max(2 * layers, once)


def _used(error: str) -> int:
  """Bytes of a program that XLA refuses as too large; 0 if it does not say."""
  found = re.search(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm', error)
  units = dict(zip('KMGT', (2**10, 2**20, 2**30, 2**40), strict=True))
  return int(float(found[1]) * units[found[2]]) if found else 0


def said(program: Program, memory: Memory, dit: Any) -> list[Collective]:
  """The collectives of a program: those that XLA makes, else by arithmetic."""
  found = memory.collectives
  if found is None:
    found = traffic.expected(program, dit)
  return collectives_lib.gathered(found)
