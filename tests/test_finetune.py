"""A folder of captioned files in, a LoRA out: loss, data, resume, result."""

import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import objective, optim, sampling, text_features, train, tree
from dcjax.concept import Concept
from dcjax.data import video
from dcjax.errors import DcjaxError
from dcjax.finetuning import dataset, survey
from dcjax.finetuning.run import Finetuning
from dcjax.finetuning.showcase import Showcase
from dcjax.stage import Stage


@pytest.fixture(scope='module')
def base():
  return tiny.trainable_base()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.folder(tmp_path_factory.mktemp('data') / 'files')


@pytest.fixture(scope='module')
def run(base, folder, tmp_path_factory):
  """(job, concept, parameters before and after) of a whole run."""
  config = tiny.finetune(folder, steps=4)
  config.eval_every = config.preview_every = 4
  config.save_every = 2
  job = Finetuning(base, config, tmp_path_factory.mktemp('run'))
  trees, fit, make_step = [], train.fit, train.make_step

  def spy(stage, loss, params, *rest, **options):
    trees.append(jax.tree.map(np.array, params))
    after, timing = fit(stage, loss, params, *rest, **options)
    trees.append(after)
    return after, timing

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'fit', spy)
    # Compiled once for all runs of this folder.
    step = functools.cache(
      lambda *_: make_step(job.objective(), *optimizer(job))
    )
    patch.setattr(train, 'make_step', lambda *_: step())
    yield job, job.run(), *trees


def optimizer(job):
  return optim.make(job.stage.optimizer, job.stage.steps), job.stage


# ---- the run -----------------------------------------------------------------


def test_one_lora_is_trained_and_nothing_else(run, base):
  _, concept, before, after = run
  before, after = tree.flatten(before), tree.flatten(after)
  assert before.keys() == after.keys()
  for name, x in before.items():
    same = x.tobytes() == np.asarray(after[name]).tobytes()
    assert same != name.endswith(('lora/a1', 'lora/b1')), name
  leaves = tree.flatten(concept.lora)
  assert all(not x.any() for n, x in leaves.items() if n.endswith('b2'))
  assert not concept.tokens
  sampled = sampling.sample(base, 'a blue cat', concepts=[concept], steps=2)
  assert sampled.shape == (5, 16, 32, 3)


def test_the_folder_holds_everything(run):
  job, concept, *_ = run
  saved = Concept.load(job.workdir / 'concept.safetensors')
  assert tiny.equal(saved.lora, concept.lora)
  assert saved.meta['trigger'] == 'blue'
  samples = {x.stem for x in (job.workdir / 'samples').iterdir()}
  assert samples >= {'after_0', 'before_0'}
  assert [x[:20] for x in samples - {'after_0', 'before_0'}] == [
    'train_00004_preview-'
  ]
  page = (job.workdir / 'report.html').read_text()
  assert 'a blue cat' in page
  learnt, spare = survey.split(
    read(job.base, job.config.data.path)[0].entries, 0.25
  )
  shown = lambda entry: f'file {entry.item.name}' in page
  assert all(map(shown, learnt)) and not any(map(shown, spare))
  lines = (job.workdir / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [r['step'] for r in records if 'loss' in r] == [1, 2, 3, 4]
  (held_out,) = [r for r in records if 'held_out/t0' in r]
  assert {f'held_out/t{q}' for q in range(4)} <= held_out.keys()


def test_previews_of_other_prompts_are_not_shown(run):
  job = run[0]
  found, _ = read(job.base, job.config.data.path)
  show = job._showcase(found)
  assert [x.prompt for x in show._saved_previews('train')] == ['a blue cat']
  show.prompts = ['a blue dog']
  assert show._saved_previews('train') == []


def test_resume_ends_in_the_same_bits(run, base, monkeypatch, tmp_path):
  """Killed after its checkpoint of step 2, in buckets of two shapes."""
  job, concept, *_ = run
  shutil.copytree(job.workdir / 'cache', tmp_path / 'cache')

  def killed(*_):
    raise KeyboardInterrupt

  config = job.config.copy_and_resolve_references()
  config.eval_every = 0
  again = lambda: Finetuning(base, config, tmp_path).run()
  monkeypatch.setattr(Showcase, 'panels', lambda *_: [])
  with monkeypatch.context() as patch:
    patch.setattr(Showcase, 'preview', killed)
    with pytest.raises(KeyboardInterrupt):
      again()
  assert not (tmp_path / 'concept.safetensors').exists()
  monkeypatch.setattr(Showcase, 'preview', lambda *_: None)
  assert tiny.equal(again().lora, concept.lora)


def test_another_run_in_the_folder_is_refused(run, base, folder, tmp_path):
  job = run[0]
  other = shutil.copytree(folder, tmp_path / 'files')
  (other / 'two.txt').write_text('a red [trigger] jumps.')
  config = tiny.finetune(other, steps=4)
  with pytest.raises(DcjaxError, match='another run.*data is') as error:
    Finetuning(base, config, job.workdir).run()
  assert '\n' not in str(error.value)


# ---- the data ----------------------------------------------------------------


def read(base, folder, **data):
  config = tiny.finetune(folder).data
  config.update_from_flattened_dict(data)
  return survey.read(base, config), config


def test_examples_are_the_files_at_the_rate_of_the_base(base, folder, tmp_path):
  found, config = read(base, folder)
  still, clips = dataset.encode(
    base, found, found.entries, config, tmp_path / 'cache'
  )
  # At 8 fps both long clips last 11 frames, of 5 each twice.
  assert (len(still), len(clips)) == (1, 5)
  f, h, w, c = base.latent_shape(5, 16, 32)
  length, width = base.format.text_length, base.dit.text_width
  for source, frames in ((still, 1), (clips, f)):
    for example in source:
      assert example['latents'].shape == (frames, h, w, c)
      assert example['features'].shape == (length, width)
      assert not example['features'][~example['mask']].any()
      assert example['weight'].mean() == pytest.approx(1, abs=1e-5)
  # Only the file with a mask is weighed, by the outside's own share.
  uneven = [np.ptp(x['weight']) > 0 for x in clips]
  assert sum(uneven) == 2
  weight = clips[uneven.index(True)]['weight']
  assert weight.min() / weight.max() == pytest.approx(0.1)
  text, mask = sampling.encode_prompts(base, ['blue, a dog.'], {})
  np.testing.assert_allclose(still[0]['features'], text[0], atol=1e-5)
  np.testing.assert_array_equal(still[0]['mask'], mask[0])


def test_nothing_is_encoded_twice(base, folder, tmp_path, monkeypatch):
  found, config = read(base, folder)
  first = dataset.encode(base, found, found.entries, config, tmp_path)

  def never(*_):
    raise AssertionError('encoded again')

  monkeypatch.setattr(sampling, 'encode_video', never)
  monkeypatch.setattr(text_features, 'text_features', never)
  again = dataset.encode(base, found, found.entries, config, tmp_path)
  for one, other in zip(first, again, strict=True):
    assert tiny.equal(one.stacked(), other.stacked())


def test_features_are_of_one_dtype(base, tmp_path):
  for x in (base, tiny.narrow(base)):
    dataset._features(x, 'a red cat', tmp_path)
  assert len(list(tmp_path.iterdir())) == 2


def test_held_out_files_are_never_learnt(base, folder):
  found, _ = read(base, folder)
  learnt, spare = survey.split(found.entries, 0.25)
  assert len(spare) == 1 and len(learnt) == 3
  assert not {x.item.name for x in learnt} & {x.item.name for x in spare}
  assert not survey.split(found.entries, 0.0)[1]
  assert not survey.split(found.entries[:3], 0.9)[1]


def test_pictures_alone_are_previewed_as_pictures(base, folder, tmp_path):
  only = tmp_path / 'only'
  only.mkdir()
  for name in ('still.png', 'still.txt'):
    shutil.copy(f'{folder}/{name}', only)
  found, _ = read(base, only)
  job = Finetuning(base, tiny.finetune(only), tmp_path)
  assert job._showcase(found).shape == (1, 16, 32)


def test_files_that_cannot_serve_are_named(base, folder, tmp_path):
  root = shutil.copytree(folder, tmp_path / 'files')
  frames = np.zeros((9, 16, 32, 3), np.uint8)
  for name, count, mask in (
    ('short', 3, None),
    ('tall', 9, frames.swapaxes(1, 2)),
    ('few', 9, frames[:4]),
    ('fine', 9, frames[:8]),
  ):
    video.write_video(root / f'{name}.mp4', frames[:count], 8.0)
    (root / f'{name}.txt').write_text('a cat')
    if mask is not None:
      video.write_video(root / f'{name}.mask.mp4', mask, 8.0)
  (root / 'broken.mp4').write_bytes(b'no video')
  (root / 'broken.txt').write_text('a cat')
  found, _ = read(base, root)
  reasons = {x.name: x.reason for x in found.skipped}
  assert reasons.keys() == {'short.mp4', 'tall.mp4', 'few.mp4', 'broken.mp4'}
  assert 'lasts 3 frames' in reasons['short.mp4']
  assert 'the shapes differ' in reasons['tall.mp4']
  assert 'has 4 frames at 8 fps and it has 9' in reasons['few.mp4']
  assert 'cannot be read' in reasons['broken.mp4']
  lines = survey.describe(found)
  for name in reasons:
    assert any(name in line for line in lines)


# ---- the loss ----------------------------------------------------------------

STAGE = Stage('s', 'flow', 'folder', '.*', steps=1, batch=2, prompt_drop=0.25)


def test_a_mask_moves_the_gradient_to_where_it_is_white():
  """With respect to the predicted velocity, position by position."""
  x0 = jax.random.normal(tiny.key(), (2, 3, 4, 4, 2))
  weight = np.zeros((2, 3, 4, 4, 1), np.float32)
  weight[:, :, :2] = 2.0

  def loss(v, weight):
    _, error = objective.flow_loss(
      lambda *_, **__: v,
      x0,
      None,
      None,
      jax.random.split(tiny.key(1)),
      STAGE,
      self_cond=False,
      weight=weight,
    )
    return error.mean()

  plain = jax.grad(loss)(jnp.zeros_like(x0), None)
  masked = jax.grad(loss)(jnp.zeros_like(x0), jnp.asarray(weight))
  assert not masked[:, :, 2:].any()
  np.testing.assert_allclose(masked[:, :, :2], 2 * plain[:, :, :2], rtol=1e-5)
  ones = loss(jnp.zeros_like(x0), jnp.ones_like(weight))
  np.testing.assert_allclose(ones, loss(jnp.zeros_like(x0), None), rtol=1e-6)


class Spy:
  """v = a x, and a note of the text that it is given."""

  config = types.SimpleNamespace(self_cond=None)

  def __init__(self):
    self.seen = []

  def apply(self, variables, x, t, text, *, text_mask, x0_hat):
    del t, x0_hat
    self.seen.append((text, text_mask))
    return variables['params']['a'] * x


PARAMS = {'transformer': {'a': 0.3}}
NULL = {'features': -jnp.ones((1, 6, 4)), 'mask': jnp.arange(6)[None] < 1}


def batch(n, frames=2, seed=0):
  latents = jax.random.normal(tiny.key(seed), (n, frames, 2, 2, 3))
  mask = jnp.ones((n, 6), bool)
  return {'latents': latents, 'features': jnp.ones((n, 6, 4)), 'mask': mask}


def test_captions_are_dropped_whole_and_at_their_rate():
  spy = Spy()
  loss = objective.personalize(spy, STAGE)
  for key in range(4):
    loss(PARAMS, batch(200), {'null': NULL}, tiny.key(key))
  text = np.concatenate([x for x, _ in spy.seen])
  mask = np.concatenate([x for _, x in spy.seen])
  dropped = (text[:, 0] == -1).all(axis=1)
  # Nothing of the caption is left: beyond its one token the null is zero.
  assert not text[dropped, 1:].any() and (text[~dropped] == 1).all()
  np.testing.assert_array_equal(mask.sum(1), np.where(dropped, 1, 6))
  assert dropped.mean() == pytest.approx(0.25, abs=0.05)


def test_held_out_loss_is_the_mean_of_all_samples_with_their_captions():
  """Over buckets of several shapes; nothing dropped, the same each time."""
  spy = Spy()
  loss, key = objective.personalize(spy, STAGE), tiny.key(5)
  several = [batch(3), batch(1, frames=4, seed=1)]
  context = {'null': NULL}
  found = loss.evaluate_several(PARAMS, several, context, key)
  singles = []
  for part in several:
    n = len(part['latents'])
    for i, own in enumerate(jax.random.split(key, n)):
      one = jax.tree.map(lambda x: x[i : i + 1], part)
      singles.append(loss.evaluate(PARAMS, one, context, own))
  for name, value in found.items():
    expected = np.mean([float(x[name]) for x in singles])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert all((x == 1).all() for x, _ in spy.seen[-4:])


def test_alpha_scales_what_is_learnt_and_is_folded_into_the_concept(
  base, folder, tmp_path
):
  config = tiny.finetune(folder)
  config.lora.alpha = 6.0  # of rank 2: three times
  job = Finetuning(base, config, tmp_path)
  params = job.params()
  flat = tree.flatten(params)
  for i, name in enumerate(sorted(flat)):
    if name.endswith('b1'):
      flat[name] = jax.random.normal(tiny.key(i), flat[name].shape)
  params = tree.unflatten(flat)
  thrice = tree.unflatten(
    {n: 3 * x if n.endswith('b1') else x for n, x in flat.items()}
  )
  found, _ = read(base, folder)
  concept = job._concept(params, found)
  assert concept.meta['alpha'] == 6.0
  expected = Concept.from_params(thrice, base).lora
  assert tiny.equal(concept.lora, expected)
  job.scale = 1.0
  plain = jax.jit(job.objective())
  job.scale = 3.0
  shape = base.latent_shape(1, 16, 32)
  text = sampling.null_text(base)
  data = {'latents': jnp.ones((1, *shape)), **text}
  args = (data, {'null': text}, tiny.key())
  scaled, _ = jax.jit(job.objective())(params, *args)
  np.testing.assert_allclose(scaled, plain(thrice, *args)[0], rtol=1e-5)


# ---- mistakes ----------------------------------------------------------------


@pytest.mark.parametrize(
  'change,line',
  [
    ({'lora.alpha': -1.0}, 'lora.alpha is -1'),
    ({'lora.rank': 0}, 'lora.rank is 0'),
    ({'train.data': 'clip'}, "config.train.data is 'clip'; expected folder"),
    ({'train.steps': 0}, 'config.train.steps is 0'),
    ({'sample.sampler': 'ddim'}, "unknown sampler 'ddim'; use one of euler"),
    ({'train.objective': 'world'}, "train.objective is 'world'; .*flow alone"),
    ({'data.path': ''}, 'give the data'),
    ({'format.frames': 6}, 'cannot make 6 frames'),
    ({'format.fps': -1.0}, 'format.fps is -1'),
    ({'remat': 'some'}, "config.remat is 'some'"),
    ({'data.windows': -1}, 'data.windows is -1'),
    ({'data.held_out': 1.5}, 'data.held_out is 1.5'),
    ({'data.mask.outside': 2.0}, 'data.mask.outside is 2'),
    ({'data.mask.time': 'min'}, "data.mask.time is 'min'; use max or mean"),
    ({'data.buckets.max': 1}, 'pictures and clips'),
    ({'data.trigger': '[v]'}, r'\[v\]'),
    ({'prompts': ('a [v] cat',)}, r'\[v\]'),
    ({'train.train': 'lora/c'}, 'matches no parameter'),
  ],
)
def test_mistakes_are_one_line_before_anything_is_encoded(
  base, folder, tmp_path, monkeypatch, change, line
):
  def never(*_):
    raise AssertionError('too late')

  monkeypatch.setattr(sampling, 'encode_video', never)
  config = tiny.finetune(folder)
  config.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=line) as error:
    Finetuning(base, config, tmp_path).run()
  assert '\n' not in str(error.value)


def test_a_folder_of_nothing_says_why(base, tmp_path):
  (tmp_path / 'a.mp4').write_bytes(b'x')
  config = tiny.finetune(tmp_path)
  with pytest.raises(DcjaxError, match=r'nothing to learn.*a.mp4: it has no c'):
    Finetuning(base, config, tmp_path / 'run').run()
