"""Several processes work as one, and go on as any other number of them."""

import json
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny

from dcjax import processes

ROOT = Path(__file__).parents[1]
STEPS = 8


def start(workdir, sizes, count, *event, devices=1, steps=STEPS):
  return launch(
    'pod_job.py', workdir, sizes, steps, *event, count=count, devices=devices
  )


def launch(job, *args, count, devices=1):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environ = os.environ | {
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': tiny.xla_flags(devices),
    'DCJAX_COORDINATOR': f'localhost:{port}',
    'DCJAX_PROCESS_COUNT': str(count),
    'DCJAX_START_TIMEOUT': '100',
    'DCJAX_SILENCE': '20',
  }
  return [
    subprocess.Popen(
      [sys.executable, str(ROOT / 'tests' / job), *map(str, args)],
      env=environ | {'DCJAX_PROCESS_INDEX': str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]


def finish(group):
  """(exit codes, output of each, error of each)."""
  try:
    said = [process.communicate(timeout=200) for process in group]
  finally:
    for process in group:
      process.kill()
  codes = [process.returncode for process in group]
  return codes, [x for x, _ in said], [x for _, x in said]


def learn(workdir, sizes, count, **options):
  """Runs to the end: (what is learnt, metrics, what process 0 printed)."""
  codes, said, errors = finish(start(workdir, sizes, count, **options))
  assert codes == [0] * count, errors
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return np.load(workdir / 'result.npz'), [*map(json.loads, lines)], said[0]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The undisturbed run of one process with one device."""
  return learn(tmp_path_factory.mktemp('alone'), 'data=1', 1)


def same(found, alone):
  """To the order of sums; every step was logged, once."""
  for name in ('kernel', 'bias'):
    np.testing.assert_allclose(
      found[0][name], alone[0][name], rtol=1e-5, atol=1e-6, err_msg=name
    )
  assert [x['step'] for x in found[1]] == list(range(1, STEPS + 1))
  for one, other in zip(found[1], alone[1], strict=True):
    assert one.keys() == other.keys()
    for key in ('loss', 'loss/half', 'grad_norm'):
      assert one[key] == pytest.approx(other[key], rel=1e-4), key


def test_two_processes_learn_what_one_does(tmp_path, alone):
  found = learn(tmp_path, 'data=2,fsdp=2', 2, devices=2)
  same(found, alone)
  # Each device had half of the matrix.
  assert 'kernel (4, 8)' in found[2]
  # The others wrote nothing where process 0 did.
  assert {x.name for x in tmp_path.iterdir()} <= {
    'checkpoints',
    'metrics.jsonl',
    'result.npz',
    'tensorboard',
  }


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """The folder of a run of two processes, one of which was killed.

  The other notices when its partner has been silent for a while.
  """
  workdir = tmp_path_factory.mktemp('killed')
  codes, _, _ = finish(start(workdir, 'fsdp=2', 2, 'SIGKILL', 5, 1))
  assert codes[1] == -signal.SIGKILL
  assert codes[0] not in (0, -signal.SIGKILL)
  assert not (workdir / 'result.npz').exists()
  steps = [int(x.name) for x in (workdir / 'checkpoints/line').glob('[0-9]')]
  assert max(steps) in (2, 4)
  return workdir


@pytest.mark.parametrize(
  'sizes, count, devices',
  [
    pytest.param('data=1', 1, 1, id='one'),
    pytest.param('data=2,fsdp=2', 4, 1, id='four'),
  ],
)
def test_a_killed_pod_goes_on_as_another(
  tmp_path, alone, killed, sizes, count, devices
):
  """The matrix lay in halves on two devices, and comes back whole, or in halves
  on the first two of four.
  """
  shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
  same(learn(tmp_path, sizes, count, devices=devices), alone)


def test_a_preempted_pod_saves_at_one_step_and_goes_on(tmp_path, alone):
  """One machine is told to go: all save the same step, and end as told."""
  group = start(tmp_path, 'data=2', 2, 'SIGTERM', 2, 1, steps=400)
  codes, _, errors = finish(group)
  assert codes == [processes.PREEMPTED] * 2, errors
  assert errors[0].count('the same command goes on') == 1
  assert 'goes on' not in errors[1]
  folder = tmp_path / 'checkpoints/line'
  (step,) = [int(x.name) for x in folder.glob('[0-9]*')][-1:]
  assert f'stopped at step {max(map(int, os.listdir(folder)))};' in errors[0]
  assert step > 2


# ---- clips are encoded by one process each -----------------------------------


def encode(workdir, count, *, devices=1, short=-1):
  """(exit codes, errors, what each process read and came to)."""
  workdir.mkdir()
  sizes = f'data={devices * count}'
  group = launch(
    'clips_job.py', workdir, sizes, 5, short, count=count, devices=devices
  )
  codes, _, errors = finish(group)
  return codes, errors, [np.load(x) for x in sorted(workdir.glob('*.npz'))]


def test_each_clip_is_encoded_by_one_process_and_all_have_it(tmp_path):
  codes, errors, (alone,) = encode(tmp_path / 'alone', 1, devices=2)
  assert codes == [0], errors
  codes, errors, found = encode(tmp_path / 'pod', 2)
  assert codes == [0, 0], errors
  assert [x['read'].tolist() for x in found] == [[0, 2, 4], [1, 3]]
  for one in found:
    assert set(one) == set(alone)
    for name in set(alone) - {'read'}:
      np.testing.assert_allclose(
        one[name], alone[name], rtol=1e-3, atol=1e-3, err_msg=name
      )
  assert len(list((tmp_path / 'pod/cache').iterdir())) == 5


def test_all_processes_say_which_clip_cannot_be_encoded(tmp_path):
  """Not only the one that had it, while the others wait for it."""
  codes, errors, found = encode(tmp_path / 'pod', 2, short=3)
  assert codes == [1, 1] and not found
  for error in errors:
    assert error.splitlines()[-1].startswith('error: clip 3: '), error
