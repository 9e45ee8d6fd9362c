"""A run that was stopped, in any way, ends in the same bits."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import optim, processes, train, tree
from dcjax import state as state_lib
from dcjax.checkpoint import Checkpoints
from dcjax.data import pipeline
from dcjax.errors import DcjaxError
from dcjax.stage import Optimizer, Stage

STAGE = Stage(
  's',
  'flow',
  'clip',
  'b1$',
  steps=9,
  batch=3,
  dropout=0.3,
  dropped='b1',
  optimizer=Optimizer(lr=0.1, schedule='cosine', warmup=2, clip=0.0),
  ema=0.9,
)


def params():
  return {'a1': jnp.arange(12.0).reshape(3, 4), 'b1': jnp.zeros((4, 5))}


def noisy(p, batch, context, key):
  """Depends on the data, the step's noise and all of Adam's memory."""
  noise = jax.random.normal(key, (4, 5))
  target = batch['x'][:, None, None] * jnp.sin(p['a1'].sum()) + noise[None]
  error = jnp.square(p['b1'][None] - target).mean((1, 2))
  return error.mean(), {'worst': error.max()}


noisy.evaluate = lambda p, batch, context, key: {'held_out': p['b1'].sum()}


class Disturbed:
  """A loader to which something happens before a step (from 0)."""

  def __init__(self, loader, step=None, event=None):
    self._loader, self._left, self._event = loader, step, event

  def __next__(self):
    if self._left == 0:
      self._event()
    if self._left is not None:
      self._left -= 1
    return next(self._loader)

  def __getattr__(self, name):
    return getattr(self._loader, name)


def run(
  folder,
  *,
  at=None,
  event=None,
  stage=STAGE,
  save_every=3,
  look=lambda step, p: None,
  **identity,
):
  source = [{'x': np.float32(x)} for x in range(5)]
  loader = pipeline.loader(source, batch=stage.batch, seed=1)
  loop = train.Loop(
    str(folder),
    seed=5,
    log_every=2,
    save_every=save_every,
    eval_every=3,
    preview_every=stage.steps,
    identity={'clip': 'abc'} | identity,
  )
  result, _ = train.fit(
    stage,
    noisy,
    params(),
    Disturbed(loader, at, event),
    loop,
    held_out={'x': np.zeros(1)},
    preview=look,
  )
  return result


def last_state(folder):
  """Parameters, optimizer, average and place in the data, as saved."""
  trainable, _ = tree.partition(params(), STAGE.train)
  optimizer = optim.make(STAGE.optimizer, STAGE.steps)
  like = state_lib.init(trainable, optimizer, ema=True)
  checkpoints = Checkpoints(folder / 'checkpoints' / 's', {'clip': 'abc'})
  state, place = checkpoints.restore(like)
  checkpoints.close()
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)], place


def metrics(folder):
  return (pathlib.Path(folder) / 'metrics.jsonl').read_text()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed')
  return folder, run(folder)


def crash():
  raise RuntimeError('the power is gone')


def preempt():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('at', [0, 1, 3, 4, 8])
@pytest.mark.parametrize('event', [crash, preempt])
def test_goes_on_to_the_same_bits(tmp_path, undisturbed, event, at):
  with pytest.raises((RuntimeError, SystemExit)):
    run(tmp_path, at=at, event=event)
  folder, expected = undisturbed
  assert tiny.equal(run(tmp_path), expected)
  assert last_state(tmp_path) == last_state(folder)
  assert metrics(tmp_path) == metrics(folder)


def test_may_be_stopped_again_and_again(tmp_path, undisturbed):
  for _ in range(4):
    with contextlib.suppress(SystemExit):
      run(tmp_path, at=0, event=preempt)
  folder, expected = undisturbed
  assert tiny.equal(run(tmp_path), expected)
  assert metrics(tmp_path) == metrics(folder)


def test_preemption_saves_at_once_and_says_how_to_go_on(tmp_path, capsys):
  handler = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as stopped:
    run(tmp_path, at=1, event=preempt, save_every=0)
  assert stopped.value.code == processes.PREEMPTED
  line = 's: stopped at step 2; the same command goes on'
  assert line in capsys.readouterr().err
  checkpoints = Checkpoints(tmp_path / 'checkpoints' / 's', {})
  assert checkpoints.step == 2
  checkpoints.close()
  assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize('save_every', [0, 3])
def test_preemption_after_the_last_step_is_heard(
  tmp_path, undisturbed, save_every
):
  """While its preview is made, say; else the next stage would begin."""
  with pytest.raises(SystemExit) as stopped:
    run(tmp_path, save_every=save_every, look=lambda *_: preempt())
  assert stopped.value.code == processes.PREEMPTED
  assert last_state(tmp_path) == last_state(undisturbed[0])
  never = lambda *_: pytest.fail('a finished stage went on')
  assert tiny.equal(run(tmp_path, look=never), undisturbed[1])


def test_a_kill_between_metrics_and_checkpoint_loses_no_line(
  tmp_path, undisturbed, monkeypatch
):
  """And one right after the checkpoint none either: the lines come first."""
  save = Checkpoints.save

  def save_and_die(self, *args):
    save(self, *args)
    crash()

  for die in (lambda *_: crash(), save_and_die):
    folder = tmp_path / die.__name__.strip('<>')
    monkeypatch.setattr(Checkpoints, 'save', die)
    with pytest.raises(RuntimeError):
      run(folder)
    monkeypatch.setattr(Checkpoints, 'save', save)
    run(folder)
    assert metrics(folder) == metrics(undisturbed[0])


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
  first = run(tmp_path)
  before = metrics(tmp_path)

  def never(*args):
    raise AssertionError('a finished stage made a step')

  monkeypatch.setattr(train, 'make_step', never)
  assert tiny.equal(run(tmp_path), first)
  assert metrics(tmp_path) == before


def test_another_run_in_the_folder_is_refused(tmp_path):
  run(tmp_path)
  with pytest.raises(DcjaxError, match='another run .*clip is .*workdir') as e:
    run(tmp_path, clip='another')
  assert '\n' not in str(e.value)
  stage = dataclasses.replace(STAGE, steps=12)
  loop = train.Loop(str(tmp_path), identity={'clip': 'abc', 'more': 1})
  with pytest.raises(DcjaxError, match='more is 1 now and was None'):
    train.refuse_other_run(stage, loop)


def test_a_checkpoint_that_was_cut_off_is_not_one(tmp_path, undisturbed):
  """Killed while it writes: the last complete one stands."""
  with pytest.raises(RuntimeError):
    run(tmp_path, at=5, event=crash)
  folder = tmp_path / 'checkpoints' / 's'
  assert [p.name for p in folder.iterdir()] == ['3']
  torn = folder / '6.orbax-checkpoint-tmp-17'
  (torn / 'state').mkdir(parents=True)
  (torn / 'state' / 'manifest.ocdbt').write_bytes(b'half of')
  _, expected = undisturbed
  assert tiny.equal(run(tmp_path), expected)


# ---- the command line, killed ------------------------------------------------

STEPS = 12


class Command:
  """`python -m dcjax.main` with both stages, in a workdir."""

  def __init__(self, files, workdir):
    self.metrics = workdir / 'metrics.jsonl'
    self.workdir = workdir
    root = pathlib.Path(__file__).parents[1]
    options = {
      'base': files / 'base',
      'data.video': files / 'clip.mp4',
      'prompts.appearance': tiny.APPEARANCE,
      'prompts.motion': tiny.MOTION,
      'edits': ('new: a red [v] ball [u] rolls.',),
      'lora.rank': 2,
      'prior.videos': 0,
      'save_every': 3,
      'log_every': 1,
      'eval_every': 0,
      'preview_every': 0,
      'set.steps': STEPS,
      'sequence.steps': STEPS,
    }
    flags = [f'--config.{key}={value}' for key, value in options.items()]
    config = f'--config={root}/configs/set_seq.py:tiny'
    self.words = [sys.executable, '-m', 'dcjax.main', config, *flags]
    self.words.append(f'--workdir={workdir}')
    self.environment = os.environ | {
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      # The first run compiles for all.
      'JAX_ENABLE_COMPILATION_CACHE': 'true',
      'JAX_COMPILATION_CACHE_DIR': str(files / 'programs'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
      'PYTHONPATH': str(root),
      # One device: eight copies of the threads would only be slower.
      'XLA_FLAGS': tiny.xla_flags(devices=1),
    }

  def start(self):
    return subprocess.Popen(
      self.words,
      env=self.environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )

  def stop(self, stage, lines, wait, how):
    """Starts, and sends a signal a while after the stage has logged lines."""
    process = self.start()
    try:
      while self._logged(stage) < lines:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
      time.sleep(wait)
      process.send_signal(how)
      return process, process.communicate(timeout=60)[1]
    finally:
      process.kill()
      process.wait()

  def finish(self):
    process = self.start()
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 0, error
    return error

  def _logged(self, stage):
    text = self.metrics.read_text() if self.metrics.exists() else ''
    return text.count(f'"stage": "{stage}"')


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """(files, a run that nothing disturbed)."""
  folder = tmp_path_factory.mktemp('files')
  tiny.base_folder(folder / 'base')
  tiny.clip(folder / 'clip.mp4')
  command = Command(folder, folder / 'straight')
  command.finish()
  return folder, command


def same_story(a, b):
  """Equal concept files and metrics, each step of both stages told once."""
  name = 'concept.safetensors'
  lines = [json.loads(x) for x in a.metrics.read_text().splitlines()]
  steps = [(x['stage'], x['step']) for x in lines]
  return (
    (a.workdir / name).read_bytes() == (b.workdir / name).read_bytes()
    and a.metrics.read_text() == b.metrics.read_text()
    and steps == [(s, i + 1) for s in ('set', 'sequence') for i in range(STEPS)]
  )


def test_a_killed_command_ends_in_the_same_file(straight, tmp_path):
  """SIGKILL at a random moment of each stage."""
  files, undisturbed = straight
  seed = random.randrange(10**6)
  chance = random.Random(seed)
  command = Command(files, tmp_path)
  for stage in ('set', 'sequence'):
    lines, wait = chance.randrange(1, STEPS - 3), 0.2 * chance.random()
    process, _ = command.stop(stage, lines, wait, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / 'concept.safetensors').exists(), seed
  assert 'set: compiled' not in command.finish()  # not begun anew
  assert same_story(undisturbed, command), seed


@pytest.mark.slow
def test_a_preempted_command_says_how_to_go_on_and_does(straight, tmp_path):
  files, undisturbed = straight
  command = Command(files, tmp_path)
  # Late in the stage the signal may come when its last step is done.
  process, error = command.stop('set', 1, 0.0, signal.SIGTERM)
  assert process.returncode == processes.PREEMPTED
  assert 'the same command goes on' in error
  assert 'Traceback' not in error
  command.finish()
  assert same_story(undisturbed, command)
