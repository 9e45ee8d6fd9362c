"""The video transformer: shape, initialisation, what may look at what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import tree
from dcjax.errors import DcjaxError
from dcjax.models import attention, dit_config, rope
from dcjax.models import block as block_lib
from dcjax.models import dit as dit_lib
from dcjax.models.dit import DiT
from dcjax.models.dit_config import DiTConfig

SHAPE = (2, 3, 4, 6, 4)  # [b f h w c]: 18 tokens
GRID = (3, 2, 3)
LAYOUTS = {'wan': tiny.DIT, 'paper': tiny.PAPER_DIT}


@functools.cache
def _drawn():
  k = jax.random.split(jax.random.key(0), 3)
  return {
    'x': jax.random.normal(k[0], SHAPE),
    't': jnp.array([0.2, 0.9]),
    'text': jax.random.normal(k[1], (2, 5, 16)),
    'text_mask': jnp.arange(5)[None] < jnp.array([[3], [5]]),
    'x0_hat': jax.random.normal(k[2], SHAPE),
  }


def inputs(**changes):
  return _drawn() | changes


@functools.cache
def _compiled(config):
  model = DiT(config)
  return jax.jit(lambda params, kw: model.apply({'params': params}, **kw))


def apply(config, params, **changes):
  return np.asarray(_compiled(config)(params, inputs(**changes)))


def count(shapes):
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


# ---- presets ---------------------------------------------------------------


@pytest.mark.parametrize(
  'preset, parameters',
  [('wan_t2v_1_3b', 1_418_996_800), ('wan_t2v_14b', 14_288_491_584)],
)
def test_wan_has_its_published_size(preset, parameters):
  assert count(tiny.dit_shapes(dit_config.PRESETS[preset])) == parameters


def test_the_paper_dit_has_11_5_billion_parameters():
  """Set-and-Sequence, Sec. 4; what it counts besides the blocks is open."""
  shapes = tiny.dit_shapes(dit_config.SNAP_DIT_11B)
  assert round(count(shapes['blocks']) / 1e9, 3) == 11.545
  assert round(count(shapes) / 1e9, 2) == 11.60
  dense = shapes['blocks']['modulation']['dense']['kernel']
  assert dense.shape == (32, 4096, 7 * 4096)
  assert shapes['blocks']['self_attn']['norm_q']['scale'].shape == (32, 128)
  # Two inputs of 32 channels in patches of 1x2x2.
  assert shapes['patch']['kernel'].shape == (2 * 32 * 4, 4096)


def test_json_and_config_are_inverse():
  for config in (dit_config.WAN_1_3B, dit_config.WAN_14B, tiny.DIT):
    assert DiTConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
  'change, says',
  [
    ({'image_dim': 1280}, 'image_dim=1280 is not supported'),
    ({'qk_norm': 'layer_norm'}, "qk_norm='layer_norm' is not supported"),
    ({'in_channels': 36}, r'in_channels and out_channels differ \(36, 16\)'),
  ],
)
def test_other_transformers_are_refused(change, says):
  with pytest.raises(DcjaxError, match=says):
    DiTConfig.from_json(dit_config.WAN_1_3B.to_json() | change)


@pytest.mark.parametrize(
  'preset, change',
  [
    # Its JSON has no width: a remainder would be lost there.
    ('wan_t2v_1_3b', {'width': 1540}),
    ('wan_t2v_1_3b', {'width': 1500}),  # 125 channels a head
    ('wan_t2v_1_3b', {'heads': 0}),
    ('snap_dit_11b', {'rope_split': (65, 32, 31)}),
    ('snap_dit_11b', {'rope_split': (64, 32, 16)}),
  ],
)
def test_heads_that_do_not_share_out_are_refused(preset, change):
  config = dit_config.PRESETS[preset]
  with pytest.raises(DcjaxError, match=r'do not share out over \d+ heads'):
    dataclasses.replace(config, **change)


def test_heads_of_a_folder_share_out_too():
  odd = {'attention_head_dim': 125}
  with pytest.raises(DcjaxError, match='width 1500 .* over 12 heads; expected'):
    DiTConfig.from_json(dit_config.WAN_1_3B.to_json() | odd)
  odd = {'rope_split': [65, 32, 31]}
  with pytest.raises(DcjaxError, match=r'rope_split \(65, 32, 31\)'):
    DiTConfig.from_json(dit_config.SNAP_DIT_11B.to_json() | odd)


# ---- initialisation --------------------------------------------------------


@functools.cache
def fresh(config):
  kw = inputs()
  init = jax.jit(DiT(config).init)
  return init(jax.random.key(1), kw['x'], kw['t'], kw['text'])['params']


def block(config):
  """A function of (params, x) for a single block, and its fresh params."""
  k = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(k[0], (2, 18, config.width))
  temb = jax.random.normal(k[1], (2, config.width))
  text = jax.random.normal(k[2], (2, 5, config.text_width))
  table = rope.table(rope.grid_positions(*GRID), config.split)
  module = block_lib.Block(config, jnp.float32)
  rest = (temb, None, text, None, table, None)
  params = jax.jit(module.init)(k[3], x, *rest)['params']
  return lambda p, x: module.apply({'params': p}, x, *rest)[0], params, x


@pytest.mark.parametrize(
  'vectors, identity', [(7, True), (9, True), (6, False)]
)
def test_a_fresh_block_is_the_identity_if_every_branch_is_gated(
  vectors, identity
):
  run, params, x = block(dataclasses.replace(tiny.PAPER_DIT, vectors=vectors))
  assert not np.asarray(params['modulation']['dense']['kernel']).any()
  y = jax.jit(run)(params, x)
  assert np.array_equal(y, x) == identity
  # It can leave there: every gate has a gradient.
  loss = lambda p, x: jnp.sum(jnp.sin(run(p, x)))
  grad = jax.jit(jax.grad(loss))(params, x)['modulation']['dense']['bias']
  names = block_lib._MODULATION_NAMES[vectors]
  moved = np.abs(np.asarray(grad).reshape(vectors, -1)).max(-1) > 0
  assert {n for n, m in zip(names, moved, strict=True) if m} >= {
    n for n in names if n.startswith('g')
  }


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_fresh_model_predicts_zero(layout):
  config = LAYOUTS[layout]
  assert not apply(config, fresh(config)).any()


def test_a_fresh_model_does_not_read_its_own_estimate():
  params = dict(fresh(tiny.PAPER_DIT))
  kernel = np.asarray(params['patch']['kernel'])
  read = 4 * 4  # channels, patch
  assert not kernel[read:].any() and np.abs(kernel[:read]).min() > 0
  # With a head and gates that do something.
  params |= {
    name: tiny.dit_params(tiny.PAPER_DIT)[name] for name in ('head', 'blocks')
  }
  with_estimate = apply(tiny.PAPER_DIT, params)
  np.testing.assert_array_equal(
    with_estimate, apply(tiny.PAPER_DIT, params, x0_hat=None)
  )
  learnt = tiny.dit_params(tiny.PAPER_DIT)
  assert not np.allclose(
    apply(tiny.PAPER_DIT, learnt), apply(tiny.PAPER_DIT, learnt, x0_hat=None)
  )


def test_wan_has_no_slot_for_an_estimate():
  params = tiny.dit_params(tiny.DIT)
  np.testing.assert_array_equal(
    apply(tiny.DIT, params), apply(tiny.DIT, params, x0_hat=None)
  )


# ---- what looks at what ----------------------------------------------------


def test_padding_of_the_text_is_hidden_from_the_paper_dit():
  def gradient(config):
    def total(text, params, rest):
      v = DiT(config).apply({'params': params}, text=text, **rest)
      return jnp.sum(jnp.sin(v))

    rest = inputs()
    text = rest.pop('text')
    grad = jax.jit(jax.grad(total))(text, tiny.dit_params(config), rest)
    return np.abs(grad).max(-1) > 0

  mask = np.asarray(inputs()['text_mask'])
  np.testing.assert_array_equal(gradient(tiny.PAPER_DIT), mask)
  # Wan reads the zeros of padding, as it was trained to.
  assert gradient(tiny.DIT).all()


def influence(config, **changes):
  """[18 18]: whether output token i depends on input token j (sample 0)."""

  def run(tokens, params, kw):
    scale = jnp.kron(tokens.reshape(GRID), jnp.ones((1, 2, 2)))
    x = kw['x'] * scale[None, ..., None]
    v = DiT(config).apply({'params': params}, **kw | {'x': x})[0]
    return v.reshape(3, 2, 2, 3, 2, 4).sum((2, 4, 5)).reshape(-1)

  read = jax.jit(jax.jacobian(run))
  params = tiny.dit_params(config)
  return np.abs(read(jnp.ones(18), params, inputs(**changes))) > 0


def test_the_window_of_one_layer_is_exact():
  config = dataclasses.replace(tiny.PAPER_DIT, layers=1, window=4)
  i, j = np.indices((18, 18))
  np.testing.assert_array_equal(influence(config), np.abs(i - j) <= 4)


def test_every_layer_widens_the_window():
  config = dataclasses.replace(tiny.PAPER_DIT, layers=2, window=4)
  i, j = np.indices((18, 18))
  np.testing.assert_array_equal(influence(config), np.abs(i - j) <= 8)


def test_hidden_tokens_reach_nobody_but_themselves():
  seen = np.arange(18) != 7
  config = dataclasses.replace(tiny.DIT, layers=1)
  got = influence(config, key_mask=jnp.asarray(seen)[None].repeat(2, 0))
  np.testing.assert_array_equal(got, np.eye(18, dtype=bool) | seen[None])


def test_position_is_data():
  """Tokens have no place but in the table: both permuted, so is the output."""
  config, params = tiny.DIT, tiny.dit_params(tiny.DIT)
  positions = rope.grid_positions(*GRID).reshape(*GRID, 3)
  order = np.array([2, 0, 1])  # of frames

  def run(x, frames):
    table = rope.table(positions[frames].reshape(-1, 3), config.split)
    return apply(config, params, x=x, rope=table)

  x = inputs()['x']
  plain = run(x, np.arange(3))
  np.testing.assert_allclose(plain, apply(config, params), atol=1e-5)
  np.testing.assert_allclose(
    run(x[:, order], order), plain[:, order], atol=1e-5
  )
  assert np.abs(run(x[:, order], np.arange(3)) - plain[:, order]).max() > 1e-2


def test_samples_of_a_batch_do_not_see_each_other():
  for config in LAYOUTS.values():
    params = tiny.dit_params(config)
    both = apply(config, params)
    alone = apply(config, params, **{n: a[1:] for n, a in inputs().items()})
    np.testing.assert_allclose(both[1:], alone, atol=2e-5)


# ---- ways to compute the same ----------------------------------------------


def gradients(config, remat='none'):
  model = DiT(config, remat=remat)

  def loss(params, kw):
    v = model.apply({'params': params}, **kw)
    return jnp.square(v - kw['x0_hat'][::-1]).mean()

  return tree.flatten(
    jax.jit(jax.grad(loss))(tiny.dit_params(config), inputs())
  )


def assert_close(a, b, rtol):
  assert a.keys() == b.keys()
  for name in a:
    scale = np.abs(b[name]).max()
    assert np.abs(a[name] - b[name]).max() <= rtol * scale + 1e-7, name


@pytest.fixture(scope='module')
def plain():
  return {name: gradients(config) for name, config in LAYOUTS.items()}


@pytest.mark.parametrize(
  'remat', [p for p in dit_lib.REMAT_POLICIES if p != 'none']
)
def test_remat_changes_nothing(plain, remat):
  assert_close(gradients(tiny.PAPER_DIT, remat), plain['paper'], 1e-4)


def test_blocks_of_attention_change_nothing(plain, monkeypatch):
  monkeypatch.setattr(attention, 'BLOCK_ELEMENTS', 0)
  monkeypatch.setattr(attention, 'BLOCK_QUERIES', 8)
  assert_close(gradients(tiny.PAPER_DIT), plain['paper'], 1e-4)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_parameter_matters(plain, layout):
  """No leaf is read by nobody: each has a gradient."""
  assert [n for n, g in plain[layout].items() if not np.any(g)] == []


@pytest.mark.parametrize('layout', LAYOUTS)
def test_bfloat16_is_near_and_comes_out_as_float32(layout):
  config = LAYOUTS[layout]
  params = tiny.dit_params(config)
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  run = jax.jit(DiT(config, jnp.bfloat16).apply)
  x = inputs()['x'].astype(jnp.bfloat16)
  got = run({'params': half}, **inputs(x=x))
  want = apply(config, params)
  assert got.dtype == jnp.float32
  assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.1
