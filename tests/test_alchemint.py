"""AlcheMinT's training: its data, its loss, and a run of two steps."""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import latents as latents_lib
from dcjax import stage as stage_lib
from dcjax import text_features, tree
from dcjax.alchemint import dataset, objective, recipe
from dcjax.alchemint import run as run_lib
from dcjax.data import prompts, subjects
from dcjax.data.subjects import AnnotatedClip, Subject, TimedText
from dcjax.errors import DcjaxError
from dcjax.models.dit import DiT
from dcjax.models.reference_config import ReferenceConfig
from dcjax.weights import reference as reference_lib

FRAMES, HEIGHT, WIDTH = 5, 16, 32


def clip(frames=7):
  """A red square in frames 1 to 3, and a blue one that is always there."""
  video = np.full((frames, HEIGHT, WIDTH, 3), 90, np.uint8)
  red = np.zeros(video.shape[:3], bool)
  blue = red.copy()
  red[1:4, 2:10, 2:10] = red[FRAMES:, 4:12, 12:20] = True
  blue[:, 4:12, 22:30] = True
  video[red], video[blue] = (230, 40, 30), (20, 30, 200)
  return AnnotatedClip(
    video,
    8.0,
    'a red ball in the blue snow',
    (Subject('red ball', red), Subject('blue', blue)),
    (TimedText('red ball rolls', 0.0625, 0.4375),),
  )


def config():
  c = recipe.alchemint('world')
  c.format.frames = FRAMES
  c.references.update(dict(tag_tokens=3, max_references=4))
  c.data.update(dict(clips=2, views=2, held_out=1, event_tokens=6))
  c.subjects.update(dict(steps=2, batch=2))
  c.log_every = c.save_every = 1
  c.eval_every = c.preview_every = 0
  return c


def encode(tmp_path, views=3, clips=1, **references):
  c = config()
  base = tiny.base()
  rules = ReferenceConfig(**c.references.to_dict() | references)
  return dataset.encode(
    base, [clip()] * clips, c.data, rules, tmp_path, seed=0, views=views
  )


def test_an_example_says_who_is_there_when(tmp_path):
  samples = encode(tmp_path)
  assert len(samples) == 3
  found = set()
  for example in (samples[i] for i in range(3)):
    assert example['latents'].shape == (2, 4, 8, 4)
    assert example['weight'].mean() == pytest.approx(1.0, rel=1e-3)
    references = example['references']
    assert references['latents'].shape == (3, 4, 8, 4)
    assert references['tags'].shape == (3, 3, 16)
    n = references['valid'].sum()
    assert references['valid'][:n].all() and n in (1, 2)
    found |= {tuple(x) for x in references['interval'][:n].tolist()}
    assert not references['latents'][n:].any()
  # From half a frame before the first to half a frame after the last, in
  # latent time; the other one from end to end.
  assert found <= {(0.125, 0.875), (0.0, 1.0)}


def test_words_have_no_end_token_and_captions_have_one(tmp_path):
  example = encode(tmp_path)[0]
  lengths = set(example['references']['tag_mask'].sum(1).tolist())
  assert lengths <= {0, 1, 2}
  assert example['mask'].sum() == 7 + 1
  counts = example['events']['mask'].sum(1).tolist()
  assert counts == [3 + 1, *[0] * 5]
  np.testing.assert_allclose(
    example['events']['interval'][0], [0.125, 0.875], atol=1e-6
  )


def test_without_the_branch_all_is_one_text(tmp_path):
  example = encode(tmp_path, event_length=0.0)[0]
  assert 'events' not in example
  assert example['mask'].sum() > 7 + 1


@pytest.mark.parametrize(
  'caption, events, whole',
  [
    ('a cat.', ('the cat naps.',), 'a cat. the cat naps.'),
    ('a cat. the cat naps.', ('the cat naps.',), 'a cat. the cat naps.'),
    ('a cat', ('it sits', 'it sits', 'it naps'), 'a cat. it sits. it naps'),
  ],
)
def test_timed_captions_go_into_the_caption_once(caption, events, whole):
  view = {'caption': caption, 'events': [{'text': text} for text in events]}
  assert dataset._in_one_text(view)['caption'] == whole


def test_texts_are_encoded_a_few_at_a_time(monkeypatch):
  """And are what they are all at once, bit by bit."""
  base = tiny.base()
  texts = ['a red ball', 'snow', 'a cat in the snow', 'snow', 'a dog']
  length = base.format.text_length
  monkeypatch.setattr(text_features, 'TOKENS', 2 * length)
  encoded = prompts.encode(base.tokenizer, texts, length, {})
  whole = text_features.text_features(base, encoded.ids, encoded.mask)
  counts = []

  def count(base, ids, mask, features=text_features.text_features):
    counts.append(len(ids))
    return features(base, ids, mask)

  monkeypatch.setattr(text_features, 'text_features', count)
  rows = dataset.text_rows(base, texts)
  assert counts == [2, 2] and len(rows) == 4
  for text, row, n in zip(texts, whole, encoded.mask.sum(1), strict=True):
    np.testing.assert_array_equal(rows[text], row[:n].astype(np.float16))


def test_views_differ_in_their_references_and_share_the_clip(tmp_path):
  samples = encode(tmp_path, views=6)
  examples = [samples[i] for i in range(6)]
  pictures = {x['references']['latents'].tobytes() for x in examples}
  assert len(pictures) > 3
  assert len({x['latents'].tobytes() for x in examples}) == 1


def test_what_is_encoded_is_not_encoded_again(tmp_path, monkeypatch):
  before = encode(tmp_path)[0]

  def fail(*args):
    raise AssertionError('encoded twice')

  monkeypatch.setattr(latents_lib, 'encode_video', fail)
  assert tiny.equal(encode(tmp_path)[0], before)


def test_devices_work_side_by_side_until_one_fails():
  begun = []

  def work(base, number):
    begun.append(number)
    time.sleep(0.01)
    if number == 3:
      raise DcjaxError(f'{base}: clip {number}')
    return base, number

  found = latents_lib.side_by_side(work, ['one', 'two'], range(1000))
  assert [next(found) for _ in range(3)] == [('one', 0), ('two', 1), ('one', 2)]
  with pytest.raises(DcjaxError, match='^two: clip 3$'):
    next(found)
  assert len(begun) < 500


# ---- the loss ----------------------------------------------------------------


@functools.cache
def model():
  """(loss of a batch and key, batch) of a random transformer with all added."""
  base = tiny.base()
  rules = ReferenceConfig(tag_tokens=3, max_references=4)
  fresh = reference_lib.fresh(base, rules, jax.random.key(0))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fresh.params
  )['transformer']
  params = {'transformer': tiny.randomize(shapes)}
  rng = np.random.default_rng(0)
  normal = lambda *s: rng.normal(size=s).astype(np.float32)
  batch = {
    'latents': normal(2, 2, 4, 8, 4),
    'features': normal(2, 12, 16),
    'mask': np.ones((2, 12), bool),
    'references': {
      'latents': normal(2, 2, 4, 8, 4),
      'interval': np.array([[[0, 0.5], [0.25, 0.75]]] * 2, np.float32),
      'valid': np.ones((2, 2), bool),
      'tags': normal(2, 2, 3, 16),
      'tag_mask': np.ones((2, 2, 3), bool),
    },
    'events': {
      'features': normal(2, 1, 6, 16),
      'mask': np.ones((2, 1, 6), bool),
      # Beyond the last frame: half of it is another place of that frame.
      'interval': np.array([[[0.0, 2.0]]] * 2, np.float32),
    },
  }
  context = {'null': {'features': normal(1, 12, 16), 'mask': np.ones((1, 12))}}
  return base, rules, params, batch, jax.tree.map(jnp.asarray, context)


@functools.cache
def losses(drop, drop_events=0.0):
  base, rules, params, _, context = model()
  stage = stage_lib.from_config('subjects', config().subjects.to_dict())
  loss = objective.subjects(
    DiT(base.dit, reference=rules), stage, drop=drop, drop_events=drop_events
  )
  call = jax.jit(lambda batch: loss(params, batch, context, jax.random.key(3)))
  return lambda batch: float(call(batch)[0])


def changed(*path):
  """The batch with one array halved."""
  batch = jax.tree.map(lambda x: x, model()[3])
  *way, last = path
  node = batch
  for key in way:
    node[key] = dict(node[key])
    node = node[key]
  node[last] = node[last] * 0.5
  return batch


INPUTS = {
  'caption': ('features',),
  'picture': ('references', 'latents'),
  'word': ('references', 'tags'),
  'interval': ('references', 'interval'),
  'event': ('events', 'features'),
  'event time': ('events', 'interval'),
}
ALWAYS = 1.0 - 4e-7
HIDING = {
  'nothing': ((0.0, 0.0, 0.0), 0.0, set(INPUTS)),
  'text': ((ALWAYS, 0.0, 0.0), 0.0, {'picture', 'word', 'interval'}),
  'references': (
    (0.0, ALWAYS, 0.0),
    0.0,
    {'caption', 'interval', 'event', 'event time'},
  ),
  'both': ((0.0, 0.0, ALWAYS), 0.0, {'interval'}),
  'events': (
    (0.0, 0.0, 0.0),
    1.0,
    {'caption', 'picture', 'word', 'interval'},
  ),
}


@pytest.mark.parametrize('hidden', HIDING)
def test_what_is_hidden_does_not_count_and_intervals_stay(hidden):
  drop, drop_events, counts = HIDING[hidden]
  loss = losses(drop, drop_events)
  before = loss(model()[3])
  moved = {
    name
    for name, path in INPUTS.items()
    if abs(loss(changed(*path)) - before) > 1e-6
  }
  assert moved == counts


def test_the_loss_reads_the_video_only():
  """Its size does not depend on how many references there are."""
  batch = jax.tree.map(lambda x: x, model()[3])
  loss = losses((0.0, 0.0, 0.0))
  # Twice the same samples, hence the same mean, whatever lies beside them.
  assert np.isfinite(loss(batch))
  hidden = dict(batch['references'], valid=np.zeros((2, 2), bool))
  away = loss(batch | {'references': hidden})
  far = dict(hidden, latents=hidden['latents'] * 100)
  assert loss(batch | {'references': far}) == pytest.approx(away, rel=1e-6)


# ---- a run -------------------------------------------------------------------


class Clips:
  """Instead of the procedural world: clips of the tiny base's size."""

  def __init__(self, count, **_):
    self._count = count

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return clip(7 + index)


@pytest.fixture
def clips(monkeypatch):
  monkeypatch.setattr(run_lib.timeline, 'World', Clips)


def test_a_run_leaves_a_folder_that_equips_its_base(tmp_path, clips):
  base = tiny.base()
  training = run_lib.Training(base, config(), tmp_path)
  before = tree.flatten(training.params()['transformer'])
  folder = training.run()
  equipped = reference_lib.equip(base, folder)
  after = tree.flatten(equipped.params['transformer'])
  moved = {
    name
    for name in after
    if np.abs(np.float32(after[name]) - np.float32(before[name])).max() > 1e-6
  }
  assert {'reference/index', 'reference/tag_out/kernel'} <= moved
  assert 'blocks/timed_attn/o/kernel' in moved
  assert 'blocks/self_attn/q/kernel' in moved
  frozen = [
    n for n in moved if not n.startswith(('reference', 'blocks/timed_attn'))
  ]
  assert all('self_attn' in name for name in frozen)
  written = json.loads((folder / 'config.json').read_text())
  assert written['references']['tag_tokens'] == 3


def test_training_goes_on_from_trained_references(tmp_path, clips):
  base = tiny.base()
  c = config()
  c.init = str(run_lib.Training(base, c, tmp_path / 'one').run())
  second = run_lib.Training(base, c, tmp_path / 'two')
  started = second.params()
  equipped = reference_lib.equip(base, c.init)
  assert tiny.equal(started['transformer'], equipped.params['transformer'])
  runs = json.loads((second.run() / 'training.json').read_text())['runs']
  assert [run['steps'] for run in runs] == [2, 2]
  assert [bool(run['config']['init']) for run in runs] == [False, True]
  c.references.scheme = 'midrope'
  with pytest.raises(DcjaxError, match='config.init: .* was trained with'):
    run_lib.Training(base, c, tmp_path / 'three').run()


def test_a_lora_is_a_stage_value(tmp_path, clips):
  c = config()
  c.lora.rank, c.subjects.train = 2, recipe.WITH['lora']
  base = tiny.base()
  folder = run_lib.Training(base, c, tmp_path).run()
  equipped = reference_lib.equip(base, folder)
  kernel = lambda x: x.params['transformer']['blocks']['mlp']['up']['kernel']
  assert np.abs(kernel(equipped) - kernel(base)).max() > 0
  assert 'lora' not in str(tree.names(equipped.params['transformer']))


def test_all_weights_are_a_stage_value(tmp_path, clips):
  c = config()
  c.subjects.train = recipe.WITH['all']
  base = tiny.base()
  folder = run_lib.Training(base, c, tmp_path).run()
  equipped = reference_lib.equip(base, folder)
  a, b = (x.params['transformer']['head']['kernel'] for x in (equipped, base))
  assert np.abs(np.float32(a) - b).max() > 1e-6


def test_a_dataset_on_disk_is_learnt_from(tmp_path):
  subjects.write(tmp_path / 'data', [clip(), clip(9)])
  c = config()
  c.data.path = str(tmp_path / 'data')
  folder = run_lib.Training(tiny.base(), c, tmp_path / 'run').run()
  assert (folder / 'model.safetensors').exists()


@pytest.mark.parametrize(
  'change, says',
  [
    ({'drop': (0.5, 0.4, 0.2)}, 'config.drop is'),
    ({'drop_events': 1.5}, 'config.drop_events is'),
    ({'remat': 'some'}, 'config.remat is'),
    ({'data.views': 0}, 'config.data.views is 0'),
    ({'data.max_references': 9}, 'at most config.references.max_references'),
    ({'references.scheme': 'rope'}, 'references.scheme is'),
    ({'subjects.train': 'nothing'}, 'matches no parameter'),
    ({'subjects.objective': 'flow'}, "objective is 'flow'; references are"),
    ({'subjects.data': 'frames'}, "config.subjects.data is 'frames'"),
    ({'lora.rank': 2}, 'train does not match its leaf .*attn'),
    ({'drop': (float('nan'), 0.1, 0.1)}, 'config.drop is'),
    ({'data.gap': float('nan')}, 'config.data.gap is nan'),
    ({'data.emphasis': float('nan')}, 'config.data.emphasis is nan'),
    ({'references.edge': float('nan')}, 'references.edge is nan'),
    ({'references.margin': float('nan')}, 'references.margin is nan'),
  ],
)
def test_impossible_settings_are_one_line(tmp_path, change, says):
  c = config()
  c.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=says):
    run_lib.Training(tiny.base(), c, tmp_path).run()


def test_the_clip_that_is_too_short_is_named(tmp_path):
  subjects.write(tmp_path / 'data', [clip(), clip(4)])
  c = config()
  c.data.path = str(tmp_path / 'data')
  with pytest.raises(DcjaxError, match='clip 1: a clip has 4 frames'):
    run_lib.Training(tiny.base(), c, tmp_path / 'run').run()


def test_another_scheme_does_not_resume_a_run(tmp_path, clips):
  base = tiny.base()
  run_lib.Training(base, config(), tmp_path).run()
  c = config()
  c.references.scheme = 'midrope'
  with pytest.raises(DcjaxError):
    run_lib.Training(base, c, tmp_path).run()


def test_clips_stack(tmp_path):
  stacked = encode(tmp_path, clips=2).stacked()
  assert stacked['references']['tags'].shape == (2, 3, 3, 16)
