"""Every config is a job: it loads, says how to run it, and has a runner."""

import ast
import importlib
import importlib.util
import pathlib
import subprocess
import sys

from ml_collections import ConfigDict
import pytest

from dcjax import gallery, main, recipes
from dcjax.errors import DcjaxError

FOLDER = pathlib.Path(__file__).parents[1] / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))


def load(name: str):
  """The module of a config, loaded by its path as the command line does."""
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def leaves(config: ConfigDict) -> dict:
  """{dotted key: value}; lists of ConfigDicts are entered too."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= {f'{key}.{k}': v for k, v in leaves(value).items()}
    elif isinstance(value, (list, tuple)) and any(
      isinstance(x, ConfigDict) for x in value
    ):
      for i, x in enumerate(value):
        flat |= {f'{key}[{i}].{k}': v for k, v in leaves(x).items()}
    else:
      flat[key] = value
  return flat


@pytest.mark.parametrize('name', NAMES)
def test_has_a_runner(name):
  task = load(name).get_config().task
  assert task in main.TASKS
  assert callable(importlib.import_module(main.TASKS[task]).run)


@pytest.mark.parametrize('name', NAMES)
def test_header_is_its_command(name):
  command = f'python -m dcjax.main --config=configs/{name}.py'
  assert command in load(name).__doc__


@pytest.mark.parametrize('name', NAMES)
def test_tiny_variant_changes_values_only(name):
  """Same keys and types, so that every option of the job exists in it."""
  whole = leaves(load(name).get_config())
  tiny = leaves(load(name).get_config('tiny'))
  assert tiny.keys() == whole.keys()
  assert tiny != whole
  for key, value in whole.items():
    assert type(tiny[key]) is type(value), key


@pytest.mark.parametrize('name', NAMES)
def test_unknown_variant_is_one_line(name):
  with pytest.raises((DcjaxError, ValueError), match=r'tinny.*tiny') as error:
    load(name).get_config('tinny')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', NAMES)
def test_help_stays_fast(name):
  """A config is read before the job is known: no jax, nothing heavy."""
  imported = {
    alias.name if isinstance(node, ast.Import) else node.module
    for node in ast.walk(ast.parse((FOLDER / f'{name}.py').read_text()))
    if isinstance(node, (ast.Import, ast.ImportFrom))
    for alias in node.names
  }
  light = {'ml_collections', 'dcjax', 'dcjax.errors'}
  assert imported <= light | {'dcjax.alchemint', 'dcjax.evals'}


def test_recipes_are_light():
  program = (
    'import sys\nfrom dcjax import recipes\n'
    'from dcjax.alchemint import recipe\n'
    'from dcjax.evals import options\nprint("jax" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == 'False'


# ---- presets of Wan ----------------------------------------------------------

WAN = {
  'wan_1_3b': ('1.3B', 480, 832, 3.0),
  'wan_14b': ('14B', 480, 832, 3.0),
  'wan_14b,720p': ('14B', 720, 1280, 5.0),
  '480p,wan_1_3b': ('1.3B', 480, 832, 3.0),
}


@pytest.mark.parametrize('variant', WAN)
def test_wan_presets_are_the_papers_numbers_at_wans_sizes(variant):
  c = load('set_seq').get_config(variant)
  size, *format, shift = WAN[variant]
  assert c.base == f'Wan-AI/Wan2.1-T2V-{size}-Diffusers'
  assert [c.format.height, c.format.width] == format
  assert c.shift == shift
  assert c.format.frames % 4 == 1
  assert (c['set'].steps, c.sequence.steps) == (600, 900)
  assert (c['set'].dropout, c.sequence.dropout) == (0.8, 0.5)
  for stage in (c['set'], c.sequence):
    assert (stage.batch, stage.batch % stage.accumulate) == (8, 0)
    assert (stage.t_sampler, stage.train_shift) == ('uniform', shift)
    assert (
      stage.optimizer.to_dict().items()
      >= dict(
        lr=1e-4, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01, clip=0.05
      ).items()
    )
  assert (c.lora.rank, c.lora.side) == (8, 'in')
  assert (c.base_dtype, c.remat) == ('bfloat16', 'full')


@pytest.mark.parametrize('variant', ['wan_1_3b', 'wan_14b', 'snap_dit_11b'])
def test_alchemint_presets_are_the_papers_numbers(variant):
  """Nothing of what was tuned for the procedural world."""
  c = load('alchemint').get_config(variant)
  stage = c.subjects
  assert (stage.t_sampler, stage.train_shift) == ('uniform', 1.0)
  assert (c.drop, c.drop_events) == ((0.1, 0.1, 0.05), 0.0)
  assert (stage.steps, stage.batch, stage.ema) == (30_000, 32, 0.0)
  assert c.data.emphasis == 0.0 and c.references.presence == 0


@pytest.mark.parametrize('variant', recipes.WAN)
def test_lora_training_of_wan_draws_times_as_wan_samples(variant):
  c = load('lora').get_config(variant)
  assert (c.train.t_sampler, c.train.train_shift) == ('uniform', c.shift)
  own = load('lora').get_config().train
  assert (own.t_sampler, own.train_shift) == ('logit_normal', 1.0)


def test_the_papers_own_base_samples_with_50_steps_of_euler():
  c = load('set_seq').get_config(recipes.SNAP)
  assert (c.sample.sampler, c.sample.steps, c.sample.guidance) == (
    'euler',
    50,
    8.0,
  )
  given = gallery.sample_options(c.sample)
  assert given == {'steps': 50, 'guidance': 8.0, 'sampler': 'euler'}
  # Else it is left to `sampling.sample`.
  own = load('set_seq').get_config()
  assert 'sampler' not in gallery.sample_options(own.sample)


def test_variants_have_the_same_options():
  """So that what a command line says of one, it may say of all."""
  whole = leaves(load('set_seq').get_config())
  for variant in (*WAN, 'wan_1_3b,tiny'):
    assert leaves(load('set_seq').get_config(variant)).keys() == whole.keys()


@pytest.mark.parametrize(
  'variant', ['720p', 'wan_1_3b,wan_14b', 'wan_14b,480p,720p']
)
def test_variants_that_do_not_go_together_are_refused(variant):
  with pytest.raises(DcjaxError, match='does not go together; use one of'):
    load('set_seq').get_config(variant)


def test_tiny_comes_last():
  c = load('set_seq').get_config('tiny,wan_1_3b')
  assert c.base.endswith('1.3B-Diffusers')
  assert (c.sequence.steps, c.sequence.batch, c.sequence.accumulate) == (
    3,
    2,
    1,
  )


@pytest.mark.parametrize('variant', ['', 'wan_1_3b', 'wan_14b'])
def test_inspection_shows_what_training_sees(variant):
  training = load('lora').get_config(variant)
  seen = load('inspect').get_config(variant)
  for key in ('base', 'format', 'data'):
    assert seen[key] == training[key]
  assert seen.batch == training.train.batch
