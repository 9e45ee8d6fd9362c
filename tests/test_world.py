"""The procedural world: exact, varied, and saying what it shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.data import scene as scenes
from dcjax.data import textures, tokenizer, world
from dcjax.data.render import visible
from dcjax.errors import DcjaxError

WORDS = ['.', ',', *world.VOCABULARY]
WORD_IDS = {word: 3 + i for i, word in enumerate(WORDS)}


BATCH = 256

# Compiled once for all tests: most of their time is compilation.
_sample = jax.jit(
  jax.vmap(
    lambda key, objects, intervals, split: world.sample_scene(
      key, objects=objects, intervals=intervals, split=split
    ),
    in_axes=(0, None, None, None),
  ),
  static_argnums=3,
)
_render = jax.jit(jax.vmap(world.render))


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def sample(count, seed=0, objects=(0.5, 0.5), intervals=0.3, split='train'):
  objects = tuple(map(float, objects))
  scene = _sample(keys(BATCH, seed), objects, intervals, split)
  return jax.tree.map(lambda x: x[:count], scene)


def render(scene):
  """Clips of BATCH // 4 scenes."""
  return _render(jax.tree.map(lambda x: x[: BATCH // 4], scene))


def draw(scene, frames=17, size=64):
  # One spelling of the arguments, or jit would compile the same again.
  return world.render(scene, frames, size)


def pick(tree, i):
  return jax.tree.map(lambda x: np.asarray(x)[i], tree)


def a_scene(**fields):
  """One object in the middle, on plain grey; fields are names or numbers."""
  scene = world.sample_scene(keys(1)[0], objects=(1.0, 0.0), intervals=0.0)
  plain = {
    'shape': 'ball',
    'color': 'red',
    'size': 'medium',
    'decoration': '',
    'motion': 'still',
    'background': 'grey',
    'pattern': 'plain',
  }
  lists = {
    'shape': world.SHAPES,
    'color': world.COLORS,
    'size': world.SIZES,
    'decoration': world.DECORATIONS,
    'motion': world.MOTIONS,
    'background': world.BACKGROUNDS,
    'pattern': world.PATTERNS,
  }
  values = {'center': 31.5, 'phase': 0.0}
  for name, value in {**plain, **fields}.items():
    words = lists.get(name)
    values[name] = words.index(value) if isinstance(value, str) else value
  for name, value in values.items():
    old = getattr(scene, name)
    value = jnp.broadcast_to(jnp.asarray(value, old.dtype), old.shape)
    scene = scene._replace(**{name: value})
  return scene


def test_a_clip_depends_on_its_key_alone():
  many = render(sample(BATCH))
  one = draw(
    world.sample_scene(keys(BATCH)[3], objects=(0.5, 0.5), intervals=0.3)
  )
  np.testing.assert_allclose(many.video[3], one.video, atol=1e-4)
  assert not np.allclose(many.video[2], many.video[3])


@pytest.mark.parametrize('frames, size', [(17, 64), (33, 64), (1, 64), (5, 32)])
def test_clip_shapes(frames, size):
  clip = draw(a_scene(), frames, size)
  assert clip.video.shape == (frames, size, size, 3)
  assert clip.mask.shape == (2, frames, size, size)
  assert clip.track.shape == (2, frames, 2)
  assert clip.present.shape == (2, frames)
  assert clip.interval.shape == (2, 2)
  assert clip.video.dtype == jnp.float32 and clip.mask.dtype == bool
  assert clip.video.min() >= 0 and clip.video.max() <= 1
  assert clip.present[0].all() and not clip.present[1].any()


def test_resolution_changes_nothing_but_detail():
  scene = a_scene(shape='star', decoration='with eyes', size='large')
  fine = np.asarray(draw(scene, 1, 128).video)
  coarse = np.asarray(draw(scene, 1, 64).video)
  pooled = fine.reshape(1, 64, 2, 64, 2, 3).mean((2, 4))
  assert np.abs(pooled - coarse).mean() < 5e-3


def test_splits_share_no_triple():
  train, test = sample(BATCH), sample(BATCH, split='test')
  for scene, expected in ((train, False), (test, True)):
    held = world.is_held_out(scene.color, scene.shape, scene.motion)
    assert np.all(np.asarray(held) == expected)


def test_two_objects_differ_and_round_ones_do_not_spin():
  scene = sample(BATCH, objects=(0, 1))
  assert (scene.count == 2).all()
  assert (scene.color[:, 0] != scene.color[:, 1]).all()
  assert (scene.shape[:, 0] != scene.shape[:, 1]).all()
  spins = np.asarray(scene.motion) == world.MOTIONS.index('spinning')
  shown = np.asarray(scene.shape)[spins]
  assert not np.isin(
    shown, [world.SHAPES.index('ball'), world.SHAPES.index('ring')]
  ).any()


def test_scenes_use_the_whole_vocabulary():
  scene = sample(BATCH)
  for name, count in {
    'shape': len(world.TRAIN_SHAPES),
    'color': len(world.COLORS),
    'size': len(world.SIZES),
    'motion': len(world.TRAIN_MOTIONS),
    'presence': len(world.PRESENCES),
    'background': len(world.BACKGROUNDS),
    'pattern': len(world.PATTERNS),
  }.items():
    assert set(np.unique(getattr(scene, name))) == set(range(count)), name


def test_objects_stay_in_the_frame():
  scene = sample(BATCH // 4, objects=(1, 0), seed=3)
  clip = render(scene)
  radius = np.asarray(world.RADII)[np.asarray(scene.size[:, :1])][..., None]
  track = np.asarray(clip.track[:, 0])
  assert (track > radius * 0.6).all() and (track < 63 - radius * 0.6).all()


def test_masks_follow_tracks_and_intervals():
  scene = sample(64, objects=(0, 1), intervals=1.0, seed=1)
  scene = scene._replace(decoration=scene.decoration * 0)
  clip = render(scene)
  mask, track = np.asarray(clip.mask), np.asarray(clip.track)
  present = np.asarray(clip.present)
  assert not (mask[:, 0] & mask[:, 1]).any()
  assert not mask[~present].any()
  np.testing.assert_array_equal(visible(scene), present)
  # The second object is in front: its mask is whole, so centred on its track.
  y, x = np.mgrid[:64, :64]
  area = np.maximum(mask.sum((-1, -2)), 1)[..., None]
  center = np.stack([(mask * y).sum((-1, -2)), (mask * x).sum((-1, -2))], -1)
  error = np.abs(center / area - track)[:, 1][present[:, 1]]
  assert np.percentile(error, 95) < 1.0


def test_an_interval_is_when_an_object_is_there():
  scene = a_scene(interval=jnp.asarray([[0.25, 0.75]]))
  clip = draw(scene, 17)
  assert np.flatnonzero(np.asarray(clip.present[0])).tolist() == [*range(4, 13)]
  np.testing.assert_allclose(clip.interval[0], [0.5, 1.5])
  # A still shows every object, whenever it comes.
  assert draw(scene, 1).present[0].all()


@pytest.mark.parametrize(
  'motion, axis, sign',
  [
    ('moving left', 1, -1),
    ('moving right', 1, 1),
    ('moving up', 0, -1),
    ('moving down', 0, 1),
  ],
)
def test_directions(motion, axis, sign):
  for frames in (17, 33):
    track = draw(a_scene(motion=motion), frames).track[0]
    way = np.asarray(track[-1] - track[0])
    assert way[axis] * sign == pytest.approx(28, abs=0.1)
    assert way[1 - axis] == pytest.approx(0, abs=0.1)


def test_every_motion_differs_from_every_other():
  kinds = len(world.MOTIONS)
  index = jnp.arange(BATCH // 4)[:, None] % kinds
  stars = jax.tree.map(
    lambda x: jnp.repeat(x[None], BATCH // 4, 0), a_scene(shape='star')
  )
  clip = render(stars._replace(motion=jnp.repeat(index, 2, 1)))
  videos = np.asarray(clip.video[:kinds]).reshape(kinds, -1)
  distance = np.abs(videos[:, None] - videos[None]).mean(-1)
  assert (distance + np.eye(kinds)).min() > 4e-3


def test_captions_say_what_is_shown():
  scene = a_scene(
    shape='star', size='large', decoration='with eyes', motion='bouncing'
  )
  assert world.caption(scene) == (
    'a large red star with eyes on a plain grey background. '
    'the star is bouncing.'
  )
  assert world.caption(scene, world.STATIC) == (
    'a large red star with eyes on a plain grey background.'
  )
  less = world.Said(
    size=False, decoration=False, background=False, motion=False, shape=False
  )
  assert world.caption(scene, less) == 'a red thing.'
  orange = a_scene(color='orange', presence=1)
  assert world.caption(orange, world.Said(size=False)) == (
    'an orange ball on a plain grey background. '
    'the ball is still and appears late.'
  )
  assert (
    world.caption(orange, less) == 'an orange thing. the thing appears late.'
  )


def test_captions_of_two_objects():
  scene = a_scene(motion='moving left')._replace(
    count=jnp.asarray(2),
    shape=jnp.asarray([0, 3]),
    color=jnp.asarray([0, 5]),
    presence=jnp.asarray([2, 0]),
  )
  assert world.caption(scene, world.Said(size=False)) == (
    'a red ball and a blue star on a plain grey background. '
    'the ball is moving left and leaves early. the star is moving left.'
  )


def test_ids_are_those_of_the_caption():
  count = BATCH
  scene = sample(count, intervals=0.5, seed=5)
  said = jax.vmap(world.sample_said)(keys(count, 6))
  ids, mask = jax.jit(jax.vmap(lambda s, t: world.caption_ids(s, t, WORD_IDS)))(
    scene, said
  )
  assert ids.shape == (count, 48) and ids.dtype == jnp.int32
  for i in range(count):
    text = world.caption(pick(scene, i), pick(said, i))
    want = [WORD_IDS[word] for word in text.replace('.', ' .').split()] + [1]
    assert np.asarray(ids[i])[np.asarray(mask[i])].tolist() == want
    assert not np.asarray(ids[i])[~np.asarray(mask[i])].any()


def test_ids_are_those_of_the_tokenizer():
  built = tokenizer.build_word_tokenizer(world.VOCABULARY)
  word_ids = tokenizer.word_ids(built, ['.', *world.VOCABULARY])
  scene = sample(12, intervals=0.5, seed=8)
  ids, mask = jax.vmap(lambda s: world.caption_ids(s, world.ALL, word_ids))(
    scene
  )
  texts = [world.caption(pick(scene, i)) for i in range(12)]
  want_ids, want_mask = tokenizer.tokenize(built, texts, 48)
  np.testing.assert_array_equal(ids, want_ids)
  np.testing.assert_array_equal(mask, want_mask)


def test_the_longest_caption_fits():
  scene = a_scene(decoration='with a stripe', motion='moving left', presence=3)
  scene = scene._replace(count=jnp.asarray(2), shape=jnp.asarray([1, 3]))
  words = world.caption(scene).replace('.', ' .').split()
  assert len(words) + 1 <= world.LONGEST
  ids, mask = world.caption_ids(scene, world.ALL, WORD_IDS, world.LONGEST)
  assert mask.sum() == len(words) + 1 and ids[len(words)] == 1


def test_caption_mistakes_are_one_line():
  with pytest.raises(DcjaxError, match='no token for'):
    world.caption_ids(a_scene(), world.ALL, {'a': 5})
  with pytest.raises(DcjaxError, match='length is 20'):
    world.caption_ids(a_scene(), world.ALL, WORD_IDS, 20)
  with pytest.raises(DcjaxError, match="split is 'all'"):
    world.sample_scene(keys(1)[0], split='all')
  with pytest.raises(DcjaxError, match='concept index is -1'):
    world.concept(-1)


def test_concepts_are_kept_from_training():
  palette = np.asarray(list(textures.COLORS.values()))
  seen = set()
  for index in range(18):
    concept = world.concept(index)
    seen.add((concept.shape, concept.moves, concept.decoration))
    assert concept.shape not in world.TRAIN_SHAPES
    assert concept.moves not in world.TRAIN_MOTIONS
    distance = np.linalg.norm(concept.paint[:, None] - palette[None], axis=-1)
    assert distance.min() > 0.35
    ground = np.asarray(textures.BACKGROUNDS[concept.background])
    assert np.linalg.norm(concept.paint - ground, axis=-1).min() > 0.4
    assert set(concept.appearance.replace('[v] ', '')[:-1].split()) <= set(
      world.VOCABULARY
    )
  assert len(seen) == 18


def test_a_concept_is_always_the_same_clip():
  one, again = world.concept(4), world.concept(4)
  assert one.video.shape == (17, 64, 64, 3) and one.video.dtype == np.uint8
  np.testing.assert_array_equal(one.video, again.video)
  area = one.mask.sum((1, 2))
  assert area.min() > 0.85 * area.max(), 'it leaves the frame'
  assert one.appearance.count('[v]') == 1 and one.motion.count('[u]') == 1
  static = world.caption(one.scene, world.STATIC)
  assert static == f'a large thing {one.decoration} on a plain navy background.'


def test_textures_are_varied_and_move():
  videos = np.asarray(jax.lax.map(lambda key: world.texture(key, 3), keys(24)))
  assert videos.shape == (24, 3, 64, 64, 3)
  assert videos.min() >= 0 and videos.max() <= 1
  assert np.isfinite(videos).all()
  moved = np.abs(videos[:, -1] - videos[:, 0]).mean((1, 2, 3))
  assert (moved < 1e-6).sum() >= 2 and (moved > 0.01).sum() >= 8
  # Some are smooth and some are full of edges, in dark and in bright colours.
  rough = np.abs(np.diff(videos[:, 0], axis=1)).mean((1, 2, 3))
  assert rough.min() < 0.01 and rough.max() > 0.04
  assert videos.mean((1, 2, 3)).std() > 0.1


def test_scene_tables_agree():
  assert len(scenes.PRESENCES) == len(scenes._SPANS)
  assert len(world.SIZES) == len(world.RADII)
  assert len(set(world.VOCABULARY)) == len(world.VOCABULARY)
