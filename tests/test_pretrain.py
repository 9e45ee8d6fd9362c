"""A base from nothing: its stages, its folder, and its two ways to get data."""

import json
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import pretrain, pretrain_objective, sampling, train, tree
from dcjax import stage as stage_lib
from dcjax.data import world
from dcjax.errors import DcjaxError
from dcjax.models.wan_vae import WanVAE
from dcjax.weights.base import load_base
from dcjax.weights.networks import expected_params


def get_config(variant):
  path = pathlib.Path(__file__).parents[1] / 'configs' / 'pretrain_world.py'
  return runpy.run_path(str(path))['get_config'](variant)


def tiny_config():
  """The config's own tiny variant, on stills and short clips."""
  c = get_config('tiny')
  c.bank = ()
  c.format.update(dict(frames=5, steps=2))
  c.dit.update(
    dict(channels=8, width=24, layers=1, heads=2, mlp_width=32, text_width=16)
  )
  c.text.update(dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
  c.vae.update(dict(base_dim=4, decoder_base_dim=4, z_dim=8, patch_size=4))
  c.vae.update(dict(dim_mult=(1, 1), temporal_downsample=(True,)))
  c.autoencoder.mix = ((5, 1),)
  c.world.mix = ((5, 1),)
  # Muon, which has tests of its own, takes long to compile for many shapes.
  c.autoencoder.optimizer.kind = c.world.optimizer.kind = 'adamw'
  c.preview_every = 0
  return c


def discs(scene, frames=world.FRAMES):
  """The first object of a scene as a disc that moves, in place of a drawing."""
  y, x = jnp.arange(64.0)[None, :, None], jnp.arange(64.0)[None, None]
  moved = x - jnp.arange(float(frames))[:, None, None]
  far = jnp.hypot(y - scene.center[0, 0], moved - scene.center[0, 1])
  mask = jnp.stack([far < 9.0, jnp.zeros_like(far, bool)])
  video = jnp.where(mask[0, ..., None], scene.paint[:1, :1, None], 0.5)
  return world.Clip(video=video, mask=mask, track=0, present=0, interval=0)


@pytest.fixture(scope='module', autouse=True)
def cheap():
  """Parameters and pictures that need little compilation."""

  def drawn(dit, vae, text, key):
    del key
    return tiny.randomize(expected_params(dit, vae, text))

  def plain(key, frames):
    return jnp.broadcast_to(jax.random.uniform(key, (3,)), (frames, 64, 64, 3))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrain.networks, 'init_params', drawn)
    patch.setattr(pretrain, 'MEASURED', (1, 2))
    patch.setattr(world, 'render', discs)
    patch.setattr(world, 'texture', plain)
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory, cheap):
  """(workdir, {stage: (parameters before, after)})."""
  workdir, stages, fit = tmp_path_factory.mktemp('pretrain'), {}, train.fit

  def spy(stage, loss, params, *args, **options):
    before = jax.tree.map(np.array, params)
    after, timing = fit(stage, loss, params, *args, **options)
    stages[stage.name] = (before, jax.tree.map(np.array, after))
    return after, timing

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'fit', spy)
    pretrain.run(tiny_config(), str(workdir))
  return workdir, stages


@pytest.fixture(scope='module')
def base(run):
  return load_base(run[0] / 'base')


@pytest.mark.parametrize(
  'stage,trained',
  [
    ('autoencoder', {'vae'}),
    ('world', {'transformer', 'text_encoder'}),
  ],
)
def test_a_stage_trains_its_own_networks(run, stage, trained):
  """The autoencoder is bit-identical while the transformer learns."""
  before, after = run[1][stage]
  moved = {part for part in before if not tiny.equal(before[part], after[part])}
  assert moved == trained


def test_the_folder_is_a_base(run, base):
  workdir, stages = run
  assert base.name == 'world'
  assert tiny.equal(base.params, stages['world'][1])
  assert (base.format.frames, base.format.text_length) == (5, 48)
  video = sampling.sample(base, 'a large red star.', steps=1)
  assert video.shape == (5, 64, 64, 3)
  record = json.loads((workdir / 'base' / 'training.json').read_text())
  (only,) = record['runs']
  assert only['config']['world']['steps'] == 2
  assert only['machine']['packages']['jax']


def test_latents_have_unit_scale_under_the_statistics(base):
  """They are measured after the autoencoder is trained."""
  mean, std = np.array(base.vae.latents_mean), np.array(base.vae.latents_std)
  assert mean.shape == std.shape == (8,)
  assert (std > 0).all()
  assert not np.allclose(std, 1.0)


def test_a_bank_holds_the_scenes_that_are_drawn_without_one(
  base, capsys, monkeypatch
):
  """Sample i of the bank is sample i rendered in its step."""
  config = tiny_config()
  config.bank = ((5, 5),)  # and holds whole chunks, of two scenes
  monkeypatch.setattr(pretrain, 'ENCODED', 10)
  stage = stage_lib.from_config('world', config.world.to_dict())
  loss = jax.jit(pretrain._objective(base, stage, config))
  bank = pretrain._encode_bank(base, config)
  assert 'bank: 4 scenes of 5 frames' in capsys.readouterr().out
  params, key = base.params, jax.random.key(3)
  batch = {'5': jnp.asarray([1, 3])}
  kept, _ = loss(params, batch, bank, key)
  drawn, _ = loss(params, batch, None, key)
  np.testing.assert_allclose(kept, drawn, rtol=1e-4)
  other = {'5': jnp.asarray([1, 2])}
  assert abs(float(loss(params, other, bank, key)[0] - kept)) > 1e-4
  # Without a bank there is always a new scene.
  again = jax.tree.map(lambda i: i + 4, batch)
  assert abs(float(loss(params, again, None, key)[0] - drawn)) > 1e-4


def test_an_object_weighs_more_and_only_where_it_is(base):
  """Its place is the share of its pixels, the most over a latent frame's."""
  keys = pretrain_objective.scene_keys(jax.random.key(0), 5, jnp.arange(3))
  params, vae = base.params['vae'], WanVAE(base.vae)
  scenes, latents, cover = pretrain_objective.encode_scenes(
    vae, params, keys, 5
  )
  assert cover.shape == (*latents.shape[:-1], 1)
  mask = np.stack(
    [
      world.render(jax.tree.map(lambda x, i=i: x[i], scenes), 5).mask.any(0)
      for i in range(3)
    ]
  )
  np.testing.assert_allclose(cover[:, 0].mean(), mask[:, 0].mean(), atol=1e-6)
  there = mask.reshape(3, 5, 8, 8, 8, 8).any(axis=(3, 5))
  np.testing.assert_array_equal(cover[:, 1, ..., 0] > 0, there[:, 1:3].any(1))
  weight = pretrain_objective._of_mean_one(1.0 + 4.0 * cover)
  np.testing.assert_allclose(weight.mean(), 1.0, rtol=1e-5)
  np.testing.assert_allclose(weight.max() / weight.min(), 1 + 4 * cover.max())


def test_indices_never_come_twice_and_go_on_where_they_were():
  indices = pretrain.Indices(((1, 3), (17, 2)))
  batches = [next(indices) for _ in range(4)]
  assert np.concatenate([b['1'] for b in batches]).tolist() == [*range(12)]
  assert np.concatenate([b['17'] for b in batches]).tolist() == [*range(8)]
  state = json.loads(json.dumps(indices.get_state()))
  other = pretrain.Indices(((1, 3), (17, 2)))
  other.set_state(state)
  assert jax.tree.map(np.array_equal, next(other), next(indices)) == {
    '1': True,
    '17': True,
  }


def test_a_finished_run_is_not_trained_again(run, base, monkeypatch):
  def never(*args):
    raise AssertionError('a finished stage made a step')

  monkeypatch.setattr(train, 'make_step', never)
  monkeypatch.setattr(pretrain, 'with_statistics', lambda *_: base.vae)
  path = run[0] / 'timings.json'
  times = json.loads(path.read_text())
  path.write_text(json.dumps(times | {'total': 7200.0}))
  pretrain.run(tiny_config(), str(run[0]))
  record = json.loads((run[0] / 'base' / 'training.json').read_text())
  assert record['runs'][-1]['hours'] >= 2.0  # of both commands
  assert json.loads(path.read_text())['world'] == times['world']
  assert load_base(run[0] / 'base').fingerprint == base.fingerprint


@pytest.mark.parametrize(
  'change', [{'seed': 1}, {'dit.layers': 2}, {'dtype': 'bfloat16'}]
)
def test_another_run_in_the_folder_is_refused(run, change):
  config = tiny_config()
  config.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match='another run') as error:
    pretrain.run(config, str(run[0]))
  assert '\n' not in str(error.value)


def test_the_decoder_alone_is_what_makes_pixels_of_latents(world_base):
  """All of it is trained, and nothing that a latent or a concept rests on."""
  config = get_config('decoder')
  (name,) = config.stages
  train = stage_lib.from_config(name, config[name].to_dict()).train
  names = tree.flatten(world_base.params)
  z = jnp.zeros((1, *world_base.latent_shape(1, 8, 8)))
  vae = WanVAE(world_base.vae)
  used = jax.eval_shape(
    lambda key: vae.init(key, z, method='decode')['params'], jax.random.key(0)
  )
  assert {f'vae/{x}' for x in tree.flatten(used)} == {
    x for x in names if re.search(train, x)
  }


def test_a_base_keeps_the_record_of_the_one_it_began_as(run, tmp_path):
  config = tiny_config()
  config.init = str(run[0] / 'base')
  (tmp_path / 'base').mkdir()
  (tmp_path / 'metrics.jsonl').write_text('{"step": 9}\n')
  pretrain._record(config, str(tmp_path), hours=1.0)
  written = json.loads((tmp_path / 'base' / 'training.json').read_text())
  before = json.loads((run[0] / 'base' / 'training.json').read_text())
  assert written['runs'][:-1] == before['runs']
  assert written['runs'][-1]['hours'] == 1.0
  metrics = (tmp_path / 'base' / 'metrics.jsonl').read_text()
  assert metrics.startswith((run[0] / 'metrics.jsonl').read_text())
  assert metrics.endswith('{"step": 9}\n')


def test_an_objective_for_concepts_does_not_pretrain(tmp_path):
  config = tiny_config()
  config.world.objective = 'flow'
  config.stages = ('world',)
  config.bank = ()
  with pytest.raises(DcjaxError, match="objective 'flow' does not pretrain"):
    pretrain.run(config, str(tmp_path))
