"""The concept file and what is done with concepts."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import tiny

from dcjax import lora, sampling, tree
from dcjax.concept import Concept, join
from dcjax.errors import DcjaxError

TARGETS = r'(attn/[qv]|mlp/up)/kernel'
META = {
  'prompts': {'appearance': 'a [v] cat', 'motion': 'the cat jumps [u]'},
  'stages': [{'name': 'set', 'steps': 600}, {'name': 'sequence', 'steps': 900}],
  'metrics': {'loss': 0.125},
}


@pytest.fixture(scope='module')
def base():
  return tiny.base()


def trained(base, seed=0, *, side='in', targets=TARGETS, words=('v', 'u')):
  """Parameters as training leaves them."""
  p = lora.attach(
    base.params['transformer'], targets, 3, jax.random.key(seed), side=side
  )
  rng = np.random.default_rng(seed)
  flat = {
    name: rng.normal(size=x.shape).astype(np.float32) * 0.1
    if name.rsplit('/', 1)[-1] in ('b1', 'b2')
    else x
    for name, x in tree.flatten(p).items()
  }
  tokens = {w: rng.normal(size=(2, 16)).astype(np.float32) for w in words}
  return {'transformer': tree.unflatten(flat), 'tokens': tokens}


def concept(base, seed=0, **kwargs):
  return Concept.from_params(trained(base, seed, **kwargs), base, META)


def fused(base, c):
  """The transformer's kernels with a concept in them, flat."""
  return tree.flatten(
    lora.fuse(c.put_into(base, base.params['transformer'])[0])
  )


def equal(a, b):
  a, b = tree.flatten(a), tree.flatten(b)
  return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


# ---- into and out of parameters --------------------------------------------


@pytest.mark.parametrize('side', ['in', 'out'])
def test_put_into_restores_what_was_trained(base, side):
  params = trained(base, side=side)
  c = Concept.from_params(params, base, META)
  assert all('/lora/' in name for name in tree.names(c.lora))
  assert c.meta['base'] == {'name': 'tiny', 'fingerprint': base.fingerprint}
  assert c.meta['rank'] == 3 and c.meta['metrics'] == {'loss': 0.125}
  transformer, tokens = c.put_into(base, base.params['transformer'])
  assert equal(transformer, params['transformer'])
  assert equal(tokens, params['tokens'])
  # The base itself is as it was.
  assert not any('lora' in n for n in tree.names(base.params['transformer']))


def test_scaled_weighs_look_and_motion(base):
  c = concept(base)
  flat = tree.flatten(c.lora)
  kernels = tree.flatten(base.params['transformer'])
  got = fused(base, c.scaled(0.5, -2.0))
  name = 'blocks/mlp/up'
  a1, b1, b2 = (flat[f'{name}/lora/{leaf}'] for leaf in lora.LEAVES)
  want = kernels[f'{name}/kernel'] + 0.5 * a1 @ b1 - 2.0 * a1 @ b2
  np.testing.assert_allclose(got[f'{name}/kernel'], want, atol=1e-6)
  # Scaling says what the weights are, not by how much they change.
  assert c.scaled(0.5, 2.0).scaled(1.0, 1.0).identity == 1.0
  both = c.scaled(0.5, 2.0).times(1.0, 0.5)
  assert (both.identity, both.motion) == (0.5, 1.0)
  assert equal(fused(base, c.scaled(0.0, 0.0)), kernels)
  with pytest.raises(DcjaxError, match='motion is nan, expected a number'):
    c.scaled(1.0, float('nan'))


def test_words_alone_are_a_concept(base):
  params = {'tokens': trained(base)['tokens']}
  c = Concept.from_params({**base.params, **params}, base)
  transformer, tokens = c.put_into(base, base.params['transformer'])
  assert equal(transformer, base.params['transformer'])
  assert set(tokens) == {'v', 'u'} and c.meta['rank'] == 0


def test_from_params_refuses_nothing_and_nan(base):
  with pytest.raises(DcjaxError, match='neither LoRA leaves nor learned words'):
    Concept.from_params(base.params, base)
  params = trained(base)
  params['tokens']['v'][0, 0] = np.inf
  with pytest.raises(DcjaxError, match='v holds numbers that are not finite'):
    Concept.from_params(params, base)


def test_another_base_is_named(base):
  other = tiny.base(seed=1, name='other')
  with pytest.raises(DcjaxError) as error:
    concept(base).put_into(other, other.params['transformer'])
  for text in ("'tiny'", "'other'", base.fingerprint, other.fingerprint):
    assert text in str(error.value)


def test_what_does_not_fit_is_listed(base):
  c = concept(base)
  flat = tree.flatten(base.params['transformer'])
  flat['blocks/mlp/up/kernel'] = flat['blocks/mlp/up/kernel'][..., :-1]
  del flat['blocks/self_attn/q/kernel']
  with pytest.raises(DcjaxError) as error:
    c.put_into(base, tree.unflatten(flat))
  message = str(error.value)
  assert 'no linear layer blocks/self_attn/q' in message
  assert (
    'mlp/up is for a kernel of shape (2, 24, 40), not (2, 24, 39)' in message
  )
  narrow = dataclasses.replace(c, tokens={'v': np.zeros((1, 7))})
  with pytest.raises(DcjaxError, match=r'\[v\] has 7 channels, not 16'):
    narrow.put_into(base, base.params['transformer'])


def test_two_concepts_are_not_put_in_one_after_the_other(base):
  c = concept(base)
  transformer, tokens = c.put_into(base, base.params['transformer'])
  with pytest.raises(DcjaxError, match='put several in at once'):
    c.put_into(base, transformer, {})
  with pytest.raises(DcjaxError, match=r'already: \[u\], \[v\]'):
    c.put_into(base, base.params['transformer'], tokens)


# ---- the file --------------------------------------------------------------


@pytest.mark.parametrize('side', ['in', 'out'])
def test_save_and_load_are_inverse(base, tmp_path, side):
  c = concept(base, side=side).scaled(0.7, 1.2)
  c.save(tmp_path / 'new' / 'concept.safetensors')
  back = Concept.load(tmp_path / 'new' / 'concept.safetensors')
  assert equal(back.lora, c.lora) and equal(back.tokens, c.tokens)
  assert back.meta == c.meta
  assert (back.identity, back.motion) == (0.7, 1.2)
  assert equal(fused(base, back), fused(base, c))
  assert [p.name for p in (tmp_path / 'new').iterdir()] == [
    'concept.safetensors'
  ]


def test_a_concept_may_carry_frames(base, tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
  c = Concept.from_params(trained(base), base, META, frames)
  c.save(tmp_path / 'c')
  np.testing.assert_array_equal(Concept.load(tmp_path / 'c').frames, frames)
  assert c.scaled(0.5).frames is frames
  assert concept(base).frames is None
  assert join([c, concept(base, 1)]).frames is None
  with pytest.raises(DcjaxError, match=r'frames are float32 .* not uint8'):
    Concept.from_params(trained(base), base, META, frames.astype(np.float32))


def test_the_keys_are_the_documented_ones(base, tmp_path):
  path = concept(base, targets='cross_attn/q/kernel').save(tmp_path / 'c')
  shapes = {key: x.shape for key, x in load_file(path).items()}
  assert shapes == {
    'lora/blocks/cross_attn/q/a1': (2, 24, 3),
    'lora/blocks/cross_attn/q/b1': (2, 3, 24),
    'lora/blocks/cross_attn/q/b2': (2, 3, 24),
    'tokens/u': (2, 16),
    'tokens/v': (2, 16),
  }


def test_equal_concepts_give_equal_bytes_in_any_process(base, tmp_path):
  path = concept(base).save(tmp_path / 'a.safetensors')
  again = tmp_path / 'b.safetensors'
  program = (
    'import sys; from dcjax.concept import Concept;'
    'Concept.load(sys.argv[1]).save(sys.argv[2])'
  )
  subprocess.run([sys.executable, '-c', program, path, again], check=True)
  assert again.read_bytes() == path.read_bytes()


def test_a_failed_save_leaves_the_old_file(base, tmp_path, monkeypatch):
  path = concept(base).save(tmp_path / 'c.safetensors')
  old = path.read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(DcjaxError, match='cannot write .* No space left'):
    concept(base, seed=1).save(path)
  assert path.read_bytes() == old
  assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_none(tmp_path, base):
  with pytest.raises(DcjaxError, match='there is no file .*gone'):
    Concept.load(tmp_path / 'gone.safetensors')
  whole = concept(base).save(tmp_path / 'c').read_bytes()
  for i, data in enumerate((b'', b'PK\x03\x04 pickle', whole[:-9], whole[:50])):
    path = tmp_path / f'broken{i}'
    path.write_bytes(data)
    with pytest.raises(DcjaxError, match='is not a whole safetensors file'):
      Concept.load(path)


def test_numbers_of_eight_bits_are_named(tmp_path):
  entry = {'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [0, 4]}
  text = json.dumps({'lora/q/a1': entry}).encode()
  path = tmp_path / 'c'
  path.write_bytes(len(text).to_bytes(8, 'little') + text + bytes(4))
  with pytest.raises(DcjaxError, match='q/a1 is of type F8_E4M3; expected F32'):
    Concept.load(path)


def test_other_weights_are_refused_by_name(tmp_path):
  key = 'transformer.blocks.0.attn1.to_q.lora_A.weight'
  save_file({key: np.zeros((2, 3))}, tmp_path / 'half', {'format': 'pt'})
  with pytest.raises(DcjaxError, match=r'attn1.to_q: lora_B.* \(missing\)'):
    Concept.load(tmp_path / 'half')
  key = 'transformer.blocks.0.attn1.to_q.weight'
  save_file({key: np.zeros((2, 3))}, tmp_path / 'whole', {'format': 'pt'})
  with pytest.raises(DcjaxError, match=f'not a dcjax concept .*{key}'):
    Concept.load(tmp_path / 'whole')


def head(**changes):
  where = {'name': 'tiny', 'fingerprint': 'f'}
  meta = {'format': 'dcjax concept', 'version': 1, 'rank': 2, 'base': where}
  meta |= changes
  return {k: json.dumps(x) for k, x in meta.items() if x is not None}


LAYER = {
  'lora/q/a1': np.zeros((6, 2), np.float32),
  'lora/q/b1': np.zeros((2, 5), np.float32),
  'lora/q/b2': np.zeros((2, 5), np.float32),
}


@pytest.mark.parametrize(
  'meta, tensors, says',
  [
    ({'version': 2}, {}, 'of version 2; this dcjax reads version 1'),
    ({'base': None}, {}, 'does not say on which base'),
    ({'base': 'tiny'}, {}, 'does not say on which base'),
    ({'identity': 'much'}, {}, "identity 'much'"),
    ({'rank': 4}, {}, 'says that its rank is 4, but that of its LoRA is 2'),
    ({}, {'lora/q/c1': 0, 'extra': 0}, 'unknown keys: .*lora/q/c1'),
    ({}, {'lora/q/alpha': np.zeros(())}, 'unknown keys: lora/q/alpha'),
    ({}, {'lora/k/a1': np.zeros((6, 2))}, 'k lacks b1, b2'),
    ({}, {'lora/q/b2': np.zeros((3, 5))}, r'b2 \(3, 5\) do not fit'),
    ({}, {'lora/q/a1': np.zeros((6, 3))}, r'a1 \(6, 3\), .* do not fit'),
    ({}, {'tokens/v': np.zeros(3)}, r'\[v\] is \(3,\), expected \(n, d\)'),
    ({}, {'tokens/w': np.zeros((1, 3))}, r'\[w\] is not a learned word'),
    ({}, {'tokens/v': np.full((1, 3), np.nan)}, 'v holds numbers'),
    ({}, {'frames': np.zeros((2, 4, 4, 3))}, 'frames are float32'),
  ],
)
def test_load_says_what_is_wrong(tmp_path, meta, tensors, says):
  tensors = {k: np.asarray(x, np.float32) for k, x in (LAYER | tensors).items()}
  save_file(tensors, tmp_path / 'c', head(**meta))
  with pytest.raises(DcjaxError, match=says) as error:
    Concept.load(tmp_path / 'c')
  assert '\n' not in str(error.value)


# ---- several ---------------------------------------------------------------


def test_join_adds_the_updates(base):
  """Also of concepts whose bases are on different sides, or other layers."""
  several = [
    concept(base, 1),
    concept(base, 2, side='out').scaled(0.5, 2.0),
    concept(base, 3, targets='cross_attn/o/kernel').scaled(1.0, 0.0),
  ]
  kernels = tree.flatten(base.params['transformer'])
  want = {
    name: x + sum(np.asarray(fused(base, c)[name]) - x for c in several)
    for name, x in kernels.items()
  }
  got = fused(base, join(several))
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_join_keeps_look_and_motion_apart(base):
  several = [concept(base, 1), concept(base, 2, side='out')]
  got = fused(base, join(several).scaled(1.0, 0.0))
  want = fused(base, join([c.scaled(1.0, 0.0) for c in several]))
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_join_numbers_the_words(base):
  one, two = concept(base, 1), concept(base, 2, words=('v',))
  tokens = join([one, two]).tokens
  assert sorted(tokens) == ['u1', 'v1', 'v2']
  assert tokens['v1'] is one.tokens['v'] and tokens['v2'] is two.tokens['v']
  assert tokens['u1'] is one.tokens['u']
  # Without words of its own, a concept still counts; learnt as two, twice.
  none, pair = concept(base, 3, words=()), concept(base, 4, words=('v1', 'v2'))
  assert sorted(join([none, pair, one]).tokens) == ['u4', 'v2', 'v3', 'v4']
  assert join([one]) is one


def test_a_joined_concept_is_a_concept(base, tmp_path):
  both = join([concept(base, 1), concept(base, 2)])
  assert both.meta['rank'] == 6 and len(both.meta['joined']) == 2
  back = Concept.load(both.save(tmp_path / 'both.safetensors'))
  assert equal(fused(base, back), fused(base, both))
  assert sorted(join([back, concept(base, 3)]).tokens) == [
    f'{kind}{n}' for kind in 'uv' for n in (1, 2, 3)
  ]


def test_join_wants_one_base(base):
  other = tiny.base(seed=1, name='other')
  with pytest.raises(DcjaxError, match="different bases .*'tiny'.*'other'"):
    join([concept(base), concept(other)])
  with pytest.raises(DcjaxError, match='at least one'):
    join([])


def test_join_wants_no_more_rank_than_width(base):
  """Square layers have 24 channels; whose side a basis is on shows in shape."""
  c = concept(base)
  eight = join([c] * 8)
  assert eight.meta['rank'] == 24
  eight.put_into(base, base.params['transformer'])
  with pytest.raises(DcjaxError, match='9 LoRAs .*24 channels have rank 27'):
    join([c] * 9)


# ---- in use ----------------------------------------------------------------


def test_sampling_puts_concepts_in(base):
  def draw(prompt, *concepts):
    return sampling.sample(
      base,
      prompt,
      concepts=concepts,
      frames=1,
      steps=1,
      guidance=1.0,
      sampler='euler',
    )

  one, two = concept(base, 1), concept(base, 2)
  plain = draw('a cat')
  np.testing.assert_array_equal(draw('a cat', one.scaled(0.0, 0.0)), plain)
  assert (draw('a cat', one) != plain).any()
  assert (draw('a [v] cat', one) != draw('a cat', one)).any()
  first, second = draw('a [v1] cat', one, two), draw('a [v2] cat', one, two)
  assert (first != second).any()
  with pytest.raises(DcjaxError, match=r'known: \[u1\], \[u2\], \[v1\]'):
    draw('a [v] cat', one, two)
