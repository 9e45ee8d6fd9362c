"""The causal video autoencoder of Set-and-Sequence (Table 4), MAGVIT-2's kind.

What the paper says is in `AutoencoderConfig`: widths, blocks and strides of the
stages, replicate padding, a normalisation of the decoder that the latents
drive. The rest is MAGVIT-2 (Yu et al., arXiv:2310.05737, Sec. 3.2 and App. A):

  ResBlock(x) = shortcut(x) + conv(silu(GN(conv(silu(GN(x))))))
  encoder: conv, then for each stage its ResBlocks and a strided convolution;
           GN, silu, conv to (mean, log variance)
  decoder: conv, then for each stage AdaGN(z), its ResBlocks and an upsampling;
           GN, silu, conv to pixels

Nothing looks ahead in time: a convolution sees two frames of the past, and
before the clip its first frame again; statistics of a normalisation are those
of one frame. Time is doubled to 2f frames, of which the first is dropped. So
frames 1 + 8k become 1 + k latent frames, an image is a clip of one frame, and
the latents of a clip's first frames are the first frames of its latents.

Where a clip is too large to be one array, the same modules walk over it
(`vae_chunks`): the collection `past` has the last frames of what each
convolution has seen.
"""

from typing import Any

from einops import rearrange, repeat
from flax import linen as nn
import jax
import jax.numpy as jnp

from dcjax.models.autoencoder_config import AutoencoderConfig, groups
from dcjax.models.convolution import add_bias, continues, conv_frames
from dcjax.models.wan_vae import check_latents, check_pixels

Array = jax.Array

_EPS = 1e-6


class ReplicateConv(nn.Module):
  """Causal convolution under replicate padding: [b f h w c] -> [b f' h' w' o].

  Attributes:
    features: width of the output, o.
    extent: (kt, kh, kw), odd.
    stride: in time, and along both sides of a frame. A clip of 1 + 2k frames
      becomes one of 1 + k at stride 2, a chunk that goes on from 2k becomes k.
    dtype: type of the computation; parameters are float32.
  """

  features: int
  extent: tuple[int, int, int] = (3, 3, 3)
  stride: tuple[int, int] = (1, 1)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (*self.extent, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    (kt, kh, kw), (step, space) = self.extent, self.stride
    x, still = x.astype(self.dtype), x.shape[1] == 1 and not continues(self)
    full = self._with_past(x, kt - 1, kt - step)
    if still:
      # All that a picture sees is itself, kt times.
      full, kernel = x, kernel.sum(0, keepdims=True)
    count = (full.shape[1] - len(kernel)) // step + 1
    sides = ((0, 0), (0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0))
    full = jnp.pad(full, sides, mode='edge')
    # As many convolutions of frames as the kernel is deep: see `convolution`.
    y = sum(
      conv_frames(
        full[:, i : i + step * count : step],
        taps,
        stride=space,
        padding=(0, 0),
      )
      for i, taps in enumerate(kernel)
    )
    return add_bias(y, bias)

  def _with_past(self, x: Array, before: int, kept: int) -> Array:
    """x after the frames before it; keeps those that the next chunk needs."""
    if not before:
      return x
    past = self.get_variable('past', 'frames')
    if past is None:
      past = repeat(x[:, 0], 'b h w c -> b n h w c', n=before)
    full = jnp.concatenate([past.astype(x.dtype), x], axis=1)
    if self.is_mutable_collection('past') and not self.is_initializing():
      self.put_variable('past', 'frames', full[:, full.shape[1] - kept :])
    return full


def standardize(x: Array) -> Array:
  """Zero mean and unit variance in each frame and group; float32 inside."""
  y, count = x.astype(jnp.float32), groups(x.shape[-1])
  y = rearrange(y, 'b f h w (g c) -> b f (h w) g c', g=count)
  y = y - y.mean(axis=(2, 4), keepdims=True)
  square = jnp.square(y).mean(axis=(2, 4), keepdims=True)
  y = y * jax.lax.rsqrt(square + _EPS)
  return y.reshape(x.shape)


class GroupNorm(nn.Module):
  """`standardize`, times a scale, plus a bias."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    y = standardize(x) * scale[None, None, None, None]
    return add_bias(y, bias).astype(x.dtype)


class AdaptiveNorm(nn.Module):
  """AdaGN: scale and bias are linear in statistics of the latents.

    gamma = W std(z) + 1,  beta = V mean(z),  of each latent frame over h and w

  Starts as a plain normalisation. `frames` is how many frames of x a latent
  frame has become.
  """

  frames: int

  @nn.compact
  def __call__(self, x: Array, mean: Array, std: Array) -> Array:
    c, zeros = x.shape[-1], nn.initializers.zeros

    def linear(y, name, bias):
      y = nn.Dense(c, kernel_init=zeros, bias_init=bias, name=name)(y)
      y = repeat(y, 'b f c -> b (f n) 1 1 c', n=self.frames)
      return y[:, y.shape[1] - x.shape[1] :]  # the first is one frame only

    gamma = linear(std, 'gamma', nn.initializers.ones)
    beta = linear(mean, 'beta', zeros)
    return (standardize(x) * gamma + beta).astype(x.dtype)


class ResBlock(nn.Module):
  """Norm, SiLU, convolution, twice, beside a shortcut."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = nn.silu(GroupNorm(name='norm1')(x))
    y = ReplicateConv(self.features, dtype=self.dtype, name='conv1')(y)
    y = nn.silu(GroupNorm(name='norm2')(y))
    y = ReplicateConv(self.features, dtype=self.dtype, name='conv2')(y)
    if x.shape[-1] != self.features:
      x = ReplicateConv(
        self.features, (1, 1, 1), dtype=self.dtype, name='shortcut'
      )(x)
    return x + y


class Upsample(nn.Module):
  """Multiplies frames and sides; of the first frame's copies the last stays."""

  stride: tuple[int, int]
  kind: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    (t, s), c, drops = self.stride, x.shape[-1], not continues(self)
    conv = lambda width: ReplicateConv(width, dtype=self.dtype, name='conv')
    first = t - 1 if drops else 0
    if self.kind == 'nearest':
      x = repeat(x, 'b f h w c -> b (f t) (h p) (w q) c', t=t, p=s, q=s)
      return conv(c)(x[:, first:])
    x = rearrange(
      conv(c * t * s * s)(x),
      'b f h w (c t p q) -> b (f t) (h p) (w q) c',
      t=t,
      p=s,
      q=s,
    )
    return x[:, first:]


class Encoder(nn.Module):
  """Pixels [b f h w 3] -> moments [b f' h' w' 2c]."""

  config: AutoencoderConfig
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    block = nn.remat(ResBlock) if self.remat else ResBlock
    x = ReplicateConv(c.widths[0], dtype=self.dtype, name='conv_in')(x)
    for i, (width, stride) in enumerate(zip(c.widths, c.strides, strict=True)):
      for j in range(c.encoder_blocks[i]):
        x = block(width, dtype=self.dtype, name=f'stage_{i}_block_{j}')(x)
      if stride != (1, 1):
        x = ReplicateConv(
          width, stride=stride, dtype=self.dtype, name=f'stage_{i}_down'
        )(x)
    x = nn.silu(GroupNorm(name='norm_out')(x))
    return ReplicateConv(2 * c.z_dim, dtype=self.dtype, name='conv_out')(x)


class Decoder(nn.Module):
  """Latents [b f' h' w' c] -> pixels [b f h w 3]."""

  config: AutoencoderConfig
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, z: Array) -> Array:
    c, frames = self.config, 1
    block = nn.remat(ResBlock) if self.remat else ResBlock
    seen = z.astype(jnp.float32)
    mean = seen.mean(axis=(2, 3))
    # The floor keeps the gradient of a latent frame of one colour finite.
    std = jnp.sqrt(seen.var(axis=(2, 3)) + _EPS)
    x = ReplicateConv(c.widths[-1], dtype=self.dtype, name='conv_in')(z)
    for i in reversed(range(len(c.widths))):
      stride = c.strides[i]
      if stride != (1, 1):
        x = Upsample(stride, c.upsampling, self.dtype, name=f'stage_{i}_up')(x)
        frames *= stride[0]
      x = AdaptiveNorm(frames, name=f'stage_{i}_norm')(x, mean, std)
      for j in range(c.decoder_blocks[i]):
        x = block(c.widths[i], dtype=self.dtype, name=f'stage_{i}_block_{j}')(x)
    x = nn.silu(GroupNorm(name='norm_out')(x))
    return ReplicateConv(3, dtype=self.dtype, name='conv_out')(x)


class Autoencoder(nn.Module):
  """The autoencoder, with the face of `wan_vae.WanVAE`.

    params = model.init(key, x)['params']
    mean, logvar = model.apply({'params': params}, x, method='encode')

  Attributes:
    config: the shape, with the statistics that `wan_vae.normalize` uses.
    dtype: type of the computation. Parameters are float32, moments and pixels
      come out in float32.
    remat: recompute residual blocks in the backward pass, to save memory.
  """

  config: AutoencoderConfig
  dtype: Any = jnp.float32
  remat: bool = False

  def setup(self):
    self.encoder = Encoder(self.config, self.dtype, self.remat)
    self.decoder = Decoder(self.config, self.dtype, self.remat)

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
    moments = self.encoder(x).astype(jnp.float32)
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
    x = self.decoder(z).astype(jnp.float32)
    return jnp.clip(x, -1.0, 1.0) if clip else x

  def __call__(self, x: Array) -> Array:
    """Pixels -> their reconstruction from the mean, [b f h w 3], not clipped.

    Raises:
      DcjaxError: as `encode` does.
    """
    return self.decode(self.encode(x)[0], clip=False)
