"""The architecture: who may import whom, and what an import costs."""

import ast
import pathlib
import subprocess
import sys

import pytest

import dcjax

ROOT = pathlib.Path(dcjax.__file__).parent

# One level a line, lowest first. A file imports from lines above its own, never
# from its own line or below, so there are no cycles.
LEVELS = """
  errors  machine  recipes  state  planning.liveness  planning.text
  planning.collectives
  mesh  storyboard_rules  roll_call  strict_json
  storyboard  processes  sharding
  tree  stage  tracking  checkpoint  planning.devices  alchemint.recipe
  planning.topology
  flow  lora  optim
  concept_shapes

  models.rope  models.attention_reach  models.convolution  models.vae_config
  models.attention_xla  models.attention_gpu
  models.attention_tpu
  models.attention
  models.text_config  models.layers  models.resampling  models.dit_config
  models.intervals  models.wan_vae  models.text  models.autoencoder_config
  models.reference_config  models.block  models.autoencoder
  models.reference
  models.dit  models.vae
  models.vae_chunks  planning.flops  planning.advice
  planning.layout

  data.motions  data.shapes  data.textures
  data.decode  data.tokenizer  data.cache  data.pipeline  data.coverage
  data.scene  data.video  data.prompts  data.augment
  data.clip_bytes
  data.render  data.captions  data.folder  data.probe  data.buckets
  data.concepts  data.windows  data.quality  data.subjects  data.appearances
  data.latent_records
  data.canvas
  data.world  data.timeline  data.casting

  report.words  report.curves  report.timeline
  report.clips  report.shell
  report.page  report.sheet
  report

  weights.names  weights.container  weights.hub
  weights.lora_names  weights.fingerprint  weights.folder
  weights.location  weights.original  weights.part  weights.lora_file
  weights.networks
  weights.base
  weights.outline  weights.reference
  planning.program
  planning.traffic
  planning.step_time
  text_features  finetuning.survey
  formats

  concept  objective  doctor
  latents  step  pretrain_objective
  train
  timed_concepts  timed_plan
  timed_conditions
  timed_sampling
  sampling
  material  finetuning.dataset  start  pretraining.encoding  alchemint.encoding
  pretrain  pretraining.batches
  gallery  alchemint.dataset  alchemint.objective
  finetuning.showcase  alchemint.run  pretraining.run
  pretraining.autoencoder
  personalization  export
  finetuning.run  finetuning.inspection
  planning.programs  planning.shapes
  planning.alchemint  planning.pretraining
  planning.tasks
  planning.forecast
  planning.run

  evals.timing  evals.bootstrap
  evals.chance  evals.items  evals.options
  evals.item_file  evals.judging  evals.pairs  evals.world_scenes
  evals.scenarios
  evals.world_items  evals.layouts  evals.scoring  evals.origin
  evals.crops  evals.pretrained
  evals.proposals  evals.experts

  evals.templates
  evals.reading
  evals.oracle
  evals.world_judge
  evals.making  evals.sighting
  evals.two_tones
  evals.s2vtime  timed_report
  evals.__main__
  generation
  evals.study
  evals.concepts
  evals.base

  main
"""
LEVEL = {
  name: level
  for level, line in enumerate(LEVELS.splitlines())
  for name in line.split()
}

HEAVY = (
  'PIL av grain orbax tensorflow tensorflow_datasets torch transformers'
  ' diffusers tensorboardX'
).split()


def module_name(path: pathlib.Path) -> str:
  return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob('*.py'))}
# An empty __init__.py is only a folder; the face of the package is not tested
# here but by `test_public_names`.
MODULES = {
  name.removesuffix('.__init__'): path
  for name, path in FILES.items()
  if name != '__init__' and path.read_text().strip()
}


def imports(path: pathlib.Path) -> set[str]:
  """Modules of dcjax that a file imports anywhere, without the `dcjax.`."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path} has a relative import'
      # A name that is imported from a package is a module or lives in one.
      names = {f'{node.module}.{alias.name}' for alias in node.names}
      inner = {x for x in names if x.removeprefix('dcjax.') in MODULES}
      found |= inner or {node.module}
  return {x.removeprefix('dcjax.') for x in found if x.split('.')[0] == 'dcjax'}


def test_every_file_has_a_level():
  assert set(MODULES) == set(LEVEL), 'the table of levels is not the tree'


@pytest.mark.parametrize('name', MODULES)
def test_imports_are_of_lower_levels(name):
  for other in imports(MODULES[name]):
    assert other in LEVEL, f'{name} imports {other}, which is not a file'
    assert LEVEL[other] < LEVEL[name], f'{name} may not import {other}'


def test_models_and_data_do_not_know_each_other():
  for name, path in MODULES.items():
    for one, other in (('models.', 'data.'), ('data.', 'models.')):
      if name.startswith(one):
        assert not [x for x in imports(path) if x.startswith(other)], name


def test_no_file_is_named_utils():
  assert not [x for x in MODULES if 'util' in x or 'helper' in x]


def test_public_names_are_no_submodules():
  """Or `dcjax.sample` would be a module once somebody imports it."""
  assert not set(dcjax.__all__) & {x.split('.')[0] for x in FILES}


def test_public_names():
  assert set(dcjax.__all__) <= set(dir(dcjax))
  for name in dcjax.__all__:
    assert getattr(dcjax, name) is not None
  with pytest.raises(AttributeError, match='smaple'):
    dcjax.smaple  # noqa: B018


@pytest.mark.parametrize(
  'module, absent',
  [
    ('dcjax', ['jax', 'numpy', *HEAVY]),
    ('dcjax.main', ['jax', *HEAVY]),
    ('dcjax.sampling', HEAVY),
    ('dcjax.personalization', HEAVY),
  ],
)
def test_imports_are_light(module, absent):
  program = (
    f'import sys, {module}\nprint(*[x for x in {absent} if x in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == []
