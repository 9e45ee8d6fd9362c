"""LoRA as tree surgery: what is added, trained, dropped and folded in."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from dcjax import lora, state, train, tree
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT
from dcjax.models.layers import Linear
from dcjax.stage import Optimizer, Stage

TARGETS = r'blocks/(self|cross)_attn/[qkvo]/kernel'
RANK = 3

LAYER = {
  'layer': {
    'kernel': np.float32(np.random.default_rng(0).normal(size=(6, 5))),
    'bias': np.zeros(5, np.float32),
  }
}


@functools.cache
def params():
  return tiny.dit_params(tiny.DIT)


def learnt(side='in', *, b2=True, pattern=TARGETS):
  """Parameters with a LoRA in which nothing is zero."""
  attached = lora.attach(params(), pattern, RANK, jax.random.key(1), side=side)
  flat = tree.flatten(attached)
  rng = np.random.default_rng(2)
  for name, x in flat.items():
    if name.endswith(('/b1', '/b2')):
      drawn = rng.normal(0, 0.2, x.shape).astype(np.float32)
      flat[name] = drawn if b2 or name.endswith('/b1') else x
  return tree.unflatten(flat)


def inputs():
  k = jax.random.split(jax.random.key(5), 3)
  return (
    jax.random.normal(k[0], (2, 2, 4, 4, 4)),
    jnp.array([0.3, 0.8]),
    jax.random.normal(k[2], (2, 3, 16)),
  )


@functools.cache
def _compiled(with_lora):
  model = DiT(tiny.DIT)
  return jax.jit(lora.with_lora(model.apply) if with_lora else model.apply)


def run(p, *, with_lora=True):
  return np.asarray(_compiled(with_lora)({'params': p}, *inputs()))


def error(a, b):
  return np.abs(a - b).max() / np.abs(b).max()


# ---- attach ----------------------------------------------------------------


@pytest.mark.parametrize('side', ['in', 'out'])
def test_attach_adds_leaves_and_touches_nothing_else(side):
  p = lora.attach(params(), 'mlp/up/kernel', RANK, jax.random.key(0), side=side)
  added, rest = tree.partition(p, 'lora/')
  shapes = {name: x.shape for name, x in tree.flatten(added).items()}
  down, up = (2, 24, RANK), (2, RANK, 40)
  basis, coefficients = (down, up) if side == 'in' else (up, down)
  assert shapes == {
    'blocks/mlp/up/lora/a1': basis,
    'blocks/mlp/up/lora/b1': coefficients,
    'blocks/mlp/up/lora/b2': coefficients,
  }
  old, new = tree.flatten(params()), tree.flatten(rest)
  assert old.keys() == new.keys()
  assert all(old[name] is new[name] for name in old)


def test_bases_are_random_and_coefficients_zero():
  wide = {'layer': {'kernel': np.zeros((400, 300), np.float32)}}
  p = lora.attach(wide, 'kernel', 50, jax.random.key(0))['layer']['lora']
  assert abs(p['a1'].std() * 400**0.5 - 1) < 0.02
  assert not p['b1'].any() and not p['b2'].any()
  p = lora.attach(params(), TARGETS, RANK, jax.random.key(0))
  bases = [x for n, x in tree.flatten(p).items() if n.endswith('a1')]
  bases = np.concatenate([np.asarray(x) for x in bases])  # all layers of all
  assert len(np.unique(bases)) == bases.size


@pytest.mark.parametrize(
  'pattern, rank, side, says',
  [
    ('attn/x/kernel', 2, 'in', 'matches no parameter'),
    ('attn/q/bias', 2, 'in', 'matches no kernel'),
    ('mlp/up/kernel', 24, 'in', 'rank from 1 to 23'),
    ('mlp/up/kernel', 0, 'in', 'rank from 1 to 23'),
    ('mlp/up/kernel', 2, 'left', "use 'in' or 'out'"),
  ],
)
def test_attach_says_what_is_wrong(pattern, rank, side, says):
  with pytest.raises(DcjaxError, match=says):
    lora.attach(params(), pattern, rank, jax.random.key(0), side=side)


def test_convolutions_take_no_lora():
  conv = {'conv': {'kernel': np.zeros((3, 3, 3, 8, 8))}}
  with pytest.raises(DcjaxError, match='linear layers only'):
    lora.attach(conv, 'kernel', 2, jax.random.key(0))


# ---- the forward pass ------------------------------------------------------


def test_a_fresh_lora_changes_nothing():
  p = lora.attach(params(), TARGETS, RANK, jax.random.key(1))
  np.testing.assert_array_equal(run(p), run(params(), with_lora=False))


@pytest.mark.parametrize('side', ['in', 'out'])
def test_fused_equals_added(side):
  p = learnt(side)
  fused = lora.fuse(p)
  assert tree.names(fused) == tree.names(params())
  assert error(run(fused, with_lora=False), run(p)) < 1e-5
  # Or the comparison would say nothing.
  assert error(run(params(), with_lora=False), run(p)) > 0.1


def test_update_is_a1_times_b1_plus_b2_in_every_layer():
  p = learnt()
  old, new, flat = (tree.flatten(x) for x in (params(), lora.fuse(p), p))
  for layer in (
    f'blocks/{a}_attn/{x}' for a in ('self', 'cross') for x in 'qkvo'
  ):
    a1, b1, b2 = (np.float64(flat[f'{layer}/lora/{x}']) for x in lora.LEAVES)
    for i in range(tiny.DIT.layers):
      want = old[f'{layer}/kernel'][i] + a1[i] @ b1[i] + a1[i] @ b2[i]
      got = new[f'{layer}/kernel'][i]
      np.testing.assert_allclose(got, want, atol=1e-6)


def test_without_motion_the_output_is_that_of_the_first_stage():
  first = learnt(b2=False)
  only_look = lora.scale(learnt(), 1.0, 0.0)
  np.testing.assert_array_equal(run(only_look), run(first))
  nothing = lora.scale(learnt(), 0.0, 0.0)
  np.testing.assert_array_equal(run(nothing), run(params(), with_lora=False))


def test_scale_weighs_look_and_motion():
  flat, p = tree.flatten(lora.scale(learnt(), 0.5, 3.0)), tree.flatten(learnt())
  for name, x in p.items():
    weight = {'b1': 0.5, 'b2': 3.0}.get(name.rsplit('/', 1)[-1], 1.0)
    np.testing.assert_array_equal(flat[name], x * np.float32(weight))


def test_a_compiled_base_does_not_hide_the_lora():
  """What is entered outside of jit is lost where a trace is cached."""
  layer = Linear(4)
  x = jnp.ones((1, 3))
  p = layer.init(jax.random.key(0), x)['params']
  q = tree.unflatten(
    tree.flatten(p)
    | {'lora/a1': jnp.ones((3, 1)), 'lora/b1': jnp.ones((1, 4))}
    | {'lora/b2': jnp.ones((1, 4))}
  )
  plain, added = jax.jit(layer.apply), jax.jit(lora.with_lora(layer.apply))
  before = plain({'params': q}, x)
  np.testing.assert_allclose(added({'params': q}, x) - before, 6.0, rtol=1e-5)
  np.testing.assert_array_equal(plain({'params': q}, x), before)


def test_activations_keep_their_dtype():
  layer = Linear(5, dtype=jnp.bfloat16)
  p = lora.attach(LAYER, 'kernel', 2, jax.random.key(1))['layer']
  y = lora.with_lora(layer.apply)({'params': p}, jnp.ones((2, 6)))
  assert y.dtype == jnp.bfloat16


# ---- gates -----------------------------------------------------------------

# Layers that see the video only, so that a shut gate leaves nothing.
ON_VIDEO = r'self_attn/[qkvo]/kernel|cross_attn/[qo]/kernel|mlp/.*/kernel'
TOKENS = 2 * 2 * 2


def gated(p, gate):
  model = DiT(tiny.DIT)
  apply = jax.jit(lora.with_lora(model.apply, gate))
  return np.asarray(apply({'params': p}, *inputs()))


@pytest.mark.parametrize('side', ['in', 'out'])
def test_an_open_gate_is_no_gate(side):
  p = learnt(side)
  np.testing.assert_array_equal(gated(p, jnp.ones((2, TOKENS, 1))), run(p))


@pytest.mark.parametrize('side', ['in', 'out'])
def test_a_shut_gate_is_the_base(side):
  p = learnt(side, pattern=ON_VIDEO)
  shut = gated(p, jnp.zeros((2, TOKENS, 1)))
  np.testing.assert_array_equal(shut, run(params(), with_lora=False))
  assert error(shut, run(p)) > 0.1


def test_what_reads_text_has_no_gate():
  p = learnt(pattern=r'cross_attn/[kv]/kernel')
  np.testing.assert_array_equal(gated(p, jnp.zeros((2, TOKENS, 1))), run(p))


def test_a_gate_is_of_single_tokens():
  """In layers that mix no tokens, frames of a shut gate are the base's."""
  p = learnt(pattern='mlp/.*/kernel')
  one = dataclasses.replace(tiny.DIT, layers=1)
  flat = {
    n: x[:1] if n.startswith('blocks/') else x
    for n, x in tree.flatten(p).items()
  }
  p = tree.unflatten(flat)
  bare = {n: x for n, x in flat.items() if '/lora/' not in n}
  gate = jnp.zeros((2, TOKENS, 1)).at[:, : TOKENS // 2].set(1.0)
  apply = lora.with_lora(DiT(one).apply, gate)
  y = apply({'params': p}, *inputs())
  base = DiT(one).apply({'params': tree.unflatten(bare)}, *inputs())
  whole = lora.with_lora(DiT(one).apply)({'params': p}, *inputs())
  # Tokens go by frames first: the second latent frame has a shut gate.
  np.testing.assert_array_equal(y[:, 1], base[:, 1])
  np.testing.assert_array_equal(y[:, 0], whole[:, 0])
  assert error(np.asarray(y[:, 0]), np.asarray(base[:, 0])) > 0.05


def test_every_group_of_ranks_has_its_own_gate():
  p = learnt(pattern=ON_VIDEO)
  flat = tree.flatten(p)
  ranks = np.array([0, 1, 1], np.int32)
  for name in [n for n in flat if n.endswith('lora/a1')]:
    layers = len(flat[name])
    flat[name[:-2] + 'group'] = np.tile(ranks, (layers, 1))
  grouped = tree.unflatten(flat)
  # The first group alone: the same as without the other ranks.
  alone = tree.unflatten(
    {
      n: np.where(ranks[:, None] == 0, x, 0)
      if n.endswith(('/b1', '/b2'))
      else x
      for n, x in tree.flatten(p).items()
    }
  )
  first = jnp.stack([jnp.ones((2, TOKENS)), jnp.zeros((2, TOKENS))], -1)
  assert error(gated(grouped, first), run(alone)) < 1e-5
  np.testing.assert_array_equal(
    gated(grouped, jnp.ones((2, TOKENS, 2))), run(p)
  )
  shut = gated(grouped, jnp.zeros((2, TOKENS, 2)))
  np.testing.assert_array_equal(shut, run(params(), with_lora=False))


def test_a_gate_of_too_few_tokens_is_refused():
  with pytest.raises(ValueError, match='does not fit'):
    gated(learnt(), jnp.ones((2, TOKENS - 1, 1)))


# ---- training --------------------------------------------------------------


def squared(p, batch, context, key):
  del context, key
  apply = lora.with_lora(Linear(5).apply)
  y = apply({'params': p['layer']}, batch['x'])
  return jnp.square(y - batch['y']).mean(), {}


def batch():
  x = jax.random.normal(jax.random.key(0), (8, 6))
  return {'x': x, 'y': jnp.sin(x[:, :5])}


def test_only_coefficients_move_at_first():
  """With B = 0 the basis has no gradient; with A random B has one."""
  p = lora.attach(LAYER, 'kernel', 2, jax.random.key(1))
  grads = jax.grad(lambda p: squared(p, batch(), None, None)[0])(p)['layer']
  assert not grads['lora']['a1'].any()
  assert np.abs(grads['lora']['b1']).min() > 0
  np.testing.assert_array_equal(grads['lora']['b1'], grads['lora']['b2'])


@pytest.mark.parametrize(
  'train_pattern, moves',
  [
    (r'lora/(a1|b1)', {'layer/lora/a1', 'layer/lora/b1'}),
    (r'lora/b2', {'layer/lora/b2'}),
  ],
)
def test_a_stage_moves_its_leaves_and_no_other_bit(train_pattern, moves):
  stage = Stage('s', 'flow', 'clip', train_pattern, 5, 8, Optimizer(lr=0.01))
  p = lora.attach(LAYER, 'kernel', 2, jax.random.key(1))
  p['layer']['lora']['b1'] = jnp.full((2, 5), 0.1)
  trainable, frozen = tree.partition(p, stage.train)
  kept = jax.tree.map(np.array, frozen)
  adam = optax.adamw(0.01, weight_decay=0.1)
  now = state.init(jax.tree.map(jnp.copy, trainable), adam, ema=False)
  sizes = {x.shape for x in jax.tree.leaves(now.opt_state) if x.ndim}
  assert sizes == {x.shape for x in jax.tree.leaves(trainable)}
  step = train.make_step(squared, adam, stage)
  for _ in range(5):
    now, metrics = step(now, frozen, batch(), None, jax.random.key(3))
  assert set(tree.names(now.trainable)) == moves
  after = tree.flatten(tree.combine(now.trainable, frozen))
  for name, x in tree.flatten(p).items():
    assert np.array_equal(after[name], x) == (name not in moves), name
  jax.tree.map(np.testing.assert_array_equal, frozen, kept)
  assert metrics['loss'] < squared(p, batch(), None, None)[0]


# ---- dropout on B ----------------------------------------------------------


def big(value=2.0):
  full = jnp.full((100, 200), value)
  leaves = {'a1': jnp.ones((5, 100)), 'b1': full, 'b2': full}
  return {'layer': {'lora': leaves, 'kernel': jnp.ones((5, 200))}}


def dropped(rate, key=0, pattern='lora/b', **kwargs):
  p = lora.drop(big(), jax.random.key(key), rate, pattern, **kwargs)
  return p['layer']['lora']


@pytest.mark.parametrize('rate', [0.5, 0.8])
def test_dropout_hits_single_elements_at_its_rate(rate):
  b1 = np.asarray(dropped(rate)['b1'])
  kept = b1 != 0
  np.testing.assert_allclose(b1[kept], 2.0 / (1 - rate), rtol=1e-6)
  sigma = (rate * (1 - rate)) ** 0.5
  assert abs(kept.mean() - (1 - rate)) < 4 * sigma / kept.size**0.5
  # Elementwise: no row or column is dropped as one.
  for axis, n in ((0, 100), (1, 200)):
    spread = kept.mean(axis).std() / (sigma / n**0.5)
    assert 0.7 < spread < 1.3
  # So what the model sees is B on average.
  assert abs(b1.mean() - 2.0) < 4 * 2 * (rate / (1 - rate) / b1.size) ** 0.5


def test_dropout_as_printed_is_a_lower_rate():
  """C * M at a rate is B * M / (1 - p) at (1 - p) of it, with B = (1 - p) C."""
  rate, name = 0.8, 'lora/b1'
  x, y = (jax.random.normal(jax.random.key(i), (32, 4)) for i in range(2))
  zeros = tree.unflatten({name: jnp.zeros((4, 4))})

  def learnt(lr, divided):
    adam = optax.adam(lr)
    params, state = zeros, adam.init(zeros)

    def loss(p, key):
      used = lora.drop(p, key, rate, 'lora/b')['lora']['b1']
      used = used if divided else used * (1 - rate)
      return jnp.mean((x @ used - y) ** 2)

    for step in range(8):
      grads = jax.grad(loss)(params, jax.random.key(step))
      updates, state = adam.update(grads, state)
      params = optax.apply_updates(params, updates)
    return params['lora']['b1']

  printed = learnt(1e-2, divided=False)
  assert float(jnp.abs(printed).max()) > 1e-2
  ours = learnt(1e-2 * (1 - rate), divided=True)
  np.testing.assert_allclose(ours, (1 - rate) * printed, rtol=1e-4, atol=1e-6)


def test_the_key_names_the_mask():
  first = dropped(0.5)
  np.testing.assert_array_equal(first['b1'], dropped(0.5)['b1'])
  assert (first['b1'] != dropped(0.5, key=1)['b1']).any()
  assert (first['b1'] != first['b2']).any()


def test_dropout_spares_everything_else():
  p = big()
  after = dropped(0.5, pattern='lora/b2')
  np.testing.assert_array_equal(after['a1'], p['layer']['lora']['a1'])
  np.testing.assert_array_equal(after['b1'], p['layer']['lora']['b1'])
  assert (after['b2'] == 0).any()
  for pattern in ('lora/', 'a1'):
    with pytest.raises(ValueError, match='never dropped'):
      dropped(0.5, pattern=pattern)
  with pytest.raises(DcjaxError, match='matches no parameter'):
    dropped(0.5, pattern='lora/c')


def test_rate_zero_is_no_dropout():
  jax.tree.map(
    np.testing.assert_array_equal,
    dropped(0.0),
    big()['layer']['lora'],
  )


def test_gradients_are_summed_in_float32_below_bfloat16_activations():
  """Many small terms beside a large one: bfloat16 would lose them."""
  leaves = {
    'a1': jnp.ones((4, 2)),
    'b1': jnp.ones((2, 3)),
    'b2': jnp.ones((2, 3)),
  }
  x = jnp.full((1, 400, 4), 2.0**-8, jnp.bfloat16).at[0, 0].set(1.0)

  def total(leaves):
    return lora._residual(x, leaves, None).astype(jnp.float32).sum()

  grads = jax.grad(total)(leaves)
  expected = 3.0 * 2.0 * (1.0 + 399 * 2.0**-8)
  np.testing.assert_allclose(grads['a1'], expected, rtol=1e-6)
  plain = jnp.asarray(expected, jnp.bfloat16).astype(jnp.float32)
  assert abs(plain - expected) > 1e-3 * expected
