"""Pretrains a video transformer on captioned clips and pictures.

  python -m dcjax.main --config=configs/pretrain.py
  python -m dcjax.main --config=configs/pretrain.py:snap_dit_11b \
    --config.data.path=/bucket/clips --config.data.latents=/bucket/z \
    --config.parts.vae=VAE --config.parts.text_encoder=T5_11B

Clips are encoded once, by an autoencoder and a text encoder that are frozen;
then each stage mixes pictures with clips of one length, 17 frames first and 121
in the end. docs/pretraining.md says what the data are, and how many chips it
takes.

Variants: `toy` (or nothing), the same recipe at toy size on the procedural
world, under the autoencoder and the text encoder of the embedded base;
`snap_dit_11b`, the transformer of Set-and-Sequence (Tables 4 and 5) at 121
frames of 576x1024, for 256 chips; `tiny`, a few steps of toy.
"""

from ml_collections import ConfigDict

from dcjax import recipes
from dcjax.errors import DcjaxError

VARIANTS = ('toy', 'tiny', 'snap_dit_11b')


def get_config(variant: str = '') -> ConfigDict:
  if variant and variant not in VARIANTS:
    raise DcjaxError(
      f'pretrain.py has no variant {variant!r}; use {", ".join(VARIANTS)} or '
      'none'
    )
  c = ConfigDict()
  c.task = 'pretrain_clips'
  c.name = 'pretrain'
  c.seed = 0
  # Folders of the networks that are frozen.
  c.parts = ConfigDict(dict(vae='world', text_encoder='world'))
  # A base whose transformer to go on from, instead of a fresh start.
  c.init = ''
  c.mesh = recipes.mesh()
  c.dtype = 'float32'  # of activations; parameters are float32
  c.remat = 'none'
  c.save_dtype = 'float32'  # of the saved weights
  c.log_every, c.save_every = 10, 100
  c.eval_every = 50
  c.preview_every = 0  # steps between two saves of the folder
  c.shift = 3.0  # of the sampler's times
  c.format = ConfigDict(
    dict(
      frames=33,
      height=64,
      width=64,
      fps=8.0,
      text_length=48,
      guidance=3.0,
      steps=24,
    )
  )
  c.data = ConfigDict(
    dict(
      path='',  # a dataset (docs/pretraining.md); empty: the world
      clips=1024,  # of the world
      latents='',  # where they are kept; empty: in the workdir
      sizes=((64, 64),),  # (height, width) of clips
      stills=(),  # of pictures
      first_frames=True,  # whether the first frame of a clip is a picture, too
      windows=1,  # samples that a long clip may give; 0 for all
      held_out=32,  # clips that are only looked at
      chunk=128,  # clips that are encoded between two writes
    )
  )
  # What is not 0 or empty changes the preset.
  c.dit = ConfigDict(
    dict(
      preset='snap_dit_11b',
      width=128,
      layers=4,
      heads=4,
      mlp_width=384,
      channels=16,
      text_width=128,
      patch=(1, 2, 2),
      rope_split=(16, 8, 8),
      window=256,
    )
  )
  c.stages = ('frames_17', 'frames_33')
  c.frames_17 = _stage(steps=300, mix=((1, 32), (17, 8)))
  c.frames_33 = _stage(steps=100, mix=((1, 32), (33, 8)))
  for stage in (c.frames_17, c.frames_33):
    stage.ema = 0.99
    stage.optimizer.update(dict(lr=2e-3, warmup=20, clip=1.0))
  if variant == 'tiny':
    _shrink(c)
  elif variant == 'snap_dit_11b':
    _full(c)
  return c


def _stage(steps: int, mix: tuple[tuple[int, int], ...]) -> ConfigDict:
  """Table 5 of Set-and-Sequence; the clip of the gradient is not in it.

  mix: (frames, samples of an optimizer step) pairs.
  """
  return ConfigDict(
    dict(
      objective='flow',
      data='latents',
      train='^transformer/',
      steps=steps,
      mix=mix,
      accumulate=1,
      text_drop=0.0,
      prompt_drop=0.1,  # captions that become the empty prompt
      t_sampler='logit_normal',
      train_shift=1.0,
      self_cond=0.9,
      ema=0.9999,
      optimizer=dict(
        kind='adamw',
        lr=1e-4,
        groups=(),
        schedule='constant',
        warmup=10_000,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.01,
        clip=1.0,
      ),
    )
  )


def _full(c: ConfigDict) -> None:
  """The paper's size; its 822 000 steps over four lengths."""
  c.name = 'pretrain_snap_dit_11b'
  c.parts.update(dict(vae='', text_encoder=''))
  # Parameters, optimizer and averages over 64 chips, whatever there are.
  c.mesh.update(dict(data=0, fsdp=64))
  c.dtype, c.remat, c.save_dtype = 'bfloat16', 'full', 'bfloat16'
  c.log_every, c.save_every, c.eval_every, c.preview_every = 50, 1000, 1000, 0
  c.format.update(
    dict(
      frames=121,
      height=576,
      width=1024,
      fps=24.0,
      text_length=512,
      guidance=5.0,
      steps=40,
    )
  )
  c.data.update(
    dict(
      sizes=((576, 1024), (1024, 576)),
      stills=((576, 1024), (1024, 576), (768, 768)),
      first_frames=False,
      windows=0,
      held_out=256,
      chunk=256,
    )
  )
  c.dit = ConfigDict(
    dict(
      preset='snap_dit_11b',
      width=0,
      layers=0,
      heads=0,
      mlp_width=0,
      channels=0,
      text_width=0,
      patch=(),
      rope_split=(),
      window=0,
    )
  )
  del c.frames_17, c.frames_33
  c.stages = ('frames_17', 'frames_33', 'frames_65', 'frames_121')
  c.frames_17 = _stage(steps=400_000, mix=((1, 512), (17, 256)))
  c.frames_33 = _stage(steps=200_000, mix=((1, 512), (33, 256)))
  c.frames_65 = _stage(steps=122_000, mix=((1, 256), (65, 256)))
  c.frames_121 = _stage(steps=100_000, mix=((1, 256), (121, 256)))


def _shrink(c: ConfigDict) -> None:
  """A few steps of both stages."""
  c.name = 'pretrain_tiny'
  c.log_every = c.save_every = c.eval_every = 1
  c.data.update(dict(clips=12, held_out=4, chunk=4))
  c.dit.update(dict(width=32, layers=1, heads=2, mlp_width=32))
  c.dit.rope_split = (8, 4, 4)
  c.frames_17.update(dict(steps=2, mix=((1, 2), (17, 1))))
  c.frames_33.update(dict(steps=2, mix=((1, 2), (33, 1))))
