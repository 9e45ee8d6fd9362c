"""Flow matching: identities of the path, draws of t, samplers."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
import numpy as np
import pytest

from dcjax import flow
from dcjax.errors import DcjaxError

SAMPLERS = sorted(flow.SAMPLERS)


def pair():
  a, b = jax.random.split(jax.random.key(0))
  return jax.random.normal(a, (3, 2, 4)), jax.random.normal(b, (3, 2, 4))


# ---- the path --------------------------------------------------------------


def test_path_goes_from_data_to_noise():
  x0, eps = pair()
  np.testing.assert_array_equal(flow.interpolate(x0, eps, jnp.zeros(3)), x0)
  np.testing.assert_array_equal(flow.interpolate(x0, eps, jnp.ones(3)), eps)


def test_velocity_is_the_derivative_of_the_path():
  x0, eps = pair()
  t = jnp.array([0.0, 0.3, 0.9])
  path = lambda t: flow.interpolate(x0, eps, t)
  _, slope = jax.jvp(path, (t,), (jnp.ones(3),))
  np.testing.assert_allclose(flow.velocity(x0, eps), slope, atol=1e-6)


def test_velocity_gives_back_data_and_noise():
  x0, eps = pair()
  t = jnp.array([0.05, 0.5, 1.0])
  x, v = flow.interpolate(x0, eps, t), flow.velocity(x0, eps)
  np.testing.assert_allclose(flow.x0_from_velocity(x, v, t), x0, atol=1e-6)
  np.testing.assert_allclose(x + (1 - t[:, None, None]) * v, eps, atol=1e-6)


def test_shift_keeps_the_ends_and_has_an_inverse():
  t = np.linspace(0, 1, 11)
  for s in (0.4, 1.0, 3.0, 5.66):
    moved = flow.shift(s, t)
    assert moved[0] == 0.0 and abs(moved[-1] - 1.0) < 1e-15
    assert (np.diff(moved) > 0).all()
    np.testing.assert_allclose(flow.shift(1 / s, moved), t, atol=1e-12)
    np.testing.assert_allclose(
      flow.shift(2.0, moved), flow.shift(2.0 * s, t), atol=1e-12
    )
  assert flow.shift(3.0, 0.5) == 0.75


def test_guidance():
  a, b = pair()
  np.testing.assert_allclose(flow.guide(a, b, 1.0), a, atol=1e-6)
  np.testing.assert_array_equal(flow.guide(a, b, 0.0), b)
  np.testing.assert_allclose(flow.guide(a, b, 8.0), b + 8 * (a - b), atol=1e-5)


# ---- t in training ---------------------------------------------------------


def logit_normal_cdf(t):
  return np.asarray(norm.cdf(np.log(t) - np.log1p(-t)))


CDFS = {
  'uniform': lambda t: t,
  'logit_normal': logit_normal_cdf,
  # The integral of 1 - cos(pi t) / 2.
  'cosine_biased': lambda t: t - np.sin(np.pi * t) / (2 * np.pi),
}


@pytest.mark.parametrize('kind', CDFS)
@pytest.mark.parametrize('s', [1.0, 5.0])
def test_draws_of_t_follow_their_distribution(kind, s):
  n = 20_000
  keys = jax.random.split(jax.random.key(1), n)
  draw = flow.sample_t(keys, kind=kind, train_shift=s)
  assert draw.shape == (n,) and draw.dtype == jnp.float32
  t = np.sort(np.float64(draw))
  assert t[0] > 0 and t[-1] < 1
  # Kolmogorov-Smirnov at the level of one in a thousand.
  distance = np.abs(CDFS[kind](flow.shift(1 / s, t)) - (np.arange(n) + 0.5) / n)
  assert distance.max() < 1.95 / n**0.5


def test_unknown_t_sampler():
  with pytest.raises(DcjaxError, match='use uniform, logit_normal or cosine'):
    flow.sample_t(jax.random.split(jax.random.key(0)), kind='normal')


# ---- samplers --------------------------------------------------------------


def solve(kind, field, x, steps, s=3.0):
  velocity = lambda x, t, _: field(x, t.reshape(-1, 1, 1))
  return np.asarray(flow.solve(kind, velocity, x, steps=steps, shift=s))


@pytest.mark.parametrize('kind', SAMPLERS)
@pytest.mark.parametrize('steps', [1, 2, 3, 7])
def test_a_straight_path_is_followed_exactly(kind, steps):
  """If v always points away from x0, any number of steps ends there."""
  x0, eps = pair()
  end = solve(kind, lambda x, t: (x - x0) / t, eps, steps)
  # UniPC shows the model whole thousandths of t.
  np.testing.assert_allclose(end, x0, atol=2e-2 if kind == 'unipc' else 1e-5)


def unipc_by_hand(field, x, steps, s):
  """The coefficients in float64, on times that are not rounded."""
  sigmas, corrector, predictor = flow.unipc_coefficients(steps, s)
  x = last = np.float64(x)
  m1 = m2 = np.zeros_like(x)
  for t, c, p in zip(sigmas[:-1], corrector, predictor, strict=True):
    m = x - t * field(x, t)
    x = c[0] * x + c[1] * last + c[2] * m + c[3] * m1 + c[4] * m2
    x, last, m1, m2 = p[0] * x + p[1] * m + p[2] * m1, x, m, m1
  return x


@pytest.mark.parametrize('steps', [1, 2, 3, 7])
def test_unipc_follows_a_straight_path_exactly(steps):
  x0, eps = map(np.float64, pair())
  end = unipc_by_hand(lambda x, t: (x - x0) / t, eps, steps, 3.0)
  np.testing.assert_allclose(end, x0, atol=1e-5)


@pytest.mark.parametrize('kind', ['euler', 'diffusers_euler'])
def test_euler_is_exact_for_a_constant_velocity(kind):
  x0, eps = pair()
  end = solve(kind, lambda x, t: eps - x0, eps, 5)
  np.testing.assert_allclose(end, x0, atol=1e-6)


def test_orders_of_convergence():
  """Data from N(0, s^2) has a closed-form flow: x(0) = s x(1)."""
  s = 0.5
  _, eps = pair()

  def field(x, t):
    variance = (1 - t) ** 2 * s**2 + t**2
    return (t - (1 - t) * s**2) / variance * x

  def error(steps, kind):
    if kind == 'unipc':
      end = unipc_by_hand(field, eps, steps, 1.0)
    else:
      end = solve(kind, field, eps, steps, 1.0)
    return np.abs(end - s * eps).max()

  assert 1.8 < error(20, 'euler') / error(40, 'euler') < 2.2
  assert error(20, 'unipc') / error(40, 'unipc') > 3.4
  assert error(20, 'unipc') < 0.2 * error(20, 'euler')


@pytest.mark.parametrize('kind', SAMPLERS)
def test_the_model_is_given_its_last_estimate(kind):
  """Zeros at first, then x0 = x - t v of the step before."""
  _, eps = pair()
  seen = []

  def velocity(x, t, x0_hat):
    jax.debug.callback(lambda *a: seen.append(a), x, t, x0_hat, ordered=True)
    return 0.3 * x + 0.1 * x0_hat

  flow.solve(kind, velocity, eps, steps=3, shift=2.0)
  jax.effects_barrier()
  times = [float(t[0]) for _, t, _ in seen]
  assert len(times) == 3 and times[0] > 0.99 and times == sorted(times)[::-1]
  assert all(t.shape == (3,) for _, t, _ in seen)
  estimate = np.zeros_like(eps)
  for x, t, x0_hat in seen:
    np.testing.assert_allclose(x0_hat, estimate, atol=2e-3)
    estimate = x - t[:, None, None] * (0.3 * x + 0.1 * x0_hat)


@pytest.mark.parametrize('steps', [1, 2, 8, 50])
def test_times_go_down_from_noise_to_data(steps):
  for times in (
    flow.euler_times(steps, 5.66),
    flow.diffusers_euler_times(steps, 5.66),
    flow.unipc_coefficients(steps, 5.66)[0],
  ):
    assert times.shape == (steps + 1,)
    assert abs(times[0] - 1.0) < 2e-6 and times[-1] == 0.0
    assert (np.diff(times) < 0).all()
    assert np.isfinite(times).all()


def test_euler_times_by_hand():
  np.testing.assert_allclose(flow.euler_times(4, 3.0), [1, 0.9, 0.75, 0.5, 0])


def test_unknown_sampler():
  with pytest.raises(DcjaxError, match="'heun'; use one of euler, unipc"):
    flow.solve('heun', None, jnp.zeros(3), steps=1, shift=1.0)


# ---- guidance by text and references -----------------------------------------


def passes():
  """Velocities v(R,T), v(R,0), v(0,T), v(0,0), each [2 3]."""
  return jax.random.normal(jax.random.key(4), (4, 2, 3))


def weighed(coefficients):
  chosen = passes()[jnp.array(flow.active(coefficients))]
  return flow.weigh(chosen, coefficients)


def test_guidance_forms_are_their_formulas():
  both, reference, text, none = passes()
  np.testing.assert_allclose(
    weighed(flow.three_weight(4.0, 1.5, 0.5)),
    both + 4 * (both - reference) + 1.5 * (both - text) + 0.5 * (both - none),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    weighed(flow.video_alchemist(8.0, 3.0)),
    both + 8 * (both - reference) + 3 * (both - text),
    atol=1e-4,
  )
  np.testing.assert_allclose(
    weighed(flow.instruct_pix2pix(1.5, 7.0)),
    none + 1.5 * (reference - none) + 7 * (both - reference),
    atol=1e-5,
  )


def test_guidance_in_time_goes_away_from_always():
  both, reference, text, none = passes()
  always = 2.0 * both - 0.3 * text
  coefficients = flow.in_time(flow.three_weight(4.0, 1.5, 0.5), 3.0)
  found = flow.weigh(
    jnp.stack([both, reference, text, none, always]), coefficients
  )
  expected = weighed(flow.three_weight(4.0, 1.5, 0.5)) + 3.0 * (both - always)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert sum(coefficients) == pytest.approx(1.0)
  plain = flow.three_weight(4.0, 1.5)
  assert flow.in_time(plain, 0.0) == plain
  # Without references nothing is ever there.
  alone = flow.without_references(flow.in_time(plain, 3.0))
  assert alone == pytest.approx(flow.without_references(plain))


FORMS = [
  flow.three_weight(4.0, 1.5, 0.7),
  flow.video_alchemist(8.0, 3.0),
  flow.instruct_pix2pix(1.5, 7.0),
]


@pytest.mark.parametrize('coefficients', FORMS)
def test_guidance_leaves_what_all_passes_agree_on(coefficients):
  assert sum(coefficients) == pytest.approx(1.0)
  same = jnp.full((len(flow.active(coefficients)), 2), 3.0)
  np.testing.assert_allclose(flow.weigh(same, coefficients), 3.0, rtol=1e-6)


@pytest.mark.parametrize('coefficients', FORMS)
def test_every_guidance_has_three_weights(coefficients):
  _, text, reference, both = (-c for c in coefficients)
  assert flow.three_weight(text, reference, both) == pytest.approx(coefficients)


def test_without_references_it_is_guidance_by_text():
  _, _, text, none = passes()
  coefficients = flow.without_references(flow.three_weight(4.0, 1.5, 0.0))
  assert flow.active(coefficients) == (2, 3)
  np.testing.assert_allclose(
    weighed(coefficients), flow.guide(text, none, 5.0), atol=1e-5
  )


def test_a_pass_that_does_not_count_is_left_out():
  assert flow.active(flow.three_weight(4.0, 1.5, 0.0)) == (0, 1, 2)
  assert flow.active(flow.three_weight(4.0, 0.0, 0.0)) == (0, 1)
  assert flow.active(flow.three_weight(0.0, 0.0, 0.0)) == (0,)
  assert flow.active(flow.instruct_pix2pix(1.0, 3.0)) == (0, 1)
  # 0.1 + 0.2 - 0.3 is not quite zero.
  assert flow.active((1.0, 0.1 + 0.2 - 0.3, 0.0, 0.0)) == (0,)
