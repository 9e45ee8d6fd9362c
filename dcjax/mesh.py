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
  wanted = [sizes.get(axis, 1) for axis in AXES]
  known = math.prod(n for n in wanted if n)
  if wanted.count(0) == 1 and min(wanted) == 0 and not len(devices) % known:
    wanted = [n or len(devices) // known for n in wanted]
  if min(wanted) < 1 or math.prod(wanted) != len(devices):
    raise DcjaxError(
      f'config.mesh is {dict(zip(AXES, wanted, strict=True))}, and there are '
      f'{len(devices)} devices; the product of the axes is their number, and '
      'at most one axis is 0, for what is left'
    )
  types = (AxisType.Auto,) * len(AXES)
  slices = len({getattr(x, 'slice_index', 0) for x in devices})
  if slices == 1:
    # An axis may be a part of one of the torus: 8 of 4x4x4.
    array = mesh_utils.create_device_mesh(
      wanted, devices, allow_split_physical_axes=True
    )
    return Mesh(array, AXES, axis_types=types)
  # Between slices of TPUs is a slow network, which only 'data' may cross.
  if wanted[0] % slices:
    raise DcjaxError(
      f'config.mesh.data is {wanted[0]}; expected a multiple of {slices}, the '
      'slices of this job'
    )
  inside = (wanted[0] // slices, *wanted[1:])
  array = mesh_utils.create_hybrid_device_mesh(
    inside, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
  )
  return Mesh(array, AXES, axis_types=types)


def of_config(config: Any) -> Mesh | None:
  """The mesh that a job runs on: `config.mesh`, on all devices.

  Left alone, that is data parallelism: over all processes, or over as many
  devices of this one as divide every batch of the job. A processor is one
  device, unless a mesh is asked for.

  Args:
    config: of the job; without `mesh` it runs on one device.

  Raises:
    DcjaxError: if the devices do not make up the mesh, or the mesh cannot share
      out a batch of the job.
  """
  if 'mesh' not in config:
    return None
  sizes = {axis: config.mesh[axis] for axis in AXES}
  devices = jax.devices()
  alone = jax.process_count() == 1
  asked = sizes['data'] > 0 or max(sizes[axis] for axis in AXES[1:]) > 1
  if alone and not asked and devices[0].platform == 'cpu':
    return None
  if alone and sizes['data'] == 0:
    others = math.prod(sizes[axis] for axis in AXES[1:])
    most = len(devices) // max(others, 1)
    batch = math.gcd(*(n for _, n in _batches(config)))
    fits = lambda n: batch % (n * sizes['fsdp']) == 0
    sizes['data'] = max(filter(fits, range(1, most + 1)), default=1)
  if alone:
    devices = devices[: math.prod(sizes.values())]
  if len(devices) == 1 and not asked:
    return None
  found = make(sizes, devices)
  shares = math.prod(found.shape[axis] for axis in ROWS)
  for name, n in _batches(config):
    if n % shares:
      raise DcjaxError(
        f'{name} is {n}; expected a multiple of {shares}, the shares that '
        'config.mesh.data and fsdp make of it (config.mesh.context='
        f'{shares // math.gcd(n, shares)} shares out tokens instead)'
      )
  return found


def _batches(config: Any) -> Iterator[tuple[str, int]]:
  """(option, samples) of the steps of the job; 0 samples are of no step."""
  for key, part in config.items():
    if hasattr(part, 'items'):
      if 'optimizer' in part:
        yield f'config.{key}.batch', part.get('batch', 0)
      for _, n in part.get('mix', ()):
        yield f'config.{key}.mix', n


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
