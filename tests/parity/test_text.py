"""The text encoder and its tokenizer against transformers, random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.data import tokenizer as tokenizer_lib
from dcjax.models.text import TextConfig, UMT5Encoder, position_buckets
from dcjax.weights import names

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
safetensors_numpy = pytest.importorskip('safetensors.numpy')

# Heads that fill the width, are wider than it, and are narrower.
EVEN = dict(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_heads=4)
WIDE = dict(vocab_size=30, d_model=12, d_kv=16, d_ff=20, num_heads=3)
NARROW = dict(
  vocab_size=50,
  d_model=32,
  d_kv=4,
  d_ff=16,
  num_heads=2,
  relative_attention_num_buckets=16,
  relative_attention_max_distance=40,
  layer_norm_epsilon=1e-3,
)
CASES = [
  (EVEN, 2, (9, 4)),
  (EVEN, 1, (1,)),
  (WIDE, 3, (200, 129, 40)),
  (NARROW, 2, (60, 60)),
]


def _peer(raw, layers, seed=0):
  """transformers' encoder in which every parameter is random and matters."""
  torch.manual_seed(seed)
  config = transformers.UMT5Config(**raw, num_layers=layers)
  peer = transformers.UMT5EncoderModel(config).eval()
  with torch.no_grad():
    for name, x in peer.named_parameters():
      if 'norm' in name:
        x.uniform_(0.5, 1.5)
      elif 'bias' in name:
        x.normal_(std=2.0)
  return peer


def _inputs(lengths, vocabulary):
  rng = np.random.default_rng(0)
  ids = rng.integers(0, vocabulary, (len(lengths), max(lengths)))
  mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
  return ids.astype(np.int32), mask


def _ours(config, tensors):
  table = names.text_table(config)
  model = UMT5Encoder(config)
  ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, 4), jnp.bool_)
  expected = jax.eval_shape(model.init, jax.random.key(0), ids, mask)
  tensors = names.without_tied_text(tensors)
  return names.read_tensors(table, tensors, expected['params'], what='peer')


def _features(config, params, ids, mask, dtype=jnp.float32):
  model = UMT5Encoder(config, dtype)
  return np.asarray(jax.jit(model.apply)({'params': params}, ids, mask))


def _peer_features(peer, ids, mask):
  with torch.no_grad():
    out = peer(torch.tensor(ids).long(), torch.tensor(mask).long())
  return out.last_hidden_state.float().numpy()


def _error(x, y):
  return np.abs(x - y).max() / np.abs(y).max()


@pytest.mark.parametrize('raw,layers,lengths', CASES)
def test_features(raw, layers, lengths):
  peer = _peer(raw, layers)
  config = TextConfig.from_json(peer.config.to_dict())
  params = _ours(config, {k: x.numpy() for k, x in peer.state_dict().items()})
  ids, mask = _inputs(lengths, raw['vocab_size'])
  ours = _features(config, params, ids, mask)
  assert ours.dtype == np.float32
  assert _error(ours, _peer_features(peer, ids, mask)) < 1e-5


@pytest.mark.parametrize('mlp', ['relu', 'gated-gelu'])
def test_t5_shares_one_position_bias(mlp, tmp_path):
  """T5 1.0 and 1.1, features and both directions of the files."""
  torch.manual_seed(0)
  config = transformers.T5Config(**WIDE, num_layers=2, feed_forward_proj=mlp)
  peer = transformers.T5EncoderModel(config).eval()
  with torch.no_grad():
    for name, x in peer.named_parameters():
      x.normal_(mean='norm' in name, std=2.0 if 'bias' in name else 0.3)
  config = TextConfig.from_json(peer.config.to_dict())
  assert config.shares_bias and config.gated == (mlp == 'gated-gelu')
  params = _ours(config, {k: x.numpy() for k, x in peer.state_dict().items()})
  ids, mask = _inputs((40, 9), WIDE['vocab_size'])
  wanted = _peer_features(peer, ids, mask)
  assert _error(_features(config, params, ids, mask), wanted) < 1e-5
  assert params['position_bias'].shape == (32, WIDE['num_heads'])
  tensors = names.write_tensors(names.text_table(config), params)
  safetensors_numpy.save_file(
    tensors, tmp_path / 'model.safetensors', metadata={'format': 'pt'}
  )
  (tmp_path / 'config.json').write_text(json.dumps(config.to_json()))
  again = transformers.T5EncoderModel.from_pretrained(tmp_path).eval()
  np.testing.assert_array_equal(_peer_features(again, ids, mask), wanted)


def test_weights_stored_in_bfloat16(tmp_path):
  peer = _peer(EVEN, 2).to(torch.bfloat16)
  peer.save_pretrained(tmp_path)
  tensors = safetensors_numpy.load_file(tmp_path / 'model.safetensors')
  config = TextConfig.from_json(
    json.loads((tmp_path / 'config.json').read_text())
  )
  params = _ours(config, tensors)
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
  ids, mask = _inputs((20, 7), EVEN['vocab_size'])
  exact = _peer_features(peer.float(), ids, mask)
  assert _error(_features(config, params, ids, mask), exact) < 1e-5
  coarse = _features(config, params, ids, mask, jnp.bfloat16)
  assert 1e-5 < _error(coarse, exact) < 3e-2


def test_what_we_write_transformers_reads(tmp_path):
  peer = _peer(WIDE, 2)
  config = TextConfig.from_json(peer.config.to_dict())
  params = _ours(config, {k: x.numpy() for k, x in peer.state_dict().items()})
  tensors = names.write_tensors(names.text_table(config), params)
  safetensors_numpy.save_file(
    tensors, tmp_path / 'model.safetensors', metadata={'format': 'pt'}
  )
  (tmp_path / 'config.json').write_text(json.dumps(config.to_json()))
  again, report = transformers.UMT5EncoderModel.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report[k] for k in ('missing_keys', 'unexpected_keys'))
  assert TextConfig.from_json(again.config.to_dict()) == config
  ids, mask = _inputs((12, 5), WIDE['vocab_size'])
  np.testing.assert_array_equal(
    _peer_features(again.eval(), ids, mask), _peer_features(peer, ids, mask)
  )


@pytest.mark.parametrize('keep', ['both', 'shared', 'tied'])
def test_the_embedding_under_either_name(keep):
  x = np.ones((2, 3))
  tensors = {'shared.weight': x, 'encoder.embed_tokens.weight': x, 'other': x}
  if keep == 'shared':
    del tensors['encoder.embed_tokens.weight']
  elif keep == 'tied':
    del tensors['shared.weight']
  assert sorted(names.without_tied_text(tensors)) == ['other', 'shared.weight']


@pytest.mark.parametrize(
  'buckets,distance', [(32, 128), (16, 40), (64, 256), (8, 20), (32, 9)]
)
def test_position_buckets(buckets, distance):
  config = transformers.UMT5Config(
    relative_attention_num_buckets=buckets,
    relative_attention_max_distance=distance,
  )
  attention = transformers.models.umt5.modeling_umt5.UMT5Attention(config)
  place = torch.arange(600)
  theirs = attention._relative_position_bucket(place[None] - place[:, None])
  ours = position_buckets(600, buckets=buckets, max_distance=distance)
  np.testing.assert_array_equal(ours, theirs.numpy())


def test_tokenizer_survives_every_loader(tmp_path):
  built = tokenizer_lib.build_word_tokenizer(['a', 'red', 'ball'], length=9)
  built.save_pretrained(tmp_path)
  prompt = 'A RED ball, a <extra_id_1> zebra.'
  expected = [5, 6, 7, 4, 5, 9, 2, 3, 1]
  for load in (
    lambda: built,
    lambda: tokenizer_lib.load_tokenizer(tmp_path),
    lambda: transformers.AutoTokenizer.from_pretrained(tmp_path),
    lambda: transformers.T5Tokenizer.from_pretrained(tmp_path),
    lambda: transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
  ):
    tokenizer = load()
    assert tokenizer(prompt)['input_ids'] == expected
    assert tokenizer.model_max_length == 9


@pytest.mark.parametrize(
  'prompt', ['a red ball', '', 'a  red &amp;amp; ball ' + 'red ' * 12]
)
def test_tokens_are_those_of_the_wan_pipeline(prompt):
  pipeline = pytest.importorskip('diffusers.pipelines.wan.pipeline_wan')
  tokenizer = tokenizer_lib.build_word_tokenizer(['a', 'red', 'ball'])
  assert tokenizer_lib.clean(prompt) == pipeline.prompt_clean(prompt)
  theirs = tokenizer(
    [pipeline.prompt_clean(prompt)],
    padding='max_length',
    max_length=8,
    truncation=True,
    add_special_tokens=True,
    return_attention_mask=True,
    return_tensors='np',
  )
  ids, mask = tokenizer_lib.tokenize(tokenizer, prompt, 8)
  np.testing.assert_array_equal(ids, theirs['input_ids'])
  np.testing.assert_array_equal(mask, theirs['attention_mask'])
