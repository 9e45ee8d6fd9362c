"""The judge of the procedural world, judged on clips whose truth is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.data import world
from dcjax.errors import DcjaxError
from dcjax.evals import oracle

ANSWERS = ('background', 'pattern', 'color', 'shape', 'motion')


COUNT = 40  # clips a batch, the same everywhere: compilation takes long

_sample = jax.jit(
  jax.vmap(
    lambda key, objects, intervals, split: world.sample_scene(
      key, objects=objects, intervals=intervals, split=split
    ),
    in_axes=(0, None, None, None),
  ),
  static_argnums=3,
)
_render = jax.jit(
  lambda scene, frames: jax.vmap(lambda s: world.render(s, frames))(scene),
  static_argnums=1,
)


def render(scene, frames=world.FRAMES):
  clip = _render(scene, frames)
  video = np.asarray(jnp.round(clip.video * 255)).astype(np.uint8)
  return clip._replace(video=video)


def first(count, tree):
  return jax.tree.map(lambda x: x[:count], tree)


def clips(
  seed, frames=world.FRAMES, objects=(1, 0), intervals=0.0, split='train'
):
  keys = jax.random.split(jax.random.key(seed), COUNT)
  scene = _sample(keys, objects, intervals, split)
  return jax.tree.map(np.asarray, scene), render(scene, frames).video


@pytest.fixture(scope='module')
def held_out():
  return clips(1, split='test')


def test_reads_rendered_clips(held_out):
  scene, video = held_out
  scores = oracle.score(video, scene)
  for name in (*ANSWERS, 'motion_centroid', 'present', 'presence_iou'):
    assert scores[name] >= 0.97, (name, scores)
  assert scores['detected'] == 1 and np.isnan(scores['absent'])


def test_forgives_what_generated_clips_are_like(held_out):
  scene, video = held_out
  soft = video.reshape(COUNT, 17, 32, 2, 32, 2, 3).mean((3, 5))
  soft = soft.repeat(2, 2).repeat(2, 3)
  noise = np.random.default_rng(0).normal(0, 8, soft.shape)
  scores = oracle.score(np.clip(soft + noise, 0, 255).astype(np.uint8), scene)
  for name in (*ANSWERS, 'motion_centroid', 'presence_iou'):
    assert scores[name] >= 0.9, (name, scores)


def test_wrong_clips_score_like_guesses(held_out):
  scene, video = held_out
  scores = oracle.score(np.roll(video, 1, 0), scene)
  for name in ANSWERS:
    assert scores[name] < 0.45, (name, scores)


def test_tells_when_objects_are_there():
  scene, video = first(24, clips(2, intervals=1.0))
  scores = oracle.score(video, scene)
  for name in ('present', 'absent', 'presence_iou', 'shape', 'color'):
    assert scores[name] >= 0.95, (name, scores)


def test_reads_two_objects_by_their_colours():
  scene, video = first(24, clips(3, objects=(0, 1)))
  scores = oracle.score(video, scene)
  for name in (*ANSWERS, 'presence_iou'):
    assert scores[name] >= 0.93, (name, scores)


@pytest.mark.parametrize('frames', [1, 33])
def test_reads_stills_and_long_clips(frames):
  scene, video = first(16, clips(4, frames))
  scores = oracle.score(video, scene)
  for name in ANSWERS[:4]:
    assert scores[name] >= 0.95, (name, scores)
  if frames > 1:
    assert scores['motion'] >= 0.95
  else:
    assert np.isnan(scores['motion'])


def test_an_empty_scene_is_read_as_empty(held_out):
  scene, _ = held_out
  never = scene._replace(interval=np.full_like(scene.interval, -1))
  video = render(never).video[:8]
  for i in range(8):
    reading = oracle.read(video[i])
    assert reading.background == scene.background[i]
    assert reading.pattern == scene.pattern[i]
    assert not reading.present.any() and not reading.mask.any()
    assert reading.shape == reading.motion == reading.color == -1
    assert reading.names['shape'] == ''
  scores = oracle.score(video, first(8, scene))
  assert scores['detected'] == scores['shape'] == scores['presence_iou'] == 0
  assert scores['background'] == 1


def test_tracks_and_masks_are_those_of_the_scene():
  scene, video = clips(5)
  clip = render(scene)
  for i in range(16):
    reading = oracle.read(video[i])
    mask = np.asarray(clip.mask[i, 0])
    overlap = (mask & reading.mask).sum() / (mask | reading.mask).sum()
    assert overlap > 0.6, i
    # Decorations move the centre of what is seen, by the same at every frame.
    apart = reading.track - np.asarray(clip.track[i, 0])
    assert np.abs(apart).max() < 6, i


def test_mistakes_are_one_line(held_out):
  scene, video = held_out
  with pytest.raises(DcjaxError, match='uint8'):
    oracle.read(video[0] / 255)
  with pytest.raises(DcjaxError, match='uint8'):
    oracle.read(video[0, 0])
  with pytest.raises(DcjaxError, match='3 videos'):
    oracle.score(video[:3], scene)
