"""The embedded base as it is shipped: small, documented, and obedient."""

import json

import jax
import numpy as np
import pytest

from dcjax import sampling
from dcjax.data import captions
from dcjax.evals import base as evaluation
from dcjax.evals import oracle
from dcjax.weights import reference as reference_lib
from dcjax.weights.location import ASSETS

pytestmark = pytest.mark.usefixtures('as_users_compile')

FOLDER = ASSETS / 'world'


def test_fits_in_sixteen_megabytes_and_its_references_in_eight():
  files = [path for path in FOLDER.rglob('*') if path.is_file()]
  size = lambda some: sum(path.stat().st_size for path in some)
  references = [path for path in files if 'reference' in path.parts]
  assert size(files) - size(references) <= 16e6
  assert size(references) <= 8e6


def test_references_say_how_they_were_trained():
  runs = json.loads((FOLDER / 'reference' / 'training.json').read_text())[
    'runs'
  ]
  assert all(run['config']['task'] == 'alchemint' for run in runs)
  lines = (FOLDER / 'reference' / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert max(steps) == max(run['steps'] for run in runs)


def test_references_load_onto_the_shipped_base(world_base):
  equipped = reference_lib.equip(world_base)
  assert equipped.reference.scheme == 'werope'


def test_says_how_it_was_trained():
  runs = json.loads((FOLDER / 'training.json').read_text())['runs']
  stages = [name for run in runs for name in run['config']['stages']]
  assert {'autoencoder', 'world'} <= set(stages)
  lines = (FOLDER / 'metrics.jsonl').read_text().splitlines()
  logged = [json.loads(line)['stage'] for line in lines]
  assert set(stages) <= set(logged)


def test_stills_follow_held_out_prompts(world_base):
  scenes = evaluation.held_out_scenes(12, seed=3)
  prompts = [
    captions.caption(jax.tree.map(lambda x, i=i: x[i], scenes), captions.STATIC)
    for i in range(12)
  ]
  stills = sampling.sample(world_base, prompts, frames=1, seed=5)
  scores = oracle.score(stills, scenes)
  # Chance is one in eight; the shipped base misses none of these.
  assert scores['background'] >= 0.9
  assert scores['color'] >= 0.75
  assert scores['present'] == 1.0


def test_autoencoder_keeps_what_is_drawn(world_base):
  clips = evaluation.render(evaluation.held_out_scenes(4, seed=3))
  latents = sampling.encode_video(world_base, clips)
  decoded = sampling.decode(world_base, latents)
  assert evaluation.psnr(clips, decoded) > 22.0
  # Normalised: the transformer was trained on unit variance.
  assert 0.5 < np.std(latents) < 2.0
