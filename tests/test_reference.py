"""References and timed captions in the transformer, and their folder."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import lora, tree
from dcjax.errors import DcjaxError
from dcjax.models import dit_config
from dcjax.models import reference as lib
from dcjax.models.block import Block
from dcjax.models.dit import DiT
from dcjax.models.reference import Events, References
from dcjax.models.reference_config import ReferenceConfig
from dcjax.weights import reference as weights

CONFIG = ReferenceConfig(max_references=4, tag_tokens=3)
B, M, F, H, W = 2, 3, 3, 4, 6
# One of the paper's form with a window that would hide most of the stream.
SHAPES = {
  'wan': tiny.DIT,
  'paper': dataclasses.replace(tiny.PAPER_DIT, window=4),
}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(dit):
  return {
    'x': normal(B, F, H, W, dit.channels),
    't': np.array([0.3, 0.8], np.float32),
    'text': normal(B, 5, dit.text_width, seed=1),
    'text_mask': np.arange(5)[None] < np.array([[5], [3]]),
  }


def references(dit, seed=2):
  interval = np.sort(np.random.default_rng(seed).uniform(0, F - 1, (B, M, 2)))
  return References(
    latents=normal(B, M, H, W, dit.channels, seed=seed),
    interval=interval.astype(np.float32),
    valid=np.array([[True, True, False], [True, True, True]]),
    tags=normal(B, M, 3, dit.text_width, seed=seed + 1),
    tag_mask=np.ones((B, M, 3), bool),
  )


def events(dit):
  return Events(
    features=normal(B, 2, 4, dit.text_width, seed=5),
    mask=np.array([[[1, 1, 1, 0], [1, 1, 0, 0]], [[0] * 4, [0] * 4]], bool),
    interval=np.array([[[0, 1], [1, 2]], [[0, 0], [0, 0]]], np.float32),
  )


@functools.cache
def params(name, config=CONFIG):
  """Of a base with what is added, every number drawn at random."""
  dit = SHAPES[name]
  fresh = lib.attach(tiny.dit_params(dit), dit, config, jax.random.key(0))
  flat = tree.flatten(fresh)
  return tree.unflatten(
    flat
    | {
      key: normal(*flat[key].shape, seed=i) * 0.3
      for i, key in enumerate(tree.match(fresh, lib.ADDED))
    }
  )


def apply(name, variables, config=CONFIG, **kw):
  dit = SHAPES[name]
  model = DiT(dit, reference=config)
  return jax.jit(model.apply)({'params': variables}, **inputs(dit) | kw)


@pytest.mark.parametrize('name', SHAPES)
def test_without_references_it_is_the_base_bit_for_bit(name):
  dit = SHAPES[name]
  base = tiny.dit_params(dit)
  added = lib.attach(base, dit, CONFIG, jax.random.key(0))
  plain = jax.jit(DiT(dit).apply)({'params': base}, **inputs(dit))
  np.testing.assert_array_equal(apply(name, added), plain)


@pytest.mark.parametrize('name', SHAPES)
def test_fresh_timed_captions_change_nothing(name):
  dit = SHAPES[name]
  added = lib.attach(tiny.dit_params(dit), dit, CONFIG, jax.random.key(0))
  np.testing.assert_array_equal(
    apply(name, added, events=events(dit)), apply(name, added)
  )


@pytest.mark.parametrize('name', SHAPES)
def test_the_branch_begins_as_a_copy_of_cross_attention(name):
  base = tiny.dit_params(SHAPES[name])
  added = lib.attach(base, SHAPES[name], CONFIG, jax.random.key(0))
  copy = tree.flatten(added['blocks']['timed_attn'])
  for key, x in tree.flatten(base['blocks']['cross_attn']).items():
    expected = np.zeros_like(x) if key.startswith('o/') else x
    np.testing.assert_array_equal(copy[key], expected)


@pytest.mark.parametrize('name', SHAPES)
def test_every_input_of_a_reference_counts(name):
  dit = SHAPES[name]
  given = references(dit)
  before = apply(name, params(name), references=given)
  for field in ('latents', 'interval', 'tags'):
    changed = given._replace(**{field: getattr(given, field) * 0.5})
    after = apply(name, params(name), references=changed)
    assert np.abs(after - before).max() > 1e-4, field


@pytest.mark.parametrize('name', SHAPES)
def test_what_is_hidden_does_not_count(name):
  dit = SHAPES[name]
  given = references(dit)._replace(
    tag_mask=np.arange(3)[None, None] < np.array([[[2]] * M] * B)
  )
  before = apply(name, params(name), references=given)
  latents, tags = given.latents.copy(), given.tags.copy()
  latents[0, 2] += 10.0  # not valid
  tags[0, 2] += 10.0
  tags[:, :, 2] += 10.0  # padding
  interval = given.interval.copy()
  interval[0, 2] = 1.0
  changed = given._replace(latents=latents, tags=tags, interval=interval)
  after = apply(name, params(name), references=changed)
  np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize('name', SHAPES)
def test_the_order_of_references_is_their_index_embedding_alone(name):
  dit = SHAPES[name]
  given = references(dit)
  order = np.array([2, 0, 1])
  moved = References(*(x[:, order] for x in given))
  before = apply(name, params(name), references=given)
  after = apply(name, params(name), references=moved)
  assert np.abs(after - before).max() > 1e-4
  variables = tree.flatten(params(name))
  index = variables['reference/index']
  index = np.concatenate([index[order], index[M:]])
  follows = tree.unflatten(variables | {'reference/index': index})
  after = apply(name, follows, references=moved)
  np.testing.assert_allclose(after, before, atol=2e-5)


TOLD = dataclasses.replace(CONFIG, scheme='norope', presence=4)


def test_presence_begins_as_nothing():
  dit = SHAPES['wan']
  untold = dataclasses.replace(TOLD, presence=0)
  fresh = lambda c: lib.attach(tiny.dit_params(dit), dit, c, jax.random.key(0))
  given = dict(references=references(dit))
  np.testing.assert_array_equal(
    apply('wan', fresh(TOLD), TOLD, **given),
    apply('wan', fresh(untold), untold, **given),
  )


@pytest.mark.parametrize('name', SHAPES)
def test_presence_tells_the_video_of_intervals(name):
  """Without temporal RoPE nothing else would; and only of who is valid."""
  dit, variables = SHAPES[name], params(name, TOLD)
  given = references(dit)
  out = apply(name, variables, TOLD, references=given)
  # Of one sample's third reference, which is not valid, and of its second.
  hidden = given.interval.copy()
  hidden[0, 2] = 0.0, F - 1
  np.testing.assert_array_equal(
    apply(name, variables, TOLD, references=given._replace(interval=hidden)),
    out,
  )
  moved = given.interval.copy()
  moved[0, 1] = 0.0, 0.25
  change = np.abs(
    apply(name, variables, TOLD, references=given._replace(interval=moved))
    - out
  ).max(axis=(1, 2, 3, 4))
  assert change[0] > 1e-3
  assert change[1] == 0


def test_references_are_exempt_from_the_window():
  """Narrow as it is, a reference reaches every frame."""
  dit = SHAPES['paper']
  given = references(dit)
  latents = jnp.asarray(given.latents)

  def first_frame(latents):
    out = apply(
      'paper', params('paper'), references=given._replace(latents=latents)
    )
    return out[1, 0].sum()

  slope = jax.grad(first_frame)(latents)
  assert (jnp.abs(slope[1]).max(axis=(1, 2, 3)) > 1e-5).all()
  assert not slope[0].any()


@pytest.mark.parametrize('scheme', ['werope', 'midrope', 'norope'])
def test_what_an_interval_says_depends_on_the_scheme(scheme):
  """MidRoPE knows the midpoint only; without RoPE time says nothing."""
  config = dataclasses.replace(CONFIG, scheme=scheme, border='keep')
  given = references(tiny.DIT)
  narrow, wide, late = (
    given._replace(
      interval=np.broadcast_to(np.array(x, np.float32), (B, M, 2)).copy()
    )
    for x in ((0.9, 1.1), (0.5, 1.5), (1.5, 2.0))
  )
  a, b, c = (
    apply('wan', params('wan'), config, references=x)
    for x in (narrow, wide, late)
  )
  assert (np.abs(a - b).max() > 1e-5) == (scheme == 'werope')
  assert (np.abs(a - c).max() > 1e-5) == (scheme != 'norope')


def test_queries_may_have_midrope():
  config = dataclasses.replace(CONFIG, rotate='k')
  given = references(tiny.DIT)
  queries, keys = lib.tables(config, given, (F, 2, 3), tiny.DIT.split)
  middle = dataclasses.replace(CONFIG, scheme='midrope')
  expected, _ = lib.tables(middle, given, (F, 2, 3), tiny.DIT.split)
  np.testing.assert_array_equal(queries.cos, expected.cos)
  assert np.abs(keys.cos - queries.cos).max() > 0.1
  n = F * 2 * 3
  np.testing.assert_array_equal(keys.cos[:, :n], queries.cos[:, :n])


def test_tags_lie_on_the_diagonal_beyond_the_grid():
  given = references(tiny.DIT)
  config = dataclasses.replace(CONFIG, scheme='norope')
  queries, _ = lib.tables(config, given, (F, 2, 3), tiny.DIT.split)
  n = F * 6 + M * 6
  from dcjax.models import rope

  expected = rope.table(
    np.array([[0, 3, 3], [0, 4, 4], [0, 5, 5]]), tiny.DIT.split
  )
  np.testing.assert_allclose(queries.cos[0, n : n + 3], expected.cos, atol=1e-6)


@pytest.mark.parametrize('name', SHAPES)
def test_events_count_where_there_are_any(name):
  dit = SHAPES[name]
  told = events(dit)
  before = apply(name, params(name))
  after = apply(name, params(name), events=told)
  assert np.abs(after[0] - before[0]).max() > 1e-4
  np.testing.assert_allclose(after[1], before[1], atol=1e-6)
  moved = told._replace(interval=told.interval * 0.5)
  again = apply(name, params(name), events=moved)
  assert np.abs(again[0] - after[0]).max() > 1e-5


def test_events_tell_references_nothing_directly():
  """Their branch ends at the video's tokens."""
  c, tail = tiny.DIT, 5
  n = F * (H // 2) * (W // 2)
  x, temb = normal(B, n + tail, c.width), normal(B, c.width)
  told = lib.timed_text(
    CONFIG,
    events(c),
    normal(B, 2, 4, c.width),
    (F, H // 2, W // 2),
    c.head_dim,
  )
  rest = (temb, normal(B, 6, c.width), normal(B, 5, c.width), None, None, None)
  block = Block(c, jnp.float32, tail)
  init = jax.jit(block.init)(jax.random.key(0), x, *rest, None, told)
  flat = tree.flatten(init['params'])
  flat['timed_attn/o/bias'] = np.ones(c.width, np.float32)
  # What the branch brings shows without the layers that mix it again.
  flat['mlp/down/kernel'] = np.zeros_like(flat['mlp/down/kernel'])
  variables = {'params': tree.unflatten(flat)}
  with_events, _ = block.apply(variables, x, *rest, None, told)
  without, _ = block.apply(variables, x, *rest)
  changed = np.abs(with_events - without).max(axis=-1)
  assert changed[0, :n].min() > 1e-3
  assert changed[0, n:].max() == 0.0
  assert changed[1].max() == 0.0  # no events there


@pytest.mark.parametrize('preset', dit_config.PRESETS)
def test_published_shapes_take_references(preset):
  """Shapes only: nothing of the size is computed."""
  dit = dit_config.PRESETS[preset]
  model = DiT(dit, jnp.bfloat16, 'full', ReferenceConfig())
  s = lambda *shape, d=jnp.float32: jax.ShapeDtypeStruct(shape, d)
  given = References(
    s(1, 2, 8, 12, dit.channels),
    s(1, 2, 2),
    s(1, 2, d=bool),
    s(1, 2, 8, dit.text_width),
    s(1, 2, 8, d=bool),
  )
  told = Events(s(1, 2, 16, dit.text_width), s(1, 2, 16, d=bool), s(1, 2, 2))
  args = (s(1, 3, 8, 12, dit.channels), s(1), s(1, 16, dit.text_width))
  kw = dict(text_mask=s(1, 16, d=bool), references=given, events=told)
  variables = jax.eval_shape(model.init, jax.random.key(0), *args, **kw)
  out = jax.eval_shape(model.apply, variables, *args, **kw)
  assert out.shape == args[0].shape
  names = tree.match(variables['params'], lib.ADDED)
  base = jax.eval_shape(DiT(dit).init, jax.random.key(0), *args)['params']
  attached = jax.eval_shape(
    lambda p: lib.attach(p, dit, ReferenceConfig(), jax.random.key(0)), base
  )
  assert set(names) == set(tree.match(attached, lib.ADDED))


@pytest.mark.parametrize(
  'change',
  [
    {'scheme': 'rope'},
    {'anchors': 'inside'},
    {'border': 'drop'},
    {'rotate': 'v'},
    {'tag_tokens': -1},
    {'max_references': 0},
  ],
)
def test_impossible_values_are_refused(change):
  with pytest.raises(DcjaxError, match=f'references.{next(iter(change))} is'):
    ReferenceConfig(**change)


# ---- the folder ------------------------------------------------------------


def trained(base):
  """A base with random added leaves, and the leaves that training left."""
  fresh = weights.fresh(base, CONFIG, jax.random.key(1))
  transformer = lora.attach(
    fresh.params['transformer'], 'self_attn/q/kernel', 2, jax.random.key(2)
  )
  flat = tree.flatten(transformer)
  pattern = rf'{lib.ADDED}|lora/|self_attn/k/kernel'
  for i, name in enumerate(tree.match(transformer, pattern)):
    if not name.endswith('b2'):
      flat[name] = normal(*flat[name].shape, seed=i)
  transformer = tree.unflatten(flat)
  return transformer, tree.partition(transformer, pattern)[0]


def test_what_is_saved_is_put_back(tmp_path):
  base = tiny.base()
  transformer, leaves = trained(base)
  weights.save(tmp_path, base, CONFIG, leaves, dtype=np.float32)
  equipped = weights.equip(base, tmp_path)
  assert equipped.reference == CONFIG
  assert tiny.equal(equipped.params['transformer'], lora.fuse(transformer))
  # What the base was stays as it was.
  assert base.reference is None
  assert 'reference' not in base.params['transformer']


def test_a_base_without_references_says_so():
  with pytest.raises(DcjaxError, match='has no trained references'):
    weights.equip(tiny.base())


def test_the_folder_of_another_base_is_refused(tmp_path):
  base = tiny.base()
  weights.save(tmp_path, base, CONFIG, trained(base)[1])
  with pytest.raises(DcjaxError, match='was trained on'):
    weights.equip(tiny.base(seed=1), tmp_path)


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda x: x.pop('reference/index'), '- reference/index'),
    (lambda x: x.update(other=np.zeros(2, np.float32)), r'\+ other'),
    (
      lambda x: x.update({'reference/index': np.zeros((2, 2), np.float32)}),
      '~ reference/index',
    ),
    (
      lambda x: x.pop('blocks/self_attn/q/lora/a1'),
      'LoRA of no layer',
    ),
  ],
)
def test_tensors_must_fit(tmp_path, change, says):
  base = tiny.base()
  leaves = tree.flatten(trained(base)[1])
  change(leaves)
  weights.save(tmp_path, base, CONFIG, tree.unflatten(leaves))
  with pytest.raises(DcjaxError, match=says):
    weights.equip(base, tmp_path)


def test_another_version_is_refused(tmp_path):
  base = tiny.base()
  weights.save(tmp_path, base, CONFIG, trained(base)[1])
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'version': 9}))
  with pytest.raises(DcjaxError, match='not version 1'):
    weights.equip(base, tmp_path)
