"""From a batch to a loss: one flow-matching loss for every stage.

An objective is a pure function `loss(params, batch, context, key) -> (loss,
aux)`. `context` holds arrays that every step shares and that nothing trains,
such as the features of the prompts; `aux` is a dict of scalars for the log.
Every key is split by what it is for, so a draw does not move when another one
is added.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dcjax import flow, lora
from dcjax.data import captions, prompts, world
from dcjax.models.dit import DiT
from dcjax.models.text import UMT5Encoder
from dcjax.models.wan_vae import WanVAE, normalize
from dcjax.stage import Stage

Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
# Samples of a batch are logged by how noisy they are.
QUANTILES = 4


def flow_loss(
  velocity: Callable[..., jax.Array],
  x0: jax.Array,
  text: jax.Array,
  text_mask: jax.Array,
  key: jax.Array,
  stage: Stage,
  *,
  self_cond: bool,
  t: jax.Array | None = None,
) -> jax.Array:
  """Eq. (3) of `flow` for each sample.

  Args:
    velocity: (x_t, t, text, text_mask=, x0_hat=) -> v.
    x0: [b f h w c] clean latents.
    text: [b l d] features.
    text_mask: [b l] bool.
    key: of this step and this loss.
    stage: t sampler and self-conditioning.
    self_cond: whether the model reads its own estimate.
    t: [b] flow times instead of drawn ones.

  Returns:
    (t [b], mean squared error of each sample [b]).
  """
  key_t, key_eps, key_self = jax.random.split(key, 3)
  if t is None:
    t = flow.sample_t(
      key_t, x0.shape[0], kind=stage.t_sampler, train_shift=stage.train_shift
    )
  eps = jax.random.normal(key_eps, x0.shape)
  x_t = flow.interpolate(x0, eps, t)
  call = lambda x0_hat: velocity(
    x_t, t, text, text_mask=text_mask, x0_hat=x0_hat
  )
  x0_hat = None
  if self_cond:
    # Bit diffusion: a first pass without an estimate gives one, to some
    # samples.
    estimate = jax.lax.stop_gradient(flow.x0_from_velocity(x_t, call(None), t))
    fed = jax.random.bernoulli(key_self, stage.self_cond, t.shape)
    x0_hat = jnp.where(fed[:, None, None, None, None], estimate, 0.0)
  error = jnp.square(call(x0_hat) - flow.velocity(x0, eps))
  return t, error.mean(axis=(1, 2, 3, 4))


def personalize(dit: DiT, stage: Stage) -> Objective:
  """Flow matching on cached latents and prompts with learned words.

  The batch is {'latents' [b f h w c], 'prompt' [b]}, or with prior preservation
  {'concept': ..., 'prior': ...} of two such. The context holds, for every
  prompt, 'features' [p l d], 'mask' [p l] and 'slots' [p l] (see
  `prompts.place`).
  """
  velocity = lora.with_lora(dit.apply)
  self_cond = dit.config.self_cond is not None

  def samples(params, batch, context, key, t=None):
    """(t, error) of each sample."""
    pick = lambda name: context[name][batch['prompt']]
    key_text, key_flow = jax.random.split(key)
    mask = pick('mask')
    text = prompts.place(
      pick('features'), params.get('tokens', {}), pick('slots')
    )
    if t is None:
      text = prompts.drop_rows(key_text, text, mask, stage.text_drop)
    return flow_loss(
      lambda *args, **kwargs: velocity(
        {'params': params['transformer']}, *args, **kwargs
      ),
      batch['latents'],
      text,
      mask,
      key_flow,
      stage,
      self_cond=self_cond,
      t=t,
    )

  def loss(params, batch, context, key):
    key_concept, key_prior = jax.random.split(key)
    concept = batch.get('concept', batch)
    t, error = samples(params, concept, context, key_concept)
    aux = by_quantile(t, error)
    total = error.mean()
    if 'prior' in batch:
      _, prior = samples(params, batch['prior'], context, key_prior)
      aux['prior'] = prior.mean()
      total = total + stage.prior * aux['prior']
    return total, aux

  def evaluate(params, batch, context, key):
    """Loss at the middle of each quantile of t, on the same noise each time."""
    n = batch['latents'].shape[0]
    times = (jnp.arange(QUANTILES) + 0.5) / QUANTILES
    errors = [
      samples(params, batch, context, key, jnp.full((n,), t))[1].mean()
      for t in times
    ]
    return {f'held_out/t{q}': e for q, e in enumerate(errors)}

  loss.evaluate = evaluate
  return loss


def by_quantile(t: jax.Array, error: jax.Array) -> dict[str, jax.Array]:
  """Mean error of the samples in each quarter of flow time, nan if none."""
  quarter = jnp.minimum((t * QUANTILES).astype(jnp.int32), QUANTILES - 1)
  means = {}
  for q in range(QUANTILES):
    inside = quarter == q
    means[f'loss/t{q}'] = jnp.where(inside, error, 0.0).sum() / inside.sum()
  return means


# ---- pretraining on the procedural world -----------------------------------


def pretrain(
  dit: DiT,
  vae: WanVAE,
  text: UMT5Encoder,
  word_ids: Mapping[str, int],
  stage: Stage,
  *,
  seed: int,
  length: int,
) -> Objective:
  """Flow matching on rendered scenes, for text encoder and transformer.

  The batch is {frames: sample indices [b]}: nothing but numbers travels to the
  device, which draws, encodes and captions the scenes itself. The context is
  {frames: (scenes, latents)} from `encode_scenes`, a bank of scenes that were
  encoded once; without one, every sample is a new scene.
  """
  ids = {word: int(i) for word, i in word_ids.items()}
  # What stands for a word that the base does not know, in the prompts of
  # others.
  strangers = jnp.asarray(
    [ids['<unk>'], ids['<extra_id_0>'], ids['<extra_id_1>']]
  )

  def fetch(params, bank, indices, frames):
    if bank is None:
      keys = scene_keys(seed, frames, indices)
      return encode_scenes(vae, params['vae'], keys, frames)
    scenes, latents = bank
    places = indices % latents.shape[0]
    return jax.tree.map(lambda x: x[places], (scenes, latents))

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
      key_text, key_flow = jax.random.split(jax.random.fold_in(key, frames))
      bank = None if context is None else context[name]
      scenes, latents = fetch(params, bank, indices, frames)
      tokens, mask = jax.vmap(caption, (0, 0, None))(scenes, indices, frames)
      features = text.apply({'params': params['text_encoder']}, tokens, mask)
      features = prompts.drop_rows(key_text, features, mask, stage.text_drop)
      _, error = flow_loss(
        lambda *args, **kwargs: dit.apply(
          {'params': params['transformer']}, *args, **kwargs
        ),
        latents.astype(jnp.float32),
        features,
        mask,
        key_flow,
        stage,
        self_cond=dit.config.self_cond is not None,
      )
      aux[f'loss/{frames}_frames'] = error.mean()
      total = total + latents.size * error.mean()
      weight = weight + latents.size
    return total / weight, aux

  return loss


def scene_keys(seed: int, frames: int, indices: jax.Array) -> jax.Array:
  """One key a scene [b]: clips of another length are other scenes."""
  key = jax.random.fold_in(jax.random.key(seed), frames)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def encode_scenes(
  vae: WanVAE, params: Any, keys: jax.Array, frames: int
) -> tuple[world.Scene, jax.Array]:
  """Draws and encodes scenes: (scenes, normalised latents [b f h w c])."""
  scenes = jax.vmap(world.sample_scene)(keys)
  video = jax.vmap(lambda scene: world.render(scene, frames).video)(scenes)
  mean, _ = vae.apply({'params': params}, 2.0 * video - 1.0, method='encode')
  return scenes, jax.lax.stop_gradient(normalize(mean, vae.config))


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


def autoencoder(vae: WanVAE, *, seed: int, kl_weight: float) -> Objective:
  """L1 + L2 + KL on scenes of the world and on free textures, half and half."""

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
      noise = jax.random.normal(
        jax.random.fold_in(key, int(frames)), mean.shape
      )
      z = mean + jnp.exp(0.5 * logvar) * noise
      y = vae.apply(variables, z, clip=False, method='decode')
      l2 = jnp.square(x - y).mean()
      kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean()
      part = jnp.abs(x - y).mean() + l2 + kl_weight * kl
      aux[f'psnr/{frames}_frames'] = -10.0 * jnp.log10(l2 / 4.0)
      aux[f'kl/{frames}_frames'] = kl
      total, weight = total + x.size * part, weight + x.size
    return total / weight, aux

  return loss
