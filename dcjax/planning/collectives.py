"""What devices say to each other in a compiled program, read from its HLO.

    collectives = read(compiled.as_text(), {'data': 8, 'fsdp': 4})
    for x in gathered(collectives): ...

An operation in a loop counts as often as the loop turns; one that XLA has
spread over several fusions (TPU's asynchronous ones repeat it in each piece)
counts once. The devices of a group are places in the mesh, row by row, so that
the axes that an operation goes over are those along which its groups differ.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
import re

import numpy as np

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
BITS = {'pred': 8, 'bf16': 16, 'c64': 64, 'c128': 128}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation of a program, or several that are alike.

  Attributes:
    kind: one of `KINDS`.
    dtype: of most of what it moves, as HLO writes it: 'bf16', 'f32'.
    shape: of the largest array that it moves.
    bytes: of one: the whole that is gathered, reduced, scattered or exchanged.
    group: devices that take part in one.
    axes: of the mesh, that it goes over.
    count: how often it happens in a run of the program.
    asynchronous: whether XLA has other work done meanwhile.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]
  bytes: int
  group: int
  axes: tuple[str, ...]
  count: int
  asynchronous: bool

  @property
  def total(self) -> int:
    """Bytes of all of them."""
    return self.bytes * self.count

  @property
  def wire(self) -> float:
    """Bytes that a device sends for all of them, at the least.

    For n devices a ring, which is optimal in bytes, sends (n - 1) / n of the
    whole to gather, scatter or exchange it, and twice that to reduce it for
    all (Patarasuk and Yuan 2009).
    """
    if self.kind == 'collective-permute':
      return float(self.total)
    times = 2.0 if self.kind == 'all-reduce' else 1.0
    return times * self.total * (self.group - 1) / self.group


def read(text: str, mesh: Mapping[str, int]) -> list[Collective]:
  """Every collective operation of a program, in its order.

  Args:
    text: `jax.stages.Compiled.as_text()`.
    mesh: {axis: size}, in the order of the devices.
  """
  computations = dict(_computations(text))
  times, fused = _times(computations), _fused(computations)
  found: dict[str, Collective] = {}
  for name, lines in computations.items():
    for place, line in enumerate(lines):
      match = _COLLECTIVE.search(line)
      if not match or match['end'] == '-done' or not times.get(name):
        continue
      one = _collective(line, match, mesh, times[name])
      if one.kind == 'all-reduce' and _is_scattered(match['name'], lines):
        one = dataclasses.replace(one, kind='reduce-scatter')
      if one.group < 2:
        continue
      started = match['end'] == '-start' or name in _started(computations)
      # Pieces of one operation have its channel and are each in a fusion. Any
      # other is its own: those of a `shard_map` all have channel 1.
      channel = re.search(r'channel_id=(\d+)', line)
      key = channel[1] if channel and name in fused else f'{name} {place}'
      before = found.get(key)
      if before:
        one = one if one.count > before.count else before
        started = True
      found[key] = dataclasses.replace(one, asynchronous=started)
  return list(found.values())


def gathered(collectives: Iterable[Collective]) -> list[Collective]:
  """Those alike as one, most bytes first; scalars of a log among them."""
  counts: dict[Collective, int] = {}
  for x in collectives:
    alike = dataclasses.replace(x, count=0)
    counts[alike] = counts.get(alike, 0) + x.count
  rows = [dataclasses.replace(x, count=n) for x, n in counts.items()]
  return sorted(rows, key=lambda x: -x.wire)


# ---- the text ----------------------------------------------------------------

_COLLECTIVE = re.compile(
  r'(?P<name>%[\w.\-]+) = (?P<type>.*?) '
  rf'(?P<kind>{"|".join(KINDS)})(?P<end>-start|-done)?\('
)
_CALLS = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
  r'%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_NUMBERS = re.compile(r'\d+')


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
  """(name, lines) of each; that of the entry is 'ENTRY'."""
  name, lines = '', []
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) .*\{\s*$', line)
    if head:
      name, lines = 'ENTRY' if head[1] else head[2], []
    elif line.startswith('}'):
      yield name, lines
    elif name:
      lines.append(line)


def _times(computations: Mapping[str, Sequence[str]]) -> dict[str, int]:
  """How often each computation happens in a run of the program."""
  callers: dict[str, list[tuple[str, int]]] = {}
  for name, lines in computations.items():
    for line in lines:
      turns = _turns(line, computations) if ' while(' in line else 1
      called = _CALLS.findall(line)
      for branches in _BRANCHES.findall(line):
        called += [x.strip().lstrip('%') for x in branches.split(',')]
      for other in called:
        callers.setdefault(other, []).append((name, turns))
  times = {'ENTRY': 1}

  def of(name):
    if name not in times:
      times[name] = sum(of(x) * n for x, n in callers.get(name, ()))
    return times[name]

  for name in computations:
    of(name)
  return times


def _turns(line: str, computations: Mapping[str, Sequence[str]]) -> int:
  """How often a loop turns; 1 if nothing says so."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
  if known:
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)
  lines = computations.get(condition[1], ()) if condition else ()
  # JAX counts from 0: while i < n.
  compared = [x for x in lines if 'ROOT' in x and 'direction=LT' in x]
  constants = dict(
    found.groups()
    for found in (
      re.search(r'%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)', x)
      for x in lines
    )
    if found
  )
  for x in compared:
    for operand in re.findall(r'%([\w.\-]+)', x.partition('compare(')[2]):
      if operand in constants:
        return int(constants[operand])
  return 1


def _fused(computations: Mapping[str, Sequence[str]]) -> set[str]:
  """Computations of fusions."""
  return {
    name
    for lines in computations.values()
    for line in lines
    for name in re.findall(r' calls=%?([\w.\-]+)', line)
  }


def _started(computations: Mapping[str, Sequence[str]]) -> set[str]:
  """Computations that begin and do not wait: called by an async start."""
  return {
    name
    for lines in computations.values()
    for line in lines
    if ' async-start(' in line or '%async-collective-start' in line
    for name in _CALLS.findall(line)
  }


def _is_scattered(name: str, lines: Sequence[str]) -> bool:
  """Whether a sum is one of which each device keeps a slice.

  A TPU's reduce-scatter is written as a fusion of both.
  """
  last = next((x for x in lines if x.lstrip().startswith('ROOT')), '')
  return f' dynamic-slice({name},' in last


def _collective(
  line: str, match: re.Match, mesh: Mapping[str, int], count: int
) -> Collective:
  shapes = _shapes(match['type'])
  kind = match['kind']
  if match['end'] == '-start' and kind != 'all-reduce':
    # (operands, results), behind them the words of a semaphore.
    shapes = [x for x in shapes if x[1]] or shapes
    shapes = shapes[len(shapes) // 2 :]
  groups = _groups(line, math.prod(mesh.values()))
  group = max(len(x) for x in groups)
  total = sum(_nbytes(*x) for x in shapes)
  dtype, shape = max(shapes, key=lambda x: _nbytes(*x))
  return Collective(
    kind,
    dtype,
    shape,
    total * group if kind == 'reduce-scatter' else total,
    group,
    _axes(groups, mesh),
    count,
    False,
  )


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """[(dtype, shape)] of a type or a tuple of types."""
  return [
    (dtype, tuple(int(x) for x in sizes.split(',') if x))
    for dtype, sizes in re.findall(r'\b([a-z]\w*)\[([\d,]*)\]', text)
  ]


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
  digits = re.search(r'\d+', dtype)
  bits = BITS.get(dtype) or (int(digits[0]) if digits else 8)
  return math.prod(shape) * bits // 8


def _groups(line: str, devices: int) -> list[list[int]]:
  """The devices that do an operation together, by their places in the mesh."""
  pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', line)
  if pairs:
    return _braced(pairs[1])
  named = re.search(
    r'replica_groups=mesh\[(?P<sizes>[^\]]*)\]'
    r'(?:, device_ids=\((?P<ids>[^{]*?)\))? \{(?P<axes>[^}]*)\}',
    line,
  )
  if named:
    return _named(named['sizes'], named['ids'], named['axes'])
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', line
  )
  if iota:
    sizes = [int(x) for x in iota[1].split(',')]
    return _iota(iota[2]).reshape(sizes).tolist()
  listed = re.search(r'replica_groups=\{(\{.*?\})\}', line)
  # No groups: all devices.
  return _braced(listed[1]) if listed else [list(range(devices))]


def _braced(text: str) -> list[list[int]]:
  """'{0,1},{2,3}' -> [[0, 1], [2, 3]]."""
  rows = [_NUMBERS.findall(x) for x in text.split('}')]
  return [[int(x) for x in row] for row in rows if row]


def _iota(text: str) -> np.ndarray:
  """'[2,4]T(1,0)': 0, 1, ... in that shape, transposed."""
  shape, _, axes = text.partition('T')
  shape = [int(x) for x in _NUMBERS.findall(shape)]
  places = np.arange(math.prod(shape)).reshape(shape)
  return places.transpose([int(x) for x in _NUMBERS.findall(axes)] or None)


def _named(sizes: str, ids: str | None, axes: str) -> list[list[int]]:
  """Groups along named axes of a mesh, Shardy's notation.

  Such as sizes "'a'=2,'b'=4", ids '[4,2]T(1,0)' and axes "'b'"; a part of an
  axis is "'b':(1)2", from the product of sizes before it and its own.
  """
  shape = {k: int(n) for k, n in re.findall(r"'([^']*)'=(\d+)", sizes)}
  if not ids:
    places = np.arange(math.prod(shape.values()))
  elif '[' in ids:
    places = _iota(ids).reshape(-1)
  else:
    places = np.asarray([int(x) for x in _NUMBERS.findall(ids)])
  parts: list[tuple[str, int, int]] = []
  for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", axes):
    parts.append((name, int(before or 1), int(size or shape[name])))
  split, moved = [], []
  for name, n in shape.items():
    cuts = [(b, s) for other, b, s in parts if other == name]
    at = 1
    for before, size in sorted(cuts):
      if before > at:
        split.append(before // at)
      moved.append(len(split))
      split.append(size)
      at = before * size
    split.append(n // at)
  places = places.reshape(split)
  last = range(-len(moved), 0)
  group = math.prod(split[x] for x in moved)
  return np.moveaxis(places, moved, last).reshape(-1, group).tolist()


def _axes(
  groups: Sequence[Sequence[int]], mesh: Mapping[str, int]
) -> tuple[str, ...]:
  """The axes along which the devices of a group differ."""
  places = np.unravel_index(
    np.arange(math.prod(mesh.values())), [*mesh.values()]
  )
  return tuple(
    axis
    for axis, place in zip(mesh, places, strict=True)
    if any(len({int(place[x]) for x in group}) > 1 for group in groups)
  )
