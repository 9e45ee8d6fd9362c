"""The autoencoder in chunks: the same numbers, in bounded memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import sampling
from dcjax.errors import DcjaxError
from dcjax.models import vae_chunks
from dcjax.models.vae_config import VAEConfig
from dcjax.models.wan_vae import WanVAE

# Wan2.1's kind, with time halved at every level; Wan2.2's kind, with patches
# and shortcuts, and time halved late.
KINDS = {
  'wan2.1': dict(dim_mult=(1, 2, 2), temporal_downsample=(True, True)),
  'wan2.2': dict(
    dim_mult=(1, 2, 2),
    temporal_downsample=(False, True),
    is_residual=True,
    patch_size=2,
  ),
}


@pytest.fixture(scope='module', params=KINDS)
def model(request):
  """(autoencoder, random parameters)."""
  stats = dict(latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4)
  vae = WanVAE(
    VAEConfig(
      base_dim=4, z_dim=4, num_res_blocks=1, **KINDS[request.param], **stats
    )
  )
  size = vae.config.scale_factor_spatial
  x = jax.ShapeDtypeStruct((1, 5, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(vae.init, jax.random.key(0), x)
  assert shapes.keys() == {'params'}  # no past among what `init` makes
  return vae, tiny.randomize(shapes['params'])


def clip(vae, steps, seed=0):
  """uint8 [f h w 3] of 1 + `steps` latent frames, not square."""
  space, time = (
    vae.config.scale_factor_spatial,
    vae.config.scale_factor_temporal,
  )
  shape = (1 + steps * time, 2 * space, 3 * space, 3)
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def walk(vae, params, pieces, method):
  step = jax.jit(vae_chunks.step, static_argnums=(0, 4))
  past, found = None, []
  for piece in pieces:
    y, past = step(vae, params, past, piece, method)
    found.append(y)
  return found


def test_encoding_in_chunks_is_encoding(model):
  vae, params = model
  x = clip(vae, 4)
  together = vae_chunks.encode(params, x, vae, chunks=False)
  chunks = vae_chunks.encode(params, x, vae, chunks=True)
  assert chunks.shape == vae.config.latent_shape(*x.shape[:3])
  np.testing.assert_allclose(chunks, together, atol=1e-5, rtol=1e-5)
  still = vae_chunks.encode(params, x[:1], vae, chunks=True)
  np.testing.assert_array_equal(still, chunks[:1])
  # The past matters, or the agreement above would say little.
  x[: -vae.config.scale_factor_temporal] = 128
  other = vae_chunks.encode(params, x, vae, chunks=True)
  assert np.abs(other[-1] - chunks[-1]).max() > 1e-3


def test_decoding_in_chunks_is_decoding(model):
  vae, params = model
  z = jax.random.normal(jax.random.key(0), (2, 5, 2, 3, 4))
  # Not clipped, so that no pixel hides a difference.
  method = functools.partial(WanVAE.decode, clip=False)
  together = jax.jit(lambda p: vae.apply({'params': p}, z, method=method))
  found = walk(vae, params, [z[:, i : i + 1] for i in range(5)], method)
  frames = [y.shape[1] for y in found]
  assert frames == [1] + [vae.config.scale_factor_temporal] * 4
  np.testing.assert_allclose(
    np.concatenate(found, axis=1), together(params), atol=1e-4, rtol=1e-5
  )


def test_chunks_may_be_of_any_length(model):
  """A first chunk of several latent frames, and a longer later one."""
  vae, params = model
  x = clip(vae, 4).astype(np.float32)[None] / 127.5 - 1.0
  together = jax.jit(
    lambda x: vae.apply({'params': params}, x, method='encode')[0]
  )(x)
  time = vae.config.scale_factor_temporal
  cuts = np.split(x, [1 + 2 * time], axis=1)
  found = [mean for mean, _ in walk(vae, params, cuts, 'encode')]
  np.testing.assert_allclose(
    np.concatenate(found, axis=1), together, atol=1e-5, rtol=1e-5
  )


def test_memory_does_not_grow_with_the_clip(model):
  """The past of every later chunk has the shapes of the first one's."""
  vae, params = model
  z = jax.random.normal(jax.random.key(0), (1, 3, 2, 3, 4))
  past, shapes = None, []
  for i in range(3):
    _, past = jax.eval_shape(
      functools.partial(vae_chunks.step, vae, method='decode'),
      *(params, past, z[:, i : i + 1]),
    )
    shapes.append(jax.tree.map(lambda x: x.shape, past))
  assert shapes[0] == shapes[1] == shapes[2]


def test_large_clips_take_the_way_of_chunks():
  wan = VAEConfig()
  assert vae_chunks.is_large(wan, 81, 480, 832)
  assert vae_chunks.is_large(wan, 81, 480, 832, dtype=jnp.bfloat16)
  assert not vae_chunks.is_large(wan, 1, 480, 832)
  assert not vae_chunks.is_large(tiny.VAE, 17, 64, 64)


def test_sampling_takes_large_clips_in_chunks(monkeypatch):
  base = tiny.base()
  video = clip(WanVAE(base.vae), 2)[None]
  lengths = []

  def walk(step, params, pieces, vae):
    lengths.append([len(x) for x in pieces])
    return np.zeros(1)

  monkeypatch.setattr(vae_chunks, '_walk', walk)
  monkeypatch.setattr(vae_chunks, 'LARGE', 0)
  sampling.encode_video(base, video)
  sampling.decode(base, np.zeros((1, 3, 2, 2, 4)))
  assert lengths == [[1, 4, 4], [1, 1, 1]]


@pytest.mark.parametrize('frames', [2, 4, 6])
@pytest.mark.parametrize('chunks', [False, True])
def test_a_clip_of_a_wrong_length_is_refused(frames, chunks):
  base = tiny.base()
  video = np.zeros((frames, 16, 16, 3), np.uint8)
  with pytest.raises(DcjaxError, match='f = 1 [+] 4k') as error:
    vae_chunks.encode(
      base.params['vae'], video, WanVAE(base.vae), chunks=chunks
    )
  assert '\n' not in str(error.value)
