"""Every config is a job: it loads, says how to run it, and has a runner."""

import ast
import importlib
import importlib.util
import pathlib

from ml_collections import ConfigDict
import pytest

from dcjax import main
from dcjax.errors import DcjaxError

FOLDER = pathlib.Path(__file__).parents[1] / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))


def load(name: str):
  """The module of a config, loaded by its path as the command line does."""
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def leaves(config: ConfigDict) -> dict:
  """{dotted key: value}; lists of ConfigDicts are entered too."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= {f'{key}.{k}': v for k, v in leaves(value).items()}
    elif isinstance(value, (list, tuple)) and any(
      isinstance(x, ConfigDict) for x in value
    ):
      for i, x in enumerate(value):
        flat |= {f'{key}[{i}].{k}': v for k, v in leaves(x).items()}
    else:
      flat[key] = value
  return flat


@pytest.mark.parametrize('name', NAMES)
def test_has_a_runner(name):
  task = load(name).get_config().task
  assert task in main.TASKS
  assert callable(importlib.import_module(main.TASKS[task]).run)


@pytest.mark.parametrize('name', NAMES)
def test_header_is_its_command(name):
  command = f'python -m dcjax.main --config=configs/{name}.py'
  assert command in load(name).__doc__


@pytest.mark.parametrize('name', NAMES)
def test_tiny_variant_changes_values_only(name):
  """Same keys and types, so that every option of the job exists in it."""
  whole = leaves(load(name).get_config())
  tiny = leaves(load(name).get_config('tiny'))
  assert tiny.keys() == whole.keys()
  assert tiny != whole
  for key, value in whole.items():
    assert type(tiny[key]) is type(value), key


@pytest.mark.parametrize('name', NAMES)
def test_unknown_variant_is_one_line(name):
  with pytest.raises((DcjaxError, ValueError), match=r'tinny.*tiny') as error:
    load(name).get_config('tinny')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', NAMES)
def test_help_stays_fast(name):
  """A config is read before the job is known: no jax, nothing heavy."""
  imported = {
    alias.name if isinstance(node, ast.Import) else node.module
    for node in ast.walk(ast.parse((FOLDER / f'{name}.py').read_text()))
    if isinstance(node, (ast.Import, ast.ImportFrom))
    for alias in node.names
  }
  assert imported <= {'ml_collections', 'dcjax', 'dcjax.errors'}
