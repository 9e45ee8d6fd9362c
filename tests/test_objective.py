"""The losses, seen through a transformer that writes down what it is given."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import flow, lora, objective
from dcjax.models.dit import DiT
from dcjax.stage import Stage

STAGE = Stage('s', 'flow', 'clip', '.*', steps=1, batch=2, self_cond=0.9)


class Spy:
  """v = a x + b x0_hat, with other coefficients for the call without x0_hat."""

  def __init__(self, self_cond=None):
    self.config = types.SimpleNamespace(self_cond=self_cond)
    self.calls = []

  def apply(self, variables, x, t, text, *, text_mask, x0_hat):
    p = variables['params']
    self.calls.append(dict(x=x, t=t, text=text, mask=text_mask, x0_hat=x0_hat))
    if x0_hat is None:
      return p['first'] * x
    return p['second'] * x + p['fed'] * x0_hat


PARAMS = {'transformer': {'first': 0.3, 'second': 0.7, 'fed': 0.4}}


def batch(n=2, frames=2, seed=0, prompt=0):
  rng = np.random.default_rng(seed)
  latents = rng.normal(size=(n, frames, 2, 2, 3)).astype(np.float32)
  return {'latents': jnp.asarray(latents), 'prompt': jnp.full((n,), prompt)}


def context(prompts=1, length=6, width=4):
  slots = np.full((prompts, length), -1)
  slots[:, 1] = 0
  return {
    'features': jnp.ones((prompts, length, width)),
    'mask': jnp.ones((prompts, length), bool),
    'slots': jnp.asarray(slots),
  }


def evaluate(spy, stage=STAGE, params=PARAMS, data=None, key=0):
  loss = objective.personalize(spy, stage)
  data = batch() if data is None else data
  return loss(params, data, context(), jax.random.key(key))


# ---- flow matching -----------------------------------------------------------


def test_loss_is_the_squared_error_of_the_velocity():
  """A model that knew eps - x0 would have none: Eq. (3) of `flow`."""
  spy = Spy()
  data = batch()
  value, _ = evaluate(spy, data=data)
  (call,) = spy.calls
  t = call['t'][:, None, None, None, None]
  eps = (call['x'] - (1 - t) * data['latents']) / t
  error = 0.3 * call['x'] - (eps - data['latents'])
  np.testing.assert_allclose(value, np.square(error).mean(), rtol=1e-4)
  # The noise is standard and every sample has its own, at its own time.
  assert abs(float(eps.std()) - 1) < 0.3
  assert not np.allclose(eps[0], eps[1])
  assert call['t'][0] != call['t'][1]


def test_every_step_has_its_own_noise_and_a_key_gives_it_back():
  values = [float(evaluate(Spy(), key=k)[0]) for k in (0, 1, 0)]
  assert values[0] == values[2] != values[1]


def test_a_sample_keeps_its_draws_wherever_it_comes_to():
  """By its number in the step, not by its place in a microbatch."""
  whole, part = Spy(), Spy()
  data = {**batch(4), 'sample': jnp.arange(4)}
  evaluate(whole, data=data)
  evaluate(part, data=jax.tree.map(lambda x: x[jnp.asarray([3, 1])], data))
  for name in ('x', 't'):
    np.testing.assert_array_equal(
      whole.calls[0][name][jnp.asarray([3, 1])], part.calls[0][name]
    )


def test_quantiles_hold_the_samples_of_their_quarter():
  t = jnp.asarray([0.1, 0.2, 0.6, 1.0])
  errors = objective.by_quantile(t, jnp.asarray([1.0, 3.0, 5.0, 7.0]))
  means = {name: x.mean for name, x in errors.items()}
  assert float(means['loss/t0']) == 2.0
  assert np.isnan(means['loss/t1'])
  assert float(means['loss/t2']) == 5.0
  assert float(means['loss/t3']) == 7.0


# ---- text --------------------------------------------------------------------


def test_learned_words_stand_in_the_text():
  spy = Spy()
  tokens = {'v': jnp.full((1, 4), 5.0)}
  evaluate(spy, params={**PARAMS, 'tokens': tokens})
  text = spy.calls[0]['text']
  np.testing.assert_array_equal(text[:, 1], 5.0)
  np.testing.assert_array_equal(text[:, 2:], 1.0)


def test_rows_of_text_are_dropped_whole_and_at_their_rate():
  stage = dataclasses.replace(STAGE, text_drop=0.25)
  spy = Spy()
  for key in range(8):
    evaluate(spy, stage, data=batch(100), key=key)
  text = np.concatenate([call['text'] for call in spy.calls])
  zero = (text == 0).all(-1)
  assert (zero | (text == 1).all(-1)).all()
  np.testing.assert_allclose(zero.mean(0), 0.25, atol=0.06)
  # Row by row: a prompt is not dropped as one.
  assert (zero.any(1) & ~zero.all(1)).mean() > 0.5


def test_held_out_loss_drops_nothing_and_repeats_its_noise():
  stage = dataclasses.replace(STAGE, text_drop=0.9)
  spy = Spy()
  loss = objective.personalize(spy, stage)
  twice = [
    loss.evaluate(PARAMS, batch(), context(), jax.random.key(0))
    for _ in range(2)
  ]
  assert twice[0] == twice[1]
  assert set(twice[0]) == {f'held_out/t{q}' for q in range(4)}
  for call in spy.calls:
    np.testing.assert_array_equal(call['text'], 1.0)
  times = [float(call['t'][0]) for call in spy.calls[:4]]
  np.testing.assert_allclose(times, [0.125, 0.375, 0.625, 0.875])


# ---- prior preservation ------------------------------------------------------


@pytest.mark.parametrize('weight', [0.0, 0.5, 2.0])
def test_prior_enters_with_its_weight(weight):
  data = {'concept': batch(seed=1), 'prior': batch(3, seed=2)}
  stage = dataclasses.replace(STAGE, prior=weight)
  total, aux = evaluate(Spy(), stage, data=data)
  alone, _ = evaluate(Spy(), stage, data=batch(seed=1))
  np.testing.assert_allclose(total, alone + weight * aux['prior'], rtol=1e-6)
  assert aux['prior'] > 0


# ---- self-conditioning -------------------------------------------------------


def test_a_base_without_self_conditioning_runs_once_and_is_fed_nothing():
  spy = Spy()
  evaluate(spy)
  assert [call['x0_hat'] for call in spy.calls] == [None]


def test_estimate_is_fed_to_some_samples_and_is_their_clean_video():
  spy = Spy('x0_concat')
  stage = dataclasses.replace(STAGE, self_cond=0.75)
  evaluate(spy, stage, data=batch(400))
  first, second = spy.calls
  assert first['x0_hat'] is None
  np.testing.assert_array_equal(first['x'], second['x'])
  estimate = flow.x0_from_velocity(first['x'], 0.3 * first['x'], first['t'])
  fed = np.any(np.asarray(second['x0_hat']) != 0, axis=(1, 2, 3, 4))
  assert abs(fed.mean() - 0.75) < 0.08
  np.testing.assert_array_equal(second['x0_hat'][fed], estimate[fed])


def test_no_gradient_flows_through_the_estimate():
  stage = dataclasses.replace(STAGE, self_cond=1.0)
  loss = lambda p: evaluate(Spy('x0_concat'), stage, {'transformer': p})[0]
  p = jax.tree.map(jnp.asarray, PARAMS['transformer'])
  grads = jax.grad(loss)(p)
  assert float(grads['first']) == 0.0
  assert float(grads['second']) != 0.0
  # Though the loss does depend on it.
  assert loss({**p, 'first': 0.9}) != loss(p)


def test_probability_zero_is_no_self_conditioning():
  never = dataclasses.replace(STAGE, self_cond=0.0)
  p = {'transformer': {**PARAMS['transformer'], 'first': 0.7}}
  with_it, _ = evaluate(Spy('x0_concat'), never, p)
  without, _ = evaluate(Spy(), STAGE, p)
  np.testing.assert_allclose(with_it, without, rtol=1e-6)


# ---- with a transformer ------------------------------------------------------


@pytest.mark.parametrize(
  'dit', [tiny.DIT, tiny.PAPER_DIT], ids=['wan', 'paper']
)
def test_order_of_frames_matters_to_a_clip_and_not_to_stills(dit):
  """The position is 0 in a still, and the frame's own in a clip."""
  p = {'transformer': tiny.dit_params(dit)}
  p['transformer'] = lora.attach(
    p['transformer'], 'attn/q/kernel', 2, jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  frames = rng.normal(size=(4, 2, 2, 4)).astype(np.float32)
  order = np.array([2, 0, 3, 1])
  text = jnp.asarray(rng.normal(size=(1, 5, 16)), jnp.float32)
  velocity = lora.with_lora(DiT(dit).apply)

  @jax.jit
  def error(x, eps):
    """Sum of the samples' errors at t = 1/2, noise going with its frame."""
    n = len(x)
    v = velocity(
      {'params': p['transformer']},
      0.5 * (x + eps),
      jnp.full((n,), 0.5),
      jnp.broadcast_to(text, (n, *text.shape[1:])),
      text_mask=jnp.ones((n, 5), bool),
    )
    return jnp.square(v - (eps - x)).sum()

  eps = rng.normal(size=frames.shape).astype(np.float32)
  stills = [error(a[:, None], b[:, None]) for a, b in _both(frames, eps, order)]
  np.testing.assert_allclose(*stills, rtol=1e-5)
  clips = [error(a[None], b[None]) for a, b in _both(frames, eps, order)]
  assert abs(clips[0] - clips[1]) > 1e-3 * clips[0]


def _both(frames, eps, order):
  return (frames, eps), (frames[order], eps[order])
