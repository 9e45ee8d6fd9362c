"""What makes the video autoencoder causal, trainable and safe to configure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcjax import tree
from dcjax.errors import DcjaxError
from dcjax.models import wan_vae
from dcjax.models.convolution import causal_conv
from dcjax.models.wan_vae import VAEConfig, WanVAE
from dcjax.weights import names

TINY = VAEConfig(
  base_dim=4,
  z_dim=3,
  dim_mult=(1, 2, 2),
  num_res_blocks=1,
  temporal_downsample=(True, True),
  latents_mean=(0.5, -1.0, 0.0),
  latents_std=(2.0, 0.5, 1.0),
)


# One level and no time: for what does not depend on depth.
FLAT = dataclasses.replace(TINY, dim_mult=(1,), temporal_downsample=())


def _random(config):
  """Parameters with random biases and norms too; faster than `init`."""
  size = config.scale_factor_spatial
  x = jax.ShapeDtypeStruct((1, 5, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(WanVAE(config).init, jax.random.key(0), x)['params']
  rng = np.random.default_rng(0)

  def draw(name, shape):
    if name.endswith('kernel'):
      return rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
    return rng.normal(name.endswith('scale'), 0.2, shape)

  return tree.unflatten(
    {
      name: jnp.asarray(draw(name, x.shape), jnp.float32)
      for name, x in tree.flatten(shapes).items()
    }
  )


@pytest.fixture(scope='module')
def params():
  return _random(TINY)


def _apply(params, x, method=None):
  model = WanVAE(TINY)
  run = jax.jit(lambda p, x: model.apply({'params': p}, x, method=method))
  return run(params, x)


def _clip(frames=9, seed=0):
  return jax.random.uniform(
    jax.random.key(seed), (1, frames, 8, 8, 3), minval=-1, maxval=1
  )


def _influence(function, x):
  """[frames out, frames in]: does any input frame move an output frame?"""
  y, vjp = jax.vjp(function, x)
  rows = []
  for frame in range(y.shape[1]):
    seed = jnp.zeros_like(y).at[:, frame].set(1.0)
    rows.append(jnp.any(vjp(seed)[0] != 0, axis=(0, 2, 3, 4)))
  return np.stack(rows)


def test_latents_see_only_the_past(params):
  model = WanVAE(TINY)
  seen = _influence(
    jax.jit(lambda x: model.apply({'params': params}, x, method='encode')[0]),
    _clip(9),
  )
  for latent in range(3):
    last = 4 * latent
    assert seen[latent, last]
    assert not seen[latent, last + 1 :].any()


def test_pixels_see_only_past_latents(params):
  model = WanVAE(TINY)
  seen = _influence(
    jax.jit(lambda z: model.apply({'params': params}, z, method='decode')),
    0.1 * jax.random.normal(jax.random.key(1), (1, 3, 2, 2, 3)),
  )
  for frame in range(9):
    latent = (frame + 3) // 4
    assert seen[frame, latent]
    assert not seen[frame, latent + 1 :].any()


def test_an_image_is_the_first_latent_frame_of_its_clips(params):
  x = _clip(5)
  clip, image = (
    _apply(params, x, 'encode')[0],
    _apply(params, x[:, :1], 'encode'),
  )
  np.testing.assert_allclose(clip[:, :1], image[0], atol=1e-5)


def test_a_first_latent_frame_is_an_image(params):
  z = jax.random.normal(jax.random.key(1), (1, 2, 2, 2, 3))
  pixels, still = (
    _apply(params, z, 'decode'),
    _apply(params, z[:, :1], 'decode'),
  )
  np.testing.assert_allclose(pixels[:, :1], still, atol=1e-5)


def test_shapes_follow_the_config():
  config = VAEConfig(base_dim=4)
  model, x = WanVAE(config), jnp.zeros((2, 9, 16, 24, 3))
  (mean, logvar), params = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, method='encode'), x
  )
  assert mean.shape == logvar.shape == (2, *config.latent_shape(9, 16, 24))
  params = jax.eval_shape(model.init, jax.random.key(0), x)
  decode = lambda p, z: model.apply(p, z, method='decode')
  assert jax.eval_shape(decode, params, mean).shape == x.shape


def test_sum_of_taps_is_a_causal_convolution():
  keys = jax.random.split(jax.random.key(0))
  kernel = jax.random.normal(keys[1], (3, 3, 3, 2, 4))
  for frames in (1, 4):
    x = jax.random.normal(keys[0], (2, frames, 6, 4, 2))
    wanted = jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1, 1),
      ((2, 0), (1, 1), (1, 1)),
      dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    )
    np.testing.assert_allclose(
      jax.jit(causal_conv)(x, kernel), wanted, atol=1e-4
    )


def test_frames_may_take_turns_in_attention(monkeypatch):
  attention = wan_vae.FrameAttention()
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 8))
  params = attention.init(jax.random.key(1), x)
  at_once = attention.apply(params, x)
  monkeypatch.setattr(wan_vae, '_SCORES', 0)
  in_turn = attention.apply(params, x)
  np.testing.assert_allclose(at_once, in_turn, atol=1e-5)


def test_bfloat16_is_near_and_comes_out_in_float32():
  model, params = WanVAE(FLAT, dtype=jnp.bfloat16), {'params': _random(FLAT)}
  encode = jax.jit(model.apply, static_argnames='method')
  half, _ = encode(params, _clip(2), method='encode')
  full, _ = WanVAE(FLAT).apply(params, _clip(2), method='encode')
  assert half.dtype == jnp.float32
  assert 0 < jnp.linalg.norm(half - full) < 0.05 * jnp.linalg.norm(full)


def test_remat_changes_no_gradient():
  params, x = _random(FLAT), _clip(2)

  def gradient(remat):
    model = WanVAE(FLAT, remat=remat)
    encode = lambda p: model.apply({'params': p}, x, method='encode')[0]
    return jax.jit(jax.grad(lambda p: jnp.mean(encode(p) ** 2)))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    gradient(False),
    gradient(True),
  )


def test_norm_of_nothing_has_a_finite_gradient():
  norm, x = wan_vae.Norm(), jnp.zeros((1, 1, 1, 2, 4))
  params = norm.init(jax.random.key(0), x)
  slope = jax.grad(lambda x: norm.apply(params, x).sum())
  assert jnp.isfinite(slope(x)).all()
  assert jnp.isfinite(slope(x + 1e-12)).all()
  np.testing.assert_allclose(norm.apply(params, x + 3.0), 1.0, rtol=1e-6)


def test_it_learns_from_its_own_initial_values():
  model, optimizer = WanVAE(FLAT), optax.adam(1e-2)
  x = jnp.broadcast_to(_clip(1, seed=3)[:, :, :1, :1], (1, 2, 4, 4, 3))

  @jax.jit
  def step(params, state):
    loss = lambda p: jnp.mean((model.apply({'params': p}, x) - x) ** 2)
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  # A generator that compiles in less time than the usual one.
  key = jax.random.key(0, impl='unsafe_rbg')
  params = jax.jit(model.init)(key, x)['params']
  state, losses = optimizer.init(params), []
  for _ in range(30):
    params, state, value = step(params, state)
    losses.append(float(value))
  assert losses[0] < 20
  assert losses[-1] < 0.1 * losses[0]


def test_normalize_is_undone_and_uses_the_statistics():
  z = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 3))
  normal = wan_vae.normalize(z, TINY)
  wanted = (z - np.array([[[[[0.5, -1, 0]]]]])) / np.array([[[[[2, 0.5, 1]]]]])
  np.testing.assert_allclose(normal, wanted, atol=1e-6)
  np.testing.assert_allclose(wan_vae.denormalize(normal, TINY), z, atol=1e-6)


def test_table_names_every_parameter(params):
  table = names.vae_table(TINY)
  assert table.keys() == set(tree.names(params))
  keys = [key for entry in table.values() for key in entry.keys]
  assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
  'change,message',
  [
    ({'_class_name': 'AutoencoderKL'}, 'only AutoencoderKLWan'),
    ({'is_residual': True, 'dim_mult': [1, 2, 5]}, 'no multiple of 20'),
    ({'patch_size': 2, 'in_channels': 3}, 'values give 12'),
    ({'in_channels': 12}, 'in_channels'),
    ({'attn_scales': [1.0]}, 'attn_scales'),
    ({'dropout': 0.1}, 'dropout'),
    ({'surprise': 1}, "unknown key 'surprise'"),
    ({'base_dim': 0}, 'base_dim'),
    ({'base_dim': '16'}, 'base_dim'),
    ({'dim_mult': 4}, 'dim_mult must be a list'),
    ({'dim_mult': []}, 'dim_mult is empty'),
    ({'temperal_downsample': [1, 0]}, 'true or false'),
    ({'temperal_downsample': [True]}, '2 are expected'),
    ({'decoder_base_dim': 3, 'dim_mult': [1, 1, 1]}, 'even'),
    ({'latents_mean': [0.0]}, 'z_dim is 3'),
    ({'latents_mean': [0.0, float('nan'), 0.0]}, 'finite'),
    ({'latents_std': [1.0, 0.0, 1.0]}, 'positive'),
    ({'scale_factor_spatial': 8}, 'other values give 4'),
  ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(change, message):
  with pytest.raises(DcjaxError, match=message) as error:
    VAEConfig.from_json(TINY.to_json() | change)
  assert '\n' not in str(error.value)


def test_config_is_hashable_and_survives_json():
  assert VAEConfig.from_json(TINY.to_json()) == TINY
  assert hash(dataclasses.replace(TINY, dim_mult=[1, 2, 2])) == hash(TINY)


@pytest.mark.parametrize('shape', [(1, 4, 8, 8), (1, 5, 6, 8), (1, 5, 8, 9)])
def test_a_clip_of_the_wrong_size_is_refused(shape, params):
  with pytest.raises(DcjaxError, match='multiples of 4'):
    WanVAE(TINY).apply({'params': params}, jnp.zeros((*shape, 3)))


def test_latents_of_the_wrong_width_are_refused(params):
  with pytest.raises(DcjaxError, match='b f h w 3'):
    WanVAE(TINY).apply(
      {'params': params}, jnp.zeros((1, 2, 2, 2, 4)), method='decode'
    )
