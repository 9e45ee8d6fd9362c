"""LoRA files of other tools: written, read back, and read from others."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import tiny

from dcjax import formats, lora, sampling, tree
from dcjax.concept import Concept, join
from dcjax.errors import DcjaxError
from dcjax.recipes import ALL_LINEAR
from dcjax.weights import lora_file
from dcjax.weights.lora_names import STYLES

OTHERS = r'^(time_in|time_out|time_modulation|text_in|text_out|head)/kernel$'


@pytest.fixture(scope='module')
def base():
  return tiny.base()


def concept(base, seed=0, *, side='in', targets=ALL_LINEAR, rank=3):
  """A concept with random look and motion."""
  params = lora.attach(
    base.params['transformer'], targets, rank, jax.random.key(seed), side=side
  )
  rng = np.random.default_rng(seed)
  flat = {
    name: rng.normal(size=x.shape).astype(np.float32) * 0.1
    if name.endswith(('lora/b1', 'lora/b2'))
    else x
    for name, x in tree.flatten(params).items()
  }
  return Concept.from_params({'transformer': tree.unflatten(flat)}, base)


def fused(base, c):
  """The transformer's leaves with a concept in them."""
  return tree.flatten(
    lora.fuse(c.put_into(base, base.params['transformer'])[0])
  )


def write(path, c, style, *, dtype='float32', identity=1.0, motion=1.0):
  pairs = formats.to_pairs(c.lora, identity, motion)
  save_file(formats.to_tensors(pairs, style, dtype), path)
  return path


def same(base, a, b, scale=1.0, atol=1e-5):
  a, b = fused(base, a), fused(base, b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], scale * b[name], atol=atol, rtol=0)


# ---- out and in again --------------------------------------------------------


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('side', ['in', 'out'])
def test_the_merged_weights_come_back(base, tmp_path, style, side):
  c = concept(base, side=side).scaled(0.7, -1.3)
  path = write(tmp_path / 'x', c, style, identity=0.7, motion=-1.3)
  assert lora_file.read(path).style == style
  back = Concept.load(path)
  assert back.meta['rank'] == 3 and not back.tokens
  same(base, back, c)
  # Or agreement would say little.
  with pytest.raises(AssertionError):
    same(base, back, c.scaled(0.7, 1.0))


@pytest.mark.parametrize('side', ['in', 'out'])
def test_look_and_motion_are_two_files_that_add_up(base, tmp_path, side):
  c = concept(base, side=side)
  look = write(tmp_path / 'look', c, 'comfyui', motion=0.0)
  motion = write(tmp_path / 'motion', c, 'diffusers', identity=0.0)
  several = [Concept.load(look).scaled(0.5), Concept.load(motion).scaled(2.0)]
  same(base, join(several), c.scaled(0.5, 2.0))


@pytest.mark.parametrize('style', STYLES)
def test_layers_outside_of_the_blocks_have_names_too(base, tmp_path, style):
  c = concept(base, targets=OTHERS)
  assert len(c.lora) == 6
  same(base, Concept.load(write(tmp_path / 'x', c, style)), c)


def test_the_keys_are_the_documented_ones(base):
  pairs = formats.to_pairs(concept(base).lora)
  keys = {style: formats.to_tensors(pairs, style) for style in STYLES}
  shapes = {
    'transformer.blocks.1.ffn.net.0.proj.lora_A.weight': (3, 24),
    'transformer.blocks.1.ffn.net.0.proj.lora_B.weight': (40, 3),
    'transformer.blocks.0.attn1.to_out.0.lora_A.weight': (3, 24),
    'diffusion_model.blocks.1.ffn.0.lora_down.weight': (3, 24),
    'diffusion_model.blocks.1.cross_attn.o.lora_up.weight': (24, 3),
    'lora_unet_blocks_1_ffn_2.lora_down.weight': (3, 40),
    'lora_unet_blocks_1_self_attn_q.alpha': (),
  }
  together = {k: x for tensors in keys.values() for k, x in tensors.items()}
  assert {key: together[key].shape for key in shapes} == shapes
  # Two layers of ten linear ones; only musubi has an alpha, which is r.
  assert [len(keys[style]) for style in STYLES] == [40, 40, 60]
  alphas = [x for key, x in together.items() if key.endswith('alpha')]
  assert len(alphas) == 20 and all(x == 3 for x in alphas)


def test_one_file_has_one_rank(base, tmp_path):
  """Loaders that take the first layer's for all would be wrong otherwise."""
  c = join(
    [concept(base, 1, targets='self_attn'), concept(base, 2, targets='attn/q')]
  )
  path = write(tmp_path / 'x', c, 'diffusers')
  downs = [x for key, x in load_file(path).items() if 'lora_A' in key]
  assert {x.shape[0] for x in downs} == {6}
  same(base, Concept.load(path), c)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_smaller_dtypes_are_near(base, tmp_path, dtype):
  c = concept(base)
  back = Concept.load(write(tmp_path / 'x', c, 'musubi', dtype=dtype))
  same(base, back, c, atol=0.02)
  assert dtype in lora_file.read(tmp_path / 'x').dtypes


@pytest.mark.parametrize(
  'style,dtype,says',
  [
    ('a1111', 'float32', "style 'a1111'; use one of diffusers"),
    ('musubi', 'int8', "dtype 'int8'; use one of float32"),
  ],
)
def test_unknown_styles_and_dtypes(base, style, dtype, says):
  with pytest.raises(DcjaxError, match=says):
    formats.to_tensors(formats.to_pairs(concept(base).lora), style, dtype)


def test_layers_of_no_other_tool_are_not_exported():
  pairs = {('blocks/modulation/down', 0): pair()}
  with pytest.raises(DcjaxError, match='blocks/modulation/down has no name'):
    formats.to_tensors(pairs, 'diffusers')


def pair(width_in=24, width_out=24, rank=2):
  return lora_file.Pair(
    np.ones((width_in, rank), np.float32), np.ones((rank, width_out))
  )


# ---- files of others ---------------------------------------------------------

RNG = np.random.default_rng(0)
DOWN, UP = RNG.normal(size=(2, 24)), RNG.normal(size=(24, 2))
PEFT = 'transformer.blocks.{}.attn1.to_q.lora_{}.weight'
COMFY = 'diffusion_model.blocks.{}.self_attn.q.'


def layer(down, up, **more):
  f32 = lambda x: np.asarray(x, np.float32)
  return {down: f32(DOWN), up: f32(UP)} | {k: f32(x) for k, x in more.items()}


def whole(**more):
  return layer(PEFT.format(0, 'A'), PEFT.format(0, 'B'), **more)


def update(tensors, path, head=None):
  """What a file does to q of self-attention of block 0: [in out]."""
  save_file(tensors, path, head)
  q = Concept.load(path).lora['blocks']['self_attn']['q']['lora']
  return q['a1'][0] @ q['b1'][0]


SPELLINGS = [
  (PEFT.format(0, 'A'), PEFT.format(0, 'B')),
  (COMFY.format(0) + 'lora_A.weight', COMFY.format(0) + 'lora_B.weight'),
  (COMFY.format(0) + 'lora_down.weight', COMFY.format(0) + 'lora_up.weight'),
  (
    'blocks.0.self_attn.q.lora_A.default.weight',
    'blocks.0.self_attn.q.lora_B.default.weight',
  ),
  (
    'lora_unet__blocks_0_self_attn_q.lora_down.weight',
    'lora_unet__blocks_0_self_attn_q.lora_up.weight',
  ),
  (
    'base_model.model.blocks.0.attn1.to_q.lora_A.weight',
    'base_model.model.blocks.0.attn1.to_q.lora_B.weight',
  ),
]


@pytest.mark.parametrize('down,up', SPELLINGS)
def test_all_spellings_are_read(tmp_path, down, up):
  """Without an alpha the scale is 1; with one it is alpha / r."""
  want = (UP @ DOWN).T
  got = update(layer(down, up), tmp_path / 'x')
  np.testing.assert_allclose(got, want, atol=1e-5)
  alpha = down.rsplit('.lora_', 1)[0] + '.alpha'
  got = update(layer(down, up, **{alpha: 0.5}), tmp_path / 'x')
  np.testing.assert_allclose(got, want / 4, atol=1e-5)


def test_alphas_of_a_peft_config(tmp_path):
  """In the header, of some layers only, or in a file beside it."""
  want = (UP @ DOWN).T
  config = {'transformer.r': 2, 'transformer.lora_alpha': 6.0}
  head = {'lora_adapter_metadata': json.dumps(config)}
  got = update(whole(), tmp_path / 'x', head)
  np.testing.assert_allclose(got, 3 * want, atol=1e-5)
  config |= {'transformer.alpha_pattern': {r'attn1\.to_q': 1.0}}
  head = {'lora_adapter_metadata': json.dumps(config)}
  got = update(whole(), tmp_path / 'x', head)
  np.testing.assert_allclose(got, want / 2, atol=1e-5)
  beside = {'r': 2, 'lora_alpha': 4, 'use_rslora': True}
  (tmp_path / 'adapter_config.json').write_text(json.dumps(beside))
  got = update(layer(*SPELLINGS[-1]), tmp_path / 'x')
  np.testing.assert_allclose(got, 4 / 2**0.5 * want, atol=1e-5)
  head = {'lora_adapter_metadata': json.dumps({'lora_alpha': 'much'})}
  with pytest.raises(DcjaxError, match="lora_alpha is 'much', not a number"):
    update(whole(), tmp_path / 'x', head)


def test_ranks_and_blocks_may_differ(base, tmp_path):
  """Shorter ranks are padded; blocks that are left out stay as they are."""
  tensors = whole() | {
    'transformer.blocks.0.ffn.net.2.lora_A.weight': np.ones((5, 40), 'f'),
    'transformer.blocks.0.ffn.net.2.lora_B.weight': np.ones((24, 5), 'f'),
  }
  save_file(tensors, tmp_path / 'x')
  c = Concept.load(tmp_path / 'x')
  assert c.meta['rank'] == 5 and c.meta['base']['fingerprint'] is None
  before, after = tree.flatten(base.params['transformer']), fused(base, c)
  changed = [name for name in before if (before[name] != after[name]).any()]
  assert sorted(changed) == [
    'blocks/mlp/down/kernel',
    'blocks/self_attn/q/kernel',
  ]
  name = 'blocks/self_attn/q/kernel'
  np.testing.assert_array_equal(after[name][1], before[name][1])
  gap = after[name][0] - before[name][0]
  np.testing.assert_allclose(gap, (UP @ DOWN).T, atol=1e-5)


def test_an_imported_lora_is_a_concept(base, tmp_path):
  """It is saved, weighed, and joined with one of ours."""
  save_file(whole(), tmp_path / 'x')
  c = Concept.load(tmp_path / 'x')
  again = Concept.load(c.scaled(0.5).save(tmp_path / 'y'))
  assert again.meta['imported']['style'] == 'diffusers'
  same(base, again, c.scaled(0.5))
  ours = concept(base, 1)
  for both in (join([ours, c]), join([c, ours])):
    assert both.meta['base']['fingerprint'] == base.fingerprint
    q = 'blocks/self_attn/q/kernel'
    kernel = base.params['transformer']['blocks']['self_attn']['q']['kernel']
    want = fused(base, ours)[q] + fused(base, c)[q] - kernel
    np.testing.assert_allclose(fused(base, both)[q], want, atol=1e-5)


def test_an_imported_lora_is_sampled(base, tmp_path):
  save_file(whole(), tmp_path / 'x')
  c = Concept.load(tmp_path / 'x')
  draw = lambda *concepts: sampling.sample(
    base, 'a cat', concepts=concepts, frames=1, steps=1, guidance=1.0
  )
  assert (draw(c) != draw()).any()


F32 = np.float32
BAD = {
  'DoRA': (
    {'transformer.blocks.0.attn1.to_q.dora_scale': F32(1)},
    r'\+ transformer.*dora_scale \(DoRA, which is not supported\)',
  ),
  'LoHa': ({COMFY.format(0) + 'hada_w1_a': F32(1)}, r'\+ .*hada_w1_a \(LoHa'),
  'LoKr': ({COMFY.format(0) + 'lokr_w1': F32(1)}, r'\+ .*lokr_w1 \(LoKr'),
  'diff': ({COMFY.format(0) + 'diff': F32(1)}, r'\.diff \(a difference of'),
  'diff_b': ({COMFY.format(0) + 'diff_b': F32(1)}, r'\.diff_b \(a difference'),
  'bias': (
    {'transformer.blocks.0.attn1.to_q.lora_B.bias': F32(1)},
    r'\(LoRA of a',
  ),
  'second transformer': (
    {'transformer_2.blocks.0.attn1.to_q.lora_A.weight': F32(1)},
    r'\+ transformer_2.* \(LoRA of a second transformer',
  ),
  'text encoder': (
    {'lora_te_block_0.lora_down.weight': F32(1)},
    r'\(LoRA of a text encoder',
  ),
  'unknown layer': (
    {'transformer.blocks.0.attn9.to_q.lora_A.weight': F32(1)},
    r'\+ .*attn9.* \(not a key of a LoRA of Wan',
  ),
  'image layer': (
    {'transformer.blocks.0.attn2.add_k_proj.lora_A.weight': F32(1)},
    r'add_k_proj.* \(not a key',
  ),
  'one half': (
    {PEFT.format(1, 'A'): np.zeros((2, 24), F32)},
    r'- transformer.blocks.1.attn1.to_q: lora_B/lora_up \(missing\)',
  ),
  'alpha alone': (
    {'transformer.blocks.1.attn1.to_q.alpha': F32(1)},
    r'- transformer.blocks.1.attn1.to_q: lora_A',
  ),
  'ranks': (
    {PEFT.format(0, 'B'): np.zeros((24, 3), F32)},
    r'~ .*lora_B.weight is \(24, 3\), expected \(out, 2\)',
  ),
  'convolution': (
    {PEFT.format(0, 'A'): np.zeros((2, 24, 1, 1), F32)},
    r'~ .*lora_A.weight is \(2, 24, 1, 1\), expected \(rank, in\)',
  ),
  'uneven blocks': (
    {
      PEFT.format(1, 'A'): np.zeros((2, 23), F32),
      PEFT.format(1, 'B'): np.zeros((24, 2), F32),
    },
    r'~ blocks/self_attn/q of block 1 is for a kernel \(23, 24\)',
  ),
  'rank above width': (
    {
      PEFT.format(0, 'A'): np.zeros((25, 24), F32),
      PEFT.format(0, 'B'): np.zeros((24, 25), F32),
    },
    r'~ .* is \(25, 24\): the rank is above the width',
  ),
  'alphas': (
    {'transformer.blocks.0.attn1.to_q.alpha': np.ones(2, F32)},
    r'~ .*alpha is \(2,\), expected one number',
  ),
  'not finite': (
    {PEFT.format(0, 'B'): np.full((24, 2), np.nan, F32)},
    'b1 holds numbers that are not finite',
  ),
  'two styles': (
    {
      COMFY.format(0) + 'lora_A.weight': np.zeros((2, 24), F32),
      COMFY.format(0) + 'lora_B.weight': np.zeros((24, 2), F32),
    },
    'mixes styles of keys: .*to_q.lora_A.weight',
  ),
  'twice': (
    {'transformer.blocks.0.attn1.to_q.lora_down.weight': DOWN.astype(F32)},
    r'\+ .*lora_\w+.weight \(the same as ',
  ),
  'a broken config': ({}, 'its LoRA metadata is not JSON'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_file_is_read_whole_or_not_at_all(tmp_path, name):
  tensors, says = BAD[name]
  tensors = whole() | {key: np.asarray(x) for key, x in tensors.items()}
  head = {'lora_adapter_metadata': '{'} if name == 'a broken config' else None
  save_file(tensors, tmp_path / 'x', head)
  with pytest.raises(DcjaxError, match=says) as error:
    Concept.load(tmp_path / 'x')
  assert '\n' not in str(error.value)


def test_shapes_are_checked_against_the_base(base, tmp_path):
  deep = layer(PEFT.format(5, 'A'), PEFT.format(5, 'B'))
  save_file(deep, tmp_path / 'deep')
  with pytest.raises(DcjaxError, match=r'q is for .* \(6, 24, 24\), not \(2,'):
    fused(base, Concept.load(tmp_path / 'deep'))
  wide = {
    PEFT.format(0, 'A'): np.ones((2, 32), F32),
    PEFT.format(0, 'B'): np.ones((32, 2), F32),
  }
  save_file(wide, tmp_path / 'wide')
  with pytest.raises(DcjaxError, match=r'\(2, 32, 32\), not \(2, 24, 24\)'):
    fused(base, Concept.load(tmp_path / 'wide'))


def test_bfloat16_files_of_others(tmp_path):
  tensors = {k: x.astype(ml_dtypes.bfloat16) for k, x in whole().items()}
  got = update(tensors, tmp_path / 'x')
  np.testing.assert_allclose(got, (UP @ DOWN).T, atol=0.1)
