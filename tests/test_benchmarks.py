"""What benchmarks measure with: random weights, times, records of failures."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax import tree
from dcjax.errors import DcjaxError
from dcjax.models import intervals, rope
from dcjax.weights import reference

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module', autouse=True)
def beside():
  """Benchmarks are scripts, that find each other in their folder."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'path', [str(ROOT / 'benchmarks'), *sys.path])
    yield


def test_weights_are_random_and_of_the_size_of_a_model():
  import step

  shape = jax.ShapeDtypeStruct
  found = step.drawn(
    {
      'up': {
        'kernel': shape((2, 64, 96), jnp.bfloat16),
        'bias': shape((2, 96), jnp.float32),
      },
      'norm': {'scale': shape((64,), jnp.float32)},
      'latents': shape((1, 2, 4, 4, 8), jnp.float32),
      'mask': shape((2, 5), jnp.bool_),
      'prompt': shape((3,), jnp.int32),
    }
  )
  kernel = np.float32(found['up']['kernel'])
  assert found['up']['kernel'].dtype == jnp.bfloat16
  assert kernel.std() == pytest.approx(64**-0.5, rel=0.05)
  # No layer is another's copy.
  assert not np.array_equal(kernel[0], kernel[1])
  assert found['up']['bias'].std() == pytest.approx(0.02, rel=0.2)
  assert found['norm']['scale'].mean() == pytest.approx(1.0, abs=0.1)
  assert found['latents'].std() == pytest.approx(1.0, rel=0.2)
  assert found['mask'].all() and not found['prompt'].any()


def test_at_least_two_runs_count_and_warming_up_does_not():
  import record

  calls = []
  assert len(record.runs(lambda: calls.append(1), warm=3, most=5, budget=0)) > 1
  assert len(calls) == 3
  seconds = record.runs(lambda: calls.append(1), warm=3, most=5, budget=60)
  assert (len(seconds), len(calls)) == (5, 3 + 3 + 5)
  found = record.spread([0.001, 0.004, 0.002])
  expected = {'ms': 2.0, 'least': 1.0, 'most': 4.0, 'runs': 3}
  assert found == pytest.approx(expected)


def test_programs_are_named_or_all_that_have_operations():
  import step

  made = [
    types.SimpleNamespace(name=name, work=name != 'decode' or None)
    for name in ('decode', 'sample', 'frames_17')
  ]
  names = lambda only: [x.name for x in step.chosen(made, only)]
  assert names('') == ['sample', 'frames_17']
  assert names('frames_17') == ['frames_17']
  for wrong in ('set', 'sample,set', 'set,decode'):
    with pytest.raises(DcjaxError, match="'set'; use sample, frames_17"):
      names(wrong)


@pytest.mark.parametrize(
  'job', ['alchemint.py:tiny', 'pretrain.py:tiny', 'lora.py:tiny']
)
def test_every_job_that_is_planned_can_be_timed(monkeypatch, job):
  import step

  measured = []
  done = {'ms': 1.0, 'compile': 0.0, 'memory': 1.0}

  def measure(program, planned, options):
    measured.append(program)
    return dict(done)

  monkeypatch.setattr(step, 'measure', measure)
  monkeypatch.setattr(step.record, 'write', lambda *_: '')
  monkeypatch.setattr(sys, 'argv', ['step.py', f'--job={ROOT}/configs/{job}'])
  step.main()
  assert any(x.trains for x in measured)


def test_a_way_that_there_is_not_replaces_no_results(monkeypatch):
  import timed_concepts

  monkeypatch.setattr(sys, 'argv', ['timed_concepts.py', '--only=evnt'])
  with pytest.raises(DcjaxError, match="--only is 'evnt'; use reference; .*"):
    timed_concepts.main()


def test_references_are_the_same_without_their_words(world_base, tmp_path):
  """What is left out is what tags add, and nothing reads it then."""
  import word_tags

  folder = word_tags.without_words(
    world_base, world_base.reference_folder, tmp_path
  )
  whole, bare = (
    reference.equip(world_base, x)
    for x in (world_base.reference_folder, folder)
  )
  assert whole.reference.tag_tokens and not bare.reference.tag_tokens
  left = tree.flatten(whole.params['transformer'])
  found = tree.flatten(bare.params['transformer'])
  gone = set(left) - set(found)
  assert gone == {x for x in left if x.startswith('reference/tag_')} != set()
  for name, x in found.items():
    np.testing.assert_array_equal(x, left[name], err_msg=name)
  with pytest.raises(DcjaxError, match='has no word tags'):
    word_tags.without_words(world_base, folder, tmp_path / 'again')


def test_what_a_head_reads_of_an_interval_is_its_logit():
  """The features are those of a product of rotated queries and keys."""
  import rotations

  frames, channels = 5, 8
  rng = np.random.default_rng(0)
  span = np.array([[0.5, 2.25], [0.0, 3.0]])
  q, k = rng.normal(size=(2, channels)).astype(np.float32)
  options = {'border': 'keep'}
  times, weights = intervals.anchors(span, frames, **options)
  keys = intervals.table(times, weights, np.zeros((1, 2)), (channels, 0, 0))
  queries = rope.table(np.arange(frames)[:, None], (channels,))
  rotate = lambda x, table: np.asarray(
    rope.rotate(np.broadcast_to(x, (1, len(table.cos), 1, channels)), table)
  )[0, :, 0]
  logits = [
    rotate(q, queries) @ rotate(k, rope.Table(keys.cos[i], keys.sin[i]))[0]
    for i in range(len(span))
  ]
  # The contents are free in each pair of channels: as one complex number each.
  content = (q[::2] - 1j * q[1::2]) * (k[::2] + 1j * k[1::2])
  read = rotations.Reader(np.r_[content.real, -content.imag], 0.0)
  found = read(rotations.features(span, frames, channels, options))
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_a_midpoint_does_not_tell_lengths():
  import rotations

  row = lambda name: rotations.measure(
    21, 44, rotations.SCHEMES[name], decay=1e-3, count=300, seed=0
  )
  middle, weighted = row('midrope'), row('werope, kept')
  assert middle['order'] == 0.5 and weighted['order'] > 0.95
  assert weighted['IoU'] > middle['IoU'] + 0.05


@pytest.mark.skipif(not shutil.which('timeout'), reason='coreutils: timeout')
def test_jobs_of_one_config_have_files_of_their_own(tmp_path):
  """On a machine whose Python says what it is called with."""
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\necho "$@"\n')
  python.chmod(0o755)
  jobs = ['configs/a.py:b', 'configs/a.py:b --set=remat=full']
  said = subprocess.run(
    [ROOT / 'benchmarks/gpu.sh', *jobs],
    env=os.environ | {'PYTHON': str(python)},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  names = re.findall(r'^benchmarks/step\.py .* --name=(\S+)', said, re.M)
  assert names == ['1_a_py_b', '2_a_py_b']


LOG = """
tests/test_a.py::test_one[x y] PASSED [ 50%]
tests/test_a.py::test_two SKIPPED (no GPU) [ 70%]
tests/test_a.py::test_three FAILED [100%]
E   ModuleNotFoundError: No module named 'einops.layers'
=========================== short test summary info ============================
SKIPPED [1] tests/test_a.py:7: no GPU
FAILED tests/test_a.py::test_three - ModuleNotFoundError
"""


def test_what_failed_is_recorded_with_its_reason(tmp_path):
  import gather

  (tmp_path / 'parts.tsv').write_text(
    'tests\t1\t12\t90\tpython -m pytest\n'
    'paper\t124\t150\t150\tpython step.py\n'
    'wan\t77\t0\t0\tpython step.py\n'
  )
  (tmp_path / 'tests.log').write_text(LOG)
  (tmp_path / 'paper.log').write_text('Compiling\nKeyboardInterrupt\n')
  (tmp_path / 'paper-2026-01-01-gpu.json').write_text(
    '{"date": "2026-01-01", "programs": [1]}'
  )
  found = gather.parts(tmp_path)
  ends = {name: row['end'] for name, row in found.items()}
  assert ends == {
    'tests': 'failed with exit code 1',
    'paper': 'out of time',
    'wan': 'not begun',
  }
  tests = found['tests']
  assert tests['counts'] == dict(PASSED=1, FAILED=1, ERROR=0, SKIPPED=1)
  assert tests['missing'] == ['einops.layers']
  assert len(tests['why']) == 2
  assert found['paper']['found'] == {'programs': [1]}
  assert found['paper']['log'] == ['Compiling', 'KeyboardInterrupt']
  assert 'found' not in found['wan']


def test_the_best_linear_code_loses_nothing_that_it_has_room_for():
  import linear

  rng = np.random.default_rng(0)
  # Patches of 4x4 pixels and two frames that are sums of three pictures.
  mix = rng.normal(size=(6, 4, 2, 2, 3))
  x = linear.pixels(mix @ rng.normal(size=(3, 96)), 4, 2).astype(np.float32)
  assert x.shape == (6, 8, 8, 8, 3)
  np.testing.assert_array_equal(linear.pixels(linear.patches(x, 4, 2), 4, 2), x)
  middle, found = linear.components(x, 4, 2)
  kept = lambda n: linear.coded(x, 4, 2, middle, found[:, :n])
  np.testing.assert_allclose(kept(3), x, atol=1e-4)
  lost = lambda n: np.square(kept(n) - x).mean()
  assert lost(1) > 2 * lost(2) > 0.01


def test_the_first_frame_has_a_code_of_its_own():
  import linear

  rng = np.random.default_rng(1)
  seen = rng.uniform(-1, 1, (32, 5, 8, 8, 3)).astype(np.float32)
  found = linear.Code(seen, 4, 4)(seen, 48)
  exact = np.uint8(np.round((seen + 1.0) * 127.5))
  # 48 numbers hold a patch of one frame, and a quarter of one of four.
  assert np.abs(np.int32(found[:, 0]) - exact[:, 0]).max() <= 1
  assert np.abs(np.int32(found[:, 1:]) - exact[:, 1:]).mean() > 10
