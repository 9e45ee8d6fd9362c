"""Storyboards to videos: what the transformer is told, and in which passes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tiny

from dcjax import (
  flow,
  lora,
  mesh,
  sampling,
  sharding,
  timed_concepts,
  timed_conditions,
  timed_plan,
  timed_sampling,
  tree,
)
from dcjax.alchemint import dataset, recipe
from dcjax.concept import Concept
from dcjax.data import subjects
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.models import intervals
from dcjax.models.reference import Events, References
from dcjax.models.reference_config import ReferenceConfig
from dcjax.storyboard import (
  Event,
  Guidance,
  Reference,
  Storyboard,
  TimedConcept,
)
from dcjax.timed_conditions import Told
from dcjax.weights import reference as reference_lib

PROMPT = 'a cat and a red ball in the snow.'
QUICK = {'steps': 2, 'seconds': 1.0, 'guidance': Guidance(1.0, 0.5)}


@pytest.fixture(scope='module')
def base():
  return tiny.trainable_base()


@pytest.fixture(scope='module')
def equipped(base):
  """With added parameters of which none is zero."""
  config = ReferenceConfig(tag_tokens=3, max_references=3)
  new = reference_lib.fresh(base, config, jax.random.key(0))
  rng = np.random.default_rng(0)
  flat = {
    name: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)
    if name.startswith(('reference/', 'blocks/timed_attn/')) and not x.any()
    else x
    for name, x in tree.flatten(new.params['transformer']).items()
  }
  params = {**new.params, 'transformer': tree.unflatten(flat)}
  return dataclasses.replace(new, params=params)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A disc and a bar on white."""
  path = tmp_path_factory.mktemp('pictures')
  y, x = np.mgrid[:20, :20]
  disc = np.full((1, 20, 20, 3), 255, np.uint8)
  disc[0, (y - 10) ** 2 + (x - 10) ** 2 < 40] = (200, 30, 40)
  bar = np.full((1, 20, 20, 3), 255, np.uint8)
  bar[0, 8:12, 2:18] = (20, 60, 220)
  video_lib.write_video(path / 'cat.png', disc)
  video_lib.write_video(path / 'ball.png', bar)
  return path


def cat(folder, start=0.0, end=0.5):
  return Reference(str(folder / 'cat.png'), 'cat', start, end)


def ball(folder, start=0.25, end=1.0):
  return Reference(str(folder / 'ball.png'), 'red ball', start, end)


def story(folder, **changes):
  kwargs = QUICK | {'references': [cat(folder), ball(folder)]} | changes
  return Storyboard(PROMPT, **kwargs)


def learn(base, path, value=0.3, frames=True, seed=0):
  """A concept file whose LoRA matters."""
  transformer = lora.attach(
    base.params['transformer'],
    r'attn/[qv]/kernel|mlp/up/kernel',
    2,
    jax.random.key(seed),
  )
  flat = tree.flatten(transformer)
  for name in [n for n in flat if n.endswith('lora/b1')]:
    flat[name] = jnp.full_like(flat[name], value)
  params = {
    'transformer': tree.unflatten(flat),
    'tokens': {x: np.full((1, 16), value, np.float32) for x in 'vu'},
  }
  stills = np.full((3, 16, 32, 3), 255, np.uint8)
  stills[:, 4:12, 8:20] = (10, 120, 60)
  meta = {'prompts': {'appearance': tiny.APPEARANCE, 'motion': tiny.MOTION}}
  made = Concept.from_params(params, base, meta, stills if frames else None)
  return str(made.save(path))


# ---- lengths and numbers -----------------------------------------------------


def test_what_a_storyboard_leaves_out_is_the_bases(base, folder):
  bare = Storyboard(PROMPT, references=[Reference('x.png', 'cat')])
  full = timed_plan.resolve(base, bare)
  assert (full.seconds, full.size, full.fps) == (0.5, (16, 32), 8.0)
  assert full.references[0].end == 0.5
  assert (full.steps, full.shift) == (40, 5.66)
  assert full.guidance == Guidance(4.0, 1.5)
  own = timed_plan.resolve(dataclasses.replace(base, name='world'), bare)
  assert (own.steps, own.shift) == (base.format.steps, base.shift)
  said = story(folder, steps=3, shift=1.5, fps=4.0)
  again = timed_plan.resolve(base, said)
  assert (again.steps, again.shift, again.fps) == (3, 1.5, 4.0)


def test_what_is_no_wan_has_the_guidance_of_video_alchemist(folder):
  paper = tiny.base(dit=tiny.PAPER_DIT)
  assert timed_plan.resolve(paper, story(folder, guidance=None)).guidance == (
    Guidance(8.0, 3.0)
  )


@pytest.mark.parametrize('seconds, fps', [(1.333, 24.0), (3.333, 24.0)])
def test_rounded_seconds_still_end_with_the_video(base, folder, seconds, fps):
  """Else who is there all the time would have an outer anchor, at a border."""
  there = [cat(folder, end=None), ball(folder, end=seconds)]
  asked = story(folder, seconds=seconds, fps=fps, references=there)
  full = timed_plan.resolve(base, asked)
  last = (timed_plan.frames_of(base, full) - 1) / fps
  assert [x.end for x in full.references] == [last, last] == [full.seconds] * 2
  times = timed_plan.latent_time(base, full, [0.0, last])
  frames = (round(last * fps)) // 4 + 1
  _, weights = intervals.anchors(times, frames)
  np.testing.assert_array_equal(weights, [1, 0, 0])


def test_frames_are_instants(base, folder):
  """1 + seconds fps: the last frame is the last instant."""
  assert timed_plan.frames_of(base, story(folder, fps=8.0)) == 9
  assert timed_plan.frames_of(base, story(folder, fps=4.0)) == 5


def test_seconds_become_latent_time(base, folder):
  full = timed_plan.resolve(base, story(folder))  # 9 frames, 3 latent frames
  np.testing.assert_allclose(
    timed_plan.latent_time(base, full, [0.0, 0.25, 0.5, 1.0, 9.0]),
    [0.0, 0.5, 1.0, 2.0, 2.0],
  )


@pytest.mark.parametrize(
  'changes, line',
  [
    ({'seconds': 1.2}, r'cannot make 1.2 s at 8 frames .* take 1 or 1.5 s'),
    ({'seconds': 0.1, 'references': []}, 'cannot make 0.1 s'),
    ({'size': (15, 32)}, 'cannot make 9 frames of 15x32'),
    ({'seconds': None}, r'references\[1\] is outside the video'),
  ],
)
def test_what_the_base_cannot_make(base, folder, changes, line):
  events = [Event('a dog.', 0.0, 0.1)]
  with pytest.raises(DcjaxError, match=line):
    timed_plan.resolve(base, story(folder, events=events, **changes))


@pytest.mark.parametrize(
  'guidance, expected',
  [
    (Guidance(4.0, 1.5, 0.5), flow.three_weight(4.0, 1.5, 0.5)),
    (
      Guidance(4.0, 1.5, time=2.0),
      flow.in_time(flow.three_weight(4.0, 1.5), 2.0),
    ),
    (
      Guidance(8.0, 3.0, form='video_alchemist'),
      flow.video_alchemist(8.0, 3.0),
    ),
    (
      Guidance(7.0, 1.5, form='instruct_pix2pix'),
      flow.instruct_pix2pix(1.5, 7.0),
    ),
  ],
)
def test_every_form_of_guidance_is_its_function(guidance, expected):
  assert timed_plan.coefficients(guidance) == expected


# ---- what is told ------------------------------------------------------------


def tell(base, equipped, *stories, negative=''):
  full = [timed_plan.resolve(base, x) for x in stories]
  return timed_conditions.tell(base, equipped, full, negative)


def test_references_are_pictures_words_and_times(base, equipped, folder):
  _, told = tell(
    base, equipped, story(folder), story(folder, references=[ball(folder)])
  )
  r = told.references
  assert r.latents.shape == (2, 2, 4, 8, 4)
  np.testing.assert_allclose(r.interval[0], [[0.0, 1.0], [0.5, 2.0]])
  np.testing.assert_array_equal(r.valid, [[True, True], [True, False]])
  # A word is its own tokens, without the end of a text.
  np.testing.assert_array_equal(
    r.tag_mask[0], [[True, False, False], [True, True, False]]
  )
  np.testing.assert_array_equal(r.latents[0, 1], r.latents[1, 0])
  np.testing.assert_array_equal(r.tags[0, 1], r.tags[1, 0])
  assert not r.tags[0, 0, 1:].any() and r.tags[0, 0, 0].any()
  image = timed_conditions.canvas.load_reference(folder / 'cat.png', (16, 32))
  np.testing.assert_array_equal(
    r.latents[0, 0], sampling.encode_video(base, image[None, None])[0, 0]
  )


def test_events_are_in_order_of_time(base, equipped, folder):
  events = [Event('the dog jumps.', 0.5, 1.0), Event('a cat.', 0.0, 0.5)]
  _, told = tell(base, equipped, story(folder, events=events), story(folder))
  assert told.events.features.shape[:2] == (2, 2)
  np.testing.assert_allclose(told.events.interval[0], [[0, 1], [1, 2]])
  # 'a cat.' and its end; 'the dog jumps.' and its end.
  np.testing.assert_array_equal(told.events.mask[0].sum(-1), [4, 5])
  assert not told.events.mask[1].any()


def test_a_storyboard_is_told_as_in_training(base, equipped, tmp_path):
  """The clip of a subject, as training reads it and as one would ask for it."""
  video = np.full((10, 16, 32, 3), (20, 30, 200), np.uint8)
  mask = np.zeros(video.shape[:3], bool)
  mask[2:6, 4:12, 8:20] = True  # 1.5 to 5.5 of 8 frames a second
  mask[9, 4:12, 8:20] = True  # after the clip: what the reference is cut from
  video[mask] = (230, 40, 30)
  clip = subjects.AnnotatedClip(
    video,
    8.0,
    PROMPT,
    (subjects.Subject('red ball', mask),),
    (subjects.TimedText('a ball jumps.', 0.2, 0.7),),
  )
  config = recipe.alchemint('world').data
  plain = dataclasses.replace(base.format, frames=9)
  samples = dataset.encode(
    dataclasses.replace(base, format=plain),
    [clip],
    config,
    equipped.reference,
    tmp_path,
    seed=0,
    views=1,
  )
  trained = samples[0]
  picture = np.dstack([video[9], np.where(mask[9], 255, 0).astype(np.uint8)])
  Image.fromarray(picture).save(tmp_path / 'ball.png')
  asked = Storyboard(
    PROMPT,
    references=[
      Reference(str(tmp_path / 'ball.png'), 'red ball', 1.5 / 8, 5.5 / 8)
    ],
    events=[Event('a ball jumps.', 0.2, 0.7)],
    **QUICK,
  )
  _, told = tell(base, equipped, asked)
  # Features are kept in half precision for training.
  close = functools.partial(np.testing.assert_allclose, atol=5e-3)
  close(told.text[0], trained['features'])
  np.testing.assert_array_equal(told.mask[0], trained['mask'])
  for what in ('references', 'events'):
    ours = getattr(told, what)._asdict()
    for key in ('interval', 'tags', 'tag_mask', 'features', 'mask'):
      if key in ours:
        x, y = np.asarray(ours[key][0, 0]), trained[what][key][0]
        n = min(len(x), len(y))
        close(x[:n], y[:n], err_msg=f'{what} {key}')
        assert not x[n:].any() and not y[n:].any()
  assert (
    told.references.latents.shape[2:]
    == trained['references']['latents'].shape[1:]
  )


def test_nothing_is_told_of_what_is_not_there(base, equipped, folder):
  _, told = tell(base, equipped, story(folder))
  assert told.events is None and told.gate is None
  alone = story(folder, references=[], events=[Event('a cat.', 0.0, 1.0)])
  assert tell(base, equipped, alone)[1].references is None


def arrays():
  """Two videos with one reference and one event each."""
  one = lambda *shape: jnp.ones((2, *shape))
  yes = lambda *shape: jnp.ones((2, *shape), bool)
  return Told(
    one(3, 4),
    yes(3),
    2 * one(3, 4),
    yes(3),
    References(one(1, 2, 2, 3), one(1, 2), yes(1), one(1, 2, 4), yes(1, 2)),
    Events(one(1, 3, 4), yes(1, 3), one(1, 2)),
    None,
  )


def test_each_pass_is_told_less_and_always_when():
  told = arrays()
  for name in flow.PASSES:
    text, _, references, events = timed_sampling.of_pass(told, name, 4)
    has_text = name in ('both', 'text', 'always')
    has_references = name in ('both', 'references', 'always')
    np.testing.assert_array_equal(text, told.text if has_text else told.null)
    assert bool(events.mask.all()) == bool(events.mask.any()) == has_text
    assert bool(references.latents.any()) == has_references
    assert bool(references.tags.any()) == has_references
    for kept in ('valid', 'tag_mask'):
      np.testing.assert_array_equal(
        getattr(references, kept), getattr(told.references, kept)
      )
    whole = np.broadcast_to([0.0, 3.0], (2, 1, 2))
    np.testing.assert_array_equal(
      references.interval,
      whole if name == 'always' else told.references.interval,
    )


# ---- guidance ----------------------------------------------------------------

BATCHES = []


@dataclasses.dataclass(frozen=True)
class Counting:
  """A transformer that adds up what it is told, and notes its batches."""

  def apply(self, variables, x, t, text, **told):
    BATCHES.append(len(x))
    amount = (
      10 * text.mean((1, 2))
      + 3 * told['references'].latents.mean((1, 2, 3, 4))
      + told['events'].mask.mean((1, 2), dtype=jnp.float32)
    )
    return jnp.zeros_like(x) + amount[:, None, None, None, None]


@pytest.mark.parametrize(
  'coefficients, count',
  [
    (flow.three_weight(0.0, 0.0), 1),
    (flow.three_weight(4.0, 0.0), 2),
    (flow.three_weight(4.0, 1.5), 3),
    (flow.three_weight(4.0, 1.5, 0.5), 4),
    (flow.instruct_pix2pix(1.5, 7.0), 3),
    (flow.in_time(flow.three_weight(4.0, 0.0), 2.0), 3),
  ],
)
def test_only_passes_that_count_are_computed(coefficients, count):
  BATCHES.clear()
  x = jnp.ones((2, 1, 2, 2, 3))
  out = timed_sampling.generate(
    {'params': {}},
    x,
    arrays(),
    dit=Counting(),
    sampler='euler',
    steps=1,
    shift=1.0,
    coefficients=coefficients,
  )
  assert set(BATCHES) == {2 * count}
  # Text counts 10 or, without, 20; pictures 3; events 1, with the text.
  amounts = [14.0, 23.0, 11.0, 20.0, 14.0]
  v = np.dot(coefficients, amounts[: len(coefficients)])
  np.testing.assert_allclose(out, x - v, rtol=1e-5)


def test_without_references_there_are_two_passes(
  base, equipped, folder, monkeypatch
):
  seen = {}

  def spy(variables, noise, told, **options):
    seen.update(options)
    return noise

  monkeypatch.setattr(timed_sampling, 'generate', spy)
  events = [Event('a cat.', 0.0, 1.0)]
  for references, passes in (([], (2, 3)), ([cat(folder)], (0, 1, 2))):
    asked = story(folder, references=references, events=events)
    timed_sampling.sample(base, [asked], references=equipped)
    assert flow.active(seen['coefficients']) == passes
  assert seen['coefficients'] == flow.three_weight(1.0, 0.5)


# ---- videos ------------------------------------------------------------------


def make(base, equipped, what, **options):
  return sampling.sample(base, what, references=equipped, **options)


def test_a_storyboard_is_a_video(base, equipped, folder):
  first = make(base, equipped, story(folder))
  assert first.shape == (9, 16, 32, 3) and first.dtype == np.uint8
  np.testing.assert_array_equal(first, make(base, equipped, story(folder)))
  for changed in (
    story(folder, seed=1),
    story(folder, references=[cat(folder)]),
    story(folder, references=[cat(folder, 0.5, 1.0), ball(folder)]),
    story(
      folder,
      references=[
        dataclasses.replace(cat(folder), word='red ball'),
        dataclasses.replace(ball(folder), word='cat'),
      ],
    ),
    story(folder, events=[Event('the cat jumps.', 0.0, 0.5)]),
    story(folder, guidance=Guidance(1.0, 3.0)),
  ):
    assert (first != make(base, equipped, changed)).any()


def test_it_is_the_same_alone_and_in_company(base, equipped, folder):
  both = [
    story(folder, seed=4),
    story(folder, seed=5, references=[cat(folder, 0.5, 1.0)]),
  ]
  together = make(base, equipped, both).astype(int)
  for i, one in enumerate(both):
    alone = make(base, equipped, one).astype(int)
    # Sums of another batch size may round to the next level.
    assert np.abs(together[i] - alone).max() <= 1


def test_the_call_stands_above_the_storyboard(base, equipped, folder):
  told = make(base, equipped, story(folder, seed=7, steps=3, size=(24, 32)))
  asked = make(
    base, equipped, story(folder), seed=7, steps=3, height=24, frames=9
  )
  np.testing.assert_array_equal(told, asked)
  strong = Guidance(3.0, 0.0)
  np.testing.assert_array_equal(
    make(base, equipped, story(folder, guidance=strong)),
    make(base, equipped, story(folder), guidance=strong),
  )


def test_noise_may_be_given(base, equipped, folder):
  noise = sampling.draw_noise(base, 1, 3, 9, 16, 32)
  np.testing.assert_array_equal(
    make(base, equipped, story(folder), noise=noise[0]),
    make(base, equipped, story(folder, seed=3)),
  )
  with pytest.raises(DcjaxError, match='but the storyboard is of'):
    make(base, equipped, story(folder), noise=noise[0, :2])


def test_storyboards_of_one_batch_are_alike(base, equipped, folder):
  for changes, key in (
    ({'seconds': 2.0}, 'seconds'),
    ({'steps': 3}, 'steps'),
    ({'guidance': Guidance(2.0, 1.0)}, 'guidance'),
  ):
    with pytest.raises(DcjaxError, match=f'differ in {key}'):
      make(base, equipped, [story(folder), story(folder, **changes)])
  other = story(folder, concepts=[TimedConcept('x')])
  with pytest.raises(DcjaxError, match='different concepts'):
    make(base, equipped, [story(folder), other])
  with pytest.raises(DcjaxError, match='no storyboards'):
    timed_sampling.sample(base, [])


def test_what_cannot_be_made_is_one_line(base, equipped, folder):
  four = [cat(folder, i / 4, (i + 1) / 4) for i in range(4)]
  missing = dataclasses.replace(cat(folder), image=str(folder / 'no.png'))
  text = folder / 'text.png'
  text.write_text('not a picture')
  broken = dataclasses.replace(cat(folder), image=str(text))
  for asked, options, line in (
    (story(folder, references=four), {}, 'has 4 references, .* up to 3'),
    (story(folder, references=[missing]), {}, 'there is no file .*no.png'),
    (story(folder, references=[broken]), {}, 'text.png cannot be read'),
    (
      story(folder, events=[Event('a [v] dog.', 0, 1)]),
      {},
      r'\[v\] .* has not been learnt',
    ),
    (story(folder), {'sampler': 'best'}, "unknown sampler 'best'"),
    (story(folder), {'guidance': 3.0}, 'several scales'),
    (story(folder), {'steps': 0}, 'steps is 0'),
    (story(folder), {'concepts': [1]}, 'stand in it'),
  ):
    with pytest.raises(DcjaxError, match=line):
      make(base, equipped, asked, **options)
  with pytest.raises(DcjaxError, match='has no trained references'):
    sampling.sample(base, story(folder))


# ---- concepts ----------------------------------------------------------------


@pytest.fixture(scope='module')
def files(base, folder):
  return [
    learn(base, folder / f'{i}.safetensors', value, seed=i)
    for i, value in enumerate((0.3, -0.2))
  ]


def with_concept(folder, file, prompt='a [v] cat in the snow.', **changes):
  placed = TimedConcept(file, **({'start': 0.5, 'end': 1.0} | changes))
  return Storyboard(prompt, concepts=[placed], **QUICK)


def test_a_concept_is_a_reference_with_its_lora_in_time(
  base, equipped, folder, files
):
  variables, told = tell(base, equipped, with_concept(folder, files[0]))
  np.testing.assert_allclose(told.references.interval, [[[1.0, 2.0]]])
  assert int(told.references.tag_mask.sum()) == 1  # 'cat'
  # 3 latent frames of 2x4 tokens, a picture, a word of 3.
  gate = np.asarray(told.gate)[0, :, 0]
  # Of frames 4 to 8 the second latent frame holds one, the third all others.
  np.testing.assert_array_equal(gate, [0] * 8 + [1] * 16 + [1] * 8 + [1] * 3)
  always = with_concept(folder, files[0], gate=False)
  _, told = tell(base, equipped, always)
  np.testing.assert_array_equal(told.gate, np.ones((1, 35, 1)))
  assert 'lora' in variables['blocks']['mlp']['up']
  assert 'lora' not in variables['blocks']['timed_attn']['q']


def test_a_concept_is_an_event_with_its_lora_in_time(
  base, equipped, folder, files
):
  asked = with_concept(folder, files[0], 'a cat.', timing='event')
  variables, told = tell(base, equipped, asked)
  assert told.references is None and told.gate.shape == (1, 24, 1)
  # 'a [v] cat in the snow. the cat [u] jumps.' and its end.
  assert int(told.events.mask.sum()) == 13
  rows = np.asarray(told.events.features)[0, 0]
  learnt = tree.flatten(Concept.load(files[0]).tokens)
  np.testing.assert_allclose(rows[1], learnt['v'][0])
  reads, timed = (
    variables['blocks'][x]['q']['lora'] for x in ('cross_attn', 'timed_attn')
  )
  np.testing.assert_array_equal(reads['a1'], timed['a1'])


def test_a_storyboard_weighs_what_the_file_weighs(files, tmp_path):
  path = Concept.load(files[0]).scaled(0.5, 2.0).save(tmp_path / 'half')
  timed = [TimedConcept(str(path)), TimedConcept(str(path), 0.5, 0.0)]
  found = [(x.identity, x.motion) for x in timed_concepts.load(timed)]
  assert found == [(0.5, 2.0), (0.25, 0.0)]


@pytest.mark.parametrize('timing', ['reference', 'event'])
def test_a_concept_changes_the_video(base, equipped, folder, files, timing):
  asked = with_concept(folder, files[0], timing=timing)
  first = make(base, equipped, asked)
  later = make(
    base, equipped, with_concept(folder, files[0], timing=timing, start=0.0)
  )
  weaker = make(
    base,
    equipped,
    with_concept(folder, files[0], timing=timing, identity=0.2),
  )
  assert (first != later).any() and (first != weaker).any()


@pytest.mark.parametrize(
  'sizes', [dict(data=2, context=2), dict(fsdp=2, tensor=2)], ids=str
)
def test_on_a_mesh_it_is_the_same(base, equipped, folder, files, sizes):
  """With a reference, a timed caption and a concept that comes and goes."""
  told = dataclasses.replace(
    with_concept(folder, files[0], 'a [v] cat and a red ball in the snow.'),
    references=[ball(folder)],
    events=[Event('the cat jumps.', 0.0, 0.5)],
  )
  alone = make(base, equipped, told).astype(int)
  with mesh.use(mesh.make(sizes, jax.devices()[: math.prod(sizes.values())])):
    placed = dataclasses.replace(
      equipped, params=sharding.place(equipped.params)
    )
    spread = make(base, placed, told).astype(int)
  assert np.abs(spread - alone).max() <= 1


def test_several_concepts_have_gates_of_their_own(
  base, equipped, folder, files
):
  asked = dataclasses.replace(
    story(folder),
    prompt='a cat and a red ball. a [v1] cat, a [v2] dog.',
    concepts=[
      TimedConcept(files[0], start=0.0, end=0.25),
      TimedConcept(files[1], timing='event', start=0.5, end=1.0),
    ],
  )
  variables, told = tell(base, equipped, asked)
  gate = np.asarray(told.gate)[0]
  frames = gate[:24].reshape(3, 8, 2)[:, 0]
  # Latent frame 1 holds frames 1 to 4: to 0.25 s are two, and from 0.5 s one.
  np.testing.assert_array_equal(frames, [[1, 0], [1, 1], [0, 1]])
  pictures = gate[24:48].reshape(3, 8, 2)
  np.testing.assert_array_equal(pictures[:, 0], [[0, 0], [0, 0], [1, 0]])
  group = variables['blocks']['mlp']['up']['lora']['group']
  np.testing.assert_array_equal(group, [[0, 0, 1, 1]] * 2)
  # The sentence of the second has its numbers.
  second = timed_concepts.sentence(
    asked.concepts[1],
    Concept.load(files[1]),
    {'v': 'v2', 'u': 'u2'},
    'concepts[1]',
  )
  assert second == 'a [v2] cat in the snow. the cat [u2] jumps.'
  assert make(base, equipped, asked).shape == (9, 16, 32, 3)


def test_groups_are_of_the_ranks_that_join_makes(base, folder, files):
  """A basis on the output takes twice as many."""
  learnt = [Concept.load(x) for x in files]
  turned = lora.attach(
    base.params['transformer'],
    'mlp/up/kernel',
    3,
    jax.random.key(0),
    side='out',
  )
  learnt.insert(1, Concept.from_params({'transformer': turned}, base))
  variables, _ = timed_concepts.put_into(
    base,
    base.params['transformer'],
    [TimedConcept('x')] * 3,
    learnt,
  )
  up = variables['blocks']['mlp']['up']['lora']
  np.testing.assert_array_equal(up['group'], [[0] * 2 + [1] * 6 + [2] * 2] * 2)
  assert up['a1'].shape[-1] == 10
  # The second has nothing in other layers.
  q = variables['blocks']['self_attn']['q']['lora']
  np.testing.assert_array_equal(q['group'], [[0, 0, 2, 2]] * 2)


def test_words_and_events_may_be_left_out_of_a_training(base, folder):
  config = ReferenceConfig(tag_tokens=0, event_length=0.0, max_references=2)
  bare = reference_lib.fresh(base, config, jax.random.key(0))
  assert make(base, bare, story(folder)).shape == (9, 16, 32, 3)
  with pytest.raises(DcjaxError, match='trained without timed captions'):
    make(base, bare, story(folder, events=[Event('a cat.', 0.0, 1.0)]))


@pytest.mark.parametrize(
  'interval, fade, expected',
  [
    # Latent frame j holds the video frames at j - 3/4 to j.
    ((1.5, 2.5), 0.0, [0, 0, 1, 1, 0]),
    # One of the four is enough.
    ((1.0, 3.0), 0.0, [0, 1, 1, 1, 0]),
    ((0.0, 1.5), 0.0, [1, 1, 1, 0, 0]),
    ((1.0, 1.25), 0.0, [0, 1, 1, 0, 0]),
    ((1.0, 1.0), 0.0, [0, 1, 0, 0, 0]),
    ((1.1, 1.15), 0.0, [0, 0, 0, 0, 0]),
    ((1.0, 3.0), 1.0, [0, 0.1875, 0.9375, 0.8125, 0.0625]),
    # Nothing is there to fade from or to.
    ((0.0, 3.0), 1.0, [1, 1, 1, 0.8125, 0.0625]),
    ((2.0, 4.0), 1.0, [0, 0, 0.1875, 0.9375, 1]),
    ((0.0, 4.0), 9.0, [1, 1, 1, 1, 1]),
  ],
)
def test_a_gate_is_of_the_frames_that_a_latent_frame_holds(
  interval, fade, expected
):
  gate = timed_concepts.frame_gate(
    5, np.array([[interval]]), np.array([[fade]]), parts=4
  )
  np.testing.assert_allclose(gate[0, :, 0], expected, atol=1e-6)


def test_concepts_that_cannot_be_placed(base, equipped, folder, files):
  bare = learn(base, folder / 'bare.safetensors', frames=False)
  other = learn(tiny.trainable_base(seed=1), folder / 'other.safetensors')
  for asked, line in (
    (with_concept(folder, bare), 'carries no frames'),
    (with_concept(folder, files[0], 'a [v], a cat.'), 'has no word'),
    (with_concept(folder, files[0], 'a cat.', word='cat'), r'\[v\] .* 0 times'),
    (with_concept(folder, files[0], 'a [v] cat, a [v] cat.'), '2 times'),
    (with_concept(folder, other), 'was learnt on'),
    (with_concept(folder, str(folder / 'no')), 'there is no file'),
    (with_concept(folder, files[0], image=str(folder)), 'there is no file'),
  ):
    with pytest.raises(DcjaxError, match=line):
      make(base, equipped, asked)
  with pytest.raises(DcjaxError, match='give the base as it was loaded'):
    sampling.sample(equipped, with_concept(folder, files[0]))
  shown = with_concept(folder, bare, image=str(folder / 'cat.png'))
  assert tell(base, equipped, shown)[1].references is not None
