"""An optimizer step on a mesh is the step of one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import lora, mesh, objective, optim, sharding, tree
from dcjax import state as state_lib
from dcjax import step as step_lib
from dcjax.alchemint import objective as alchemint
from dcjax.models.dit import DiT
from dcjax.models.reference_config import ReferenceConfig
from dcjax.stage import Optimizer, Stage

WAN = dataclasses.replace(tiny.DIT, width=64, heads=4, mlp_width=96)
PAPER = dataclasses.replace(
  tiny.PAPER_DIT, width=64, heads=4, mlp_width=96, window=5
)
# Every axis with every other; those of each case that are not slow.
MESHES = {
  'data=8': ('set',),
  'fsdp=8': ('sequence',),
  'data=2,fsdp=4': (),
  'data=2,tensor=4': ('subjects',),
  'data=2,context=4': ('sequence',),
  'fsdp=2,tensor=4': (),
  'fsdp=2,context=4': (),
  'tensor=2,context=2,data=2': (),
  'fsdp=2,tensor=2,context=2': ('set', 'subjects'),
  'tensor=4,context=2': (),
}
SEQUENCE = Stage(
  'sequence',
  'flow',
  'clip',
  r'lora/b2|^tokens/',
  steps=3,
  batch=16,
  accumulate=2,
  dropout=0.5,
  text_drop=0.1,
  prompt_drop=0.1,
  prior=1.0,
)
SET = dataclasses.replace(
  SEQUENCE, name='set', train=r'lora/(a1|b1)', accumulate=1, prior=0.0
)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params(dit, reference=None):
  """Of a transformer with LoRA leaves, none of them zero."""
  key = jax.random.key(0)
  x = jnp.zeros((1, 2, 4, 4, dit.channels))
  shapes = jax.eval_shape(
    DiT(dit, reference=reference).init,
    key,
    x,
    jnp.zeros((1,)),
    jnp.zeros((1, 3, dit.text_width)),
    **({} if reference is None else extra(dit, 1)),
  )['params']
  transformer = tiny.randomize(shapes)
  transformer = lora.attach(transformer, r'attn/[qkvo]/|mlp/up', 2, key)
  flat = {
    name: x + 0.1 * normal(1, *x.shape) if name.endswith(('b1', 'b2')) else x
    for name, x in tree.flatten(transformer).items()
  }
  return {
    'transformer': tree.unflatten(flat),
    'tokens': {'v': normal(3, 1, dit.text_width)},
  }


def extra(dit, b):
  """References and timed captions, as a batch holds them, as keywords."""
  found = references(dit, b)
  return {
    'references': step_references(found),
    'events': alchemint.Events(**found['events']),
  }


def step_references(batch):
  return alchemint.References(**batch['references'])


def references(dit, b):
  valid = np.ones((b, 2), bool)
  valid[::2, 1] = False
  return {
    'references': {
      'latents': normal(5, b, 2, 4, 4, dit.channels),
      'interval': np.tile(np.float32([[0, 1], [0.5, 1]]), (b, 1, 1)),
      'valid': valid,
      'tags': normal(6, b, 2, 3, dit.text_width),
      'tag_mask': np.ones((b, 2, 3), bool),
    },
    'events': {
      'features': normal(7, b, 1, 3, dit.text_width),
      'mask': np.ones((b, 1, 3), bool),
      'interval': np.tile(np.float32([[0, 0.7]]), (b, 1, 1)),
    },
  }


def samples(dit, seed, b):
  return {
    'latents': normal(seed, b, 2, 4, 4, dit.channels),
    'prompt': np.arange(b, dtype=np.int32) % 2,
    'sample': np.arange(b, dtype=np.int32),
  }


def context(dit):
  slots = np.full((2, 5), -1, np.int32)
  slots[:, 1] = 0
  return {
    'features': normal(4, 2, 5, dit.text_width),
    'mask': np.ones((2, 5), bool),
    'slots': slots,
    'null': {
      'features': normal(8, 1, 5, dit.text_width),
      'mask': np.ones((1, 5), bool),
    },
  }


def concept_case(dit, stage):
  loss = objective.personalize(DiT(dit, remat='full'), stage)
  batch = samples(dit, 1, stage.batch)
  if stage.prior:
    batch = {'concept': batch, 'prior': samples(dit, 2, stage.batch)}
  return loss, stage, params(dit), batch, context(dit)


def subjects_case(dit):
  stage = dataclasses.replace(
    SEQUENCE,
    name='subjects',
    train='reference/|timed_attn|self_attn',
    prior=0.0,
  )
  stage = dataclasses.replace(stage, dropout=0.0)
  reference = ReferenceConfig(max_references=2, tag_tokens=3)
  loss = alchemint.subjects(
    DiT(dit, reference=reference), stage, drop=(0.2, 0.2, 0.1), drop_events=0.3
  )
  batch = samples(dit, 1, stage.batch) | references(dit, stage.batch)
  batch['features'] = normal(9, stage.batch, 5, dit.text_width)
  batch['mask'] = np.ones((stage.batch, 5), bool)
  del batch['prompt']
  return loss, stage, params(dit, reference), batch, context(dit)


CASES = {
  'set': lambda: concept_case(WAN, SET),
  'sequence': lambda: concept_case(PAPER, SEQUENCE),
  'subjects': lambda: subjects_case(WAN),
}


@functools.cache
def case(name):
  return CASES[name]()


def gradients(name):
  """(loss, aux, gradient) of the first step on the current mesh."""
  loss, stage, everything, batch, shared = case(name)
  trainable, frozen = tree.partition(everything, stage.train)

  @jax.jit
  def run(trainable, frozen, batch, shared, key):
    return step_lib.gradients(
      loss, stage, trainable, frozen, batch, shared, key, sharding.RULES
    )

  return sharding.fetch(
    run(
      sharding.place(trainable),
      sharding.place(frozen),
      sharding.batch(batch),
      sharding.place(shared, ()),
      jax.random.key(0),
    )
  )


@functools.cache
def alone(name):
  return gradients(name)


@pytest.mark.parametrize(
  'batch, accumulate, shares, parts',
  [
    (8, 1, 1, 1),
    (8, 8, 1, 8),
    (8, 8, 2, 4),
    (8, 4, 8, 1),
    (12, 4, 3, 2),
    (12, 6, 2, 3),
    (12, 12, 4, 3),
    (6, 2, 1, 2),
  ],
)
def test_microbatches_are_shared_like_samples(batch, accumulate, shares, parts):
  stage = dataclasses.replace(SET, batch=batch, accumulate=accumulate)
  assert step_lib.microbatches(stage, shares) == parts
  assert batch // (shares * parts) <= batch // accumulate


def sizes_of(text):
  return {axis: int(n) for axis, n in (x.split('=') for x in text.split(','))}


@pytest.mark.parametrize(
  'name, sizes',
  [
    pytest.param(name, text, marks=[] if name in quick else pytest.mark.slow)
    for text, quick in MESHES.items()
    for name in CASES
  ],
)
def test_a_mesh_changes_no_number(name, sizes):
  """Set on Wan, sequence on the paper's transformer, references on Wan."""
  value, aux, grads = alone(name)
  with mesh.use(mesh.make(sizes_of(sizes))):
    there = gradients(name)
  assert there[0] == pytest.approx(float(value), rel=1e-5)
  for key, x in aux.items():
    np.testing.assert_allclose(there[1][key], x, rtol=1e-5, err_msg=key)
  flat = tree.flatten(there[2])
  for leaf, x in tree.flatten(grads).items():
    assert np.abs(x).max() > 0, leaf
    error = np.abs(flat[leaf] - x).max() / np.abs(x).max()
    assert error < 1e-5, (leaf, error)


def compiled(name, sizes, dtype=jnp.float32):
  """The module of a whole step on a mesh."""
  loss, stage, everything, batch, shared = case(name)
  trainable, frozen = tree.partition(everything, stage.train)
  optimizer = optim.make(Optimizer(), 3)
  with mesh.use(mesh.make(sizes)):
    state = sharding.create(
      lambda x: state_lib.init(x, optimizer, ema=True),
      sharding.place(trainable),
    )
    run = step_lib.make_step(loss, optimizer, stage)
    arguments = (
      state,
      sharding.place(frozen),
      sharding.batch(batch),
      sharding.place(shared, ()),
      jax.random.key(0),
    )
    new, _ = run(*jax.tree.map(jnp.copy, arguments))
    return state, new, run.lower(*arguments).compile().as_text()


def reductions(text):
  """(in a loop or not, types) of the sums over devices in a module."""
  found = []
  for line in text.splitlines():
    if ' all-reduce(' in line or ' all-reduce-start(' in line:
      types = line.split('=', 1)[1].split(' all-reduce')[0]
      found.append(('/while/' in line, types))
  return found


def test_what_a_lora_learns_is_summed_once_a_step_in_float32():
  """After all microbatches and layers, though both are loops."""
  _, _, text = compiled('sequence', dict(data=8))
  sums = reductions(text)
  assert sums and not [types for inside, types in sums if inside]
  _, stage, everything, *_ = case('sequence')
  trained = tree.flatten(tree.partition(everything, stage.train)[0])
  types = ' '.join(types for _, types in sums)
  for name, x in trained.items():
    shape = 'f32[' + ','.join(map(str, x.shape)) + ']'
    assert shape in types, (name, shape)


def test_the_state_lies_as_its_parameters_and_stays_there():
  before, after, _ = compiled('subjects', dict(fsdp=2, tensor=4))
  place = lambda x: str(x.sharding.devices_indices_map(x.shape))
  assert jax.tree.map(place, before) == jax.tree.map(place, after)
  kernel = 'transformer/blocks/self_attn/q/kernel'
  for part in (after.trainable, after.ema):
    x = tree.flatten(part)[kernel]
    assert x.sharding.shard_shape(x.shape) == (2, 32, 16)
  moments = [
    x.sharding.shard_shape(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(after.opt_state)
    if "'self_attn'" in str(path) and "'q'" in str(path)
    if "'kernel'" in str(path) and x.ndim == 3
  ]
  assert moments == [(2, 32, 16)] * 2
