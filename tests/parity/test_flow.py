"""Samplers against the schedulers of diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest

from dcjax import flow

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

STEPS = (1, 2, 3, 5, 12, 40)


def field(x, t, sin=np.sin):
  """A velocity that is neither linear in x nor constant in t."""
  return (1.3 * x + 0.3 * sin(3 * x)) * (1.0 - 0.4 * t)


def noise():
  return np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def peer_end(scheduler, steps):
  scheduler.set_timesteps(steps)
  x = torch.tensor(noise())
  for t in scheduler.timesteps:
    v = torch.tensor(field(x.numpy(), float(t) / 1000))
    x = scheduler.step(v, t, x).prev_sample
  return x.numpy()


def our_end(kind, steps, shift):
  velocity = lambda x, t, _: field(x, t[:, None, None], jnp.sin)
  return flow.solve(
    kind, velocity, jnp.asarray(noise()), steps=steps, shift=shift
  )


def unipc(shift):
  return diffusers.UniPCMultistepScheduler(
    prediction_type='flow_prediction',
    use_flow_sigmas=True,
    flow_shift=shift,
  )


@pytest.mark.parametrize('steps', STEPS)
@pytest.mark.parametrize('shift', [3.0, 5.0])
def test_unipc(steps, shift):
  want = peer_end(unipc(shift), steps)
  np.testing.assert_allclose(our_end('unipc', steps, shift), want, atol=2e-5)


@pytest.mark.parametrize('steps', STEPS)
@pytest.mark.parametrize('shift', [1.0, 5.66])
def test_euler(steps, shift):
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
  want = peer_end(scheduler, steps)
  got = our_end('diffusers_euler', steps, shift)
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize('steps', STEPS)
def test_times(steps):
  scheduler = unipc(5.0)
  scheduler.set_timesteps(steps)
  sigmas, _, _ = flow.unipc_coefficients(steps, 5.0)
  np.testing.assert_allclose(sigmas, scheduler.sigmas, atol=2e-6)
  whole = np.floor(1000 * sigmas[:-1])
  np.testing.assert_array_equal(whole, scheduler.timesteps.numpy())
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.66)
  scheduler.set_timesteps(steps)
  times = flow.diffusers_euler_times(steps, 5.66)
  np.testing.assert_allclose(times, scheduler.sigmas, atol=1e-6)
