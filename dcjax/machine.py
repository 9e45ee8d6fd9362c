"""What runs, and where: written beside every result."""

from collections.abc import Iterator
import contextlib
import contextvars
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import resource
import subprocess
import sys
from typing import Any

import jax

PACKAGES = (
  'dcjax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
)

# What XLA for TPUs is told beside its defaults: to gather the kernels of a
# split base while it multiplies. Else all chips wait for each of them.
TPU_OPTIONS = {
  'xla_enable_async_all_gather': True,
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': True,
}

_PLATFORM = contextvars.ContextVar[str | None]('platform', default=None)


def backend() -> str:
  """Where the programs that are made now will run: 'cpu', 'gpu' or 'tpu'."""
  return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def programs_for(name: str) -> Iterator[None]:
  """Makes programs as on another platform, to look at: they do not run here."""
  token = _PLATFORM.set(name)
  try:
    yield
  finally:
    _PLATFORM.reset(token)


def tell_xla() -> None:
  """Hands on `TPU_OPTIONS`; comes before jax looks for devices.

  What stands in LIBTPU_INIT_ARGS already comes last there, and counts.
  """
  ours = [f'--{key}={str(on).lower()}' for key, on in TPU_OPTIONS.items()]
  given = os.environ.get('LIBTPU_INIT_ARGS', '').split()
  new = [x for x in ours if x not in given]
  os.environ['LIBTPU_INIT_ARGS'] = ' '.join([*new, *given])


def describe() -> dict[str, Any]:
  """Versions, device and commit."""
  device = jax.devices()[0]
  return {
    'python': platform.python_version(),
    'packages': {name: _version(name) for name in PACKAGES},
    'commit': _commit(),
    'device': f'{device.platform} {device.device_kind}',
    'devices': jax.device_count(),
    'cores': os.cpu_count(),
    'system': f'{platform.system()} {platform.machine()}',
  }


def plain(config: Any) -> dict[str, Any]:
  """A config, or a part of one, as JSON values."""
  return json.loads(config.to_json_best_effort())


def write_config(workdir: Path, config: Any, **extra: Any) -> None:
  """Writes `workdir/config.json`: resolved config, what ran it, and `extra`."""
  record = {
    'config': plain(config),
    'machine': describe(),
    **extra,
  }
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json').write_text(json.dumps(record, indent=2) + '\n')


def peak_memory() -> float:
  """Largest resident memory of this process so far, in GB (1e9 bytes)."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # Linux counts in KiB, macOS in bytes.
  return round(peak * (1 if sys.platform == 'darwin' else 1024) / 1e9, 2)


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit() -> str | None:
  """Commit of the checkout that this file lies in, if it lies in one."""
  try:
    done = subprocess.run(
      ['git', 'rev-parse', '--short', 'HEAD'],
      cwd=Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
