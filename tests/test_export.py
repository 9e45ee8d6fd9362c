"""The `export` task: files that give the same weights, and the LoRA doctor."""

import json
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import tiny

from dcjax import doctor, export, formats, lora, tree
from dcjax.concept import Concept
from dcjax.errors import DcjaxError
from dcjax.recipes import ALL_LINEAR, ATTENTION
from dcjax.weights import container, lora_file
from dcjax.weights.base import load_base

ROOT = pathlib.Path(__file__).parents[1]
Q = 'transformer.blocks.{}.attn1.to_q.{}'


@pytest.fixture(scope='module')
def base():
  return tiny.base()


@pytest.fixture
def run(base, monkeypatch, tmp_path, capsys):
  """Runs the task: what it prints."""
  monkeypatch.setattr(export, 'load_base', lambda name: base)

  def call(file, **options):
    config = runpy.run_path(str(ROOT / 'configs' / 'export.py'))['get_config']()
    config.update(dict(file=str(file)) | options)
    export.run(config, str(tmp_path / 'out'))
    return capsys.readouterr().out

  return call


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'out'


def concept(
  base, path, *, size=0.1, motion=1.0, words=(), side='in', targets=ALL_LINEAR
):
  """A concept file; `motion` weighs its B2."""
  params = lora.attach(
    base.params['transformer'], targets, 2, jax.random.key(0), side=side
  )
  rng = np.random.default_rng(0)
  flat = tree.flatten(params)
  for name, x in flat.items():
    if name.endswith(('lora/b1', 'lora/b2')):
      weight = motion if name.endswith('b2') else 1.0
      flat[name] = size * weight * rng.normal(size=x.shape).astype(np.float32)
  tokens = {word: np.full((2, 16), 0.5, np.float32) for word in words}
  prompts = {'prompts': {'appearance': 'a cat', 'motion': 'it jumps'}}
  return Concept.from_params(
    {'transformer': tree.unflatten(flat), 'tokens': tokens}, base, prompts
  ).save(path)


def kernels(base, c):
  return tree.flatten(
    lora.fuse(c.put_into(base, base.params['transformer'])[0])
  )


# ---- files -------------------------------------------------------------------


@pytest.mark.parametrize('side', ['in', 'out'])
def test_every_style_gives_the_weights_of_the_concept(
  base, run, out, tmp_path, side
):
  path = concept(base, tmp_path / 'cat.safetensors', side=side)
  # The weights of the file count too.
  Concept.load(path).scaled(2.0, 0.5).save(path)
  run(path, style='diffusers, comfyui,musubi', identity=0.25, motion=4.0)
  want = kernels(base, Concept.load(path).scaled(0.5, 2.0))
  styles = ('comfyui', 'diffusers', 'musubi')
  assert sorted(path.name for path in out.iterdir()) == [
    f'cat_{style}.{end}' for style in styles for end in ('json', 'safetensors')
  ]
  for style in styles:
    file = out / f'cat_{style}.safetensors'
    got = kernels(base, Concept.load(file))
    for name, x in want.items():
      np.testing.assert_allclose(got[name], x, atol=1e-5, rtol=0)
    record = json.loads(file.with_suffix('.json').read_text())
    assert record['proof']['update'] <= 1e-5 == record['proof']['bound']
    assert record['effects']['all'] > 0.01
    assert record['weights'] == [0.5, 2.0]


def test_look_and_motion_apart(base, run, out, tmp_path):
  path = concept(base, tmp_path / 'cat.safetensors')
  run(path, style='comfyui', split=True)
  for part, weights in (('identity', (1.0, 0.0)), ('motion', (0.0, 1.0))):
    file = out / f'cat_comfyui_{part}.safetensors'
    got = kernels(base, Concept.load(file))
    want = kernels(base, Concept.load(path).scaled(*weights))
    for name, x in want.items():
      np.testing.assert_allclose(got[name], x, atol=1e-5, rtol=0)
    assert container.read(file)[0]['dcjax.part'] == part


def test_the_header_says_what_it_is(base, run, out, tmp_path):
  run(concept(base, tmp_path / 'cat.safetensors'), style='diffusers')
  head = container.read(out / 'cat_diffusers.safetensors')[0]
  assert head.pop('format') == 'pt'
  assert all(key.startswith('dcjax.') for key in head)
  assert head['dcjax.fingerprint'] == base.fingerprint
  assert json.loads(head['dcjax.prompts'])['appearance'] == 'a cat'


def test_learned_words_lie_beside_it_with_a_recipe(base, run, out, tmp_path):
  path = concept(base, tmp_path / 'cat.safetensors', words=('v', 'u'))
  assert 'train_tokens=False' in run(path, style='comfyui')
  tokens = load_file(out / 'dcjax_tokens.safetensors')
  assert {name: x.shape for name, x in tokens.items()} == dict(
    v=(2, 16), u=(2, 16)
  )
  text = (out / 'dcjax_tokens.txt').read_text()
  assert '[v]: 2 x <extra_id_0>' in text and 'appearance: a cat' in text


def test_a_look_alone_is_exported_without_fuss(base, run, out, tmp_path):
  """A plain LoRA: no motion, no learned words."""
  path = concept(base, tmp_path / 'cat.safetensors', motion=0.0)
  text = run(path, style='comfyui')
  assert 'the motion is zero and has no effect' in text
  assert 'NO EFFECT' not in text
  assert sorted(p.suffix for p in out.iterdir()) == ['.json', '.safetensors']
  with pytest.raises(
    DcjaxError, match='the motion of .* is zero, a file of it'
  ):
    run(path, style='comfyui', split=True)


def test_a_smaller_dtype_has_its_own_bound(base, run, out, tmp_path):
  path = concept(base, tmp_path / 'cat.safetensors')
  run(path, style='musubi', dtype='bfloat16')
  record = json.loads((out / 'cat_musubi.json').read_text())
  assert 1e-5 < record['proof']['update'] < record['proof']['bound'] == 2**-7


def test_a_file_that_differs_is_not_left_behind(base, run, out, tmp_path):
  """Too small for float16, which the proof finds."""
  path = concept(base, tmp_path / 'cat.safetensors', size=1e-7)
  with pytest.raises(DcjaxError, match='as float16 would differ .*use float32'):
    run(path, style='comfyui', dtype='float16')
  assert not list(out.iterdir())
  run(path, style='comfyui')


def test_the_proof_can_fail(base, run, tmp_path, monkeypatch):
  path = concept(base, tmp_path / 'cat.safetensors')
  to_pairs = export.formats.to_pairs
  monkeypatch.setattr(
    export.formats,
    'to_pairs',
    lambda lora, identity, motion: to_pairs(lora, identity, 1.001 * motion),
  )
  with pytest.raises(DcjaxError, match='would differ'):
    run(path, style='comfyui')


def test_a_lora_of_another_tool_changes_its_keys(base, run, out, tmp_path):
  run(concept(base, tmp_path / 'cat.safetensors'), style='musubi')
  run(out / 'cat_musubi.safetensors', style='diffusers', identity=0.5)
  got = kernels(
    base, Concept.load(out / 'cat_musubi_diffusers.safetensors').scaled(2.0)
  )
  want = kernels(base, Concept.load(tmp_path / 'cat.safetensors'))
  for name, x in want.items():
    np.testing.assert_allclose(got[name], x, atol=1e-5, rtol=0)


# ---- the doctor --------------------------------------------------------------


def foreign(path, *, blocks=(0,), rank=2, value=0.1, **more):
  tensors = {}
  for block in blocks:
    rng = np.random.default_rng(block)
    tensors[Q.format(block, 'lora_A.weight')] = rng.normal(size=(rank, 24))
    tensors[Q.format(block, 'lora_B.weight')] = np.full((24, rank), value)
  tensors = {k: np.float32(x) for k, x in tensors.items()}
  save_file(tensors | {k: np.asarray(x, 'f') for k, x in more.items()}, path)
  return path


def test_examining_writes_nothing(base, run, out, tmp_path):
  path = foreign(
    tmp_path / 'x', blocks=(0, 1), **{Q.format(i, 'alpha'): 8 for i in (0, 1)}
  )
  text = run(path)
  for line in (
    'layers           2, in blocks 0-1',
    'targets          self_attn/q',
    'rank             2',
    'alpha            8',
    'stored           float32',
    'in diffusers     no: it refuses alpha keys',
    'in ComfyUI       no: ',
    'alpha is not the rank: updates are scaled by 4',
    'nothing written',
  ):
    assert line in text, line
  assert not out.exists()


def test_effects_are_the_norms_they_say(base, tmp_path):
  path = concept(base, tmp_path / 'cat.safetensors')
  source = export.open_source(path)
  found = export.examine(source, base)['effects']
  c = Concept.load(path)
  before, after = tree.flatten(base.params['transformer']), kernels(base, c)
  name = 'blocks/mlp/up/kernel'
  gap, kernel = after[name] - before[name], before[name]
  ratio = lambda i: np.linalg.norm(gap[i]) / np.linalg.norm(kernel[i])
  told = found['merged']['targets']['mlp/up']
  assert told['least'] == pytest.approx(min(ratio(0), ratio(1)), rel=1e-4)
  assert told['most'] == pytest.approx(max(ratio(0), ratio(1)), rel=1e-4)
  whole = np.linalg.norm(gap) / np.linalg.norm(kernel)
  assert told['all'] == pytest.approx(whole, rel=1e-4)
  names = [n for n in before if n.startswith('blocks') and n.endswith('kernel')]
  block = [
    np.linalg.norm([np.linalg.norm(x[n][1]) for n in names])
    for x in ({n: after[n] - before[n] for n in names}, before)
  ]
  told = found['merged']['blocks'][1]
  assert told == pytest.approx(block[0] / block[1], rel=1e-4)
  assert found['identity']['all'] != found['motion']['all']


def test_a_lora_that_does_nothing_cannot_be_missed(base, run, tmp_path):
  path = foreign(tmp_path / 'x', blocks=(0, 1), value=0.0)
  with pytest.raises(DcjaxError, match='NO EFFECT: the update of every layer'):
    run(path)
  path = concept(base, tmp_path / 'cat.safetensors', size=0.0)
  with pytest.raises(DcjaxError, match='NO EFFECT: the update of every layer'):
    run(path, style='comfyui')
  zero = {Q.format(1, 'lora_B.weight'): np.zeros((24, 2))}
  path = foreign(tmp_path / 'y', blocks=(0, 1), **zero)
  assert 'NO EFFECT in 1 layers: self_attn/q of block 1' in run(path)
  assert 'FAINT: an effect of' in run(foreign(tmp_path / 'z', value=1e-7))


PROBLEMS = {
  'nan': (dict(value=np.nan), 'self_attn/q of block 0 holds numbers'),
  'deep': (dict(blocks=(0, 7)), r'\+ self_attn/q of block 7 \(the base has no'),
  'wide': (
    {
      Q.format(0, 'lora_A.weight'): np.ones((2, 30)),
      Q.format(0, 'lora_B.weight'): np.ones((30, 2)),
    },
    r'~ self_attn/q of block 0 is for a kernel \(30, 30\), expected \(24, 24\)',
  ),
  'fault': ({'more.diff_b': 1.0}, r'\+ more.diff_b \(a difference of whole'),
}


@pytest.mark.parametrize('name', PROBLEMS)
def test_problems_are_told_after_the_examination(run, tmp_path, capsys, name):
  options, says = PROBLEMS[name]
  path = foreign(tmp_path / 'x', **options)
  with pytest.raises(DcjaxError, match=says) as error:
    run(path, style='comfyui')
  assert '\n' not in str(error.value)
  text = capsys.readouterr().out
  assert 'targets          self_attn/q' in text and 'PROBLEM' in text
  assert not (tmp_path / 'out').exists()


def test_odd_alphas_and_ranks_are_noted(tmp_path):
  some = {Q.format(1, 'alpha'): 2.0}
  file = lora_file.read(foreign(tmp_path / 'x', blocks=(0, 1), **some))
  assert doctor.notes(file) == [
    '1 of 2 layers have no alpha, which stands for their rank'
  ]
  short = {
    Q.format(1, 'lora_A.weight'): np.ones((1, 24)),
    Q.format(1, 'lora_B.weight'): np.ones((24, 1)),
  }
  file = lora_file.read(foreign(tmp_path / 'x', blocks=(0,), **short))
  assert 'ranks differ' in doctor.notes(file)[0]


def test_numbers_in_short():
  assert doctor.spans([3, 0, 1, 2, 7]) == '0-3, 7'
  assert doctor.spans([]) == ''
  assert doctor.counted([8, 8]) == '8'
  assert doctor.counted([8, 4, 8]) == '8 (2x), 4 (1x)'


def test_musubi_files_are_of_whole_blocks_and_change_no_more(
  base, run, tmp_path
):
  """What diffusers' converter of these keys wants."""
  path = concept(base, tmp_path / 'cat.safetensors', targets=ATTENTION)
  text = run(path, style='musubi')
  assert text.count('  yes') == 3
  (written,) = tmp_path.glob('**/cat_musubi.safetensors')
  pairs = lora_file.read(written).pairs
  learnt = formats.to_pairs(Concept.load(path).lora)
  assert len(pairs) == 10 * base.dit.layers > len(learnt) > 0
  for place, pair in pairs.items():
    assert (np.abs(pair.down @ pair.up).max() > 0) == (place in learnt)


def test_attention_alone_of_others_is_not_for_diffusers_as_musubi(
  base, run, tmp_path
):
  path = concept(base, tmp_path / 'cat.safetensors', targets=ATTENTION)
  pairs = formats.to_pairs(Concept.load(path).lora)
  tensors = formats.to_tensors(pairs, 'musubi')
  container.write(tmp_path / 'other', tensors, {})
  text = run(tmp_path / 'other')
  assert (
    'in diffusers     no: its converter of these keys wants all ten' in text
  )
  assert 'in musubi-tuner  yes' in text


# ---- mistakes ----------------------------------------------------------------


def test_another_base_is_refused(base, run, tmp_path):
  other = tiny.base(seed=1, name='other')
  path = concept(other, tmp_path / 'cat.safetensors')
  with pytest.raises(DcjaxError, match="learnt on base 'other' .* base 'tiny'"):
    run(path, style='comfyui')


@pytest.mark.parametrize(
  'options,says',
  [
    ({'file': ''}, 'there is no file; give --config.file='),
    ({'file': 'gone'}, 'there is no file gone'),
    ({'style': 'diffusers,a1111'}, "config.style has 'a1111'; use diffusers"),
    ({'dtype': 'int8'}, "config.dtype is 'int8'; use float32"),
    ({'identity': float('nan')}, 'identity is nan, expected a number'),
    ({'file': 'x', 'motion': 0.5}, 'no motion .* by 0.5; give config.identity'),
    (
      {'split': True, 'style': 'comfyui', 'file': 'x'},
      'without look and motion',
    ),
  ],
)
def test_mistakes_are_one_line(base, run, tmp_path, options, says, monkeypatch):
  monkeypatch.chdir(tmp_path)
  foreign(tmp_path / 'x')
  path = concept(base, tmp_path / 'cat.safetensors')
  with pytest.raises(DcjaxError, match=says) as error:
    run(**{'file': path} | options)
  assert '\n' not in str(error.value)


def test_words_alone_are_nothing_to_export(base, run, tmp_path):
  tokens = {'tokens': {'v': np.ones((1, 16), np.float32)}}
  path = Concept.from_params(tokens, base).save(tmp_path / 'x')
  with pytest.raises(DcjaxError, match='learned words and no LoRA'):
    run(path)


def test_the_command_line(base, tmp_path):
  """The whole way once, with a base from its folder."""
  folder = tiny.base_folder(tmp_path / 'base')
  path = concept(load_base(folder), tmp_path / 'cat.safetensors')
  command = [sys.executable, '-m', 'dcjax.main']
  command += ['--config=configs/export.py', f'--config.base={folder}']
  command += [f'--config.file={path}', f'--workdir={tmp_path}/out']
  done = subprocess.run(
    [*command, '--config.style=comfyui'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'read and merged' in done.stdout
  assert (tmp_path / 'out' / 'cat_comfyui.safetensors').is_file()
