"""The autoencoder of Set-and-Sequence: its size, its causality, its borders."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import tree
from dcjax.data.tokenizer import build_word_tokenizer
from dcjax.errors import DcjaxError
from dcjax.models import autoencoder, vae_chunks
from dcjax.models import vae as vae_lib
from dcjax.models.autoencoder import Autoencoder, ReplicateConv
from dcjax.models.autoencoder_config import AutoencoderConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.models.wan_vae import WanVAE
from dcjax.weights.base import Base, load_base, save_base
from dcjax.weights.networks import expected_params
from dcjax.weights.outline import outline

# The paper's strides and one block a stage: 8 frames, 16 pixels.
TINY = AutoencoderConfig(
  base_channels=4,
  multipliers=(1, 1, 2, 2, 2),
  encoder_blocks=(1, 1, 1, 1, 1),
  decoder_blocks=(1, 1, 1, 1, 1),
  z_dim=4,
)
# Two stages, 2 frames and 4 pixels: for what does not depend on depth.
FLAT = dataclasses.replace(
  TINY,
  multipliers=(1, 2, 2),
  encoder_blocks=(1, 1, 1),
  decoder_blocks=(1, 1, 1),
  temporal_strides=(1, 2, 1),
  spatial_strides=(2, 2, 1),
)
SPREAD = dataclasses.replace(FLAT, upsampling='depth_to_space')
# One block.
ONE = AutoencoderConfig(4, (1,), (1,), (1,), (1,), (1,), z_dim=4)


def shapes(config):
  side = config.scale_factor_spatial
  x = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32)
  return jax.eval_shape(Autoencoder(config).init, jax.random.key(0), x)[
    'params'
  ]


def drawn(config):
  """Parameters in which every one matters, AdaGN's too."""
  return tiny.randomize(shapes(config))


def clip(config, frames, rows=1, columns=1, seed=0):
  side = config.scale_factor_spatial
  size = (1, frames, rows * side, columns * side, 3)
  return jax.random.uniform(jax.random.key(seed), size, minval=-1, maxval=1)


def encode(config, params, x):
  model = Autoencoder(config)
  run = jax.jit(lambda p, x: model.apply({'params': p}, x, method='encode'))
  return run(params, x)


def decode(config, params, z):
  model = Autoencoder(config)
  run = jax.jit(lambda p, z: model.apply({'params': p}, z, method='decode'))
  return run(params, z)


def convolution(width, frames=5, **options):
  """(a convolution, its parameters, an input [1 f 4 6 2])."""
  conv = ReplicateConv(width, **options)
  x = jax.random.normal(jax.random.key(0), (1, frames, 4, 6, 2))
  return conv, conv.init(jax.random.key(1), x), x


# ---- size -------------------------------------------------------------------


@pytest.mark.parametrize(
  'upsampling,decoder',
  [('nearest', 346_480_291), ('depth_to_space', 606_937_187)],
)
def test_full_size_has_the_papers_stages(upsampling, decoder):
  """566 M and 346 M (607 M): each layer by hand, from Table 4's rows."""
  config = AutoencoderConfig(upsampling=upsampling)
  count = lambda x: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(x))
  conv = lambda i, o: 27 * i * o + o

  def blocks(width, before, n):
    first = conv(before, width) + conv(width, width) + 2 * (before + width)
    first += (before + 1) * width if before != width else 0
    return first + (n - 1) * (2 * conv(width, width) + 4 * width)

  widths = (16, 64, 256, 512, 1024)
  down = conv(3, 16) + 2 * 1024 + conv(1024, 64)
  down += sum(map(conv, widths[:4], widths[:4]))
  for width, before, n in zip(
    widths, (16, *widths), (1, 1, 2, 8, 8), strict=False
  ):
    down += blocks(width, before, n)
  up = conv(32, 1024) + 2 * 16 + conv(16, 3)
  spread = (4, 8, 8, 8) if upsampling == 'depth_to_space' else (1,) * 4
  up += sum(conv(w, w * n) for w, n in zip(widths[1:], spread, strict=True))
  for width, before in zip(widths, (*widths[1:], 1024), strict=True):
    up += blocks(width, before, 4)
    up += 2 * 33 * before  # AdaGN comes before the stage's first block
  found = shapes(config)
  assert (count(found['encoder']), count(found['decoder'])) == (down, up)
  assert (down, up) == (565_927_664, decoder)
  assert config.latent_shape(121, 576, 1024) == (16, 36, 64, 32)


def test_outline_of_the_papers_base_needs_no_folder():
  base = outline('snap_dit_11b')
  count = {
    part: sum(x.size for x in jax.tree.leaves(leaves))
    for part, leaves in base.params.items()
  }
  assert count['vae'] == 565_927_664 + 346_480_291
  assert round(count['transformer'] / 1e9, 2) == 11.60
  assert round(count['text_encoder'] / 1e9, 2) == 4.86
  f = base.format
  assert base.latent_shape(f.frames, f.height, f.width)[-1] == base.dit.channels
  assert base.text.d_model == base.dit.text_width


# ---- time -------------------------------------------------------------------


def influence(function, x):
  """[frames out, frames in]: does any input frame move an output frame?"""

  @jax.jit
  def rows(x):
    y, back = jax.vjp(function, x)
    seeds = jnp.eye(y.shape[1])[:, None, :, None, None, None]
    one = lambda seed: back(jnp.broadcast_to(seed, y.shape))[0]
    return jnp.any(jax.lax.map(one, seeds) != 0, axis=(1, 3, 4, 5))

  return np.asarray(rows(x))


def test_latents_see_only_the_past():
  params = drawn(TINY)
  model = Autoencoder(TINY)
  seen = influence(
    lambda x: model.apply({'params': params}, x, method='encode')[0],
    clip(TINY, 17),
  )
  for latent in range(3):
    assert seen[latent, : 8 * latent + 1].all()
    assert not seen[latent, 8 * latent + 1 :].any()


@pytest.mark.parametrize('config', [TINY, SPREAD])
def test_pixels_see_only_the_past(config):
  """Through the statistics of AdaGN and of the normalisations as well."""
  params, time = drawn(config), config.scale_factor_temporal
  model, c = Autoencoder(config), config.z_dim
  seen = influence(
    lambda z: model.apply({'params': params}, z, clip=False, method='decode'),
    jax.random.normal(jax.random.key(1), (1, 3, 1, 2, c)),
  )
  for frame in range(1 + 2 * time):
    last = -(-frame // time)
    assert seen[frame, : last + 1].all()
    assert not seen[frame, last + 1 :].any()


def test_an_image_is_a_clip_of_one_frame():
  params, x = drawn(TINY), clip(TINY, 9, 1, 2)
  whole, image = encode(TINY, params, x), encode(TINY, params, x[:, :1])
  assert image[0].shape == (1, 1, 1, 2, 4)
  for clip_moments, image_moments in zip(whole, image, strict=True):
    np.testing.assert_allclose(clip_moments[:, :1], image_moments, atol=2e-5)
  z = whole[0]
  np.testing.assert_allclose(
    decode(TINY, params, z)[:, :1], decode(TINY, params, z[:, :1]), atol=2e-5
  )


def test_latents_of_the_first_frames_are_the_first_latents():
  """Which lets one encoding serve clips of all lengths."""
  params, x = drawn(TINY), clip(TINY, 17)
  whole, begin = encode(TINY, params, x)[0], encode(TINY, params, x[:, :9])[0]
  np.testing.assert_allclose(whole[:, :2], begin, atol=2e-5)


@pytest.mark.parametrize('config', [FLAT, SPREAD])
def test_in_chunks_a_clip_is_the_same(config):
  frames = 1 + 2 * config.scale_factor_temporal
  params, model = drawn(config), Autoencoder(config)
  side = config.scale_factor_spatial
  video = np.random.default_rng(0).integers(
    0, 256, (frames, side, 2 * side, 3), np.uint8
  )
  whole, chunked = (
    vae_chunks.encode(params, video, model, chunks=x) for x in (False, True)
  )
  np.testing.assert_allclose(whole, chunked, atol=2e-5)
  whole, chunked = (
    vae_chunks.decode(params, whole, model, chunks=x) for x in (False, True)
  )
  assert np.abs(whole.astype(int) - chunked).max() <= 1


def test_a_clip_of_full_size_goes_in_chunks():
  config = AutoencoderConfig()
  # 64 channels at full resolution, in float32.
  assert config.layer_size(121, 576, 1024) * 4 == 121 * 576 * 1024 * 64 * 4
  assert vae_chunks.is_large(config, 121, 576, 1024)
  assert not vae_chunks.is_large(config, 1, 576, 1024)


# ---- borders ----------------------------------------------------------------


@pytest.mark.parametrize('stride', [(1, 1), (1, 2), (2, 2)])
def test_convolution_pads_by_repeating(stride):
  """Against one convolution in three dimensions, padded by hand."""
  conv, params, x = convolution(3, stride=stride)
  padded = jnp.pad(x, ((0, 0), (2, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  wanted = jax.lax.conv_general_dilated(
    padded,
    params['params']['kernel'],
    (stride[0], stride[1], stride[1]),
    'VALID',
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
  )
  y = conv.apply(params, x)
  assert y.shape == wanted.shape
  np.testing.assert_allclose(y, wanted, atol=1e-5)
  image = conv.apply(params, x[:, :1])
  np.testing.assert_allclose(image, y[:, :1], atol=1e-5)


def test_what_is_constant_stays_constant_to_its_borders():
  x = jnp.broadcast_to(jnp.asarray([0.5, -0.2, 0.9]), (1, 9, 32, 16, 3))
  params = drawn(TINY)
  z = encode(TINY, params, x)[0]
  np.testing.assert_allclose(
    z, np.broadcast_to(z[:, :1, :1, :1], z.shape), atol=1e-5
  )
  y = decode(TINY, params, z)
  np.testing.assert_allclose(
    y, np.broadcast_to(y[:, :1, :1, :1], y.shape), atol=1e-5
  )


# ---- normalisation ----------------------------------------------------------


def test_statistics_are_of_one_frame_and_group():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 8))
  x = x * jnp.arange(1, 4)[None, :, None, None, None] + 5.0
  y = autoencoder.standardize(x).reshape(2, 3, 16, 4, 2)  # pairs of channels
  np.testing.assert_allclose(y.mean((2, 4)), 0.0, atol=1e-5)
  np.testing.assert_allclose(y.std((2, 4)), 1.0, atol=1e-4)


def test_adaptive_norm_follows_the_latents():
  """gamma and beta by hand; it starts as the plain normalisation."""
  norm = autoencoder.AdaptiveNorm(frames=2)
  x = jax.random.normal(jax.random.key(0), (1, 3, 2, 2, 4))
  mean, std = np.random.default_rng(0).normal(size=(2, 1, 2, 5))
  params = norm.init(jax.random.key(2), x, mean, std)
  plain = np.asarray(autoencoder.standardize(x))
  np.testing.assert_array_equal(norm.apply(params, x, mean, std), plain)
  params = {'params': tiny.randomize(params['params'])}
  p = params['params']
  gamma = std[0] @ p['gamma']['kernel'] + p['gamma']['bias']
  beta = mean[0] @ p['beta']['kernel'] + p['beta']['bias']
  latent = np.array([0, 1, 1])  # of each frame
  wanted = plain * gamma[latent][None, :, None, None]
  wanted = wanted + beta[latent][None, :, None, None]
  np.testing.assert_allclose(
    norm.apply(params, x, mean, std), wanted, atol=1e-5
  )


def test_latents_of_one_colour_have_finite_gradients():
  params, model = drawn(ONE), Autoencoder(ONE)
  loss = lambda z: jnp.square(
    model.apply({'params': params}, z, clip=False, method='decode')
  ).mean()
  slope = jax.jit(jax.grad(loss))(jnp.full((1, 2, 2, 2, 4), 0.3))
  assert jnp.isfinite(slope).all()
  assert jnp.any(slope != 0)


# ---- face -------------------------------------------------------------------


@pytest.mark.parametrize('frames,rows,columns', [(1, 1, 3), (9, 3, 1)])
def test_shapes_are_those_of_the_config(frames, rows, columns):
  x = clip(TINY, frames, rows, columns)
  model = Autoencoder(TINY)
  params = jax.eval_shape(model.init, jax.random.key(0), x)
  mean, logvar = jax.eval_shape(
    lambda p: model.apply(p, x, method='encode'), params
  )
  assert mean.shape == logvar.shape == (1, *TINY.latent_shape(*x.shape[1:4]))
  pixels = lambda p, z: model.apply(p, z, method='decode')
  assert jax.eval_shape(pixels, params, mean).shape == x.shape
  assert jax.eval_shape(model.apply, params, x).shape == x.shape


def test_half_precision_is_near_and_comes_out_in_float32():
  params, model = drawn(FLAT), Autoencoder(FLAT, jnp.bfloat16)
  x = clip(FLAT, 3)
  half = jax.jit(lambda x: model.apply({'params': params}, x, method='encode'))
  half, full = half(x)[0], encode(FLAT, params, x)[0]
  assert half.dtype == jnp.float32
  assert 0 < jnp.linalg.norm(half - full) < 0.1 * jnp.linalg.norm(full)


def test_remat_changes_no_gradient():
  params, x = drawn(ONE), jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 3))

  def gradient(remat):
    model = Autoencoder(ONE, remat=remat)
    loss = lambda p: jnp.square(model.apply({'params': p}, x)).mean()
    return jax.jit(jax.grad(loss))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    gradient(False),
    gradient(True),
  )


@pytest.mark.parametrize('shape', [(8, 16, 16), (9, 24, 16), (9, 16, 17)])
def test_other_sizes_are_refused(shape):
  with pytest.raises(DcjaxError, match='multiples of 16'):
    jax.eval_shape(
      Autoencoder(TINY).init, jax.random.key(0), jnp.zeros((1, *shape, 3))
    )


def test_latents_of_another_width_are_refused():
  with pytest.raises(DcjaxError, match=r'b f h w 4'):
    Autoencoder(TINY).apply(
      {'params': {}}, jnp.zeros((1, 1, 1, 1, 5)), method='decode'
    )


# ---- files ------------------------------------------------------------------


def test_each_class_is_built_from_its_config():
  for config, kind in ((TINY, Autoencoder), (tiny.VAE, WanVAE)):
    again = vae_lib.config_from_json(config.to_json())
    assert again == config and type(again) is type(config)
    assert isinstance(vae_lib.build(again), kind)
  with pytest.raises(DcjaxError, match='is a AutoencoderKL;'):
    vae_lib.config_from_json({'_class_name': 'AutoencoderKL'})
  assert vae_lib.config_from_json({}) == VAEConfig()


@pytest.mark.parametrize(
  'change,message',
  [
    ({'surprise': 1}, "unknown key 'surprise'"),
    ({'_class_name': 'AutoencoderKLWan'}, 'not a CausalVideoAutoencoder'),
    ({'base_channels': 0}, 'base_channels is 0'),
    ({'z_dim': True}, 'z_dim is True'),
    ({'multipliers': [1, 2.0, 2, 2, 2]}, 'positive whole numbers'),
    ({'multipliers': 4}, 'multipliers is 4'),
    ({'multipliers': [1, 2]}, 'expected one a stage'),
    ({'encoder_blocks': [1]}, 'encoder_blocks has 1'),
    ({'temporal_strides': [1, 3, 2, 2, 1]}, 'expected 1 or 2'),
    ({'spatial_strides': [2, 2, 2, 2, 2]}, '1 for the last stage'),
    ({'base_channels': 5}, 'no multiple of 2'),
    ({'upsampling': 'bicubic'}, 'nearest or depth_to_space'),
    ({'latents_mean': [0.0]}, 'z_dim is 4'),
    ({'latents_std': [1.0, 1.0, 1.0, 0.0]}, 'must be positive'),
    ({'latents_std': [1.0, 1.0, 1.0, float('nan')]}, 'finite'),
  ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(change, message):
  with pytest.raises(DcjaxError, match=message) as error:
    AutoencoderConfig.from_json(TINY.to_json() | change)
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def base():
  """A base of the paper's form: our transformer, our autoencoder, a T5."""
  dit = dataclasses.replace(tiny.PAPER_DIT, channels=FLAT.z_dim)
  text = dataclasses.replace(
    tiny.TEXT, model_type='t5', feed_forward_proj='relu'
  )
  vae = dataclasses.replace(FLAT, latents_mean=(0.5, -1.0, 0.0, 0.25))
  return Base(
    name='paper',
    dit=dit,
    vae=vae,
    text=text,
    tokenizer=build_word_tokenizer(tiny.WORDS, length=12),
    params=tiny.randomize(expected_params(dit, vae, text)),
    format=dataclasses.replace(tiny.FORMAT, frames=5),
  )


def test_a_base_of_the_papers_form_survives_its_folder(base, tmp_path):
  save_base(base, tmp_path, dtype=np.float32)
  again = load_base(tmp_path)
  assert (again.dit, again.vae, again.text) == (base.dit, base.vae, base.text)
  assert tiny.equal(again.params, base.params)
  assert again.fingerprint == base.fingerprint
  assert load_base(tmp_path, weights=False).fingerprint == base.fingerprint
  assert (
    base.text.shares_bias
    and 'gate' not in again.params['text_encoder']['layers']['mlp']
  )


def test_a_folder_that_lacks_a_tensor_is_refused(base, tmp_path):
  from safetensors.numpy import load_file, save_file

  save_base(base, tmp_path, dtype=np.float32)
  path = tmp_path / 'vae' / 'diffusion_pytorch_model.safetensors'
  tensors = load_file(path)
  assert 'encoder.conv_in.kernel' in tensors
  tensors['encoder.conv_inn.kernel'] = tensors.pop('encoder.conv_in.kernel')
  save_file(tensors, path)
  with pytest.raises(DcjaxError, match=r'- encoder.conv_in.kernel'):
    load_base(tmp_path)


def test_names_are_those_of_the_parameters():
  names = tree.names(shapes(TINY))
  assert 'decoder/stage_3_norm/gamma/kernel' in names
  assert 'encoder/stage_0_down/kernel' in names
  assert not [x for x in names if 'stage_4_up' in x]
