"""A saved base in diffusers' WanPipeline: the same noise, the same video."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import sampling
from dcjax.weights import base as base_lib
from dcjax.weights.location import ASSETS

pytestmark = pytest.mark.usefixtures('as_users_compile')

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

STEPS = 4
GUIDANCE = 3.0


@pytest.fixture(scope='module', params=['tiny', 'world'])
def opened(request, tmp_path_factory):
  """(prompt, our base, diffusers' pipeline) of one folder."""
  if request.param == 'tiny':
    folder = tmp_path_factory.mktemp('base') / 'tiny'
    base_lib.save_base(tiny.base(), folder, dtype=jnp.float32)
    prompt = 'A red cat jumps in the snow.'
  else:
    folder = ASSETS / 'world'
    if not (folder / 'model_index.json').is_file():
      pytest.skip('the package holds no embedded base yet')
    prompt = 'a red ball moves to the right.'
  pipeline = diffusers.WanPipeline.from_pretrained(
    folder, local_files_only=True
  ).to(torch.float32)
  pipeline.set_progress_bar_config(disable=True)
  return prompt, base_lib.load_base(folder), pipeline


def their_video(pipeline, base, prompt, noise, **changes):
  """Uint8 [f h w 3]."""
  f, h, w, _ = noise.shape
  options = dict(
    prompt=prompt,
    negative_prompt='',
    height=h * base.vae.scale_factor_spatial,
    width=w * base.vae.scale_factor_spatial,
    num_frames=1 + (f - 1) * base.vae.scale_factor_temporal,
    num_inference_steps=STEPS,
    guidance_scale=GUIDANCE,
    max_sequence_length=base.format.text_length,
    latents=torch.tensor(np.array(noise)).permute(3, 0, 1, 2)[None],
  )
  video = pipeline(**options | changes).frames[0]
  return np.round(255 * video).astype(np.uint8)


def difference(a, b):
  """Of brightness levels: the largest and the mean."""
  gap = np.abs(np.int32(a) - np.int32(b))
  return gap.max(), gap.mean()


def test_the_folder_opens_as_what_it_says(opened):
  _, base, pipeline = opened
  assert type(pipeline).__name__ == 'WanPipeline'
  assert type(pipeline.scheduler).__name__ == 'UniPCMultistepScheduler'
  assert pipeline.scheduler.config.flow_shift == base.shift
  assert pipeline.vae.config.z_dim == base.dit.channels


@pytest.mark.parametrize(
  'sampler,guidance',
  [('unipc', GUIDANCE), ('unipc', 1.0), ('diffusers_euler', GUIDANCE)],
)
def test_the_same_noise_gives_the_same_video(
  opened, sampler, guidance, monkeypatch
):
  prompt, base, pipeline = opened
  if sampler == 'diffusers_euler':
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=base.shift)
    monkeypatch.setattr(pipeline, 'scheduler', euler)
  f = base.format
  frames = min(f.frames, 9)
  noise = sampling.draw_noise(base, 1, 0, frames, f.height, f.width)[0]
  ours = sampling.sample(
    base, prompt, noise=noise, steps=STEPS, guidance=guidance, sampler=sampler
  )
  theirs = their_video(pipeline, base, prompt, noise, guidance_scale=guidance)
  assert ours.shape == theirs.shape == (frames, f.height, f.width, 3)
  assert ours.dtype == np.uint8 and ours.std() > 5
  largest, mean = difference(ours, theirs)
  print(f'largest difference {largest}, mean {mean:.4f} of 255')
  assert largest < 2 and mean < 0.02


def test_prompt_and_guidance_matter(opened):
  """Or agreement would say little about the text."""
  prompt, base, _ = opened
  f = base.format
  noise = sampling.draw_noise(base, 1, 0, 1, f.height, f.width)[0]
  draw = lambda text, guidance: sampling.sample(
    base, text, noise=noise, steps=STEPS, guidance=guidance
  )
  plain = draw(prompt, GUIDANCE)
  assert difference(draw('a blue dog.', GUIDANCE), plain)[0] > 2
  assert difference(draw(prompt, 1.0), plain)[0] > 2
