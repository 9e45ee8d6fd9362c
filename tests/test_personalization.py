"""One video in, a concept out: what each stage sees, trains and leaves."""

import dataclasses
import json
import re

import jax
import numpy as np
from PIL import Image
import pytest
import tiny

import dcjax
from dcjax import material as material_lib
from dcjax import objective, recipes, sampling, start, train, tree
from dcjax.concept import Concept
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT
from dcjax.personalization import Personalization


@pytest.fixture(scope='module')
def base():
  return tiny.trainable_base()


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  return tiny.clip(tmp_path_factory.mktemp('clip') / 'clip.mp4')


def whole(clip):
  """Everything that a run may do, in two steps a stage."""
  c = tiny.recipe(clip, prior=0.5)
  c.prior.videos = 2
  c.eval_every = c.preview_every = 2
  c.prior.noun = 'dog'
  return c


@dataclasses.dataclass
class Stage:
  """A call of `train.fit`."""

  stage: object
  before: dict
  after: dict
  batch: dict


@pytest.fixture(scope='module')
def run(base, clip, tmp_path_factory):
  """(workdir, concept, its stages)."""
  workdir, stages, fit = tmp_path_factory.mktemp('run'), [], train.fit

  def spy(stage, loss, params, batches, loop, **options):
    before = jax.tree.map(np.array, params)
    after, timing = fit(stage, loss, params, batches, loop, **options)
    stages.append(Stage(stage, before, after, next(batches)))
    return after, timing

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'fit', spy)
    concept = Personalization(base, whole(clip), workdir).run()
  return workdir, concept, stages


# ---- what is trained ---------------------------------------------------------

CLAIMS = {
  'set': r'lora/(a1|b1)$|^tokens/v$',
  'sequence': r'lora/b2$|^tokens/u$',
}


@pytest.mark.parametrize('place,name', [*enumerate(CLAIMS)])
def test_a_stage_moves_its_own_leaves_and_no_other(run, place, name):
  """Whole trees, bit for bit."""
  stage = run[2][place]
  assert stage.stage.name == name
  before, after = tree.flatten(stage.before), tree.flatten(stage.after)
  assert before.keys() == after.keys()
  for leaf in before:
    same = before[leaf].tobytes() == np.asarray(after[leaf]).tobytes()
    assert same != bool(re.search(CLAIMS[name], leaf)), leaf
  kinds = {leaf.rsplit('/')[-1] for leaf in before if '/lora/' in leaf}
  assert kinds == {'a1', 'b1', 'b2'}


def test_stages_follow_one_another(run, base):
  _, concept, (first, second) = run
  assert tiny.equal(first.after, second.before)
  kernels = {
    name: x
    for name, x in tree.flatten(second.after['transformer']).items()
    if '/lora/' not in name
  }
  # The base itself is as it was: the concept stands apart from it.
  assert tiny.equal(tree.unflatten(kernels), base.params['transformer'])
  assert tiny.equal(concept.tokens, second.after['tokens'])
  for name, x in tree.flatten(concept.lora).items():
    np.testing.assert_array_equal(
      x, tree.flatten(second.after['transformer'])[name]
    )


def test_before_training_a_concept_is_nothing(run):
  """B1 and B2 are zero, and so are the words; A1 is drawn."""
  leaves = tree.flatten(run[2][0].before)
  for name, x in leaves.items():
    if name.endswith(('b1', 'b2')) or name.startswith('tokens/'):
      assert not np.any(x), name
    elif name.endswith('a1'):
      assert np.std(x) > 0, name


# ---- what is seen ------------------------------------------------------------


def test_set_sees_stills_and_sequence_the_clip(run, base):
  (first, second) = run[2]
  f, h, w, c = base.latent_shape(5, 16, 32)
  for part, still, whole in (('concept', 0, 1), ('prior', (2, 4), (3, 5))):
    a, b = first.batch[part], second.batch[part]
    assert a['latents'].shape == (2, 1, h, w, c)
    assert b['latents'].shape == (2, f, h, w, c)
    assert set(a['prompt'].tolist()) <= set(np.ravel(still).tolist())
    assert set(b['prompt'].tolist()) <= set(np.ravel(whole).tolist())
  assert first.batch.keys() == {'concept', 'prior'}
  # Which sample of the batch it is says nothing of its place in time.
  assert first.batch['concept'].keys() == {'latents', 'prompt', 'sample'}
  assert first.batch['concept']['sample'].tolist() == [0, 1]


def pictures(folder, order):
  """The clip's frames as a folder of pictures, in an order of our choice."""
  folder.mkdir()
  x = (
    np.arange(5)[:, None, None, None] * 50
    + np.arange(16 * 32 * 3).reshape(1, 16, 32, 3) // 40
  )
  for place, frame in enumerate(x.astype(np.uint8)[list(order)]):
    Image.fromarray(frame).save(folder / f'{place}.png')
  return str(folder)


@pytest.fixture(scope='module')
def permuted(base, tmp_path_factory):
  """Material of a clip and of the same frames in another order."""
  tmp = tmp_path_factory.mktemp('permuted')
  orders = {'straight': range(5), 'permuted': (3, 0, 4, 2, 1)}
  return [
    material_lib.prepare(base, pictures(tmp / name, order), None, tmp / 'cache')
    for name, order in orders.items()
  ]


def test_set_never_learns_the_order_of_the_frames(base, clip, permuted):
  """An epoch of a permuted video holds the same images, no more, no less."""
  job = Personalization(base, tiny.recipe(clip, batch=5), 'nowhere')
  epochs = []
  for material in permuted:
    loader = job._batches(job.stages[0], material, None)
    for _ in range(2):
      epochs.append(sorted(x.tobytes() for x in next(loader)['latents']))
  assert all(epoch == epochs[0] for epoch in epochs)
  assert len(set(epochs[0])) == 5


def test_sequence_learns_the_order_of_the_frames(base, clip, permuted):
  """Not so the clip: its latents and its loss are others."""
  a, b = (material.latents for material in permuted)
  assert np.abs(a - b).max() > 1e-2
  job = Personalization(base, tiny.recipe(clip), 'nowhere')
  stage = job.stages[1]
  loss = jax.jit(objective.personalize(DiT(base.dit), stage))
  context = job._context(None)
  losses = []
  for material in permuted:
    loader = job._batches(stage, material, None)
    value, _ = loss(
      start.initial_params(job.base, job.config),
      next(loader),
      context,
      jax.random.key(0),
    )
    losses.append(float(value))
  assert abs(losses[0] - losses[1]) > 1e-4


def test_the_empty_prompt_is_there_only_if_prompts_are_dropped(base, clip):
  context = lambda **stage: Personalization(
    base, tiny.recipe(clip, **stage), 'nowhere'
  )._context(None)
  assert 'null' not in context()
  null = context(prompt_drop=0.1)['null']
  assert null['mask'].sum() == 1 and not null['features'][:, 1:].any()


@pytest.mark.parametrize(
  'count,rate,fps',
  [(150, 30.0, 16.0), (150, 30.0, None), (66, 24.0, 16.0), (33, 16.0, None)],
)
def test_held_out_frames_are_none_that_is_learnt(count, rate, fps):
  """Not even where the clip is a run out of the middle of its video."""
  numbered = np.arange(count, dtype=np.uint8)[:, None, None, None]
  source = video_lib.Video(numbered.repeat(3, axis=-1), rate)
  learnt, _ = video_lib.places(source, 33, fps)
  spare = material_lib._between(learnt)
  assert len(spare) == (4 if count > 33 else 0)
  assert not set(spare) & set(learnt)
  assert all(learnt[0] < x < learnt[-1] for x in spare)
  taken = video_lib.take(source, 33, fps)
  assert taken.frames[:, 0, 0, 0].tolist() == learnt.tolist()


# ---- what is left ------------------------------------------------------------


def test_the_folder_holds_everything(run):
  workdir, concept, _ = run
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    *('config.json', 'metrics.jsonl', 'concept.safetensors', 'report.html'),
    *('timings.json', 'samples', 'checkpoints', 'cache'),
  }
  samples = {path.stem for path in (workdir / 'samples').iterdir()}
  assert samples >= {
    *('set_00002_preview', 'sequence_00002_preview'),
    *('final_reconstruction', 'final_new'),
  }
  saved = Concept.load(workdir / 'concept.safetensors')
  assert saved.frames.shape == (3, 16, 32, 3)
  assert tiny.equal(saved.lora, concept.lora)
  assert saved.meta['prompts'] == {
    'appearance': tiny.APPEARANCE,
    'motion': tiny.MOTION,
  }
  record = json.loads((workdir / 'config.json').read_text())
  assert record['config']['set']['prior'] == 0.5
  page = (workdir / 'report.html').read_text()
  assert tiny.APPEARANCE in page


def test_metrics_are_of_both_stages(run):
  lines = (run[0] / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  for stage in ('set', 'sequence'):
    mine = [r for r in records if r['stage'] == stage]
    logged = [r['step'] for r in mine if 'loss' in r]
    assert logged == [1, 2]
    assert all('prior' in r for r in mine if 'loss' in r)
    assert [r['step'] for r in mine if 'held_out/t0' in r] == [2]


def test_the_concept_can_be_sampled(run, base):
  options = {'steps': 2, 'concepts': [run[1]]}
  video = sampling.sample(base, 'a [v] dog [u] jumps.', **options)
  assert video.shape == (5, 16, 32, 3)


def test_a_finished_run_is_given_back_at_once(run, base, clip, monkeypatch):
  workdir, concept, _ = run
  before = (workdir / 'concept.safetensors').read_bytes()
  times = json.loads((workdir / 'timings.json').read_text())

  def never(*args):
    raise AssertionError('a finished stage made a step')

  monkeypatch.setattr(train, 'make_step', never)
  again = Personalization(base, whole(clip), workdir).run()
  assert tiny.equal(again.lora, concept.lora)
  assert (workdir / 'concept.safetensors').read_bytes() == before
  kept = json.loads((workdir / 'timings.json').read_text())
  assert kept['set'] == times['set'] != {'compile': 0, 'steps': 0, 'step': 0}


@pytest.mark.parametrize(
  'change,line',
  [
    ({'prompts.appearance': 'a [v] dog.'}, r"prompts is .*'a \[v\] dog\.'"),
    ({'seed': 3}, 'seed is 3 now and was 0'),
    ({'lora.rank': 3}, 'lora is .*3'),
    ({'set.steps': 4}, 'stages is'),
    ({'sample.steps': 3}, "prior is .*'steps': 3"),
    ({'sequence.dropout': 0.25}, r'checkpoints.sequence .*stages is'),
  ],
)
def test_another_run_in_the_folder_is_refused(run, base, clip, change, line):
  """At once, and without a trace in the folder of the first."""
  workdir = run[0]
  record = (workdir / 'config.json').read_bytes()
  config = whole(clip)
  config.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=line) as error:
    Personalization(base, config, workdir).run()
  assert 'another run' in str(error.value)
  assert '\n' not in str(error.value)
  assert (workdir / 'config.json').read_bytes() == record


def test_a_run_and_its_prior_are_of_one_dtype(
  base, clip, tmp_path, monkeypatch
):
  """The fingerprint of the base is the same."""
  other = tiny.narrow(base)
  assert other.fingerprint == base.fingerprint
  zeros = lambda base, x, **_: np.zeros((len(x), 1, 1), np.float32)
  monkeypatch.setattr(material_lib, 'sample_many', zeros)
  monkeypatch.setattr(sampling, 'encode_video', zeros)
  options = {'noun': 'dog', 'videos': 1, 'seed': 0, 'folder': tmp_path}
  config = tiny.recipe(clip)
  found = []
  for x in (base, other):
    material_lib.sample_prior(x, **options)
    found.append(start.loop(x, config, tmp_path, {}).identity)
  assert len(list(tmp_path.iterdir())) == 2
  differ = [key for key in found[0] if found[0][key] != found[1][key]]
  assert differ == ['base_dtype']


@pytest.mark.parametrize(
  'change,line',
  [
    ({'data.video': ''}, 'give a video: --config.data.video=FILE'),
    ({'set.data': 'folder'}, "set.data is 'folder'; expected frames or clip"),
    ({'stages': ('set', 'sequense')}, 'expected some of sequence, set'),
    ({'edits': ('new: a cat', 'new: a dog')}, "two scenes 'new'"),
    ({'edits': ('reconstruction: a cat',)}, "two scenes 'reconstruction'"),
  ],
)
def test_mistakes_are_one_line_before_anything_is_read(
  base, clip, change, line
):
  config = tiny.recipe(clip)
  config.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=line) as error:
    Personalization(base, config, 'nowhere')
  assert '\n' not in str(error.value)


# ---- the Python surface ------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
  """Configs of the runs that Python callers start."""
  configs = []
  monkeypatch.setattr(
    Personalization, 'run', lambda self: configs.append(self.config)
  )
  return configs


def call(base, clip, tmp_path, **options):
  prompts = {'appearance': tiny.APPEARANCE, 'motion': tiny.MOTION}
  return dcjax.personalize(base, clip, workdir=tmp_path, **prompts | options)


def test_python_has_the_defaults_of_the_command_line(clip, tmp_path, calls):
  call(tiny.trainable_base(dit=tiny.PAPER_DIT), clip, tmp_path)
  expected = recipes.personalize('paper')
  expected.data.video = clip
  expected.prompts.update(dict(appearance=tiny.APPEARANCE, motion=tiny.MOTION))
  assert calls[0].to_dict() == expected.to_dict()


def test_python_draws_the_times_of_wan_for_its_form(
  base, clip, tmp_path, calls
):
  assert base.dit.is_wan
  call(base, clip, tmp_path)
  call(base, clip, tmp_path, shift=5.0, sequence__train_shift=4.0)
  of = lambda c: [(c[x].t_sampler, c[x].train_shift) for x in c.stages]
  assert of(calls[0]) == [('uniform', base.shift)] * 2
  assert of(calls[1]) == [('uniform', 5.0), ('uniform', 4.0)]


def test_python_options_are_those_of_the_config(base, clip, tmp_path, calls):
  call(base, clip, tmp_path, seed=4, sequence__steps=7)
  assert (calls[0].seed, calls[0].sequence.steps) == (4, 7)


@pytest.mark.parametrize(
  'options,line',
  [
    ({'sequence__stepps': 7}, 'not an option of this recipe.*stepps'),
    ({'sead': 7}, 'not an option of this recipe.*sead'),
    ({'seed': 'many'}, 'not an option of this recipe'),
    ({'appearance': 'a cat'}, r'\[v\] 0 times'),
    ({'sequence__dropout': 1.5}, 'config.sequence.dropout is 1.5'),
    ({'sample__sampler': 'ddim'}, "unknown sampler 'ddim'; use one of euler"),
    ({'stages': ('motion',)}, r"is \('motion',\); .*some of sequence, set"),
    ({'stages': ('set', 'set')}, 'config.stages is .*each once'),
    ({'stages': ()}, r'config.stages is \(\); expected some of'),
  ],
)
def test_python_mistakes_are_one_line(
  base, clip, tmp_path, calls, options, line
):
  with pytest.raises(DcjaxError, match=line) as error:
    call(base, clip, tmp_path, **options)
  assert '\n' not in str(error.value)
  assert not calls


def test_previews_are_read_back_at_their_own_size(run, base, clip):
  """They are enlarged on disk; the report shows the base's pixels."""
  job = Personalization(base, whole(clip), run[0])
  stills, motion = job.gallery._saved_previews(job.stages)
  assert (stills.step, motion.step) == (2, 2)
  assert stills.video.shape[:2] == (1, 16)
  assert motion.video.shape == (5, 16, 32, 3)
  path = run[0] / 'samples' / 'sequence_00002_preview.mp4'
  assert video_lib.read_video(path).frames.shape == (5, 256, 512, 3)


# ---- without learned words ---------------------------------------------------


def wordless(clip):
  c = tiny.recipe(clip)
  c.train_tokens = False
  c.prompts.update(dict(appearance='a red cat.', motion='the cat jumps.'))
  c.edits = ('new: a red cat rolls in the snow.',)
  return c


def test_a_concept_without_words_is_lora_alone(base, clip, tmp_path):
  """Both stages train theirs; plain prompts call it."""
  concept = Personalization(base, wordless(clip), tmp_path).run()
  assert not concept.tokens
  leaves = tree.flatten(concept.lora)
  for leaf in ('b1', 'b2'):
    assert all(np.any(x) for name, x in leaves.items() if name.endswith(leaf))
  saved = Concept.load(tmp_path / 'concept.safetensors')
  assert not saved.tokens and tiny.equal(saved.lora, concept.lora)
  assert saved.meta['prompts']['motion'] == 'the cat jumps.'
  config = wordless(clip)
  config.train_tokens = True
  config.prompts.update(dict(appearance=tiny.APPEARANCE, motion=tiny.MOTION))
  with pytest.raises(DcjaxError, match='another run'):
    Personalization(base, config, tmp_path).run()


@pytest.mark.parametrize(
  'change,line',
  [
    ({'prompts.appearance': 'a [v] cat.'}, r'holds \[v\], which train_tokens'),
    ({'prompts.motion': 'the cat [u] jumps.'}, r'motion prompt holds \[u\]'),
    ({'prompts.appearance': ' '}, 'the appearance prompt is empty'),
    ({'edits': ('new: a [v] cat.',)}, r'\[v\] .* has not been learnt'),
  ],
)
def test_without_words_no_prompt_holds_one(base, clip, change, line):
  config = wordless(clip)
  config.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=line) as error:
    Personalization(base, config, 'nowhere')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['world', 'other'])
def test_scenes_without_words_hold_none(name):
  scenes = recipes.edits(name, 'a cat in the snow.', tokens=False)
  assert scenes and not [x for x in scenes.values() if '[' in x or 'doing' in x]
  assert len(recipes.edits(name, 'a cat.')) > len(scenes) - 1


def test_sample_prompts_without_words(base):
  """The defaults of the sample clip and of the embedded base lose theirs."""
  config = recipes.personalize('world')
  config.train_tokens = False
  world = dataclasses.replace(base, name='world')
  job = Personalization(world, config, 'nowhere')
  assert job.full == 'a thing on a plain navy background. the thing is moving.'
  assert not any('[' in prompt for prompt in job.scenes.values())
