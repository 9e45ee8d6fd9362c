"""Prompts to videos: what they depend on, and what they do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import lora, sampling, tree
from dcjax.concept import Concept
from dcjax.errors import DcjaxError
from dcjax.storyboard import Guidance

A, B = 'a red cat in the snow.', 'a blue dog.'


@pytest.fixture(scope='module')
def base():
  return tiny.trainable_base()


@pytest.fixture(scope='module')
def noises(base):
  return sampling.draw_noise(base, 2, 0, 5, 16, 32)


def make(base, prompt=A, **options):
  return sampling.sample(base, prompt, **({'steps': 2} | options))


def concept(base, *, b1=0.0, b2=0.0):
  """One whose coefficients are all the same."""
  transformer = lora.attach(
    base.params['transformer'], 'attn/[qv]/kernel', 2, jax.random.key(0)
  )
  values = {'b1': b1, 'b2': b2}
  flat = {
    name: jnp.full_like(x, values[name[-2:]]) if name[-2:] in values else x
    for name, x in tree.flatten(transformer).items()
  }
  tokens = {'v': np.full((1, 16), 0.5), 'u': np.full((1, 16), -0.5)}
  return Concept.from_params(
    {'transformer': tree.unflatten(flat), 'tokens': tokens}, base
  )


# ---- noise -------------------------------------------------------------------


def test_a_seed_is_a_video(base):
  first = make(base)
  assert first.shape == (5, 16, 32, 3)
  assert first.dtype == np.uint8
  np.testing.assert_array_equal(first, make(base))
  assert (first != make(base, seed=1)).any()


def test_noise_stands_above_the_seed(base, noises):
  given = make(base, noise=noises[0], seed=99)
  np.testing.assert_array_equal(given, make(base))
  np.testing.assert_array_equal(given, make(base, noise=noises[:1]))


def test_each_of_several_prompts_has_its_own_noise(base, noises):
  assert float(jnp.abs(noises[0] - noises[1]).mean()) > 0.5
  same = make(base, [A, A])
  assert (same[0] != same[1]).any()
  # The i-th is the same whoever else is asked for.
  more = sampling.draw_noise(base, 5, 0, 5, 16, 32)
  np.testing.assert_array_equal(more[:2], noises)
  with pytest.raises(DcjaxError, match='seed is 1000.*below 4294967296'):
    sampling.draw_noise(base, 1, 10**20, 5, 16, 32)


def test_a_prompt_is_the_same_alone_and_in_company(base, noises):
  together = make(base, [A, B]).astype(int)
  for i, prompt in enumerate((A, B)):
    alone = make(base, prompt, noise=noises[i]).astype(int)
    # Sums of another batch size may round to the next level.
    assert np.abs(together[i] - alone).max() <= 1


@pytest.mark.parametrize(
  'shape',
  [(2, 4, 8, 4), (3, 2, 4, 8, 4), (2, 2, 4, 8, 3), (2, 2, 3, 8, 4), (4,)],
)
def test_noise_of_another_shape_is_refused(base, shape):
  with pytest.raises(DcjaxError, match=r'noise is .*expected \[2 f h w 4\]'):
    make(base, [A, B], noise=np.zeros(shape))


# ---- guidance ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Counting:
  """A transformer v = x + text that notes the batches it sees."""

  def apply(self, variables, x, t, text, *, text_mask, x0_hat):
    BATCHES.append(len(x))
    return x + text.mean((1, 2))[:, None, None, None, None]


BATCHES = []


@pytest.mark.parametrize('guidance,passes', [(1.0, 1), (3.0, 2)])
def test_without_guidance_there_is_no_negative_pass(guidance, passes):
  BATCHES.clear()
  text = jnp.stack([jnp.full((5, 4), 1.0)] * 2 + [jnp.full((5, 4), 7.0)] * 2)
  latents = sampling.generate(
    {'params': {}},
    jnp.ones((2, 1, 2, 2, 3)),
    text,
    jnp.ones((4, 5), bool),
    dit=Counting(),
    sampler='euler',
    steps=1,
    shift=1.0,
    guidance=guidance,
  )
  assert set(BATCHES) == {2 * passes}
  # One Euler step from 1 to 0: x - v, with v guided away from 1 + 7.
  v = (1 + 7) + guidance * (1 - 7)
  np.testing.assert_allclose(latents, 1.0 - v)


def test_negative_prompt_counts_only_under_guidance(base):
  plain, other = (
    make(base, negative=negative, guidance=1.0) for negative in ('', B)
  )
  np.testing.assert_array_equal(plain, other)
  assert (make(base) != make(base, negative=B)).any()


# ---- concepts ----------------------------------------------------------------


def test_a_concept_that_has_learnt_nothing_changes_nothing(base):
  np.testing.assert_array_equal(
    make(base, concepts=[concept(base)]), make(base)
  )


def test_weights_of_zero_give_the_base_back(base):
  learnt = concept(base, b1=0.5, b2=-0.4)
  plain = make(base)
  off = make(base, concepts=[learnt.scaled(0.0, 0.0)])
  np.testing.assert_array_equal(off, plain)
  videos = [
    make(base, concepts=[learnt.scaled(*weights)])
    for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
  ]
  for i, video in enumerate(videos):
    for other in (plain, *videos[:i]):
      assert (video != other).any()


def test_learned_words_change_the_video(base):
  learnt = concept(base)
  with_word = make(base, 'a [v] cat.', concepts=[learnt])
  assert (with_word != make(base, 'a cat.', concepts=[learnt])).any()


def test_a_negative_prompt_may_hold_learned_words(base):
  """Nothing is pushed away from itself: guidance then does nothing."""
  learnt, prompt = concept(base, b1=0.3), 'a [v] cat.'
  same, plain = (
    make(base, prompt, negative=prompt, guidance=guidance, concepts=[learnt])
    for guidance in (4.0, 1.0)
  )
  np.testing.assert_allclose(same.astype(int), plain.astype(int), atol=1)
  other = make(base, prompt, negative='a cat.', guidance=4.0, concepts=[learnt])
  assert (other != plain).any()


# ---- what cannot be made -----------------------------------------------------


@pytest.mark.parametrize(
  'options,line',
  [
    ({'steps': 0}, 'steps is 0'),
    ({'frames': 4}, r'cannot make 4 frames of 16x32'),
    ({'height': 20}, r'cannot make 5 frames of 20x32'),
    ({'height': -16}, r'cannot make 5 frames of -16x32'),
    ({'width': -32}, r'cannot make 5 frames of 16x-32'),
    ({'shift': 0.0}, 'shift is 0.0; expected a number above 0'),
    ({'shift': -3.0}, 'shift is -3.0'),
    ({'shift': float('nan')}, 'shift is nan'),
    ({'guidance': float('inf')}, 'guidance is inf; expected the one number'),
    ({'guidance': Guidance(4.0, 1.5)}, 'guidance is .*; expected the one'),
    ({'references': 'folder'}, 'references are of storyboards'),
    ({'sampler': 'heun'}, "unknown sampler 'heun'"),
    ({'prompt': 'a [v] cat.'}, r'\[v\] .*has not been learnt'),
  ],
)
def test_impossible_requests_are_one_line(base, options, line, monkeypatch):
  monkeypatch.setattr(
    sampling, 'generate', lambda *_, **__: pytest.fail('late')
  )
  with pytest.raises(DcjaxError, match=line):
    make(base, **options)


def test_a_still_is_a_video_of_one_frame(base):
  assert make(base, frames=1).shape == (1, 16, 32, 3)


def test_videos_survive_the_autoencoder_in_shape(base):
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (2, 5, 16, 32, 3), dtype=np.uint8)
  latents = sampling.encode_video(base, video)
  assert latents.shape == (2, *base.latent_shape(5, 16, 32))
  assert sampling.decode(base, latents).shape == video.shape
  # Each clip by itself: no statistics over the batch.
  np.testing.assert_array_equal(
    sampling.encode_video(base, video[1:]), latents[1:]
  )
