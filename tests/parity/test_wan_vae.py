"""The Wan autoencoder against diffusers, with random weights."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny

from dcjax.models.vae_config import VAEConfig
from dcjax.models.wan_vae import WanVAE
from dcjax.weights import names

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

# Three levels, time halved twice: the shape of the embedded base.
SMALL = {
  'base_dim': 8,
  'z_dim': 6,
  'dim_mult': [1, 2, 4],
  'num_res_blocks': 1,
  'temperal_downsample': [True, True],
  'scale_factor_spatial': 4,
}
# Wan2.1's own levels, with a wider decoder.
WAN = {
  'base_dim': 4,
  'decoder_base_dim': 6,
  'z_dim': 4,
  'dim_mult': [1, 2, 4, 4],
  'num_res_blocks': 2,
  'temperal_downsample': [False, True, True],
}
# Equal widths, time halved once, and first.
FLAT = {
  'base_dim': 12,
  'z_dim': 5,
  'dim_mult': [1, 1, 2],
  'num_res_blocks': 1,
  'temperal_downsample': [True, False],
  'scale_factor_spatial': 4,
  'scale_factor_temporal': 2,
}
# Wan2.2's kind at the embedded base's levels: patches and shortcuts.
RESIDUAL = {
  'base_dim': 6,
  'z_dim': 7,
  'dim_mult': [1, 2, 2],
  'num_res_blocks': 1,
  'temperal_downsample': [True, True],
  'is_residual': True,
  'patch_size': 2,
  'in_channels': 12,
  'out_channels': 12,
  'scale_factor_spatial': 8,
}
# Wan2.2's own levels, with its wider decoder.
WAN22 = {
  **RESIDUAL,
  'base_dim': 4,
  'decoder_base_dim': 6,
  'dim_mult': [1, 2, 4, 4],
  'num_res_blocks': 2,
  'temperal_downsample': [False, True, True],
  'scale_factor_spatial': 16,
}
KINDS = [SMALL, WAN, FLAT, RESIDUAL, WAN22]
CASES = [
  (SMALL, (2, 1, 16, 24)),
  (SMALL, (2, 17, 16, 20)),
  (WAN, (1, 9, 24, 32)),
  (FLAT, (2, 13, 12, 20)),
  (RESIDUAL, (2, 17, 16, 24)),
  (WAN22, (1, 9, 32, 48)),
]


def _peer(raw, seed=0):
  """diffusers' model; norms and biases are made random too."""
  torch.manual_seed(seed)
  stats = {
    'latents_mean': np.linspace(-1, 1, raw['z_dim']).tolist(),
    'latents_std': np.linspace(0.5, 2, raw['z_dim']).tolist(),
  }
  peer = diffusers.AutoencoderKLWan(**raw, **stats).eval()
  with torch.no_grad():
    for x in peer.parameters():
      if x.squeeze().ndim <= 1:
        x.add_(0.2 * torch.randn_like(x))
  return peer


def _ours(peer):
  """Our model, its parameters read from the peer, and the peer's tensors."""
  config = VAEConfig.from_json(dict(peer.config))
  model, table = WanVAE(config), names.vae_table(config)
  tensors = {key: _array(x) for key, x in peer.state_dict().items()}
  expected = _expected(model)
  params = names.read_tensors(table, tensors, expected, what='the peer')
  return model, params, tensors


def _array(x):
  if x.dtype == torch.bfloat16:
    return x.float().numpy().astype(ml_dtypes.bfloat16)
  return x.numpy()


def _expected(model):
  size = model.config.scale_factor_spatial
  frames = 1 + model.config.scale_factor_temporal
  x = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), x)['params']


def _apply(model, params, x, method):
  run = jax.jit(lambda p, x: model.apply({'params': p}, x, method=method))
  return run(params, x)


def _error(ours, theirs):
  """Relative, in the Frobenius norm; `theirs` is channel-first."""
  theirs = theirs.detach().float().numpy()
  theirs = np.moveaxis(theirs, 1, -1)
  assert ours.shape == theirs.shape
  return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def _clip(shape, seed=0):
  x = np.random.default_rng(seed).uniform(-1, 1, (*shape, 3))
  return x.astype(np.float32)


def _torch(x):
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _check(peer, model, params, shape):
  x = _clip(shape)
  with torch.no_grad():
    wanted = peer.encode(_torch(x)).latent_dist
    # Scaled down, so that random weights do not clip every pixel.
    z = 0.3 * wanted.mean
    pixels = peer.decode(z).sample
  assert np.mean(np.abs(pixels.numpy()) < 1) > 0.5
  mean, logvar = _apply(model, params, x, 'encode')
  assert _error(mean, wanted.mean) < 1e-4
  assert _error(logvar, wanted.logvar) < 1e-4
  ours = _apply(model, params, np.moveaxis(z.numpy(), 1, -1), 'decode')
  assert _error(ours, pixels) < 1e-4


@pytest.mark.parametrize('raw,shape', CASES)
def test_encode_and_decode_agree(raw, shape):
  peer = _peer(raw)
  model, params, _ = _ours(peer)
  _check(peer, model, params, shape)


def test_bfloat16_weights_agree_and_come_back_bit_for_bit():
  peer = _peer(SMALL, seed=1).to(torch.bfloat16)
  model, params, tensors = _ours(peer)
  written = names.write_tensors(names.vae_table(model.config), params)
  assert written.keys() == tensors.keys()
  for key, x in tensors.items():
    assert written[key].dtype == x.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
      written[key].view(np.uint16), x.view(np.uint16), err_msg=key
    )
  params = jax.tree.map(lambda x: x.astype(np.float32), params)
  _check(peer.float(), model, params, (1, 5, 24, 16))


@pytest.mark.parametrize('raw', KINDS)
def test_parameters_round_trip(raw):
  peer = _peer(raw, seed=2)
  model, params, tensors = _ours(peer)
  written = names.write_tensors(names.vae_table(model.config), params)
  assert written.keys() == tensors.keys()
  for key, x in tensors.items():
    np.testing.assert_array_equal(written[key], x, err_msg=key)


@pytest.mark.parametrize('raw', KINDS)
def test_config_round_trips_through_a_folder(raw, tmp_path):
  peer = _peer(raw)
  peer.save_config(tmp_path)
  saved = json.loads((tmp_path / 'config.json').read_text())
  config = VAEConfig.from_json(saved)
  assert VAEConfig.from_json(config.to_json()) == config
  again = diffusers.AutoencoderKLWan.from_config(config.to_json())
  for key, value in saved.items():
    assert key.startswith('_') or again.config[key] == value
  assert again.state_dict().keys() == peer.state_dict().keys()


def test_defaults_are_those_of_wan():
  with torch.device('meta'):
    peer = diffusers.AutoencoderKLWan()
  config = VAEConfig.from_json(dict(peer.config))
  assert config == VAEConfig()
  shapes = {key: tuple(x.shape) for key, x in peer.state_dict().items()}
  expected = _expected(WanVAE(config))
  zeros = {
    key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()
  }
  params = names.read_tensors(
    names.vae_table(config), zeros, expected, what='meta'
  )
  assert tiny.shapes(expected) == tiny.shapes(params)
