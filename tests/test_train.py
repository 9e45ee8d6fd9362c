"""The loop: what a step trains, drops and averages, and how it stops."""

import dataclasses
import itertools
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import optim, train, tree
from dcjax import state as state_lib
from dcjax.checkpoint import Checkpoints
from dcjax.data import pipeline
from dcjax.errors import DcjaxError
from dcjax.objective import sample_keys
from dcjax.stage import Optimizer, Stage

# Adam without memory: every parameter with a gradient moves by the rate.
SIGNS = Optimizer(lr=0.125, betas=(0.0, 0.0), weight_decay=0.0, clip=0.0)
STAGE = Stage('s', 'flow', 'clip', 'lora/b', 3, 4, optimizer=SIGNS, dropout=0.0)


def params():
  return {
    'q': {
      'kernel': jnp.ones((4, 4)),
      'lora': {'a1': jnp.ones((4, 2)), 'b1': jnp.ones((20, 30))},
    },
    'tokens': {'v': jnp.ones((1, 4))},
  }


def total(p, batch, context, key):
  """Each coefficient counts the same in every sample."""
  del context, key
  b = p['q']['lora']['b1']
  return (batch['x'][:, None, None] * b[None]).mean(0).sum(), {}


def quadratic(p, batch, context, key):
  """Distance of the coefficients to each sample's target."""
  del context, key
  b = p['q']['lora']['b1'] * p['tokens']['v'].sum()
  error = jnp.square(b[None] - batch['x'][:, None, None]).mean((1, 2))
  return error.mean(), {'worst': error.mean()}


def ones(n=4):
  return {'x': jnp.ones(n)}


def loader(values=(1.0, 2.0, 3.0, 4.0, 5.0), batch=4, seed=0):
  source = [{'x': np.float32(x)} for x in values]
  return pipeline.loader(source, batch=batch, seed=seed)


def one_step(stage, objective=total, batch=None, steps=1, key=0):
  """(states before and after, metrics) of a few steps."""
  trainable, frozen = tree.partition(params(), stage.train)
  optimizer = optim.make(stage.optimizer, stage.steps)
  state = state_lib.init(trainable, optimizer, ema=stage.ema > 0)
  step = train.make_step(objective, optimizer, stage)
  states, metrics = [jax.device_get(state)], None
  for _ in range(steps):
    state, metrics = step(
      state, frozen, batch or ones(), None, jax.random.key(key)
    )
    states.append(jax.device_get(state))
  return states, metrics


def b1(state):
  return np.asarray(state.trainable['q']['lora']['b1'])


def fit(tmp_path, stage=STAGE, objective=quadratic, **options):
  where = {
    name: options.pop(name)
    for name in ('log_every', 'save_every', 'eval_every', 'preview_every')
    if name in options
  }
  loop = train.Loop(str(tmp_path), **{'log_every': 1, 'save_every': 2} | where)
  return train.fit(stage, objective, params(), loader(), loop, **options)[0]


def records(tmp_path):
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


# ---- a step ------------------------------------------------------------------


def test_only_what_the_stage_claims_is_trained_and_kept(tmp_path):
  before, after = params(), fit(tmp_path)
  flat = tree.flatten(after)
  assert flat.keys() == tree.flatten(before).keys()
  moved = [
    n for n, x in tree.flatten(before).items() if not np.array_equal(x, flat[n])
  ]
  assert moved == ['q/lora/b1']
  (states, _) = one_step(STAGE)
  assert tree.names(states[0].trainable) == ['q/lora/b1']
  # Nor has the optimizer a memory of anything else.
  sizes = {x.size for x in jax.tree.leaves(states[0].opt_state)}
  assert sizes == {1, 600}


def test_a_pattern_that_claims_nothing_is_refused(tmp_path):
  stage = dataclasses.replace(STAGE, train='lora/c')
  with pytest.raises(DcjaxError, match="'lora/c' matches no parameter"):
    fit(tmp_path, stage)


def test_learned_words_have_their_own_rate():
  optimizer = dataclasses.replace(SIGNS, groups=(('^tokens/', 0.1),))
  stage = dataclasses.replace(STAGE, train='.*', optimizer=optimizer)
  objective = lambda p, *_: (sum(x.sum() for x in jax.tree.leaves(p)), {})
  (before, after), _ = one_step(stage, objective)
  steps = tree.flatten(
    jax.tree.map(lambda a, b: b - a, before.trainable, after.trainable)
  )
  for name, step in steps.items():
    expected = -0.0125 if name.startswith('tokens/') else -0.125
    np.testing.assert_allclose(step, expected, rtol=1e-5, err_msg=name)


def test_accumulation_is_the_big_batch():
  batch = {'x': jnp.asarray([1.0, -2.0, 3.0, 0.5])}
  results = {}
  for parts in (1, 2, 4):
    stage = dataclasses.replace(STAGE, accumulate=parts)
    (_, after), metrics = one_step(stage, quadratic, batch)
    results[parts] = (b1(after), float(metrics['loss']), metrics['worst'])
  for parts in (2, 4):
    for x, y in zip(results[1], results[parts], strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize('accumulate', [1, 2, 4])
def test_samples_have_the_same_noise_in_any_microbatch(accumulate):
  """And each has noise of its own."""

  def noisy(p, batch, context, key):
    keys = sample_keys(key, {**batch, 'latents': batch['x']})
    draws = jax.vmap(jax.random.uniform)(keys)
    loss, _ = quadratic(p, {'x': batch['x'] + draws}, context, key)
    return loss, {'draw': draws.mean(), 'square': jnp.square(draws).mean()}

  batch = {**ones(), 'sample': jnp.arange(4)}
  (_, whole), seen = one_step(STAGE, noisy, batch)
  assert float(seen['square']) > float(seen['draw']) ** 2 + 1e-3
  stage = dataclasses.replace(STAGE, accumulate=accumulate)
  (_, after), parts = one_step(stage, noisy, batch)
  np.testing.assert_allclose(b1(after), b1(whole), rtol=1e-6)
  for name in ('loss', 'draw', 'square'):
    # Sums of 600 equal terms, which compilers order as they like.
    np.testing.assert_allclose(parts[name], seen[name], rtol=1e-5)


# ---- dropout -----------------------------------------------------------------


@pytest.mark.parametrize('accumulate', [1, 2, 4])
def test_a_step_has_one_mask_shared_by_its_microbatches(accumulate):
  """Masks of their own would give gradients between 0 and 1 / (1 - p)."""
  stage = dataclasses.replace(STAGE, dropout=0.75, accumulate=accumulate)
  (before, after), metrics = one_step(stage)
  kept = b1(after) != b1(before)
  assert abs(kept.mean() - 0.25) < 0.06
  # Inverted dropout: what is kept counts 1 / (1 - p) = 4 times.
  norm = 4.0 * np.sqrt(kept.sum())
  np.testing.assert_allclose(float(metrics['grad_norm']), norm, rtol=1e-5)


def test_every_step_has_another_mask():
  stage = dataclasses.replace(STAGE, dropout=0.5, steps=2)
  states, _ = one_step(stage, steps=2)
  first, second = (b1(b) != b1(a) for a, b in itertools.pairwise(states))
  assert abs((first == second).mean() - 0.5) < 0.1
  again, _ = one_step(stage, steps=2)
  np.testing.assert_array_equal(b1(again[2]), b1(states[2]))


def test_only_the_leaves_in_training_are_dropped():
  """Set-and-Sequence, Sec. 3.3: stage 2 uses the B1 of stage 1 whole."""
  stage = dataclasses.replace(STAGE, train='tokens|a1', dropout=0.9)
  stage = dataclasses.replace(stage, dropped='tokens')
  seen = lambda p, *_: (
    p['tokens']['v'].sum(),
    {'b1': p['q']['lora']['b1'].sum()},
  )
  _, metrics = one_step(stage, seen)
  assert float(metrics['b1']) == 600.0


def test_nothing_is_dropped_at_evaluation(tmp_path):
  def objective(p, batch, context, key):
    return total(p, batch, context, key)

  objective.evaluate = lambda p, batch, context, key: {
    'held_out/b': p['q']['lora']['b1'].sum()
  }
  stage = dataclasses.replace(STAGE, dropout=0.9)
  after = fit(tmp_path, stage, objective, eval_every=1, held_out=ones())
  held = [r['held_out/b'] for r in records(tmp_path) if 'held_out/b' in r]
  assert len(held) == 3
  np.testing.assert_allclose(held[-1], after['q']['lora']['b1'].sum())


# ---- results -----------------------------------------------------------------


def test_the_moving_average_is_the_result(tmp_path):
  """By hand: the parameter falls by the rate each step."""
  stage = dataclasses.replace(STAGE, steps=6, ema=0.2)
  shown = []
  after = fit(
    tmp_path,
    stage,
    total,
    preview_every=6,
    preview=lambda step, p: shown.append((step, p['q']['lora']['b1'])),
  )
  now, average = 1.0, 1.0
  for step in range(6):
    now -= 0.125
    decay = min(0.2, (1 + step) / (10 + step))
    average = decay * average + (1 - decay) * now
  np.testing.assert_allclose(after['q']['lora']['b1'], average, rtol=1e-5)
  assert abs(average - now) > 0.01
  # It is also what previews show.
  np.testing.assert_array_equal(shown[0][1], after['q']['lora']['b1'])


def test_metrics_are_those_of_their_step(tmp_path):
  """They are read one step late, and written under their own number."""
  stage = dataclasses.replace(
    STAGE, optimizer=dataclasses.replace(SIGNS, schedule='linear')
  )
  numbered = lambda p, *_: (p['q']['lora']['b1'][0, 0], {})
  fit(tmp_path, stage, numbered, save_every=0)
  lines = records(tmp_path)
  assert [r['step'] for r in lines] == [1, 2, 3]
  rates = np.array([r['lr'] for r in lines])
  np.testing.assert_allclose(rates, 0.125 * np.array([1, 2 / 3, 1 / 3]))
  losses = 1.0 - np.append(0.0, np.cumsum(rates)[:-1])
  np.testing.assert_allclose([r['loss'] for r in lines], losses, rtol=1e-5)


def test_a_step_takes_no_longer_for_what_is_done_between(tmp_path):
  stage = dataclasses.replace(STAGE, steps=4)
  loop = train.Loop(str(tmp_path), preview_every=2)
  look = lambda *_: time.sleep(1.0)
  *_, timing = train.fit(
    stage, quadratic, params(), loader(), loop, preview=look
  )
  assert timing.steps > 2.0
  assert timing.step < (timing.steps - 2.0) / 3 + 1e-3


def test_a_stage_that_begins_anew_forgets_what_was_shown(tmp_path):
  path = tmp_path / 'samples' / 's_00009_preview.png'
  path.parent.mkdir()
  path.touch()
  fit(tmp_path)
  assert not path.exists()


def test_callers_parameters_stay_alive(tmp_path):
  """The step donates its buffers, never those that it was given."""
  given = params()
  loop = train.Loop(str(tmp_path))
  train.fit(STAGE, quadratic, given, loader(), loop)
  assert tiny.equal(given, params())


# ---- numbers that are not finite ---------------------------------------------


def poisoned(value, step, batch=4):
  """A loss that is not finite from `step` (from 0) on, by its data."""

  class Poisoned:
    def __init__(self):
      self.step = 0

    def __next__(self):
      self.step += 1
      x = value if self.step > step else 1.0
      return {'x': np.full(batch, x, np.float32)}

    def get_state(self):
      return {'next_index': self.step}

    def set_state(self, state):
      self.step = state['next_index']

  return Poisoned()


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('bad', [4, 5])  # a step that saves, and one between
def test_a_run_stops_at_the_first_bad_number(tmp_path, value, bad):
  stage = dataclasses.replace(STAGE, steps=9)
  loop = train.Loop(str(tmp_path), log_every=1, save_every=2)
  line = (
    rf"stage 's' .*not finite at step {bad + 1} \(loss (nan|inf).*"
    rf'lr 1.25e-01, samples {4 * bad} to {4 * bad + 3} .*step 4; try a lower'
  )
  with pytest.raises(DcjaxError, match=line) as error:
    train.fit(stage, quadratic, params(), poisoned(value, bad), loop)
  assert '\n' not in str(error.value)
  trainable, _ = tree.partition(params(), STAGE.train)
  like = state_lib.init(trainable, optim.make(SIGNS, 9), ema=False)
  checkpoints = Checkpoints(tmp_path / 'checkpoints' / 's', {})
  state, _ = checkpoints.restore(like)
  checkpoints.close()
  assert int(state.step) == 4
  for x in jax.tree.leaves(state):
    assert np.isfinite(x).all()
  assert [r['step'] for r in records(tmp_path)] == list(range(1, bad + 1))


@pytest.mark.parametrize('value', [0.0, -1.0])
def test_a_bad_step_changes_nothing(value):
  """sqrt has a finite value and an infinite slope at 0, and none below."""
  root = lambda p, batch, *_: (
    jnp.sqrt(batch['x'] * p['q']['lora']['b1'].sum()).mean(),
    {},
  )
  stage = dataclasses.replace(STAGE, ema=0.5)
  (before, after), metrics = one_step(stage, root, {'x': jnp.full(4, value)})
  assert not np.isfinite(float(metrics['grad_norm']))
  same = jax.tree.map(np.array_equal, before, after)
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
  'option,line',
  [({'log_every': 0}, 'log_every is 0'), ({'seed': -1}, 'seed is -1')],
)
def test_impossible_loops_are_one_line(option, line):
  with pytest.raises(DcjaxError, match=line):
    train.Loop('anywhere', **option)


def test_a_checkpoint_that_has_no_room_is_refused_before_it_is_begun(
  tmp_path, monkeypatch
):
  checkpoints = Checkpoints(tmp_path / 's', {})
  state = {'x': jnp.arange(1000.0)}
  checkpoints.save(1, state, None)
  checkpoints.wait()
  usage = shutil.disk_usage(tmp_path)._replace(free=3999)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(DcjaxError, match='is full: .* step 2 .* on from step 1$'):
    checkpoints.save(2, state, None)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=4000))
  checkpoints.save(2, state, None)
  checkpoints.wait()
  assert checkpoints.step == 2
  checkpoints.close()
