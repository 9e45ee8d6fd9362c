"""The causal video autoencoders of Wan2.1 and Wan2.2.

Wan: Open and Advanced Large-Scale Video Generative Models (arXiv:2503.20314),
section 4.1; that of Wan2.2 adds patches of pixels and, around every level, a
shortcut without parameters that changes the size alike. The released code walks
over a clip in pieces and keeps the last frames of every convolution in a cache.
Here a clip is one array, and what the caches amount to is said directly:

- convolutions of stride 1 see two frames of the past, zeros before the clip;
- where time is halved, frame 0 passes and the others are convolved in threes,
  (0 1 2) (2 3 4) ...: f frames become 1 + (f - 1) / 2;
- where time is doubled, frame 0 passes and the convolution over the others does
  not see it: f frames become 1 + 2 (f - 1).

So an image is the first latent frame of any clip that begins with it. Where a
clip is too large for that, the same modules walk over it (`vae_chunks`).
"""

from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp

from dcjax.errors import DcjaxError
from dcjax.models.convolution import CausalConv, continues
from dcjax.models.resampling import (
  Downsample,
  Upsample,
  average_down,
  repeat_up,
)
from dcjax.models.vae_config import VAEConfig

Array = jax.Array

# Scores of the mid attention held at once; beyond, frames take turns.
_SCORES = 2**28


def normalize(z: Array, config: VAEConfig) -> Array:
  """Raw latents [... c] -> latents of about zero mean and unit variance."""
  mean, std = _statistics(z, config)
  return (z - mean) / std


def denormalize(z: Array, config: VAEConfig) -> Array:
  """The inverse of `normalize`."""
  mean, std = _statistics(z, config)
  return z * std + mean


def _statistics(z, config):
  shape = (1,) * (z.ndim - 1) + (config.z_dim,)
  mean = jnp.asarray(config.latents_mean, z.dtype).reshape(shape)
  return mean, jnp.asarray(config.latents_std, z.dtype).reshape(shape)


class Norm(nn.Module):
  """x / ||x|| * sqrt(c) * scale over channels, computed in float32."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    y = x.astype(jnp.float32)
    square = jnp.sum(y * y, axis=-1, keepdims=True)
    # The floor is the reference's, put where the gradient at zero is finite.
    y = y * (jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * c**0.5)
    return (y * scale[None, None, None, None]).astype(x.dtype)


class ResBlock(nn.Module):
  """Norm, SiLU, convolution, twice, beside a shortcut.

  Attributes:
    features: width of the output.
    dtype: type of the computation.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = nn.silu(Norm(name='norm1')(x))
    y = CausalConv(self.features, dtype=self.dtype, name='conv1')(y)
    y = nn.silu(Norm(name='norm2')(y))
    y = CausalConv(self.features, dtype=self.dtype, name='conv2')(y)
    if x.shape[-1] != self.features:
      x = CausalConv(
        self.features, (1, 1, 1), dtype=self.dtype, name='shortcut'
      )(x)
    return x + y


class FrameAttention(nn.Module):
  """Self-attention of one head among the pixels of each frame."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, f, h, w, c = x.shape
    y = rearrange(Norm(name='norm')(x), 'b f h w c -> (b f) (h w) c')
    qkv = nn.Dense(3 * c, dtype=self.dtype, name='qkv')(y)
    if b * f * (h * w) ** 2 > _SCORES:
      y = jax.lax.map(_attend, qkv)
    else:
      y = jax.vmap(_attend)(qkv)
    y = nn.Dense(c, dtype=self.dtype, name='proj')(y)
    return x + rearrange(y, '(b f) (h w) c -> b f h w c', b=b, h=h)


def _attend(qkv: Array) -> Array:
  """[n 3c] -> [n c]; softmax in float32."""
  q, k, v = jnp.split(qkv, 3, axis=-1)
  q = q * q.shape[-1] ** -0.5
  scores = jnp.einsum('nc,mc->nm', q, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores).astype(v.dtype)
  return jnp.einsum('nm,mc->nc', weights, v)


class Middle(nn.Module):
  """Residual block, attention within frames, residual block."""

  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    block = nn.remat(ResBlock) if self.remat else ResBlock
    x = block(x.shape[-1], dtype=self.dtype, name='res_0')(x)
    x = FrameAttention(dtype=self.dtype, name='attn')(x)
    return block(x.shape[-1], dtype=self.dtype, name='res_1')(x)


class Encoder(nn.Module):
  """Pixels [b f h w p] -> moments [b f' h' w' 2c]."""

  config: VAEConfig
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    block = nn.remat(ResBlock) if self.remat else ResBlock
    widths, begins = self.config.encoder_widths, not continues(self)
    x = CausalConv(self.config.base_dim, dtype=self.dtype, name='conv_in')(x)
    for i, width in enumerate(widths):
      before, last = x, i + 1 == len(widths)
      time = not last and self.config.temporal_downsample[i]
      for j in range(self.config.num_res_blocks):
        x = block(width, dtype=self.dtype, name=f'down_{i}_res_{j}')(x)
      if not last:
        x = Downsample(time, self.dtype, name=f'down_{i}_sample')(x)
      if self.config.is_residual:
        x = x + average_down(before, width, time, not last, begins=begins)
    x = Middle(self.dtype, self.remat, name='mid')(x)
    x = nn.silu(Norm(name='norm_out')(x))
    moments = 2 * self.config.z_dim
    return CausalConv(moments, dtype=self.dtype, name='conv_out')(x)


class Decoder(nn.Module):
  """Latents [b f' h' w' c] -> pixels [b f h w p]."""

  config: VAEConfig
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, z: Array) -> Array:
    block = nn.remat(ResBlock) if self.remat else ResBlock
    widths, residual = self.config.decoder_widths, self.config.is_residual
    begins = not continues(self)
    x = CausalConv(widths[0], dtype=self.dtype, name='conv_in')(z)
    x = Middle(self.dtype, self.remat, name='mid')(x)
    for i, width in enumerate(widths):
      before = x
      for j in range(self.config.num_res_blocks + 1):
        x = block(width, dtype=self.dtype, name=f'up_{i}_res_{j}')(x)
      if i + 1 < len(widths):
        time = self.config.temporal_downsample[::-1][i]
        features = width if residual else width // 2
        x = Upsample(features, time, self.dtype, name=f'up_{i}_sample')(x)
        if residual:
          x = x + repeat_up(before, width, time, begins=begins)
    x = nn.silu(Norm(name='norm_out')(x))
    pixels = self.config.pixel_channels
    return CausalConv(pixels, dtype=self.dtype, name='conv_out')(x)


class WanVAE(nn.Module):
  """The autoencoder: `init` makes all parameters, `apply` names a method.

    params = model.init(key, x)['params']
    mean, logvar = model.apply({'params': params}, x, method='encode')

  Float32 means what `jax.default_matmul_precision` makes of it: by default GPUs
  and TPUs round the factors. Published latents were made in full float32.

  Attributes:
    config: the shape, with the statistics that `normalize` uses.
    dtype: type of the computation. Parameters are float32, moments and pixels
      come out in float32.
    remat: recompute residual blocks in the backward pass, to save memory.
  """

  config: VAEConfig
  dtype: Any = jnp.float32
  remat: bool = False

  def setup(self):
    c = self.config.z_dim
    self.encoder = Encoder(self.config, self.dtype, self.remat)
    self.decoder = Decoder(self.config, self.dtype, self.remat)
    self.quant_conv = CausalConv(2 * c, (1, 1, 1), dtype=self.dtype)
    self.post_quant_conv = CausalConv(c, (1, 1, 1), dtype=self.dtype)

  def encode(self, x: Array) -> tuple[Array, Array]:
    """Pixels -> the Gaussian over raw latents.

    Args:
      x: [b f h w 3] in [-1, 1]; f is 1 plus a multiple of the temporal factor,
        h and w are multiples of the spatial factor.

    Returns:
      (mean, log variance), each [b f' h' w' c] in float32, not normalised.

    Raises:
      DcjaxError: for another size.
    """
    check_pixels(x.shape, self.config, begins=not continues(self))
    p = self.config.patch_size or 1
    x = rearrange(x, 'b f (h q) (w p) c -> b f h w (c p q)', p=p, q=p)
    moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)

  def decode(self, z: Array, *, clip: bool = True) -> Array:
    """Raw latents -> pixels.

    Args:
      z: [b f' h' w' c], not normalised.
      clip: to [-1, 1]. A reconstruction loss wants the gradient outside too.

    Returns:
      [b f h w 3] in float32.

    Raises:
      DcjaxError: for another number of channels.
    """
    check_latents(z.shape, self.config)
    x = self.decoder(self.post_quant_conv(z)).astype(jnp.float32)
    p = self.config.patch_size or 1
    x = rearrange(x, 'b f h w (c p q) -> b f (h q) (w p) c', p=p, q=p)
    return jnp.clip(x, -1.0, 1.0) if clip else x

  def __call__(self, x: Array) -> Array:
    """Pixels -> their reconstruction from the mean, [b f h w 3], not clipped.

    Raises:
      DcjaxError: as `encode` does.
    """
    return self.decode(self.encode(x)[0], clip=False)


def check_latents(shape: tuple[int, ...], config: Any) -> None:
  """Refuses latents that are not [b f h w z_dim] with a DcjaxError."""
  if len(shape) != 5 or shape[-1] != config.z_dim:
    raise DcjaxError(
      f'latents of shape {shape} do not fit this autoencoder; expected '
      f'[b f h w {config.z_dim}]'
    )


def check_pixels(shape: tuple[int, ...], config: Any, *, begins: bool) -> None:
  """Refuses videos that an autoencoder cannot encode.

  Args:
    shape: of the video.
    config: of the autoencoder, for its scale factors.
    begins: whether it is a clip's first chunk, or all of it.

  Raises:
    DcjaxError: for another size than [b f h w 3] in whole latents.
  """
  time, space = config.scale_factor_temporal, config.scale_factor_spatial
  if (
    len(shape) != 5
    or shape[-1] != 3
    or shape[1] % time != begins % time
    or shape[2] % space
    or shape[3] % space
  ):
    raise DcjaxError(
      f'a video of shape {tuple(shape)} does not fit this autoencoder; '
      f'expected [b f h w 3], f = {int(begins)} + {time}k, h and w multiples '
      f'of {space}'
    )
