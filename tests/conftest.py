"""Eight host devices, strict promotion, no network, the embedded base."""

import os

# Before jax is imported by anything; subprocesses of tests inherit it all.
# Two or three times less compilation, to slower code that means the same.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'
_HOST_DEVICES = '--xla_force_host_platform_device_count=8'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_HOST_DEVICES}'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
# A program that an older run compiled must not stand in for this one's.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
# Where libtpu is, it compiles for TPUs; none is looked for, by several at once.
os.environ['TPU_SKIP_MDS_QUERY'] = '1'
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'

import jax
import pytest

from dcjax.weights.base import Base, load_base


@pytest.fixture(scope='session')
def world_base() -> Base:
  """The base that is embedded in the package."""
  return load_base('world')


@pytest.fixture(scope='module')
def as_users_compile():
  """For what is said about compiled programs, and for long computations."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)
