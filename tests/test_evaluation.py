"""The `evaluate` task: what a base does with prompts it has not seen."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from dcjax.evals import base as evaluation

CONFIG = Path(__file__).parents[1] / 'configs' / 'evaluate.py'


def test_writes_what_it_measured(tmp_path, world_base):
  spec = importlib.util.spec_from_file_location('evaluate_config', CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  evaluation.run(module.get_config('tiny'), str(tmp_path))
  refuse = lambda word: (_ for _ in ()).throw(AssertionError(word))
  text = (tmp_path / 'evaluation.json').read_text()
  record = json.loads(text, parse_constant=refuse)
  # The judge reads drawn clips rightly, and cannot judge absence in them.
  assert record['rendered']['background'] == 1.0
  assert record['rendered']['absent'] is None
  assert record['fingerprint'] == world_base.fingerprint
  # Two steps make no picture, but colour is the first thing to come.
  assert set(record['sampled']) == set(record['rendered'])
  assert (tmp_path / 'sheet.gif').exists()


def test_held_out_scenes_depend_on_seed_and_place_alone():
  few, many = (evaluation.held_out_scenes(n, seed=1) for n in (2, 5))
  np.testing.assert_array_equal(few.center, many.center[:2])
  assert (few.count == 1).all()
  other = evaluation.held_out_scenes(2, seed=2)
  assert not np.array_equal(few.center, other.center)


def test_psnr_is_in_decibel():
  black = np.zeros((1, 2, 4, 4, 3), np.uint8)
  grey = np.full_like(black, 51)  # a fifth of the range: 14 dB
  np.testing.assert_allclose(evaluation.psnr(black, grey), 13.979, atol=1e-3)
