"""Memory of a program from its trace alone: what is alive at once.

A trace says which arrays a program makes, in order, and when each is used last.
XLA computes elementwise chains inside the product, convolution or reduction
that they feed or follow, so an array takes memory only if

- a product, convolution, sort, gather or loop makes it or reads it,
- a reduction makes it (what a reduction reads is computed on the fly), or
- it is a result.

All others are computed again from the arrays behind them, which stay alive
instead. A loop takes the memory of one turn, beside what it collects: for a
scanned transformer, what autodiff keeps of every block and, on top, the
backward pass of one. Nothing is compiled or allocated; a trace takes seconds,
whatever its shapes. What this leaves out: layouts that pad, workspaces of
kernels, and arrays that a machine computes in another type.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from jax.extend import core

# Primitives that need their operands in memory and put their results there.
_HEAVY = frozenset(
  'dot_general conv_general_dilated ragged_dot scan while cond sort gather'
  ' scatter scatter-add cumsum custom_call dynamic_update_slice'
  ' pallas_call'.split()
)
# Their results lie in memory; what they read need not.
_REDUCTIONS = frozenset(
  'reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax'
  ' argmin'.split()
)
# Primitives that are calls of a program within.
_CALLS = frozenset(
  'pjit jit closed_call core_call checkpoint remat remat2 custom_jvp_call'
  ' custom_vjp_call custom_vjp_call_jaxpr'.split()
)


class _Where(NamedTuple):
  """What of `peak_bytes` holds within loops as well."""

  widens: bool
  shares: Mapping[tuple[int, ...], int]

  def nbytes(self, aval: Any) -> int:
    return nbytes(aval) // self.shares.get(getattr(aval, 'shape', ()), 1)


def peak_bytes(
  jaxpr: core.Jaxpr,
  *,
  widens: bool = False,
  donated: Sequence[bool] = (),
  shares: Mapping[tuple[int, ...], int] | None = None,
) -> int:
  """Most memory that is alive at once beside the arguments, in bytes.

  Args:
    jaxpr: of a whole program; the results count, the arguments do not.
    widens: whether arrays that a loop reads slice by slice, to compute with
      them in a wider type, are widened whole before it. XLA does so for CPUs:
      a float32 copy of all layers of a bfloat16 base.
    donated: of each argument, whether it is given away: a result of its shape
      and type then lies where it lay.
    shares: {shape: devices that an array of this shape is spread over}: that of
      a parameter, and so of its gradient.
  """
  where = _Where(widens, shares or {})
  return _peak_of(jaxpr, where, _in_place(jaxpr, donated))


def _peak_of(
  jaxpr: core.Jaxpr, where: _Where, in_place: Sequence[bool] = ()
) -> int:
  return _peak(jaxpr, [True] * len(jaxpr.outvars), 0, where, in_place)


def _in_place(jaxpr: core.Jaxpr, donated: Sequence[bool]) -> list[bool]:
  """Of each result, whether it lies where an argument lay."""
  if not donated:
    return [False] * len(jaxpr.outvars)
  given = zip(jaxpr.invars, donated, strict=True)
  places = collections.Counter(str(v.aval) for v, gone in given if gone)
  found = []
  for result in jaxpr.outvars:
    kind = str(result.aval)
    found.append(places[kind] > 0)
    places[kind] -= found[-1]
  return found


def nbytes(aval: Any) -> int:
  """Bytes of an array; 0 for what is none, 8 a PRNG key."""
  if not hasattr(aval, 'dtype'):
    return 0
  return aval.size * getattr(aval.dtype, 'itemsize', 8)


@dataclasses.dataclass
class _Equation:
  """One primitive with the numbers of the values that it reads and makes."""

  origin: Any
  reads: list[int]
  makes: list[int]

  @property
  def name(self) -> str:
    return self.origin.primitive.name


class _Program:
  """A jaxpr with its calls written out; values are numbers.

  Attributes:
    sizes: bytes of each value.
    equations: in order, without those that nothing needs.
    outs: what it gives, in order.
    results: those of them that are asked for.
  """

  def __init__(self, jaxpr: core.Jaxpr, asked: list[bool], where: _Where):
    self.where = where
    self.sizes: list[int] = []
    self.equations: list[_Equation] = []
    self.arguments = [self._new(v) for v in jaxpr.invars]
    self.outs = self._inline(jaxpr, self.arguments)
    self.results = {
      v for v, wanted in zip(self.outs, asked, strict=True) if wanted and v >= 0
    }
    self.needed = set(self.results)
    kept = []
    for equation in reversed(self.equations):
      if self.needed.intersection(equation.makes):
        self.needed.update(equation.reads)
        kept.append(equation)
    self.equations = kept[::-1]

  def _new(self, variable: Any) -> int:
    self.sizes.append(self.where.nbytes(variable.aval))
    return len(self.sizes) - 1

  def _inline(self, jaxpr: core.Jaxpr, arguments: list[int]) -> list[int]:
    """Appends the equations of a call; the numbers of its results."""
    numbers = dict(zip(jaxpr.invars, arguments, strict=True))

    def number(variable):
      if isinstance(variable, core.Literal):
        return -1
      if variable not in numbers:
        numbers[variable] = self._new(variable)
      return numbers[variable]

    for equation in jaxpr.eqns:
      reads = [number(v) for v in equation.invars]
      inner = _called(equation)
      if inner is not None:
        makes = self._inline(inner, reads)
      else:
        makes = [self._new(v) for v in equation.outvars]
        self.equations.append(
          _Equation(equation, [v for v in reads if v >= 0], makes)
        )
      numbers.update(zip(equation.outvars, makes, strict=True))
    return [number(v) for v in jaxpr.outvars]


def _called(equation: Any) -> core.Jaxpr | None:
  """The program that an equation calls, if it is a call."""
  if equation.primitive.name not in _CALLS:
    return None
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if key in equation.params:
      return _open(equation.params[key])
  return None


def _open(jaxpr: Any) -> core.Jaxpr:
  """Without its constants, if it is a `ClosedJaxpr`."""
  return getattr(jaxpr, 'jaxpr', jaxpr)


def _peak(
  jaxpr: core.Jaxpr,
  asked: list[bool],
  slices: int,
  where: _Where,
  in_place: Sequence[bool] = (),
) -> int:
  """`peak_bytes` where the last arguments are slices of arrays outside.

  Such a slice takes memory if something heavy reads it: that of a kernel, one
  layer of a scanned model, is copied out of the stack of all. Results that are
  made in place take none.
  """
  program = _Program(jaxpr, asked, where)
  stored = _stored(program)
  first = len(program.arguments) - slices
  free = set(program.arguments[:first])
  free.update(v for v in program.arguments[first:] if v not in stored)
  free.update(
    v for v, here in zip(program.outs, in_place, strict=False) if here
  )
  dies = _last_uses(program, stored)
  size = lambda values: sum(
    program.sizes[v] for v in values if v not in free and v in program.needed
  )
  alive = size(program.arguments)
  peak = alive
  for place, equation in enumerate(program.equations):
    made = size(v for v in equation.makes if v in stored)
    gone = dies.get(place, ())
    again = 0
    if equation.name not in _HEAVY:
      # An elementwise result takes the place of an operand that it replaces.
      again = made if made in {size([v]) for v in gone} else 0
    alive += made
    inside = _inside(equation, program.needed, where)
    peak = max(peak, alive - again + inside)
    alive -= size(gone)
  return peak


def _stored(program: _Program) -> set[int]:
  """Values that lie in memory."""
  stored = set(program.results)
  for equation in program.equations:
    if equation.name in _HEAVY:
      stored.update(equation.reads, equation.makes)
    elif equation.name in _REDUCTIONS:
      stored.update(equation.makes)
  return stored


def _last_uses(program: _Program, stored: set[int]) -> dict[int, list[int]]:
  """{place of an equation: stored values that nothing after it uses}."""
  behind = {v: frozenset([v]) for v in program.arguments}
  last: dict[int, int] = {}

  def use(values: Iterable[int], place: int) -> None:
    for value in values:
      for source in behind.get(value, (value,)):
        last[source] = place

  for place, equation in enumerate(program.equations):
    sources = frozenset().union(*(behind.get(v, ()) for v in equation.reads))
    for value in equation.makes:
      if value in stored:
        behind[value] = frozenset([value])
        # What nothing reads, a result of a loop perhaps, dies at once.
        last[value] = place
        use(equation.reads, place)
      else:
        behind[value] = sources
  use(program.results, len(program.equations))
  dies: dict[int, list[int]] = {}
  for value, place in last.items():
    dies.setdefault(place, []).append(value)
  return dies


def _inside(equation: _Equation, needed: set[int], where: _Where) -> int:
  """Memory of one turn of a loop, or of the larger branch."""
  params = equation.origin.params
  if equation.name == 'scan':
    body = _open(params['jaxpr'])
    # What is read slice by slice comes last, and so does what is collected.
    slices = _of_lower_rank(equation.origin.invars, body.invars)
    collected = _of_lower_rank(equation.origin.outvars, body.outvars)
    carry = len(body.outvars) - collected
    asked = [True] * carry + [v in needed for v in equation.makes[carry:]]
    wide = 0
    if where.widens:
      wide = _widened(body, asked, slices, where) * params['length']
    return wide + _peak(body, asked, slices, where)
  if equation.name == 'while':
    return _peak_of(_open(params['body_jaxpr']), where)
  if equation.name == 'cond':
    branches = [_open(branch) for branch in params['branches']]
    return max(_peak_of(branch, where) for branch in branches)
  return 0


def _of_lower_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
  """How many values of a loop are slices of those outside it."""
  rank = lambda v: len(getattr(v.aval, 'shape', ()))
  pairs = zip(outside, inside, strict=True)
  return sum(rank(a) > rank(b) for a, b in pairs)


def _widened(
  body: core.Jaxpr, asked: list[bool], slices: int, where: _Where
) -> int:
  """Bytes of the slices that the body of a loop reads in a wider type."""
  program = _Program(body, asked, where)
  given = set(program.arguments[len(program.arguments) - slices :])
  wide = {
    equation.reads[0]: program.sizes[equation.makes[0]]
    for equation in program.equations
    if equation.name == 'convert_element_type'
    and given.intersection(equation.reads)
    and program.sizes[equation.makes[0]] > program.sizes[equation.reads[0]]
  }
  return sum(wide.values())
