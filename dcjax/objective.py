"""From a batch to a loss: one flow-matching loss for every stage.

An objective is a pure function `loss(params, batch, context, key) -> (loss,
aux)`. `context` holds arrays that every step shares and that nothing trains,
such as the features of the prompts; `aux` is a dict of scalars, or `Average`s,
for the log. Every key is split by what it is for, so a draw does not move when
another one is added; and what is drawn for a sample follows from its place in
the batch of the step, so it does not move to another microbatch or device.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcjax import flow, lora
from dcjax.data import prompts
from dcjax.models.dit import DiT
from dcjax.stage import Stage

Objective = Callable[..., tuple[jax.Array, dict[str, Any]]]
# Samples of a batch are logged by how noisy they are.
QUANTILES = 4


class Average(NamedTuple):
  """A mean over the samples it is about, of which a part may have none."""

  total: jax.Array
  count: jax.Array

  @property
  def mean(self) -> jax.Array:
    """nan if there are none."""
    return self.total / self.count


def sample_keys(key: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
  """[b] keys, one of each sample: `sample` says which it is of its step's."""
  numbers = batch.get('sample')
  if numbers is None:
    numbers = jnp.arange(len(batch['latents']))
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)


def split_keys(keys: jax.Array, n: int) -> jax.Array:
  """[b] -> [n b]: as many keys of each sample."""
  return jax.vmap(lambda key: jax.random.split(key, n), out_axes=1)(keys)


def flow_loss(
  velocity: Callable[..., jax.Array],
  x0: jax.Array,
  text: jax.Array,
  text_mask: jax.Array,
  keys: jax.Array,
  stage: Stage,
  *,
  self_cond: bool,
  t: jax.Array | None = None,
  weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Eq. (3) of `flow` for each sample.

  Args:
    velocity: (x_t, t, text, text_mask=, x0_hat=) -> v.
    x0: [b f h w c] clean latents.
    text: [b l d] features.
    text_mask: [b l] bool.
    keys: [b] of the samples, for this step and this loss.
    stage: t sampler and self-conditioning.
    self_cond: whether the model reads its own estimate.
    t: [b] flow times instead of drawn ones.
    weight: [b f h w 1] of the positions, of mean 1, or None for all alike.

  Returns:
    (t [b], mean squared error of each sample [b]).
  """
  keys_t, keys_eps, keys_self = split_keys(keys, 3)
  if t is None:
    t = flow.sample_t(
      keys_t, kind=stage.t_sampler, train_shift=stage.train_shift
    )
  eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys_eps)
  x_t = flow.interpolate(x0, eps, t)
  call = lambda x0_hat: velocity(
    x_t, t, text, text_mask=text_mask, x0_hat=x0_hat
  )
  x0_hat = None
  if self_cond:
    # Bit diffusion: a first pass without an estimate gives one, to some
    # samples.
    estimate = jax.lax.stop_gradient(flow.x0_from_velocity(x_t, call(None), t))
    fed = chosen(keys_self, stage.self_cond)
    x0_hat = jnp.where(fed[:, None, None, None, None], estimate, 0.0)
  error = jnp.square(call(x0_hat) - flow.velocity(x0, eps))
  if weight is not None:
    error = error * weight
  return t, error.mean(axis=(1, 2, 3, 4))


def chosen(keys: jax.Array, rate: float) -> jax.Array:
  """[b] bool, True with probability `rate` for each sample."""
  return jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)


def personalize(dit: DiT, stage: Stage) -> Objective:
  """Flow matching on cached latents and prompts with learned words.

  The batch is {'latents' [b f h w c], 'prompt' [b]}, or with prior preservation
  {'concept': ..., 'prior': ...} of two such. The context holds, for every
  prompt, 'features' [p l d], 'mask' [p l] and 'slots' [p l] (see
  `prompts.place`).

  Where there are too many prompts for that, a batch brings its own 'features'
  [b l d] and 'mask' [b l] instead of 'prompt'. It may have a 'weight'
  [b f h w 1] of the loss. With `stage.prompt_drop` the context has a 'null', of
  `sampling.null_text`.
  """
  velocity = lora.with_lora(dit.apply)
  self_cond = dit.config.self_cond is not None

  def samples(params, batch, context, key, t=None):
    """(t, error) of each sample."""
    keys_null, keys_rows, keys_flow = split_keys(sample_keys(key, batch), 3)
    text, mask = _text(params, batch, context)
    if t is None:
      if stage.prompt_drop:
        dropped = chosen(keys_null, stage.prompt_drop)
        text, mask = without_text(text, mask, context['null'], dropped)
      text = prompts.drop_rows(keys_rows, text, mask, stage.text_drop)
    return flow_loss(
      lambda *args, **kwargs: velocity(
        {'params': params['transformer']}, *args, **kwargs
      ),
      batch['latents'],
      text,
      mask,
      keys_flow,
      stage,
      self_cond=self_cond,
      t=t,
      weight=batch.get('weight'),
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

  def evaluate_several(params, batches, context, key):
    """The same over batches of several shapes, one sample at a time."""
    times = (jnp.arange(QUANTILES) + 0.5) / QUANTILES

    def one(place):
      sample, key = place
      sample = jax.tree.map(lambda x: x[None], sample)
      return jax.lax.map(
        lambda t: samples(params, sample, context, key, t[None])[1][0], times
      )

    errors = []
    for batch in batches:
      n = batch['latents'].shape[0]
      errors.append(jax.lax.map(one, (batch, jax.random.split(key, n))))
    means = jnp.concatenate(errors).mean(axis=0)
    return {f'held_out/t{q}': means[q] for q in range(QUANTILES)}

  loss.evaluate, loss.evaluate_several = held_out(samples), evaluate_several
  return loss


def _text(params, batch, context):
  """(features [b l d] with learned words, mask [b l]) of a batch."""
  if 'prompt' not in batch:
    return batch['features'], batch['mask']
  pick = lambda name: context[name][batch['prompt']]
  text = prompts.place(
    pick('features'), params.get('tokens', {}), pick('slots')
  )
  return text, pick('mask')


def without_text(
  text: jax.Array,
  mask: jax.Array,
  null: dict[str, jax.Array],
  where: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """(text [b l d], mask [b l]), the null prompt's for the samples in `where`.

  Args:
    text: features of prompts.
    mask: of them.
    null: of `sampling.null_text`.
    where: [b] bool.
  """
  empty = null['features'].astype(text.dtype)
  return (
    jnp.where(where[:, None, None], empty, text),
    jnp.where(where[:, None], null['mask'], mask),
  )


def held_out(samples: Callable) -> Callable:
  """Loss at the middle of each quantile of t, on the same noise each time.

  Args:
    samples: (params, batch, context, key, t [b]) -> (t, error [b]).

  Returns:
    (params, batch, context, key) -> {name: loss}.
  """

  def evaluate(params, batch, context, key):
    n = batch['latents'].shape[0]
    times = (jnp.arange(QUANTILES) + 0.5) / QUANTILES
    errors = [
      samples(params, batch, context, key, jnp.full((n,), t))[1].mean()
      for t in times
    ]
    return {f'held_out/t{q}': e for q, e in enumerate(errors)}

  return evaluate


def by_quantile(t: jax.Array, error: jax.Array) -> dict[str, Average]:
  """Mean error of the samples in each quarter of flow time."""
  quarter = jnp.minimum((t * QUANTILES).astype(jnp.int32), QUANTILES - 1)
  means = {}
  for q in range(QUANTILES):
    inside = quarter == q
    means[f'loss/t{q}'] = Average(
      jnp.where(inside, error, 0.0).sum(), inside.sum()
    )
  return means
