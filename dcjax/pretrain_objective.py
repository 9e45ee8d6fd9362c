"""Losses of pretraining: on the procedural world, drawn inside the step.

A batch is {frames: sample indices [b]}: nothing but numbers travels to the
device, which draws, encodes and captions the scenes itself.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dcjax import mesh
from dcjax.data import captions, coverage, prompts, world
from dcjax.models.dit import DiT
from dcjax.models.text import UMT5Encoder
from dcjax.models.vae import AnyVAE
from dcjax.models.wan_vae import normalize
from dcjax.objective import Objective, flow_loss, personalize, split_keys
from dcjax.stage import Stage


def flow(
  dit: DiT,
  vae: AnyVAE,
  text: UMT5Encoder,
  word_ids: Mapping[str, int],
  stage: Stage,
  *,
  seed: int,
  length: int,
  emphasis: float = 0.0,
) -> Objective:
  """Flow matching on rendered scenes, for text encoder and transformer.

  The context is {frames: `encode_scenes`}, a bank of scenes that were encoded
  once; without one, every sample is a new scene.

  Args:
    dit: the transformer.
    vae: the autoencoder, frozen.
    text: the text encoder.
    word_ids: {word: token id} of the captions.
    stage: t sampler, and what is dropped.
    seed: of the scenes.
    length: tokens of a caption.
    emphasis: extra weight of an object's place. Objects cover a twentieth of
      the picture, and backgrounds are learnt soonest.
  """
  ids = {word: int(i) for word, i in word_ids.items()}
  # What stands for a word that the base does not know, in the prompts of
  # others.
  strangers = jnp.asarray(
    [ids['<unk>'], ids['<extra_id_0>'], ids['<extra_id_1>']]
  )

  def fetch(params, bank, indices, frames):
    if bank is None:
      keys = scene_keys(jax.random.key(seed), frames, indices)
      return encode_scenes(vae, params['vae'], keys, frames)
    places = indices % bank[1].shape[0]
    return jax.tree.map(lambda x: x[places], bank)

  def caption(scene, index, frames):
    key = jax.random.fold_in(jax.random.key(seed + 1), frames)
    key_said, key_strange = jax.random.split(jax.random.fold_in(key, index))
    said = captions.sample_said(key_said, still=frames == 1)
    tokens, mask = captions.caption_ids(scene, said, ids, length)
    return _estrange(key_strange, tokens, mask, strangers, stage.prompt_drop)

  def loss(params, batch, context, key):
    total, weight, aux = 0.0, 0.0, {}
    for name, indices in sorted(batch.items()):
      frames = int(name)
      keys = scene_keys(key, frames, indices)
      keys_text, keys_flow = split_keys(keys, 2)
      bank = None if context is None else context[name]
      scenes, latents, cover = fetch(params, bank, indices, frames)
      tokens, mask = jax.vmap(caption, (0, 0, None))(scenes, indices, frames)
      features = text.apply({'params': params['text_encoder']}, tokens, mask)
      features = prompts.drop_rows(keys_text, features, mask, stage.text_drop)
      _, error = flow_loss(
        lambda *args, **kwargs: dit.apply(
          {'params': params['transformer']}, *args, **kwargs
        ),
        latents.astype(jnp.float32),
        features,
        mask,
        keys_flow,
        stage,
        self_cond=dit.config.self_cond is not None,
        weight=_of_mean_one(1.0 + emphasis * cover.astype(jnp.float32)),
      )
      aux[f'loss/{frames}_frames'] = error.mean()
      total = total + latents.size * error.mean()
      weight = weight + latents.size
    return total / weight, aux

  return loss


def joint(dit: DiT, stage: Stage) -> Objective:
  """Flow matching on pictures and clips of several lengths in one step.

  A batch is {frames: {'latents' [b f h w c], 'features' [b l d], 'mask'
  [b l]}}, and the context that of `objective.personalize`. The loss is the mean
  over all latent pixels: a picture counts for as much as it holds.

  Args:
    dit: the transformer.
    stage: t sampler, and what is dropped.
  """
  one = personalize(dit, stage)

  def loss(params, batch, context, key):
    total, weight, aux = 0.0, 0.0, {}
    for frames, part in sorted(batch.items()):
      key_part = jax.random.fold_in(key, int(frames))
      value, _ = one(params, part, context, key_part)
      size = part['latents'].size
      aux[f'loss/{frames}_frames'] = value
      total, weight = total + size * value, weight + size
    return total / weight, aux

  def evaluate(params, batch, context, key):
    return {
      f'{name}/{frames}_frames': value
      for frames, part in sorted(batch.items())
      for name, value in one.evaluate(params, part, context, key).items()
    }

  loss.evaluate = evaluate
  return loss


def scene_keys(key: jax.Array, frames: int, indices: jax.Array) -> jax.Array:
  """One key a scene [b]: clips of another length are other scenes."""
  key = jax.random.fold_in(key, frames)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def encode_scenes(
  vae: AnyVAE, params: Any, keys: jax.Array, frames: int
) -> tuple[world.Scene, jax.Array, jax.Array]:
  """Draws and encodes scenes.

  Returns:
    The scenes; normalised latents [b f h w c]; and how much of each latent
    pixel's place is an object's, [b f h w 1] in 0..1.
  """
  scenes = jax.vmap(world.sample_scene)(keys)
  clips = jax.vmap(lambda scene: world.render(scene, frames))(scenes)
  video = 2.0 * clips.video - 1.0
  mean, _ = vae.apply({'params': params}, video, method='encode')
  latents = jax.lax.stop_gradient(normalize(mean, vae.config))
  mask = clips.mask.any(axis=1).astype(jnp.float32)
  _, _, h, w, _ = latents.shape
  time = vae.config.scale_factor_temporal
  return scenes, latents, coverage.on_latents(mask, h, w, time)[..., None]


def _of_mean_one(weight: jax.Array) -> jax.Array:
  return weight / mesh.mean_over_shares(weight.mean())


def _estrange(key, tokens, mask, strangers, prompt_drop):
  """Some words become unknown ones, and some captions the empty prompt.

  So the base learns that an unknown word says nothing about the picture, which
  makes it a base for learned words.
  """
  key_word, key_which, key_prompt = jax.random.split(key, 3)
  strange = jax.random.bernoulli(key_word, 0.03, tokens.shape) & (
    tokens != captions.EOS
  )
  which = jax.random.choice(key_which, strangers, tokens.shape)
  tokens = jnp.where(strange & mask, which, tokens)
  empty = jnp.arange(tokens.shape[0]) == 0
  dropped = jax.random.bernoulli(key_prompt, prompt_drop)
  tokens = jnp.where(dropped, jnp.where(empty, captions.EOS, 0), tokens)
  return tokens, jnp.where(dropped, empty, mask)


def autoencoder(vae: AnyVAE, *, seed: int, kl_weight: float) -> Objective:
  """L1 + L2 + KL on scenes of the world and on free textures, half and half.

  A batch is {frames: sample indices [b]}. What is held out is reconstructed
  from the mean, and its PSNR given in dB.

  Args:
    vae: the autoencoder.
    seed: of the scenes.
    kl_weight: of the KL divergence from the unit Gaussian, a number of latents.
  """

  def videos(indices, frames):
    def one(index):
      base = jax.random.fold_in(jax.random.key(seed + 1), frames)
      key, key_kind = jax.random.split(jax.random.fold_in(base, index))
      return jax.lax.cond(
        jax.random.bernoulli(key_kind),
        lambda k: world.render(world.sample_scene(k), frames).video,
        lambda k: world.texture(k, frames),
        key,
      )

    return 2.0 * jax.vmap(one)(indices) - 1.0

  def loss(params, batch, context, key):
    del context
    variables = {'params': params['vae']}
    total, weight, aux = 0.0, 0.0, {}
    for frames, indices in sorted(batch.items()):
      x = videos(indices, int(frames))
      mean, logvar = vae.apply(variables, x, method='encode')
      draw = lambda key, shape=mean.shape[1:]: jax.random.normal(key, shape)
      noise = jax.vmap(draw)(scene_keys(key, int(frames), indices))
      z = mean + jnp.exp(0.5 * logvar) * noise
      y = vae.apply(variables, z, clip=False, method='decode')
      l2 = jnp.square(x - y).mean()
      kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean()
      part = jnp.abs(x - y).mean() + l2 + kl_weight * kl
      aux[f'psnr/{frames}_frames'] = _psnr(l2)
      aux[f'kl/{frames}_frames'] = kl
      total, weight = total + x.size * part, weight + x.size
    return total / weight, aux

  def evaluate(params, batch, context, key):
    del context, key
    values = {}
    for frames, indices in sorted(batch.items()):
      x = videos(indices, int(frames))
      y = jnp.clip(vae.apply({'params': params['vae']}, x), -1.0, 1.0)
      square = jnp.square(x - y).mean(axis=(1, 2, 3, 4))
      values[f'held_out/psnr/{frames}_frames'] = _psnr(square).mean()
    return values

  loss.evaluate, loss.videos = evaluate, videos
  return loss


def _psnr(square: jax.Array) -> jax.Array:
  """Of a mean squared error of values in [-1, 1]."""
  return -10.0 * jnp.log10(square / 4.0)
