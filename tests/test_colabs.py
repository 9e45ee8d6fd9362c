"""Notebooks run from top to bottom, on a tiny base, and define nothing."""

import ast
import json
import pathlib
import sys
import types

import pytest
import tiny

from dcjax.weights.base import load_base

FOLDER = pathlib.Path(__file__).parents[1] / 'colabs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.ipynb'))
# What is asked for in place of the cell of parameters.
STAGE = {'steps': 2, 'batch': 2, 'accumulate': 1}
VALUES = {
  'set_and_sequence': {
    'OPTIONS': {f'set__{key}': x for key, x in STAGE.items()}
    | {f'sequence__{key}': x for key, x in STAGE.items()}
    | {'prior__videos': 0, 'lora__rank': 2, 'sample__steps': 2}
  },
  'who_and_when': {
    'SECONDS': 0.5,
    'TRIANGLE': (0.0, 0.25),
    'RING': (0.125, 0.5),
    'STEPS': 2,
  },
}


def cells(name: str) -> list[dict]:
  notebook = json.loads((FOLDER / f'{name}.ipynb').read_text())
  return [x for x in notebook['cells'] if x['cell_type'] == 'code']


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A folder with untrained references in it."""
  path = tmp_path_factory.mktemp('base')
  tiny.base_folder(path)
  tiny.reference_folder(path / 'reference', load_base(path))
  return str(path)


@pytest.fixture
def shown(monkeypatch):
  """What a notebook would show, without IPython."""
  found = []
  display = types.ModuleType('IPython.display')
  display.display = lambda *x: found.extend(x)
  for kind in ('HTML', 'Image', 'Video'):
    show = lambda data, kind=kind, **options: (kind, data)
    setattr(display, kind, show)
  monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
  monkeypatch.setitem(sys.modules, 'IPython.display', display)
  return found


@pytest.mark.parametrize('name', NAMES)
def test_runs_from_top_to_bottom(name, base, shown, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  scope = {}
  for cell in cells(name):
    exec(''.join(cell['source']), scope)
    if 'parameters' in cell['metadata'].get('tags', ()):
      assert VALUES[name].keys() <= scope.keys()
      scope |= VALUES[name] | {'BASE': base}
  files = [data for kind, data in filter(_is_file, shown)]
  assert files and all(pathlib.Path(x).stat().st_size for x in files)
  if name == 'set_and_sequence':
    assert (tmp_path / 'runs/thing/concept.safetensors').exists()
    assert any(x[0] == 'HTML' and '&lt;html' in x[1] for x in shown)
  else:
    assert 'runs/timeline/timeline.png' in files


def _is_file(x) -> bool:
  return isinstance(x, tuple) and x[0] in ('Image', 'Video')


@pytest.mark.parametrize('name', NAMES)
def test_defines_nothing_and_holds_no_output(name):
  for cell in cells(name):
    assert cell['outputs'] == [] and cell['execution_count'] is None
    for node in ast.walk(ast.parse(''.join(cell['source']))):
      assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)
