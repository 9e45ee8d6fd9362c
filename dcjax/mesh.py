"""The mesh of devices that a run is spread over, as its programs see it.

Four axes, of which any may be 1:

    data      samples of a batch; the frozen base is repeated
    fsdp      samples of a batch; large kernels are split, gathered when used
    tensor    heads of attention, width of the MLP
    context   tokens of a sample

The mesh is that of `jax.set_mesh`. Without one there is one device, and every
function here hands on what it is given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import contextvars
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from dcjax.errors import DcjaxError

AXES = ('data', 'fsdp', 'tensor', 'context')
# What the samples of a batch are shared out over.
ROWS = ('data', 'fsdp')
# Of a job that asks for no mesh; see `recipes.mesh`.
USUAL = {'data': 0, 'fsdp': 1, 'tensor': 1, 'context': 1}
# Whether a function is traced for the samples of one share, by `over_rows`.
_SHARE = contextvars.ContextVar('share', default=False)


def make(
  sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh of all devices.

  Args:
    sizes: of the axes; one that is 0 takes the devices that are left, one that
      is missing is 1.
    devices: of the mesh; all by default.

  Raises:
    DcjaxError: if the sizes are not those of the devices.
  """
  devices = jax.devices() if devices is None else devices
  unknown = sorted(set(sizes) - set(AXES))
  if unknown:
    raise DcjaxError(
      f'config.mesh has no axis {unknown[0]!r}; use {", ".join(AXES)}'
    )
  sizes = filled(sizes, len(devices))
  wanted = [*sizes.values()]
  if min(wanted) < 1 or math.prod(wanted) != len(devices):
    raise DcjaxError(
      f'config.mesh is {sizes}, and there are {len(devices)} devices; the '
      'product of the axes is their number, and at most one axis is 0, for '
      'what is left'
    )
  types = (AxisType.Auto,) * len(AXES)
  slices = len({getattr(x, 'slice_index', 0) for x in devices})
  if slices == 1:
    # An axis may be a part of one of the torus: 8 of 4x4x4.
    array = mesh_utils.create_device_mesh(
      wanted, devices, allow_split_physical_axes=True
    )
    return Mesh(array, AXES, axis_types=types)
  # Between slices of TPUs, or machines with GPUs, is a slow network, which only
  # 'data' may cross.
  if wanted[0] % slices:
    what = 'slices' if devices[0].platform == 'tpu' else 'machines'
    raise DcjaxError(
      f'config.mesh.data is {wanted[0]}; expected a multiple of {slices}, the '
      f'{what} of this job'
    )
  inside = (wanted[0] // slices, *wanted[1:])
  array = mesh_utils.create_hybrid_device_mesh(
    inside, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
  )
  return Mesh(array, AXES, axis_types=types)


def filled(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
  """Sizes of all axes: a single one that is 0 takes the devices that are left.

  Where that is no whole number of them, it stays 0.

  Args:
    sizes: of the axes; one that is missing is 1.
    devices: how many.
  """
  sizes = {axis: sizes.get(axis, 1) for axis in AXES}
  empty = [axis for axis, n in sizes.items() if n < 1]
  known = math.prod(n for n in sizes.values() if n > 0)
  if len(empty) == 1 and sizes[empty[0]] == 0 and devices % known == 0:
    sizes[empty[0]] = devices // known
  return sizes


def of_config(config: Any) -> Mesh | None:
  """The mesh that a job runs on: `config.mesh`, on all devices.

  Left alone, that is data parallelism: over all processes, or over as many
  devices of this one as divide every batch of the job; on a TPU, a half of
  them, a quarter and so on, since XLA compiles for no others. A processor is
  one device, unless a mesh is asked for.

  Args:
    config: of the job; without `mesh` it runs on one device.

  Raises:
    DcjaxError: if the devices do not make up the mesh, or the mesh cannot share
      out a batch of the job.
  """
  if 'mesh' not in config:
    return None
  sizes = {axis: config.mesh[axis] for axis in AXES}
  asked = sizes != USUAL
  devices = jax.devices()
  if jax.process_count() == 1:
    if not asked and devices[0].platform == 'cpu':
      return None
    sizes, devices = _of_one_process(config, sizes, devices)
  if len(devices) == 1 and not asked:
    return None
  found = make(sizes, devices)
  shares = math.prod(found.shape[axis] for axis in ROWS)
  for name, n in batches(config):
    if n % shares:
      raise DcjaxError(
        f'{name} is {n}; expected a multiple of {shares}, the shares that '
        'config.mesh.data and fsdp make of it (config.mesh.context='
        f'{shares // math.gcd(n, shares)} shares out tokens instead)'
      )
  return found


def _of_one_process(
  config: Any, sizes: dict[str, int], devices: Sequence[jax.Device]
) -> tuple[dict[str, int], Sequence[jax.Device]]:
  """Sizes with what is left, and as many of the devices."""
  serves = lambda n: devices[0].platform != 'tpu' or len(devices) % n == 0
  others = math.prod(sizes[axis] for axis in AXES[1:])
  if sizes['data'] == 0 and min(sizes[axis] for axis in AXES[1:]) > 0:
    batch = math.gcd(*(n for _, n in batches(config)))
    fits = lambda n: batch % (n * sizes['fsdp']) == 0 and serves(n * others)
    most = len(devices) // others
    sizes['data'] = max(filter(fits, range(1, most + 1)), default=1)
  sizes = filled(sizes, len(devices))
  if min(sizes.values()) < 1:  # `make` says what is wrong
    return sizes, devices
  used = math.prod(sizes.values())
  if not serves(used):
    raise DcjaxError(
      f'config.mesh is {sizes}, {used} of {len(devices)} TPUs; expected a '
      'divisor of their number'
    )
  return sizes, devices[:used]


def batches(config: Any) -> Iterator[tuple[str, int]]:
  """(option, samples) of each loss of the steps of a job."""
  for key, part in config.items():
    if not hasattr(part, 'items') or 'optimizer' not in part:
      continue
    if key not in config.get('stages', (key,)):
      continue
    mix = part.get('mix', ())
    for _, n in mix:
      yield f'config.{key}.mix', n
    if not mix:
      yield f'config.{key}.batch', part.get('batch', 0)


def size(*axes: str) -> int:
  """Devices along some axes of the current mesh, or all of it; 1 without."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(axis, 1) for axis in axes or AXES)


def rows(n: int) -> tuple[str, ...] | None:
  """The axes that n samples are shared out over, or None.

  None inside `over_rows`, where they have been shared out already, and for a
  number of samples that does not divide: every device then has all of them.
  """
  if _SHARE.get() or size(*ROWS) == 1 or n % size(*ROWS):
    return None
  return ROWS


def tokens(x: jax.Array) -> jax.Array:
  """[b n d], its samples over the rows and its tokens over 'context'."""
  if size() == 1:
    return x
  return jax.lax.with_sharding_constraint(x, P(rows(len(x)), 'context', None))


def everywhere(x: jax.Array) -> jax.Array:
  """Has every device hold all of an array."""
  return x if size() == 1 else jax.lax.with_sharding_constraint(x, P())


def over_rows(function: Callable) -> Callable:
  """Maps a function over the shares of a batch: [s b/s ...], one a device.

  Of the arguments, those that are shares are named by `in_axes` of the result,
  as of `jax.vmap`. What the function computes for one share stays on the
  devices of that share: a gradient of something that every share has is summed
  over them only when the caller sums it.
  """

  def marked(*args):
    token = _SHARE.set(True)
    try:
      return function(*args)
    finally:
      _SHARE.reset(token)

  def mapped(*args, in_axes):
    return jax.vmap(
      marked, in_axes=in_axes, axis_name='share', spmd_axis_name=ROWS
    )(*args)

  return mapped


def mean_over_shares(x: jax.Array) -> jax.Array:
  """The mean of a value over all shares, if `over_rows` has made some."""
  return jax.lax.pmean(x, 'share') if _SHARE.get() else x


@contextlib.contextmanager
def use(mesh: Mesh | None) -> Iterator[None]:
  """Makes a mesh the current one; with None there is one device."""
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    yield


def split(x: Any, shares: int) -> Any:
  """[b ...] -> [s b/s ...] of every leaf."""
  return jax.tree.map(lambda a: a.reshape(shares, -1, *a.shape[1:]), x)
