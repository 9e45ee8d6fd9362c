"""Pretraining on captioned clips: what is encoded, mixed, trained and kept."""

import dataclasses
import json
import pathlib
import runpy
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import (
  latents,
  mesh,
  objective,
  pretrain,
  pretrain_objective,
  train,
  tree,
)
from dcjax.data import latent_records, subjects
from dcjax.data.buckets import Bucket, Grid
from dcjax.data.latent_records import Encoded
from dcjax.data.subjects import AnnotatedClip
from dcjax.errors import DcjaxError
from dcjax.models.autoencoder_config import AutoencoderConfig
from dcjax.models.dit import DiT
from dcjax.models.dit_config import SNAP_DIT_11B
from dcjax.pretraining import autoencoder, batches, encoding
from dcjax.pretraining import run as pretraining
from dcjax.weights.base import load_base, load_part

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
CAPTIONS = ('a red cat rolls', 'a blue dog jumps', 'a ball in the snow')


def config(name='pretrain', variant='tiny'):
  return runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config'](variant)


def clip(frames, caption=CAPTIONS[0], fps=8.0, seed=0):
  """Noise, and frame i's first pixel is i."""
  rng = np.random.default_rng(seed)
  video = rng.integers(0, 256, (frames, 16, 32, 3), np.uint8)
  video[:, 0, 0] = np.arange(frames)[:, None]
  return AnnotatedClip(video, fps, caption, (), ())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A dataset: clips of 5 and 9 frames, pictures, and one too short."""
  lengths = (5, 1, 9, 5, 1, 3, 5)
  several = [clip(n, CAPTIONS[i % 3], seed=i) for i, n in enumerate(lengths)]
  path = tmp_path_factory.mktemp('data') / 'clips'
  subjects.write(path, several, encoding='webp')
  return str(path), several


def small(data, parts):
  """The config's tiny variant, on those files, smaller still."""
  c = config()
  c.parts.update(dict(vae=parts, text_encoder=parts))
  f = tiny.FORMAT
  c.format.update(dict(frames=9, height=16, width=32, text_length=12))
  c.format.fps = f.fps
  c.data.update(dict(path=data, sizes=((16, 32),), stills=((16, 32),)))
  c.data.update(dict(windows=0, held_out=2, chunk=2))
  c.dit.update(dict(channels=4, text_width=16))
  c.stages = ('frames_17',)
  c.frames_17.mix = ((1, 4), (5, 4))
  c.eval_every = 2
  return c


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  return tiny.base_folder(tmp_path_factory.mktemp('parts') / 'base')


@pytest.fixture(scope='module')
def run(data, parts, tmp_path_factory):
  """(config, workdir) of a run to its end."""
  workdir, c = tmp_path_factory.mktemp('run'), small(data[0], parts)
  pretraining.run(c, str(workdir))
  return c, workdir


# ---- the run ----------------------------------------------------------------


def test_the_folder_is_a_base_with_the_frozen_networks(run, parts):
  c, workdir = run
  made, given = load_base(workdir / 'base'), load_base(parts)
  for part in ('vae', 'text_encoder'):
    assert tiny.equal(made.params[part], given.params[part])
  assert not made.dit.is_wan
  assert made.dit.vectors == 7 and made.dit.self_cond == 'x0_concat'
  assert made.format.frames == 9
  fresh = pretraining.initial(c, pretraining.frozen(c))
  assert not tiny.equal(made.params['transformer'], fresh['transformer'])


def test_metrics_tell_the_lengths_apart(run):
  lines = [
    json.loads(x) for x in (run[1] / 'metrics.jsonl').read_text().splitlines()
  ]
  keys = set().union(*lines)
  assert {'loss/1_frames', 'loss/5_frames'} <= keys
  assert 'held_out/t3/5_frames' in keys
  assert all(np.isfinite(x['loss']) for x in lines if 'loss' in x)


def test_latents_and_features_are_those_of_the_frozen_networks(
  run, data, parts
):
  """Float16 of what the base gives for the same window and caption."""
  base = load_base(parts)
  sources = latent_records.read(run[1] / 'latents', 'train')
  assert set(sources) == {(1, 4, 8), (2, 4, 8)}
  # Without the first two, held out, and the one of 3 frames, too short.
  stills, clips = sources[1, 4, 8], sources[2, 4, 8]
  assert [x.caption for x in clips] == [data[1][i].caption for i in (2, 3, 6)]
  assert [x.caption for x in stills] == [data[1][4].caption]
  # Of nine frames the first five, and four are left.
  wanted = latents.encode_video(base, data[1][2].video[None, :5])[0]
  np.testing.assert_allclose(clips[0].latents, wanted, rtol=2e-3, atol=2e-3)
  text, mask = latents.encode_prompts(base, [data[1][2].caption], {})
  rows = np.asarray(text[0])[np.asarray(mask[0])]
  np.testing.assert_allclose(clips[0].features, rows, rtol=2e-3, atol=2e-3)
  null = batches.null_text(run[1] / 'latents', 12)
  assert null['mask'].sum() == 1
  assert latent_records.skipped(run[1] / 'latents').keys() == {'5'}


def test_a_finished_run_does_nothing_again(run, monkeypatch):
  before = load_base(run[1] / 'base').fingerprint

  def never(*args, **options):
    raise AssertionError('a finished run worked')

  monkeypatch.setattr(train, 'make_step', never)
  monkeypatch.setattr(encoding, '_Encoder', never)
  pretraining.run(run[0], str(run[1]))
  assert load_base(run[1] / 'base').fingerprint == before


def test_a_killed_run_ends_in_the_same_bits(run, tmp_path):
  """The last checkpoint and a chunk of the latents are gone."""
  c, workdir = run
  shutil.copytree(workdir, tmp_path / 'again')
  shutil.rmtree(tmp_path / 'again' / 'checkpoints' / 'frames_17' / '2')
  shutil.rmtree(tmp_path / 'again' / 'base')
  shutil.rmtree(tmp_path / 'again' / 'latents' / 'train' / '000001')
  pretraining.run(c, str(tmp_path / 'again'))
  made, wanted = (
    load_base(x / 'base').params for x in (tmp_path / 'again', workdir)
  )
  assert tiny.equal(made, wanted)


@pytest.mark.slow
def test_on_a_mesh_the_base_is_the_same(run, tmp_path):
  """Parameters split four ways, batches two; the latents are there already."""
  c, workdir = run[0].copy_and_resolve_references(), run[1]
  c.data.latents = str(workdir / 'latents')
  c.eval_every = 0
  with mesh.use(mesh.make({'data': 2, 'fsdp': 2}, jax.devices()[:4])):
    pretraining.run(c, str(tmp_path))
  found, wanted = (
    tree.flatten(load_base(x / 'base').params['transformer'])
    for x in (tmp_path, workdir)
  )
  for name, x in wanted.items():
    np.testing.assert_allclose(found[name], x, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
  'change,message',
  [
    ({'parts.vae': ''}, r'--config.parts.vae=FOLDER'),
    ({'parts.vae': '/nowhere'}, 'no base model at /nowhere'),
    ({'dit.channels': 8}, 'reads 8 latent channels of the autoencoder, not 4'),
    ({'dit.text_width': 8}, 'reads 8 channels of the text encoder, not 16'),
    ({'dit.preset': 'mine'}, "preset is 'mine'; use one of"),
    ({'dit.heads': 3}, 'do not share out over 3 heads'),
    ({'remat': 'some'}, "remat is 'some'"),
    ({'frames_17.accumulate': 8}, 'divisor of every number of samples'),
    ({'frames_17.data': 'world'}, "has data 'world'"),
    ({'frames_17.mix': ((1, 2), (6, 2))}, 'cannot make 6 frames'),
    ({'data.path': '/nowhere'}, 'holds no dataset'),
    ({'data.path': 'gs://b/clips'}, 'data.path is gs://b/clips; expected a f'),
    ({'data.latents': 'gs://b/z'}, 'data.latents is gs://b/z; expected a fold'),
    ({'data.held_out': 7}, 'something must be left to learn from'),
    ({'data.windows': -1}, 'data.windows is -1'),
    ({'seed': 1}, 'another run'),
    ({'dtype': 'bfloat16'}, 'dtype is .bfloat16. now and was .float32'),
    ({'data.chunk': 3}, 'encoded in another way .chunk is 3 now and was 2'),
    ({'format.text_length': 13}, 'another way .text_length is 13 now'),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(run, change, message):
  c = run[0].copy_and_resolve_references()
  c.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=message) as error:
    pretraining.run(c, str(run[1]))
  assert '\n' not in str(error.value)


# ---- samples ----------------------------------------------------------------

GRID = Grid(9, 16, 32, 8, 8, 4)
HOW = encoding.Plan(
  (Bucket(1, 16, 32), Bucket(5, 16, 32)), 8.0, windows=0, held_out=3, chunk=2
)


def numbers(found):
  return [x[:, 0, 0, 0].tolist() for x in found]


def test_windows_are_at_true_speed():
  assert numbers(encoding.windows(clip(11), HOW, GRID)) == [
    [0, 1, 2, 3, 4],
    [5, 6, 7, 8, 9],
  ]
  double = clip(10, fps=16.0)
  assert numbers(encoding.windows(double, HOW, GRID)) == [[0, 2, 4, 6, 8]]
  slow = clip(3, fps=4.0)  # at 1 / 8 s lies half a frame, which is rounded up
  assert numbers(encoding.windows(slow, HOW, GRID)) == [[0, 1, 1, 2, 2]]
  assert numbers(encoding.windows(clip(1), HOW, GRID)) == [[0]]
  one = dataclasses.replace(HOW, windows=1)
  assert len(encoding.windows(clip(11), one, GRID)) == 1


def test_a_clip_that_fits_nowhere_says_why():
  with pytest.raises(DcjaxError, match='its 3 frames at 8 fps fit none'):
    encoding.windows(clip(3), HOW, GRID)
  clips_only = dataclasses.replace(HOW, buckets=HOW.buckets[1:])
  with pytest.raises(DcjaxError, match='its 1 frames'):
    encoding.windows(clip(1), clips_only, GRID)


def test_every_clip_is_in_one_chunk_and_held_out_or_learnt():
  found = encoding.chunks(8, HOW)
  assert [x for _, _, part in found for x in part] == [*range(8)]
  assert [x for x in found if x[0] == 'held_out'] == [
    ('held_out', 0, range(2)),
    ('held_out', 1, range(2, 3)),
  ]
  assert found[-1] == ('train', 2, range(7, 8))


def test_latents_are_of_one_seed_one_dataset_and_one_scale(
  data, parts, tmp_path
):
  """All that changes them, beside the weights and the plan."""
  base, world = pretraining.frozen(small(data[0], parts)), {'path': ''}
  shifted = dataclasses.replace(base.vae, latents_mean=(0.0,) * 4)
  of = lambda where, base=base, clips=7, seed=0: json.dumps(
    encoding.identity(base, where, HOW, clips=clips, seed=seed)
  )
  files = {'path': str(tmp_path / 'clips')}
  subjects.write(files['path'], data[1], encoding='webp')
  before = of(files)
  assert of(files, seed=1) == before
  shutil.rmtree(files['path'])
  subjects.write(files['path'], data[1][::-1][:6], encoding='webp')
  found = [before, of(files), of(files, clips=6), of(world), of(world, seed=1)]
  found.append(of(world, base=dataclasses.replace(base, vae=shifted)))
  assert len(set(found)) == len(found)


def test_processes_share_the_chunks(data, parts, tmp_path, monkeypatch):
  """Each encodes some, none twice, and together they are all."""
  base = pretraining.frozen(small(data[0], parts))
  how = dataclasses.replace(HOW, held_out=1)

  class Fake:
    def __init__(self, *_):
      pass

    def texts(self, _):
      return {'': np.zeros((1, 2), np.float16)}

    def examples(self, clips, numbers):
      x = np.zeros((1, 2, 2, 4), np.float16)
      return [Encoded(x, x[0, 0], f'{i}') for i in numbers], {}

  monkeypatch.setattr(encoding, '_Encoder', Fake)
  for index in (1, 0):
    encoding.encode(base, range(7), tmp_path, how, process=(index, 2))
    found = latent_records.read(tmp_path, 'train').get((1, 2, 2), ())
    assert 0 < len(found) < 7 if index else len(found) == 6
  assert sorted(int(x.caption) for x in found) == [*range(1, 7)]


def example(frames, value=0.0, caption='a'):
  x = np.arange(frames, dtype=np.float16)[:, None, None, None]
  x = np.broadcast_to(x + value, (frames, 2, 4, 3))
  return Encoded(x, np.full((3, 5), value, np.float16), caption)


@pytest.fixture
def folder(tmp_path):
  """Two clips of 5 latent frames, one of 3, and a picture."""
  several = [example(5, 10), example(3, 20), example(1, 30), example(5, 40)]
  for i in (0, 1):
    path = latent_records.chunk_folder(tmp_path, 'train', i)
    latent_records.write_chunk(path, several[2 * i : 2 * i + 2], {})
  return tmp_path


def of_length(folder, frames, *, first_frames=False):
  options = {'time': 8, 'length': 4, 'first_frames': first_frames}
  (found,) = batches.sources(folder, 'train', frames, **options)
  return [found[i] for i in range(len(found))]


def test_a_longer_clip_gives_its_first_frames(folder):
  """As the autoencoder is causal, they are what a shorter clip would give."""
  short, long = of_length(folder, 17), of_length(folder, 33)
  assert sorted(int(x['latents'][0, 0, 0, 0]) for x in short) == [10, 20, 40]
  assert {x['latents'].shape for x in short} == {(3, 2, 4, 3)}
  assert short[-1]['latents'][:, 0, 0, 0].tolist() == [40, 41, 42]
  assert {x['latents'].shape for x in long} == {(5, 2, 4, 3)}
  assert long[0]['mask'].tolist() == [True, True, True, False]
  assert not long[0]['features'][3].any()


def test_pictures_are_pictures_unless_first_frames_count(folder):
  assert len(of_length(folder, 1)) == 1
  several = of_length(folder, 1, first_frames=True)
  assert sorted(int(x['latents'][0, 0, 0, 0]) for x in several) == [
    *(10, 20, 30, 40)
  ]


def test_a_step_has_every_length_and_goes_on_where_it_was(folder):
  stage = types.SimpleNamespace(name='s', mix=((1, 1), (17, 2)))
  options = {'time': 8, 'length': 4, 'first_frames': False}
  make = lambda: batches.joint(folder, stage, 0, **options)
  stream = make()
  first = [next(stream) for _ in range(3)]
  assert {k: x['latents'].shape for k, x in first[0].items()} == {
    '1': (1, 1, 2, 4, 3),
    '17': (2, 3, 2, 4, 3),
  }
  state = json.loads(json.dumps(stream.get_state()))
  other, after = make(), next(stream)
  other.set_state(state)
  jax.tree.map(np.testing.assert_array_equal, next(other), after)
  stage.mix = ((121, 1),)
  with pytest.raises(DcjaxError, match='samples of 121 frames'):
    make()


def test_a_record_that_was_cut_off_is_named(folder):
  (path,) = folder.glob('train/000001/5x2x4*')
  records = latent_records.Records([path])
  with pytest.raises(DcjaxError, match=r'000001.*example 0 is no encoded clip'):
    latent_records._from_bytes(b'\x09' * 40, f'{path}: example 0')
  assert records[0].caption == 'a'
  with pytest.raises(IndexError, match='example 1 of 1'):
    records[1]


def test_a_chunk_that_fails_leaves_nothing(tmp_path):
  path = latent_records.chunk_folder(tmp_path, 'train', 0)

  def several():
    yield example(1)
    raise DcjaxError('broken')

  with pytest.raises(DcjaxError, match='broken'):
    latent_records.write_chunk(path, several(), {})
  assert not list(path.parent.iterdir())


# ---- the loss ---------------------------------------------------------------


def test_the_loss_is_the_mean_over_latent_pixels():
  stage = pretraining.stages_of(config())[0]
  dit = DiT(tiny.PAPER_DIT)
  params = {'transformer': tiny.dit_params(tiny.PAPER_DIT)}
  rng = np.random.default_rng(0)

  def part(frames, n):
    return {
      'latents': rng.normal(size=(n, frames, 2, 4, 4)).astype(np.float32),
      'features': rng.normal(size=(n, 3, 16)).astype(np.float32),
      'mask': np.ones((n, 3), bool),
    }

  batch = {'1': part(1, 3), '9': part(2, 1)}
  null = {'features': np.zeros((1, 3, 16), np.float32)}
  context = {'null': null | {'mask': np.ones((1, 3), bool)}}
  key = jax.random.key(3)
  total, aux = jax.jit(pretrain_objective.joint(dit, stage))(
    params, batch, context, key
  )
  one = jax.jit(objective.personalize(dit, stage))
  alone = {
    n: one(params, x, context, jax.random.fold_in(key, int(n)))[0]
    for n, x in batch.items()
  }
  np.testing.assert_allclose(aux['loss/9_frames'], alone['9'], rtol=1e-5)
  wanted = (3 * alone['1'] + 2 * alone['9']) / 5
  np.testing.assert_allclose(total, wanted, rtol=1e-5)
  assert alone['1'] != alone['9']


# ---- configs ----------------------------------------------------------------


def test_full_size_is_the_papers():
  c = config(variant='snap_dit_11b')
  assert pretraining.dit_of(c) == SNAP_DIT_11B
  stages = pretraining.stages_of(c)
  assert [max(n for n, _ in x.mix) for x in stages] == [17, 33, 65, 121]
  assert sum(x.steps for x in stages) == 822_000
  for stage in stages:
    o = stage.optimizer
    assert (o.kind, o.lr, o.warmup, o.betas) == (
      'adamw',
      1e-4,
      10_000,
      (0.9, 0.99),
    )
    assert (o.weight_decay, o.eps, stage.self_cond) == (0.01, 1e-8, 0.9)
    assert stage.ema > 0 and not any(n % 256 for _, n in stage.mix)
  assert c.dtype == 'bfloat16'


# ---- the autoencoder --------------------------------------------------------


@pytest.fixture
def flat_world(monkeypatch):
  """Pictures of one colour each, in place of a world that takes long."""
  colours = lambda key: jax.random.uniform(key, (3,), minval=0.2, maxval=0.8)
  flat = lambda colour, frames=5: jnp.broadcast_to(
    colour[None, None, None], (frames, 16, 16, 3)
  )
  monkeypatch.setattr(pretrain.world, 'sample_scene', colours)
  monkeypatch.setattr(
    pretrain.world,
    'render',
    lambda scene, frames=5: types.SimpleNamespace(video=flat(scene, frames)),
  )
  monkeypatch.setattr(
    pretrain.world, 'texture', lambda key, frames: flat(colours(key), frames)
  )
  monkeypatch.setattr(pretrain, 'MEASURED', (2, 4))


def test_an_autoencoder_learns_and_its_folder_is_a_part(flat_world, tmp_path):
  c = config('pretrain_autoencoder')
  c.autoencoder.update(dict(steps=40, mix=((1, 4),)))
  c.autoencoder.optimizer.update(dict(kind='adamw', lr=1e-2, warmup=0))
  c.eval_every = 40
  c.vae.update(dict(base_channels=4, multipliers=(1, 1)))
  c.vae.update(dict(encoder_blocks=(1, 1), decoder_blocks=(1, 1)))
  c.vae.update(dict(temporal_strides=(2, 1), spatial_strides=(2, 1)))
  autoencoder.run(c, str(tmp_path))
  lines = [
    json.loads(x) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  psnr = [x['psnr/1_frames'] for x in lines if 'psnr/1_frames' in x]
  assert psnr[-1] > psnr[0] + 1.5
  assert any('held_out/psnr/1_frames' in x for x in lines)
  found, part = load_part(tmp_path / 'base', 'vae')
  assert isinstance(found, AutoencoderConfig) and found.z_dim == 4
  assert not np.allclose(found.latents_std, 1.0)
  assert part.load()['encoder']['conv_in']['kernel'].shape == (3, 3, 3, 3, 4)
  assert (tmp_path / 'reconstruction_1_frames.png').exists()


@pytest.mark.parametrize(
  'change,message',
  [
    ({'vae.kind': 'vq'}, "kind is 'vq'; use wan or causal"),
    ({'vae.kind': 'wan'}, 'config.vae.base_channels is not an option'),
    ({'autoencoder.mix': ()}, 'mix'),
    ({'vae.spatial_strides': (2, 2, 2)}, 'expected one a stage'),
  ],
)
def test_an_impossible_autoencoder_is_refused(change, message, tmp_path):
  c = config('pretrain_autoencoder')
  c.autoencoder.batch = 1
  c.update_from_flattened_dict(change)
  with pytest.raises(DcjaxError, match=message) as error:
    autoencoder.run(c, str(tmp_path))
  assert '\n' not in str(error.value)
