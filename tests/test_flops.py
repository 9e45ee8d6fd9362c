"""The FLOP formula against XLA's own count, and the counts of known models."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny

from dcjax import lora, machine, objective, recipes, tree
from dcjax import stage as stage_lib
from dcjax.models.dit import DiT
from dcjax.models.dit_config import SNAP_DIT_11B, WAN_1_3B, WAN_14B, DiTConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.planning import flops

# One layer, since XLA counts the body of a loop once; wide, so that products
# are nearly all there is to count.
WAN = DiTConfig(
  width=256,
  layers=1,
  heads=4,
  mlp_width=768,
  channels=8,
  text_width=128,
)
PAPER = dataclasses.replace(
  tiny.PAPER_DIT,
  width=256,
  layers=1,
  heads=4,
  mlp_width=768,
  text_width=128,
  rope_split=(32, 16, 16),
)
LATENTS, LENGTH = (4, 16, 16, 8), 48


def shape(*dims, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(dims, dtype)


def params(dit):
  key = jax.random.key(0)
  latents = shape(1, *dit.patch, dit.channels)
  text = shape(1, 2, dit.text_width)
  return jax.eval_shape(DiT(dit).init, key, latents, shape(1), text)['params']


def counted(function, *arguments):
  """XLA's number of operations, of the form without loops over heads."""
  with machine.programs_for('gpu'):
    lowered = jax.jit(function).lower(*arguments)
  return lowered.compile().cost_analysis()['flops']


@pytest.mark.parametrize('dit', [WAN, PAPER], ids=['wan', 'paper'])
def test_forward_agrees_with_xla(dit):
  latents = (*LATENTS[:3], dit.channels)
  arguments = (
    {'params': params(dit)},
    shape(2, *latents),
    shape(2),
    shape(2, LENGTH, dit.text_width),
  )
  expected = flops.forward(dit, latents, LENGTH).times(2).total
  assert counted(DiT(dit).apply, *arguments) == pytest.approx(
    expected, rel=0.03
  )


@pytest.mark.parametrize(
  'remat, train',
  [
    *[(x, recipes.SEQUENCE) for x in ('none', 'products', 'attention', 'full')],
    ('none', 'blocks/self_attn/.*/kernel$'),
    ('none', 'blocks/.*/kernel$'),
  ],
)
def test_step_agrees_with_xla(remat, train):
  c = recipes.personalize('paper')['sequence']
  c.train = train
  c.update(dict(batch=2, prior=0.0, dropout=0.0))
  stage = stage_lib.from_config('sequence', c.to_dict())
  # Two layers, unrolled by hand: the first one's input needs a gradient too.
  dit = dataclasses.replace(WAN, layers=2)
  loss = objective.personalize(DiT(dit, remat=remat), stage)

  def attach(transformer):
    return {
      'transformer': lora.attach(
        transformer, recipes.ATTENTION, 8, jax.random.key(0)
      ),
      'tokens': {name: jnp.zeros((1, dit.text_width)) for name in 'vu'},
    }

  tree_of = jax.eval_shape(attach, params(dit))
  trained, frozen = tree.partition(tree_of, stage.train)
  batch = {
    'latents': shape(2, *LATENTS),
    'prompt': shape(2, dtype=jnp.int32),
  }
  context = {
    'features': shape(2, LENGTH, dit.text_width),
    'mask': shape(2, LENGTH, dtype=bool),
    'slots': shape(2, LENGTH, dtype=jnp.int32),
  }

  def gradient(trained, frozen, batch, context):
    key = jax.random.key(0)
    return jax.grad(
      lambda t: loss(tree.combine(frozen, t), batch, context, key)[0]
    )(trained)

  found = counted(gradient, trained, frozen, batch, context)
  # The loop's body, forward and backward, is counted once.
  once = flops.step(dit, stage, tree_of, LATENTS, LENGTH, remat=remat)
  assert 2 * found == pytest.approx(once.executed, rel=0.06)


@pytest.mark.parametrize('dit', [WAN, PAPER], ids=['wan', 'paper'])
def test_all_kernels_cost_another_forward_pass(dit):
  def model(train):
    stage = stage_lib.from_config('all', dict(base, train=train))
    return flops.step(
      dit, stage, {'transformer': tree_of}, LATENTS, LENGTH
    ).model

  base = dict(recipes.personalize('paper')['sequence'].to_dict(), batch=2)
  tree_of = params(dit)
  found = model('^transformer/') - model('bias$')
  once = flops.forward(dit, LATENTS, LENGTH).times(2)
  assert found == pytest.approx(once.linear, rel=1e-6)


def test_window_leaves_the_pairs_that_a_loop_counts():
  n, window = 37, 5
  near = sum(abs(i - j) <= window for i in range(n) for j in range(n))
  assert flops.pairs(n, window) == near
  assert flops.pairs(n, None) == flops.pairs(n, n) == n * n


@pytest.mark.parametrize(
  'dit, tera',
  [(WAN_1_3B, 283e12), (WAN_14B, 1678e12)],
  ids=['1.3b', '14b'],
)
def test_published_shapes_cost_what_is_known(dit, tera):
  """81 frames of 480x832, forward: arithmetic of others."""
  latents = VAEConfig().latent_shape(81, 480, 832)
  assert flops.forward(dit, latents, 512).total == pytest.approx(tera, rel=0.02)


def test_a_window_and_modulation_cost_little_in_the_papers_model():
  latents = (16, 36, 64, 32)
  found = flops.forward(SNAP_DIT_11B, latents, 512)
  assert flops.tokens(SNAP_DIT_11B, latents) == 9216
  assert 8 * found.linear == pytest.approx(1110e12, rel=0.02)
  full = dataclasses.replace(SNAP_DIT_11B, window=None)
  ratio = found.attention / flops.forward(full, latents, 512).attention
  assert 0.5 < ratio < 0.6
