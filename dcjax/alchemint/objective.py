"""Flow matching of a video with references and timed captions.

A step hides, from some samples, all that is text or all that is reference, so
that one model serves every pass of the guidance (AlcheMinT, Sec. 3.4). Without
references their latents and words are zero, but their tokens and intervals
stay: to take the intervals away as well would make the passes differ in time.
"""

import jax
import jax.numpy as jnp

from dcjax import lora
from dcjax.models.dit import DiT
from dcjax.models.reference import (
  Events,
  References,
  without_events,
  without_references,
)
from dcjax.objective import (
  Objective,
  by_quantile,
  chosen,
  flow_loss,
  held_out,
  sample_keys,
  split_keys,
  without_text,
)
from dcjax.stage import Stage

# What of a sample is hidden: nothing, text, references, both.
HIDDEN = ('nothing', 'text', 'references', 'both')


def subjects(
  dit: DiT,
  stage: Stage,
  *,
  drop: tuple[float, float, float],
  drop_events: float = 0.0,
) -> Objective:
  """The loss of stage *subjects*.

  A batch is {'latents' [b f h w c], 'weight' [b f h w 1], 'features' [b l d],
  'mask' [b l], 'references' {fields of `References`}} and, for a model with
  timed captions, 'events' {fields of `Events`}. The context holds the null
  prompt, 'null', of `text_features.null_text`.

  Args:
    dit: the transformer, with `reference`.
    stage: t sampler and self-conditioning.
    drop: probabilities of hiding the text alone, the references alone, and
      both.
    drop_events: probability of hiding the timed captions, whatever else is
      hidden: they and the references would tell the same times.
  """
  velocity = lora.with_lora(dit.apply)
  self_cond = dit.config.self_cond is not None
  chances = jnp.asarray([1.0 - sum(drop), *drop])

  def samples(params, batch, context, key, t=None):
    keys_hide, keys_events, keys_flow = split_keys(sample_keys(key, batch), 3)
    n = len(batch['latents'])
    hidden, untold = jnp.zeros((n,), jnp.int32), jnp.zeros((n,), bool)
    if t is None:
      draw = lambda key: jax.random.choice(key, len(HIDDEN), p=chances)
      hidden = jax.vmap(draw)(keys_hide)
      untold = chosen(keys_events, drop_events)
    no_text = (hidden == 1) | (hidden == 3)
    no_references = (hidden == 2) | (hidden == 3)
    text, mask = without_text(
      batch['features'], batch['mask'], context['null'], no_text
    )
    references = without_references(
      References(**batch['references']), no_references
    )
    events = batch.get('events')
    if events is not None:
      events = without_events(Events(**events), no_text | untold)
    return flow_loss(
      lambda *args, **kwargs: velocity(
        {'params': params['transformer']},
        *args,
        references=references,
        events=events,
        **kwargs,
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
    t, error = samples(params, batch, context, key)
    return error.mean(), by_quantile(t, error)

  loss.evaluate = held_out(samples)
  return loss
