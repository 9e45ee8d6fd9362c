"""A base of a few thousand numbers, in which every parameter matters."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import recipes, tree
from dcjax.data import video
from dcjax.data.tokenizer import build_word_tokenizer
from dcjax.models.dit_config import DiTConfig
from dcjax.models.reference import ADDED
from dcjax.models.reference_config import ReferenceConfig
from dcjax.models.text import TextConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.weights import reference
from dcjax.weights.base import Base, Format, save_base
from dcjax.weights.networks import expected_params

WORDS = tuple('a red blue cat dog ball jumps rolls in the snow'.split())
DIT = DiTConfig(
  width=24,
  layers=2,
  heads=2,
  mlp_width=40,
  channels=4,
  text_width=16,
  time_width=32,
)
# One with every option of the paper's DiT.
PAPER_DIT = DiTConfig(
  width=32,
  layers=2,
  heads=2,
  mlp_width=48,
  channels=4,
  text_width=16,
  modulation='block',
  vectors=7,
  text_mlp=False,
  text_mask=True,
  cross_affine=False,
  qk_norm='head',
  rope_split=(8, 4, 4),
  self_cond='x0_concat',
  time_width=32,
)
VAE = VAEConfig(
  base_dim=4,
  z_dim=4,
  dim_mult=(1, 2, 2),
  num_res_blocks=1,
  temporal_downsample=(True, True),
  latents_mean=(0.5, -1.0, 0.0, 0.2),
  latents_std=(2.0, 0.5, 1.0, 1.5),
)
# Words, padding, end, unknown, "." and ",", and the sentinels.
TEXT = TextConfig(
  vocab_size=5 + len(WORDS) + 8,
  d_model=16,
  d_kv=4,
  d_ff=24,
  num_layers=2,
  num_heads=2,
)
REFERENCES = ReferenceConfig(tag_tokens=2)
FORMAT = Format(5, 16, 32, 8.0, text_length=12, guidance=3.0, steps=8)


def randomize(shapes, seed=0):
  """Float32 arrays for a tree of shapes; no leaf is zero or one throughout."""
  rng = np.random.default_rng(seed)

  def draw(name, shape):
    leaf = name.rsplit('/', 1)[-1]
    if leaf == 'kernel':
      # Scanned linear layers have three axes, convolutions four or more.
      fan_in = shape[-2] if len(shape) < 4 else np.prod(shape[:-1])
      return rng.normal(0.0, fan_in**-0.5, shape)
    return rng.normal(
      leaf == 'scale', 1.0 if leaf == 'embedding' else 0.2, shape
    )

  return tree.unflatten(
    {
      name: draw(name, x.shape).astype(np.float32)
      for name, x in tree.flatten(shapes).items()
    }
  )


def dit_params(dit, seed=0):
  """Random parameters of a transformer alone."""
  return randomize(_shapes(dit)['transformer'], seed)


def base(seed=0, name='tiny', dit=DIT) -> Base:
  """Small enough to be made anew by every test that asks."""
  return Base(
    name=name,
    dit=dit,
    vae=VAE,
    text=TEXT,
    tokenizer=build_word_tokenizer(WORDS, length=FORMAT.text_length),
    params=randomize(_shapes(dit), seed),
    format=FORMAT,
    shift=3.0,
  )


def equal(a, b) -> bool:
  """Whether two trees have the same leaves, bit for bit."""
  a, b = tree.flatten(a), tree.flatten(b)
  return a.keys() == b.keys() and all(
    np.asarray(a[n]).tobytes() == np.asarray(b[n]).tobytes() for n in a
  )


def shapes(params) -> dict[str, tuple[int, ...]]:
  """{name: shape} of a tree of arrays, or of `jax.ShapeDtypeStruct`."""
  return {name: tuple(x.shape) for name, x in tree.flatten(params).items()}


def xla_flags(devices=1) -> str:
  """Those of the tests, for a process with devices of its own."""
  of_tests = os.environ['XLA_FLAGS']
  # XLA takes the last one.
  return f'{of_tests} --xla_force_host_platform_device_count={devices}'


# ---- for tests that train and sample ---------------------------------------

APPEARANCE, MOTION = 'a [v] cat in the snow.', 'the cat [u] jumps.'


def trainable_base(**kwargs) -> Base:
  """A base whose prompts may be as long as those of a concept."""
  longer = dataclasses.replace(FORMAT, text_length=24)
  return dataclasses.replace(base(**kwargs), format=longer)


def key(seed=0):
  """A PRNG key."""
  return jax.random.key(seed)


def narrow(base) -> Base:
  """The same base, by its fingerprint, in bfloat16."""
  cast = lambda x: x.astype(jnp.bfloat16)
  return dataclasses.replace(base, params=jax.tree.map(cast, base.params))


def base_folder(path) -> str:
  """That base on disk."""
  save_base(trainable_base(), path, dtype=np.float32)
  return str(path)


def reference_folder(path, base, rules=REFERENCES) -> str:
  """Added parameters of a base, as they are before any training."""
  fresh = reference.fresh(base, rules, key())
  added, _ = tree.partition(fresh.params['transformer'], ADDED)
  reference.save(path, base, rules, added)
  return str(path)


def clip(path) -> str:
  """A red square that crosses a blue ground, as a video file or as pictures."""
  frames = np.full((17, 32, 48, 3), (20, 30, 200), np.uint8)
  for f, frame in enumerate(frames):
    frame[8:24, 2 * f : 2 * f + 12] = (230, 40, 30)
  video.write_video(path, frames, 8.0)
  return str(path)


def folder(path) -> str:
  """Captioned files: three clips at two rates, one with a mask; a picture."""
  path.mkdir()
  for name, (frames, fps), text in (
    ('one', (11, 8.0), 'a red cat rolls.'),
    ('two', (22, 16.0), 'the [trigger] jumps.'),
    ('three', (6, 8.0), 'a ball in the snow.'),
    ('still', (1, 8.0), 'a dog.'),
  ):
    x = np.full((frames, 16, 32, 3), (20, 30, 200), np.uint8)
    for f in range(frames):
      left = round(f * 8 / fps)
      x[f, 4:12, left : left + 8] = (230, 40, len(name) * 30)
    suffix = 'png' if frames == 1 else 'mp4'
    video.write_video(path / f'{name}.{suffix}', x, fps)
    (path / f'{name}.txt').write_text(text)
  mask = np.zeros((1, 16, 32, 3), np.uint8)
  mask[:, :, :16] = 255
  video.write_video(path / 'one.mask.png', mask)
  return str(path)


def finetune(path, **train):
  """Training on that folder in a few cheap steps."""
  c = recipes.finetune('world')
  c.data.update(dict(path=str(path), trigger='blue', held_out=0.25))
  c.lora.rank = c.sample.steps = 2
  c.prompts = ('a [trigger] cat',)
  c.log_every = 1
  c.eval_every = c.preview_every = 0
  c.train.update(dict(steps=2, batch=2) | train)
  return c


def recipe(path, **stage):
  """Set-and-Sequence in four cheap steps; `stage` overrides both stages."""
  c = recipes.shrink(recipes.personalize('world'))
  c.data.video = str(path)
  c.prompts.update(dict(appearance=APPEARANCE, motion=MOTION))
  c.edits = ('new: a red [v] ball [u] rolls.',)
  c.lora.rank = 2
  c.prior.videos = c.eval_every = c.preview_every = 0
  c.log_every = 1
  for part in (c['set'], c.sequence):
    part.update(dict(steps=2, batch=2, prior=0.0) | stage)
  return c


@functools.cache
def _shapes(dit):
  return expected_params(dit, VAE, TEXT)


def dit_shapes(config):
  """Shapes of a transformer's parameters, of any size."""
  return _shapes(config)['transformer']
