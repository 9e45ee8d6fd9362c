"""Package metadata; the tools are configured in pyproject.toml."""

from pathlib import Path
import re

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
  r"^__version__ = '(.+)'$", (ROOT / 'dcjax/__init__.py').read_text(), re.M
).group(1)

# Lower bounds admit what Colab ships, and there are no upper ones. No plugin of
# an accelerator: a newer jax beside an older plugin silently stays on the CPU.
REQUIRES = [
  'absl-py',
  'av',
  'einops',
  'flax>=0.11.2',
  'grain>=0.2.12',
  'importlib_resources',  # tensorflow-datasets needs it and does not say so
  'jax>=0.7.2',
  'ml_collections>=1.0',
  'numpy>=1.26',
  'optax>=0.2.5',
  'orbax-checkpoint>=0.12.4',
  'Pillow',
  'safetensors',
  'tensorboardX',
  'tensorflow-datasets>=4.9.9',
  'transformers>=5.0',
]

# One version of ruff, as each formats a little differently.
LINT = ['pre-commit', 'ruff==0.17.5']

# With the torch peers of the parity tests.
TEST = [
  'accelerate',
  'diffusers',
  'ftfy',
  'jsonschema',
  'peft',
  'pytest',
  'pytest-timeout',
  'pytest-xdist',
  'torch==2.13.0',
]

# To start sweeps. Apart from the tests, since it wants an older protobuf.
XMANAGER = ['protobuf<7', 'xmanager>=0.8']

# To look at what runs wrote, and to judge real videos with networks of others.
EVAL = ['diffusers', 'tensorboard', 'torch']

setup(
  name='dcjax',
  version=VERSION,
  description='Dynamic concepts for text-to-video diffusion models, in JAX',
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  classifiers=[
    'Development Status :: 3 - Alpha',
    'Intended Audience :: Science/Research',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
  python_requires='>=3.11',
  packages=find_packages(include=['dcjax', 'dcjax.*']),
  package_data={
    'dcjax': ['assets/**/*'],
    'dcjax.report': ['*.css', '*.html', '*.js'],
  },
  install_requires=REQUIRES,
  extras_require={
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda12]'],
    'test': TEST,
    'eval': EVAL,
    'xmanager': XMANAGER,
    'dev': LINT,
  },
)
