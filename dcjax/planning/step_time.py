"""How long a program will take, from stated rates: a forecast, not a promise.

  (1)  compute = executed operations / spread / (sustained part of the peak)
  (2)  memory  = parameters read / bandwidth
  (3)  wire    = bytes that a device sends / rate of the slowest link they take
  (4)  step    = max(compute, memory, hidden wire) + exposed wire
  (5)  efficiency = executed operations / chips / (sustained ...) / step

Spread are the chips that do different parts of the work: all, but where samples
are too few to be shared out. Hidden is what XLA has other work done meanwhile:
its asynchronous collectives, which are gathered kernels. Everything else is
exposed: sums of gradients at the end of a step, exchanges before and after
attention. One axis of a torus is taken to be used at a time.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math

from dcjax.planning import traffic
from dcjax.planning.collectives import Collective
from dcjax.planning.program import Program, shard_bytes
from dcjax.planning.topology import Topology


@dataclasses.dataclass(frozen=True)
class Time:
  """Seconds of one run of a program, Eq. (1-4).

  Attributes:
    compute: of the operations, of each chip.
    memory: of reading the parameters.
    hidden: on links, while something else is done.
    exposed: on links, while nothing is.
    ideal: `compute`, if all chips had their part.
  """

  compute: float
  memory: float
  hidden: float
  exposed: float
  ideal: float = 0.0

  @property
  def step(self) -> float:
    return max(self.compute, self.memory, self.hidden) + self.exposed

  @property
  def efficiency(self) -> float:
    """Eq. (5): what idle chips, links and memory leave of the compute rate."""
    return self.ideal / self.step if self.step else 1.0


def predict(
  program: Program, topology: Topology, collectives: Iterable[Collective]
) -> Time:
  """The time of a run of a program; all zero without its operations."""
  if program.work is None:
    return Time(0.0, 0.0, 0.0, 0.0)
  wire = {True: 0.0, False: 0.0}
  for x in collectives:
    wire[x.asynchronous] += x.wire / link(topology, program.mesh, x.axes)
  read = program.passes.reads * _parameters(program)
  alone = program.work.executed / topology.device.rate
  return Time(
    alone / program.spread,
    read / topology.device.bandwidth,
    wire[True],
    wire[False],
    alone / topology.chips,
  )


def _parameters(program: Program) -> int:
  """Bytes of the transformer on one device, once its kernels are gathered."""
  return sum(
    shard_bytes(x, spec, program.mesh | {'fsdp': 1})
    for name, x, spec in program.leaves
    if traffic.PARAMETER.match(name)
  )


def link(
  topology: Topology, mesh: Mapping[str, int], axes: Iterable[str]
) -> float:
  """Bytes a second between the devices along some axes of a mesh.

  The last axis has neighbours; an axis before it, devices as far apart as
  those after it are many. What reaches beyond the devices that the fast
  interconnect joins, takes the network.
  """
  order = list(mesh)
  reach = 1
  for axis in axes:
    inner = math.prod(mesh[a] for a in order[order.index(axis) + 1 :])
    reach = max(reach, inner * mesh[axis])
  device = topology.device
  return device.link if reach <= topology.joined else device.network
