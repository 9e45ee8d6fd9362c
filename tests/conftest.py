"""Eight host devices, strict promotion, no network, the embedded base."""

from importlib import metadata
import os

# Before jax is imported by anything; subprocesses of tests inherit it all.
# Three or four times less compilation, to slower code that means the same: few
# optimisations, one thread a program, kernels by the older emitter.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'
_FLAGS = [
  os.environ.get('XLA_FLAGS', ''),
  '--xla_force_host_platform_device_count=8',
  '--xla_cpu_parallel_codegen_split_count=1',
]
# Later ones have no other emitter, and a flag that XLA does not know is fatal.
if tuple(map(int, metadata.version('jaxlib').split('.')[:2])) < (0, 11):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(_FLAGS)
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
