"""Trains a causal video autoencoder at toy size on the procedural world.

  python -m dcjax.main --config=configs/pretrain_autoencoder.py
  python -m dcjax.main --config=configs/pretrain_autoencoder.py:tiny   (seconds)

The architecture is that of Set-and-Sequence (Table 4), with fewer stages,
narrower: 4 frames of 8x8 pixels are a latent. The loss is L1 + L2 + KL on
scenes and free textures, half and half. runs/NAME/base/vae is what a
pretraining takes with --config.parts.vae, and runs/NAME/reconstruction_*.mp4
shows what is lost.
The whole size is `kind='causal'` with no other option.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  if variant not in ('', 'tiny'):
    raise DcjaxError(
      f'pretrain_autoencoder.py has no variant {variant!r}; use tiny or none'
    )
  c = ConfigDict()
  c.task = 'pretrain_autoencoder'
  c.name = 'pretrain_autoencoder'
  c.seed = 0
  c.mesh = recipes.mesh()
  c.dtype = 'float32'  # of activations
  c.remat = False  # compute residual blocks again, to save memory
  c.save_dtype = 'float32'  # of the saved weights
  c.log_every, c.save_every, c.eval_every = 10, 100, 100
  c.kl_weight = 1e-4
  c.fps = 8.0  # of the clips that are looked at
  c.vae = ConfigDict(
    dict(
      kind='causal',
      base_channels=8,
      multipliers=(1, 2, 4, 8),
      encoder_blocks=(1, 1, 1, 1),
      decoder_blocks=(1, 1, 1, 2),
      temporal_strides=(1, 2, 2, 1),
      spatial_strides=(2, 2, 2, 1),
      z_dim=32,
    )
  )
  c.autoencoder = ConfigDict(
    dict(
      objective='autoencoder',
      data='world',
      train='^vae/',
      steps=300,
      accumulate=1,
      ema=0.99,
      # A still is the first frame of a clip: clips teach it too.
      mix=((5, 4),),
      optimizer=dict(
        kind='muon',
        lr=4e-3,
        clip=1.0,
        weight_decay=0.0,
        warmup=20,
        schedule='trapezoid',
        cooldown=0.4,
      ),
    )
  )
  if variant == 'tiny':
    c.name = 'pretrain_autoencoder_tiny'
    c.log_every = c.eval_every = 1
    c.vae.base_channels, c.vae.z_dim = 2, 4
    c.autoencoder.update(dict(steps=2, mix=((5, 1),)))
  return c
