"""Prompts -> videos: text features, noise, the flow's sampler, the decoder."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import flow, lora, machine
from dcjax.concept import Concept, join
from dcjax.data import prompts as prompts_lib
from dcjax.errors import DcjaxError
from dcjax.models import vae_chunks
from dcjax.models.dit import DiT
from dcjax.models.wan_vae import WanVAE
from dcjax.text_features import remember, text_features
from dcjax.weights.base import Base


def working_dtype() -> jnp.dtype:
  """Of activations: bfloat16 on accelerators; XLA:CPU is faster in float32."""
  cpu = machine.backend() == 'cpu'
  return jnp.dtype(jnp.float32 if cpu else jnp.bfloat16)


def sample(
  base: Base,
  prompt: str | Sequence[str],
  *,
  concepts: Sequence[Concept] = (),
  negative: str = '',
  seed: int = 0,
  noise: np.ndarray | None = None,
  frames: int | None = None,
  height: int | None = None,
  width: int | None = None,
  steps: int | None = None,
  guidance: float | None = None,
  shift: float | None = None,
  sampler: str = 'unipc',
  dtype: Any = None,
) -> np.ndarray:
  """Makes a video of a prompt, or one of each of several.

  Args:
    base: the model.
    prompt: may hold the learned words of the concepts, such as `[v]` and `[u]`.
    concepts: put in together; the words of several are numbered in order:
      [v1] [u1] [v2] [u2] ...
    negative: prompt of the unguided pass.
    seed: of the noise; several prompts get several noises from it.
    noise: [f h w c] latents (or [n f h w c]) instead of drawn ones; it then
      gives the size of the video.
    frames: 1 + a multiple of the base's temporal factor; default the base's.
    height: pixels; default the base's.
    width: pixels; default the base's.
    steps: of the sampler; default the base's.
    guidance: scale g of Eq. (6) of `flow`; default the base's.
    shift: time shift, Eq. (5) of `flow`; default the base's.
    sampler: 'unipc', 'euler' or 'diffusers_euler'.
    dtype: of activations; default float32 on a CPU, else bfloat16.

  Returns:
    uint8 [f h w 3], or [n f h w 3] for a sequence of prompts.
  """
  many = [prompt] if isinstance(prompt, str) else list(prompt)
  f = base.format
  steps = f.steps if steps is None else steps
  if steps < 1:
    raise DcjaxError(f'steps is {steps}; a sampler takes at least 1')
  if noise is None:
    size = (frames or f.frames, height or f.height, width or f.width)
    noise = draw_noise(base, len(many), seed, *size)
  noise = _as_batch(base, noise, len(many))
  transformer, tokens = base.params['transformer'], {}
  if concepts:
    transformer, tokens = join(concepts).put_into(base, transformer)
  remember(base, [*many, negative], prompts_lib.sizes_of(tokens))
  text, mask = encode_prompts(base, many, tokens)
  null, null_mask = encode_prompts(base, [negative] * len(many), {})
  latents = generate(
    {'params': transformer},
    noise,
    jnp.concatenate([text, null]),
    jnp.concatenate([mask, null_mask]),
    dit=DiT(base.dit, dtype or working_dtype()),
    sampler=sampler,
    steps=steps,
    shift=float(base.shift if shift is None else shift),
    guidance=float(f.guidance if guidance is None else guidance),
  )
  videos = decode(base, latents)
  return videos[0] if isinstance(prompt, str) else videos


def _as_batch(base: Base, noise: Any, n: int) -> jax.Array:
  """Noise of n videos as float32 [n f h w c]; DcjaxError if it is not."""
  noise = jnp.asarray(noise, jnp.float32)
  if noise.ndim == 4 and n == 1:
    noise = noise[None]
  dit = base.dit
  if (
    noise.ndim != 5
    or (len(noise), noise.shape[-1]) != (n, dit.channels)
    or any(x % p for x, p in zip(noise.shape[1:4], dit.patch, strict=True))
  ):
    raise DcjaxError(
      f'noise is {list(noise.shape)}; expected [{n} f h w {dit.channels}] with '
      f'f, h, w in multiples of {", ".join(map(str, dit.patch))}'
    )
  return noise


def draw_noise(
  base: Base, n: int, seed: int, frames: int, height: int, width: int
) -> jax.Array:
  """n noises [n f h w c]; the i-th depends on the seed and i alone."""
  shape = base.latent_shape(frames, height, width)
  key = jax.random.key(seed)
  draw = lambda i: jax.random.normal(jax.random.fold_in(key, i), shape)
  return jax.vmap(draw)(jnp.arange(n))


@functools.partial(
  jax.jit, static_argnames=('dit', 'sampler', 'steps', 'shift', 'guidance')
)
def generate(
  variables: Any,
  noise: jax.Array,
  text: jax.Array,
  mask: jax.Array,
  *,
  dit: DiT,
  sampler: str,
  steps: int,
  shift: float,
  guidance: float,
) -> jax.Array:
  """Integrates the guided flow.

  Args:
    variables: of the transformer, with or without LoRA leaves.
    noise: [b f h w c].
    text: [2b l d], features of the prompts, then of the negative prompts.
    mask: [2b l] bool.
    dit: the transformer.
    sampler: a key of `flow.SAMPLERS`.
    steps: of it.
    shift: of its times.
    guidance: 1 leaves the negative pass out.

  Returns:
    Latents [b f h w c], normalised, float32.
  """
  n = noise.shape[0]
  apply = lora.with_lora(dit.apply)

  def velocity(x, t, x0_hat):
    if guidance == 1.0:
      return apply(variables, x, t, text[:n], text_mask=mask[:n], x0_hat=x0_hat)
    twice = lambda a: jnp.concatenate([a, a])
    v = apply(
      variables, twice(x), twice(t), text, text_mask=mask, x0_hat=twice(x0_hat)
    )
    return flow.guide(v[:n], v[n:], guidance)

  return flow.solve(sampler, velocity, noise, steps=steps, shift=shift)


def encode_prompts(
  base: Base, prompts: Sequence[str], tokens: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
  """Features [b l d], zero where padded, with learned words; and mask [b l]."""
  encoded = prompts_lib.encode(
    base.tokenizer,
    prompts,
    base.format.text_length,
    prompts_lib.sizes_of(tokens),
  )
  features = text_features(base, encoded.ids, encoded.mask)
  return (
    prompts_lib.place(features, tokens, jnp.asarray(encoded.slots)),
    jnp.asarray(encoded.mask),
  )


def null_text(base: Base) -> dict[str, jax.Array]:
  """The empty prompt: 'features' [1 l d] and 'mask' [1 l]."""
  features, mask = encode_prompts(base, [''], {})
  return {'features': features, 'mask': mask}


def encode_video(base: Base, video: np.ndarray) -> np.ndarray:
  """Videos uint8 [b f h w 3] -> normalised latents [b f h w c], the mean."""
  vae, params = WanVAE(base.vae), base.params['vae']
  # One at a time: memory stays that of one clip, or of a chunk of a large one.
  return np.stack([vae_chunks.encode(params, clip, vae) for clip in video])


def decode(base: Base, latents: Any) -> np.ndarray:
  """Normalised latents [b f h w c] -> videos uint8 [b f h w 3]."""
  vae, params = WanVAE(base.vae), base.params['vae']
  return np.stack([vae_chunks.decode(params, z, vae) for z in latents])
