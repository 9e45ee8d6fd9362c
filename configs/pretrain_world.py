"""Trains the embedded `world` base from nothing: autoencoder, images, clips.

  python -m dcjax.main --config=configs/pretrain_world.py --workdir=runs/world
  python -m dcjax.main --config=configs/pretrain_world.py:tiny     (to try)
  python -m dcjax.main --config=configs/pretrain_world.py:decoder  (goes on with
  the decoder of a base)

Stages: an autoencoder on scenes and free textures; then the transformer and its
text encoder together, on clips for motion and on many stills, the cheap teacher
of look and words.

The shipped base was made by an earlier form of this recipe, in seven minutes of
steps on one H200: an autoencoder of Wan2.1's form, under AdamW; its decoder was
trained on afterwards. training.json beside the weights has it all. What is here
learnt faster in short trials on a CPU: Muon reached 21 dB where AdamW, on the
same autoencoder and clips, had 16. benchmarks/linear.py says what latents of a
size can keep: a linear code of 48 numbers reads .90 in shape, of 64 .95, and
the shipped autoencoder .77.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  c = ConfigDict()
  c.task = 'pretrain'
  c.name = 'pretrain_world'
  c.seed = 0
  # A base folder to go on from, instead of a fresh start.
  c.init = ''
  c.mesh = recipes.mesh()
  c.dtype = 'bfloat16'  # of activations
  c.remat = 'none'
  c.save_dtype = 'float32'  # of the saved weights
  c.log_every = 50
  c.save_every = 2000
  c.preview_every = 2000  # steps between two saves of the folder
  # (frames, scenes): scenes that are encoded once and drawn from ever after.
  # Empty: every sample is a new scene, rendered and encoded in its step.
  c.bank = ((1, 150_000), (17, 80_000), (33, 10_000))
  c.kl_weight = 1e-4
  c.emphasis = 4.0  # extra weight of the loss where an object is
  c.shift = 3.0  # of the sampler's times

  c.format = ConfigDict(
    dict(
      frames=17,
      height=64,
      width=64,
      fps=8.0,
      text_length=48,
      guidance=3.0,
      steps=24,
    )
  )
  c.vae = ConfigDict(
    dict(
      base_dim=24,
      decoder_base_dim=26,
      z_dim=48,
      dim_mult=(1, 2, 2),
      num_res_blocks=1,
      temporal_downsample=(True, True),
      is_residual=True,
      patch_size=2,
    )
  )
  c.dit = ConfigDict(
    dict(
      width=256,
      layers=6,
      heads=8,
      mlp_width=576,
      channels=48,
      patch=(1, 1, 1),
      text_width=128,
    )
  )
  c.text = ConfigDict(
    dict(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
  )

  # mix: (frames, samples of an optimizer step) pairs.
  c.stages = ('autoencoder', 'world')
  c.autoencoder = ConfigDict(
    dict(
      objective='autoencoder',
      data='world',
      train='^vae/',
      steps=1800,
      ema=0.998,
      # A still is the first frame of a clip: clips teach it too.
      mix=((17, 64),),
      optimizer=dict(
        kind='muon',
        lr=4e-3,
        clip=1.0,
        weight_decay=0.0,
        warmup=100,
        schedule='trapezoid',
        cooldown=0.4,
      ),
    )
  )
  c.world = ConfigDict(
    dict(
      objective='world',
      data='world',
      train='^(transformer|text_encoder)/',
      text_drop=0.03,
      prompt_drop=0.1,
      ema=0.9995,
      steps=30000,
      mix=((1, 512), (17, 96), (33, 16)),
      optimizer=dict(
        kind='muon',
        lr=1e-3,
        clip=1.0,
        weight_decay=0.01,
        warmup=200,
        schedule='trapezoid',
        cooldown=0.4,
      ),
    )
  )
  variants = {'': None, 'tiny': _shrink, 'decoder': _decoder_alone}
  if variant not in variants:
    raise DcjaxError(
      f'pretrain_world.py has no variant {variant!r}; use tiny, decoder or none'
    )
  if variant:
    variants[variant](c)
  return c


def _decoder_alone(c: ConfigDict) -> None:
  """A better picture of the same latents, in two hours on two cores.

  The encoder stays, so the transformer stays right. By its fingerprint it is
  another base all the same: concepts of the old one are refused. Training the
  encoder too costs more than that: held so near that latents moved by .022 of
  their variance, it made the transformer's loss three times as large.
  """
  c.init = 'world'
  c.stages = ('autoencoder',)
  c.dtype, c.save_dtype = 'float32', 'bfloat16'
  c.log_every, c.save_every = 20, 100
  c.autoencoder.train = '^vae/(decoder|post_quant_conv)/'
  # The first frame has no past to help it, and is the picture that a person
  # recognises: stills too.
  c.autoencoder.mix = ((1, 12), (17, 2))
  c.autoencoder.steps = 1500
  c.autoencoder.ema = 0.99
  c.autoencoder.optimizer.update(dict(lr=6e-4, warmup=20, cooldown=0.7))


def _shrink(c: ConfigDict) -> None:
  """Everything, once, in a minute on two cores."""
  c.dtype = 'float32'
  c.log_every, c.save_every, c.preview_every = 1, 2, 2
  c.bank = ((1, 4), (17, 4), (33, 2))
  c.dit.update(dict(width=48, layers=2, heads=2, mlp_width=64))
  c.vae.base_dim = 8
  for stage in (c.autoencoder, c.world):
    stage.steps = 2
    stage.mix = tuple((frames, 2) for frames, _ in stage.mix)
