"""The optimizers do what their names say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax import optim, tree
from dcjax.errors import DcjaxError
from dcjax.stage import OPTIMIZERS, SCHEDULES, Optimizer

# Plain steps: no decay, no clipping, and Adam without memory, whose update is
# the sign of the gradient times the learning rate.
PLAIN = Optimizer(lr=0.1, weight_decay=0.0, clip=0.0, betas=(0.0, 0.0))


def rates(steps, **options):
  rate = optim.schedule(Optimizer(lr=1.0, **options), steps)
  return np.array([float(rate(i)) for i in range(steps + 1)])


def update(options, params, grads, steps=10):
  optimizer = optim.make(options, steps)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  return updates


@pytest.mark.parametrize(
  'kind,middle,end',
  [('constant', 1, 1), ('linear', 0.5, 0), ('cosine', 0.5, 0)],
)
def test_schedules_at_start_middle_and_end(kind, middle, end):
  values = rates(10, schedule=kind)
  np.testing.assert_allclose(values[[0, 5, 10]], [1, middle, end], atol=1e-6)
  assert (np.diff(values) <= 1e-6).all()


@pytest.mark.parametrize('kind', SCHEDULES)
def test_warmup_rises_from_zero_and_the_end_stays_the_end(kind):
  values = rates(20, schedule=kind, warmup=4)
  np.testing.assert_allclose(values[:5], [0, 0.25, 0.5, 0.75, 1.0])
  assert values.max() == 1.0
  assert values[-1] == pytest.approx(float(kind == 'constant'), abs=1e-6)


def test_trapezoid_falls_over_its_last_part_only():
  values = rates(20, schedule='trapezoid', warmup=2, cooldown=0.25)
  np.testing.assert_allclose(values[2:16], 1.0)
  np.testing.assert_allclose(values[15:], [1, 0.8, 0.6, 0.4, 0.2, 0], atol=1e-6)


def test_a_group_scales_the_step_of_its_parameters_alone():
  params = {'tokens': {'v': jnp.ones(3)}, 'lora': {'b1': jnp.ones(3)}}
  options = dataclasses.replace(PLAIN, groups=(('^tokens/', 0.1), ('v', 9.0)))
  step = update(options, params, params)
  np.testing.assert_allclose(step['lora']['b1'], -0.1, rtol=1e-5)
  # The first pattern that matches counts.
  np.testing.assert_allclose(step['tokens']['v'], -0.01, rtol=1e-5)


def test_weight_decay_shrinks_matrices_and_spares_vectors():
  params = {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.full((2,), 3.0)}
  still = jax.tree.map(jnp.zeros_like, params)
  options = dataclasses.replace(PLAIN, weight_decay=0.5)
  step = update(options, params, still)
  np.testing.assert_allclose(step['kernel'], -0.1 * 0.5 * 3.0)
  np.testing.assert_array_equal(step['bias'], 0.0)


def test_clip_bounds_the_norm_over_all_parameters():
  """Seen in Adam's memory of the gradient, as its step has no scale."""
  params = {'a': jnp.ones(4), 'b': jnp.ones(5)}
  grads = {'a': jnp.full(4, 8.0), 'b': jnp.full(5, -8.0)}
  norms = {}
  for clip in (0.0, 0.5, 1e3):
    options = dataclasses.replace(PLAIN, clip=clip, betas=(0.0, 0.9))
    optimizer = optim.make(options, 10)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    (mu,) = [
      s.mu for s in jax.tree.leaves(state, is_leaf=_has_mu) if _has_mu(s)
    ]
    norms[clip] = float(np.linalg.norm(np.concatenate([*mu.values()])))
  np.testing.assert_allclose([*norms.values()], [24.0, 0.5, 24.0], rtol=1e-5)


def _has_mu(x):
  return hasattr(x, 'mu')


def test_muon_orthogonalises_hidden_kernels_and_nothing_else():
  rng = np.random.default_rng(0)
  draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
  left, right = np.linalg.svd(rng.normal(size=(3, 8, 8)))[::2]
  # Singular values that lie a factor of eight apart.
  uneven = jnp.asarray(left * np.linspace(0.25, 2.0, 8) @ right, jnp.float32)
  params = tree.unflatten(
    {
      'transformer/blocks/mlp/up/kernel': uneven,  # scanned
      'text_encoder/layers/q/kernel': uneven[0],
      'transformer/blocks/mlp/up/bias': draw(3, 8),
      'transformer/head/kernel': draw(8, 8),
      # A convolution is the matrix from all it sees to its outputs.
      'vae/decoder/mid/conv1/kernel': uneven.reshape(3, 2, 1, 4, 8),
      'vae/decoder/conv_out/kernel': draw(3, 3, 3, 4, 4),
    }
  )
  options = dataclasses.replace(PLAIN, kind='muon', betas=(0.0, 0.0))
  steps = tree.flatten(update(options, params, params))
  for name, step in steps.items():
    if name.endswith(('mlp/up/kernel', 'q/kernel', 'conv1/kernel')):
      step = step.reshape(24, 8) if step.ndim == 5 else step
      s = np.linalg.svd(step, compute_uv=False)
      # Newton-Schulz brings them near one another, not to equality.
      assert s.min() > 0.5 * s.max(), name
      np.testing.assert_allclose(np.square(step).mean() ** 0.5, 0.02, rtol=0.3)
    else:
      np.testing.assert_allclose(np.abs(step), 0.1, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('kind', OPTIMIZERS)
def test_eps_bounds_the_step_of_a_small_gradient(kind):
  params = {'blocks': {'q': {'kernel': jnp.eye(4), 'bias': jnp.ones(4)}}}
  options = dataclasses.replace(PLAIN, kind=kind, eps=1e6)
  for step in jax.tree.leaves(update(options, params, params)):
    assert 0 < jnp.abs(step).max() < 1e-4


@pytest.mark.parametrize(
  'options,line',
  [
    ({'kind': 'sgd'}, r"optimizer.kind is 'sgd'.*adamw or muon"),
    ({'schedule': 'step'}, r"optimizer.schedule is 'step'.*trapezoid"),
    ({'lr': 0.0}, r'optimizer.lr is 0.0; expected a positive'),
    ({'lr': float('nan')}, r'optimizer.lr is nan'),
    ({'warmup': -1}, r'optimizer.warmup is -1'),
    ({'clip': -0.5}, r'optimizer.clip is -0.5'),
    ({'weight_decay': -1.0}, r'optimizer.weight_decay is -1.0; expected 0'),
    ({'cooldown': 3.0}, r'optimizer.cooldown is 3.0; .*from 0 to 1'),
    ({'eps': 0.0}, r'optimizer.eps is 0.0; expected a positive'),
    ({'betas': (0.9,)}, r'optimizer.betas is \(0.9,\); expected two'),
    ({'betas': (0.9, 1.0)}, r'optimizer.betas is .*; expected two'),
  ],
)
def test_impossible_options_are_one_line(options, line):
  with pytest.raises(DcjaxError, match=line):
    Optimizer(**options)
