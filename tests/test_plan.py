"""The forecast: exactly what the run will do, and what would fit."""

import json
import types

import jax
import pytest
import tiny

from dcjax import machine, personalization, recipes, train, tree
from dcjax.errors import DcjaxError
from dcjax.models.dit_config import WAN_1_3B, WAN_14B, DiTConfig
from dcjax.models.text import TextConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.personalization import Personalization
from dcjax.planning import advice, layout, programs, tasks, topology
from dcjax.planning import run as plan
from dcjax.planning import text as plan_text
from dcjax.planning.forecast import Forecaster
from dcjax.weights.base import Base, load_base
from dcjax.weights.networks import expected_params
from dcjax.weights.outline import nbytes, outline

pytestmark = pytest.mark.usefixtures('as_users_compile')

SET_SEQ = 'configs/set_seq.py'
GIB = 2**30


@pytest.fixture
def here(monkeypatch):
  """The root of the repository, which paths of configs start from."""
  root = personalization.SAMPLE.parents[3]
  monkeypatch.chdir(root)


def planned(variant, device, method='count', **changes):
  """A plan of the stage with the clip alone: the other one is like it."""
  job = plan.load_job(f'{SET_SEQ}:{variant}')
  job.update_from_flattened_dict({'stages': ('sequence',)} | changes)
  return plan.plan(job, Forecaster(topology.find(device), method))


@pytest.fixture(scope='module')
def found():
  """A plan of few programs, to be shown."""
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(personalization.SAMPLE.parents[3])
    return planned('tiny', 'h100')


def row(found, name):
  return next(x for x in found['programs'] if x['name'] == name)


# ---- it is the run's own programs --------------------------------------------


def same(shapes, arrays) -> bool:
  kinds = lambda x: jax.tree.map(lambda a: (tuple(a.shape), str(a.dtype)), x)
  return kinds(shapes) == kinds(arrays)


@pytest.mark.parametrize(
  'dit, parameters',
  [(WAN_1_3B, 1_418_996_800), (WAN_14B, 14_288_491_584)],
  ids=['1.3b', '14b'],
)
def test_parameters_are_the_published_ones(dit, parameters):
  text = TextConfig()
  shapes = expected_params(dit, VAEConfig(), text)
  counts = {part: plan._count(leaves) for part, leaves in shapes.items()}
  assert counts == {
    'transformer': parameters,
    'vae': 126_892_531,
    'text_encoder': 5_680_910_336,
  }


def test_an_outline_has_the_shapes_and_types_of_the_base(world_base):
  assert same(outline('world').params, world_base.params)


def test_large_matrices_are_narrow_on_accelerators_only():
  name = 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'
  with machine.programs_for('gpu'):
    leaves = tree.flatten(outline(name).params)
  assert leaves['transformer/blocks/mlp/up/kernel'].dtype == 'bfloat16'
  assert leaves['text_encoder/embedding'].dtype == 'bfloat16'
  assert leaves['vae/encoder/conv_in/kernel'].dtype == 'float32'
  assert leaves['transformer/blocks/modulation/table'].dtype == 'float32'
  assert nbytes(leaves['transformer/head/kernel']) == 1536 * 64 * 2


# ---- memory ------------------------------------------------------------------

SMALL = DiTConfig(
  width=192, layers=3, heads=4, mlp_width=768, channels=4, text_width=16
)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_the_count_is_near_what_xla_allocates(remat):
  c = recipes.personalize('paper')
  c.base, c.remat, c.prior.videos = 'small', remat, 0
  c.sequence.batch = 2
  # Large enough for what grows with the tokens to outweigh the rest.
  c.format.update(dict(frames=33, height=128, width=128))
  base = Base(
    'small', SMALL, tiny.VAE, tiny.TEXT, None,
    expected_params(SMALL, tiny.VAE, tiny.TEXT),
  )  # fmt: skip
  found = programs.programs(tasks.outline(base, c))
  step = next(x for x in found if x.name == 'sequence')
  cpu = topology.find('cpu')
  counted = Forecaster(cpu, 'count').memory(step)
  compiled = Forecaster(cpu, 'compile').memory(step)
  assert (counted.how, compiled.how) == ('counted', 'compiled')
  assert counted.arguments == pytest.approx(compiled.arguments, rel=0.02)
  assert counted.beside == pytest.approx(compiled.beside, rel=0.2)


def test_remat_batch_and_frames_move_the_forecast(here):
  forecaster = Forecaster(topology.find('h200'), 'count')

  def most(**changes):
    job = plan.load_job(f'{SET_SEQ}:wan_1_3b', ('prior.videos=0',))
    job.update_from_flattened_dict(changes)
    run = tasks.outline(outline(job.base, dtype='bfloat16'), job)
    return forecaster.count(*programs.programs(run, ['sequence'])).beside

  usual = most()
  assert most(remat='dots') > 1.5 * usual
  assert most(**{'sequence.accumulate': 4}) > 1.5 * usual
  assert most(**{'format.frames': 17}) < 0.7 * usual


@pytest.mark.parametrize(
  'variant, device',
  [
    ('wan_1_3b', 'rtx4090'),
    ('wan_1_3b', 'v6e'),
    ('wan_14b,720p', 'h100'),
  ],
)
def test_presets_fit_what_their_header_says(here, variant, device):
  found = planned(variant, device)
  assert found['fits'], plan_text.render(found)
  assert 'it fits' in plan_text.render(found)


# ---- advice ------------------------------------------------------------------


def test_advice_fits_and_is_given_as_options(here):
  large = {'remat': 'none', 'prior.videos': 0, 'sequence.accumulate': 4}
  found = planned('wan_14b', 'h100', **large)
  assert not found['fits']
  advised = found['advice']
  assert advised['fits']
  assert 'remat' in advised['options']
  assert 'format.frames' not in advised['options']
  text = plan_text.render(found)
  for key, value in advised['options'].items():
    assert f'--config.{key}={value}' in text
  # Forecast anew with what was advised, the whole run fits.
  assert planned('wan_14b', 'h100', **(large | advised['options']))['fits']


def test_what_cannot_fit_is_said(found):
  worst = {'options': {'remat': 'full'}, 'peak': 90 * GIB, 'fits': False}
  text = plan_text.render(found | {'fits': False, 'advice': worst})
  assert 'no setting makes it fit' in text
  assert '--config' not in text


def test_only_needed_changes_are_kept():
  c = recipes.personalize('paper')
  tried = []

  def peak(config, names):
    tried.append(config)
    return 100 if config.remat == 'none' else 10

  found = advice.find(c, (81, 480, 832), ['set'], peak, 50)
  assert found.options == {'remat': 'products'}
  assert (found.peak, found.fits) == (10, True)
  assert c.remat == 'none', 'the job itself is not changed'


def test_levers_end():
  c = recipes.personalize('paper')
  names = ['set', 'sequence', 'sample', 'decode video']
  found = advice.find(c, (81, 480, 832), names, lambda *_: 100, 50)
  assert not found.fits
  assert found.options['set.accumulate'] == c['set'].batch
  assert found.options['remat'] == 'full'
  assert found.options['format.frames'] % 4 == 1
  assert found.options['format.height'] % 16 == 0


@pytest.mark.parametrize('data', [0, 8])
def test_samples_make_room_for_tokens(data):
  c = recipes.personalize('paper')
  c.mesh.data = data
  chips = {'data': 8, 'fsdp': 1, 'tensor': 1, 'context': 1}

  def peak(config, names):
    return 400 // (config.mesh.fsdp * config.mesh.context**2)

  found = advice.find(c, (81, 480, 832), ['sequence'], peak, 10, chips)
  assert found.fits
  asked = c.copy_and_resolve_references()
  asked.update_from_flattened_dict(found.options)
  assert asked.mesh.context == 8
  assert layout.of_job(asked, topology.find('h200:8')).sizes['data'] == 1


@pytest.mark.parametrize('name', ['h200:16', 'v5e:2x4*2'])
def test_no_advice_goes_between_slices_or_machines(name):
  c, chips = recipes.personalize('paper'), topology.find(name)
  c.mesh.data = 16
  laid = layout.of_job(c, chips).sizes

  def peak(config, names):
    assert layout.of_job(config, chips).sizes['data'] % 2 == 0
    return 100

  found = advice.find(
    c, (81, 480, 832), ['sequence'], peak, 50, laid, chips.units
  )
  assert found.options['mesh.data'] == 2


# ---- the command -------------------------------------------------------------


def config(**options):
  wanted = {'job': f'{SET_SEQ}:tiny', 'options': (), 'device': 'cpu'}
  wanted |= {'topology': '', 'mesh': 'auto', 'memory': 'count'} | options
  return types.SimpleNamespace(plan=types.SimpleNamespace(**wanted))


def test_the_command_prints_and_writes(here, tmp_path, capsys):
  plan.run(config(options=('sequence.batch=4',)), tmp_path)
  text = capsys.readouterr().out
  found = json.loads((tmp_path / 'plan.json').read_text())
  assert found['options'] == ['sequence.batch=4']
  assert '1 x 8 clips' in text
  for name in ('encode video', 'sample', 'set', 'sequence'):
    assert row(found, name)['total'] > 0
    assert name in text
  numbers = found['parameters']
  assert f'{numbers["transformer"]:,}' in text
  assert numbers['trained']['set'] > numbers['trained']['sequence'] > 0
  assert found['hours'] > 0


def test_without_a_compiler_it_counts_and_says_so(found, monkeypatch):
  monkeypatch.setattr(topology, 'targets', lambda _: (None, 'no compiler'))
  forecaster = Forecaster(topology.find('h100'))
  assert forecaster.note == 'no compiler'
  assert 'no compiler' in plan_text.render(found | {'note': forecaster.note})
  assert {x['how'] for x in found['programs']} == {'counted'}


def test_what_xla_cannot_compile_is_counted(here, monkeypatch):
  class Lowered:
    def compile(self, compiler_options):
      raise jax.errors.JaxRuntimeError('INTERNAL: no tiles\nmore')

  job = plan.load_job(f'{SET_SEQ}:tiny')
  run = tasks.outline(outline('world'), job)
  forecaster = Forecaster(topology.find('cpu'), 'compile')
  monkeypatch.setattr(forecaster, '_lower', lambda _: Lowered())
  assert forecaster.memory(*programs.programs(run, ['set'])).how == 'counted'
  assert forecaster.note == 'set is counted: XLA says INTERNAL: no tiles'


def test_the_default_share_of_a_gpu_is_mentioned(found):
  large = found | {'peak': int(0.9 * 80 * GIB)}
  setting = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
  assert setting in plan_text.render(large)
  assert setting not in plan_text.render(found)


@pytest.mark.parametrize(
  'options, line',
  [
    ({'job': 'configs/none.py'}, r'there is no file configs/none\.py'),
    ({'job': f'{SET_SEQ}:huge'}, r"no variant 'huge'; use tiny"),
    ({'job': 'configs/sample.py'}, r"'sample'; only those of configs/set_seq"),
    ({'mesh': 'job', 'options': ('mesh.fsdp=64',)}, r'and cpu has one chip'),
    ({'options': ('mesh.fsdp=64',)}, r"'fsdp': 64.*; the product of the axes"),
    ({'job': 'README.md'}, r'README\.md is not a config'),
    ({'device': 'h300'}, r"device is 'h300'; use local, cpu, h200"),
    ({'memory': 'guess'}, r"memory is 'guess'; use compile, count"),
    ({'options': ('stepps=3',)}, r"'stepps=3', which is no option"),
    ({'options': ('seed',)}, r"'seed', which is no option"),
    ({'options': ('base=none',)}, r'no base model at none'),
    ({'options': ('remat=some',)}, r"remat is 'some'; use one of none"),
    ({'options': ('base_dtype=int8',)}, r"base_dtype is 'int8'; use bfloat16"),
    ({'options': ('format.frames=6',)}, r'cannot make 6 frames'),
    ({'options': ('format.width=-8',)}, r'format\.width is -8'),
    ({'options': ('shift=-1.0',)}, r'shift is -1\.0'),
    ({'options': ('lora.rank=0',)}, r'no LoRA of rank 0'),
  ],
)
def test_a_mistake_is_one_line(here, tmp_path, options, line):
  with pytest.raises(DcjaxError, match=line) as error:
    plan.run(config(**options), tmp_path)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'plan.json').exists()


# Last: what is compiled quickly is for the rest of the file.
def test_shapes_are_those_that_the_run_passes(tmp_path, monkeypatch):
  """State, frozen leaves, batch and context of every stage of a real run."""
  folder, passed = tiny.base_folder(tmp_path / 'base'), {}
  c = tiny.recipe(tiny.clip(tmp_path / 'clip.mp4'), prior=0.5)
  c.base, c.prior.videos, c.prior.noun = folder, 2, 'dog'
  c.format.frames = 9

  def fit(stage, loss, params, batches, loop, *, context, **options):
    passed[stage.name] = (params, next(batches), context)
    return params, train.Timing()

  monkeypatch.setattr(train, 'fit', fit)
  monkeypatch.setattr(Personalization, '_report', lambda *_: None)
  Personalization(load_base(folder), c, tmp_path / 'run').run()

  run = tasks.outline(outline(folder), c)
  assert [stage.name for stage in run.stages] == list(passed)
  for stage in run.stages:
    params, batch, context = passed[stage.name]
    state, frozen = programs.state(run, stage)
    assert same(tree.combine(state.trainable, frozen), params)
    assert same(run.batch(stage), batch)
    assert same(run.context, context)
