"""Learned words, their vectors, the tokenizer and the text encoder."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.data import prompts
from dcjax.data import tokenizer as tokenizer_lib
from dcjax.errors import DcjaxError
from dcjax.models.text import TextConfig, UMT5Encoder

WORDS = 'a red blue ball star on moves bounces background'.split()
TINY = TextConfig(
  vocab_size=24, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2
)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizer_lib.build_word_tokenizer(WORDS)


@pytest.fixture(scope='module')
def encoder():
  model = UMT5Encoder(TINY)
  ids = jnp.zeros((1, 4), jnp.int32)
  return model, jax.jit(model.init)(jax.random.key(0), ids, ids == 0)


def _one_line(error):
  return len(str(error.value).splitlines()) == 1


# The tokenizer.


def test_ids_of_the_word_tokenizer(tokenizer):
  ids = tokenizer_lib.word_ids(tokenizer, ['.', ',', *WORDS])
  assert list(ids.values()) == list(range(3, 5 + len(WORDS)))
  assert len(tokenizer) == 5 + len(WORDS) + tokenizer_lib.EXTRA_IDS
  got, mask = tokenizer_lib.tokenize(
    tokenizer, ['A red ball, on a Background.', ''], 12
  )
  words = ['a', 'red', 'ball', ',', 'on', 'a', 'background', '.']
  np.testing.assert_array_equal(
    got, [[ids[w] for w in words] + [1, 0, 0, 0], [1] + [0] * 11]
  )
  np.testing.assert_array_equal(mask, np.arange(12) < np.array([[9], [1]]))
  assert got.dtype == np.int32 and mask.dtype == bool


def test_unknown_words_are_one_unk_and_named(tokenizer, caplog):
  with caplog.at_level(logging.WARNING):
    ids, _ = tokenizer_lib.tokenize(tokenizer, 'a zebra on a red qqq ball.', 9)
  a, red, on = (tokenizer.get_vocab()[f'▁{w}'] for w in ('a', 'red', 'on'))
  assert ids[0].tolist()[:6] == [a, 2, on, a, red, 2]
  assert "'qqq', 'zebra'" in caplog.text


def test_cut_text_is_named(tokenizer, caplog):
  with caplog.at_level(logging.WARNING):
    ids, mask = tokenizer_lib.tokenize(tokenizer, 'a red ball on a star', 5)
  assert ids[0, -1] == tokenizer.eos_token_id and mask.all()
  assert 'cut off: a star' in caplog.text


@pytest.mark.parametrize('words', [['red', 'red'], ['Red'], ['a b'], ['']])
def test_malformed_words(words):
  with pytest.raises(ValueError, match='distinct'):
    tokenizer_lib.build_word_tokenizer(words)


def test_not_a_tokenizer(tmp_path, tokenizer):
  with pytest.raises(DcjaxError, match='expected a folder') as error:
    tokenizer_lib.load_tokenizer(tmp_path)
  assert _one_line(error)
  (tmp_path / 'tokenizer.json').write_text('{"half a')
  with pytest.raises(DcjaxError, match='transformers can read') as error:
    tokenizer_lib.load_tokenizer(tmp_path)
  assert _one_line(error)
  with pytest.raises(DcjaxError, match='zebra'):
    tokenizer_lib.word_ids(tokenizer, ['red', 'zebra'])


def test_clean():
  assert tokenizer_lib.clean(' a &amp;lt; b\n\t c ') == 'a < b c'


# Learned words.


def test_parse():
  text, words = prompts.parse('a [v] cat doing [u] boxing')
  assert text == 'a <extra_id_0> cat doing <extra_id_1> boxing'
  assert words == ['v', 'u']
  text, words = prompts.parse('[v2] [v1]', {'v1': 1, 'v2': 2})
  assert text == '<extra_id_0><extra_id_0> <extra_id_0>'
  assert words == ['v2', 'v1']
  assert prompts.parse('[wide shot] of it')[1] == []


@pytest.mark.parametrize(
  'prompt,sizes,reason',
  [
    ('a [V] cat', None, r'\[V\].*expected'),
    ('a [x1] cat', None, r'\[x1\]'),
    ('a [v0] cat', None, r'\[v0\]'),
    ('a [u] cat', {'v': 1}, r'\[u\].*known: \[v\]'),
    ('a [u] cat', {}, 'known: none'),
    ('a <extra_id_3> cat', None, 'sentinel'),
  ],
)
def test_parse_refuses(prompt, sizes, reason):
  with pytest.raises(DcjaxError, match=reason) as error:
    prompts.parse(prompt, sizes)
  assert _one_line(error)


def test_slots_follow_the_names(tokenizer):
  sizes = {'v1': 2, 'u': 1, 'v2': 1}  # rows: u 0, v1 1-2, v2 3
  encoded = prompts.encode(
    tokenizer, ['a [v2] ball on [v1] star [u]', 'a red ball'], 10, sizes
  )
  np.testing.assert_array_equal(
    encoded.slots, [[-1, 3, -1, -1, 1, 2, -1, 0, -1, -1], [-1] * 10]
  )


def test_other_words_do_not_depend_on_the_number(tokenizer):
  one = prompts.encode(tokenizer, 'a [v] ball', 8, {'v': 2})
  other = prompts.encode(tokenizer, 'a [v7] ball', 8, {'v7': 2, 'v': 2})
  np.testing.assert_array_equal(one.ids, other.ids)
  assert one.slots.max() == 1 and other.slots.max() == 3


def test_a_learned_word_beyond_the_limit(tokenizer):
  with pytest.raises(DcjaxError, match='too long') as error:
    prompts.encode(tokenizer, 'a red ball on a [v] star', 6)
  assert _one_line(error)
  prompts.encode(tokenizer, 'a [v] ball on a red star', 6)


def test_a_tokenizer_without_sentinels():
  transformers = pytest.importorskip('transformers')
  vocab = [(p, 0.0) for p in ('<pad>', '</s>', '<unk>', '▁a')]
  bare = transformers.T5Tokenizer(vocab=vocab, extra_ids=0)
  with pytest.raises(DcjaxError, match='T5'):
    prompts.encode(bare, 'a [v]', 8)


def test_place_and_its_gradient(tokenizer):
  tokens = {'v': 10.0 + jnp.arange(8.0).reshape(2, 4), 'u': -jnp.ones((1, 4))}
  encoded = prompts.encode(
    tokenizer, ['a [v] ball moves [u]', 'a star'], 8, prompts.sizes_of(tokens)
  )
  features = jax.random.normal(jax.random.key(0), (2, 8, 4))
  placed = prompts.place(features, tokens, encoded.slots)
  np.testing.assert_array_equal(placed[0, 1:3], tokens['v'])
  np.testing.assert_array_equal(placed[0, 5], tokens['u'][0])
  kept = encoded.slots < 0
  np.testing.assert_array_equal(placed[kept], features[kept])

  weights = jax.random.normal(jax.random.key(1), features.shape)
  grads = jax.grad(
    lambda x: jnp.sum(weights * prompts.place(features, x, encoded.slots))
  )(tokens)
  np.testing.assert_allclose(grads['v'], weights[0, 1:3])
  np.testing.assert_allclose(grads['u'], weights[0, 5:6])
  np.testing.assert_array_equal(
    prompts.place(features, {}, np.full((2, 8), -1)), features
  )


def test_place_keeps_the_dtype_of_the_features():
  features = jnp.ones((1, 2, 4), jnp.bfloat16)
  slots = jnp.array([[0, -1]])
  placed = prompts.place(features, {'v': jnp.zeros((1, 4))}, slots)
  assert placed.dtype == jnp.bfloat16
  assert placed.astype(jnp.float32).sum() == 4


def test_drop_rows():
  features, mask = jnp.ones((64, 48, 3)), jnp.arange(48)[None, :] < 40
  mask = jnp.broadcast_to(mask, (64, 48))
  keys = jax.random.split(jax.random.key(0), 64)
  dropped = prompts.drop_rows(keys, features, mask, 0.1)
  rows = np.asarray(dropped.sum(-1))
  assert set(np.unique(rows)) == {0.0, 3.0}
  assert np.all(rows[:, 40:] == 0)
  assert abs((rows[:, :40] == 0).mean() - 0.1) < 0.02
  np.testing.assert_array_equal(
    prompts.drop_rows(keys, features, mask, 0.0),
    prompts.zero_padding(features, mask),
  )


def test_training_prompts():
  prompts.check_training_prompts('a [v] cat', 'it is [u] boxing')
  prompts.check_training_prompts('a [v1] cat', 'it [u1] boxes', concept='1')


@pytest.mark.parametrize(
  'appearance,motion,reason',
  [
    ('a cat', 'it [u] boxes', r'appearance.*\[v\] 0 times'),
    ('a [v] [v] cat', 'it [u] boxes', r'appearance.*\[v\] 2 times'),
    ('a [v] cat', 'it boxes', r'motion.*\[u\] 0 times'),
    ('a [v] cat', 'it [u] [u] boxes', r'motion.*\[u\] 2 times'),
    ('a [v] cat', 'the [v] cat [u] boxes', r'motion.*\[v\].*alone'),
    ('a [v] cat [u]', 'it [u] boxes', r'appearance.*\[u\].*alone'),
    ('a [v1] cat', 'it [u] boxes', r'appearance.*\[v\] 0 times'),
    ('', 'it [u] boxes', 'appearance'),
  ],
)
def test_training_prompts_refused(appearance, motion, reason):
  with pytest.raises(DcjaxError, match=reason) as error:
    prompts.check_training_prompts(appearance, motion)
  assert _one_line(error)


def test_join():
  assert prompts.join('a [v] cat ', ' it [u] boxes.') == (
    'a [v] cat. it [u] boxes.'
  )
  assert prompts.join('a [v] cat.', 'it [u] boxes') == 'a [v] cat. it [u] boxes'
  assert prompts.join('', 'it [u] boxes') == 'it [u] boxes'


@pytest.mark.parametrize('noun', ['cat', 'woman', 'old dancer', 'owl'])
def test_prior_prompts(noun):
  pairs = prompts.prior_prompts(noun, 64)
  assert len(set(pairs)) == 64
  for appearance, motion in pairs:
    assert noun in appearance and noun in motion
    assert appearance.startswith('An o' if noun[0] == 'o' else f'A {noun}')
  person = any('coat' in appearance for appearance, _ in pairs)
  assert person == (noun in ('woman', 'old dancer'))


def test_prior_prompts_refuse_a_learned_word():
  with pytest.raises(DcjaxError, match='class noun'):
    prompts.prior_prompts('[v] cat')


# The encoder, apart from its parity.


def test_features_do_not_depend_on_padding(encoder):
  model, params = encoder
  ids = jax.random.randint(jax.random.key(1), (2, 7), 0, TINY.vocab_size)
  mask = jnp.array([[True] * 4 + [False] * 3, [True] * 7])
  apply = jax.jit(model.apply)
  whole = apply(params, ids, mask)
  other = apply(params, jnp.where(mask, ids, 5), mask)
  short = apply(params, ids[:1, :4], mask[:1, :4])
  np.testing.assert_allclose(whole[0, :4], other[0, :4], atol=1e-6)
  np.testing.assert_allclose(whole[:1, :4], short, atol=1e-5)


def test_gradient_reaches_every_parameter_and_the_input_rows(encoder):
  model, params = encoder
  ids = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
  mask = jnp.ones((2, 6), bool)
  weights = jax.random.normal(jax.random.key(2), (2, 6, TINY.d_model))

  def loss(params):
    return jnp.sum(weights * model.apply(params, ids, mask))

  for grad in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(grad).all() and np.any(grad != 0)

  def in_two_steps(params):
    rows = model.apply(params, ids, method='embed')
    return model.apply(params, rows, mask, method='encode')

  np.testing.assert_allclose(
    jnp.sum(weights * jax.jit(in_two_steps)(params)),
    jax.jit(loss)(params),
    rtol=1e-5,
  )


def test_init_keeps_attention_soft(encoder):
  """Queries start small, in place of the scale that T5 attention lacks."""
  _, params = encoder
  attention = params['params']['layers']['attn']
  q, k = (np.std(attention[name]['kernel']) for name in 'qk')
  assert abs(q / k * TINY.d_kv**0.5 - 1) < 0.3


@pytest.mark.parametrize(
  'config,reason',
  [
    ({'feed_forward_proj': 'gelu'}, "feed_forward_proj 'gelu'.*gated-gelu"),
    ({'model_type': 'bert'}, "model_type 'bert'.*umt5"),
    ({'num_layers': 0}, 'num_layers is 0'),
    ({'d_model': '512'}, "d_model is '512'"),
    ({'layer_norm_epsilon': None}, 'layer_norm_epsilon is None'),
    ({'relative_attention_num_buckets': 6}, 'multiple of 4'),
    ({'relative_attention_max_distance': 8}, 'max_distance'),
  ],
)
def test_config_refuses(config, reason):
  with pytest.raises(DcjaxError, match=reason) as error:
    TextConfig.from_json(config)
  assert _one_line(error)


def test_config_round_trip():
  assert TextConfig.from_json(TINY.to_json()) == TINY
  assert TextConfig.from_json({}).num_heads == 6
  assert hash(TINY) == hash(TextConfig.from_json(TINY.to_json()))
