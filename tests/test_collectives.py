"""Collectives of compiled programs, against lines written by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from dcjax.planning import collectives

MESH = {'data': 2, 'fsdp': 4}


def entry(*lines: str, before: str = '') -> str:
  """A program of these lines; `before` holds other computations."""
  body = '\n'.join(f'  {line}' for line in lines)
  return (
    'HloModule jit_f, is_scheduled=true\n\n'
    f'{before}\n\nENTRY %main.1 (x: f32[8]) -> f32[8] {{\n{body}\n}}\n'
  )


def only(text: str, mesh=MESH) -> collectives.Collective:
  (found,) = collectives.read(text, mesh)
  return found


# ---- groups ------------------------------------------------------------------

FSDP = [
  '{{0,1,2,3},{4,5,6,7}}',
  '[2,4]<=[8]',
  "mesh['a'=2,'b'=4] {'b'}",
  # 0 4 1 5 2 6 3 7 by two, then along the first axis: 0 1 2 3 again.
  "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
  # The last two of three parts of an axis of 8.
  "mesh['a'=8] {'a':(2)4}",
]
DATA = [
  '{{0,4},{1,5},{2,6},{3,7}}',
  '[4,2]<=[2,4]T(1,0)',
  "mesh['a'=2,'b'=4] {'a'}",
  "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
  "mesh['a'=8] {'a':(1)2}",
]
BOTH = ['{{0,1,2,3,4,5,6,7}}', '[1,8]<=[8]', "mesh['a'=8] {'a'}", '{}']


@pytest.mark.parametrize(
  'groups, axes',
  [(x, ('fsdp',)) for x in FSDP]
  + [(x, ('data',)) for x in DATA]
  + [(x, ('data', 'fsdp')) for x in BOTH],
)
def test_groups_are_read_in_every_notation(groups, axes):
  found = only(
    entry(
      '%r = f32[8,16]{1,0} all-reduce(%x), channel_id=1, '
      f'replica_groups={groups}, use_global_device_ids=true, to_apply=%add'
    )
  )
  size = {('fsdp',): 4, ('data',): 2, ('data', 'fsdp'): 8}[axes]
  assert (found.axes, found.group) == (axes, size)
  assert (found.dtype, found.shape, found.bytes) == ('f32', (8, 16), 512)


def test_pairs_of_a_permutation_are_groups():
  found = only(
    entry(
      '%p = bf16[4,2] collective-permute(%x), channel_id=1, '
      'source_target_pairs={{0,4},{4,0},{1,5},{5,1}}'
    )
  )
  assert (found.axes, found.bytes, found.wire) == (('data',), 16, 16.0)


def test_what_goes_nowhere_is_left_out():
  line = '%r = f32[8] all-reduce(%x), replica_groups={{0},{1},{2},{3}}'
  assert collectives.read(entry(line), MESH) == []


# ---- bytes -------------------------------------------------------------------


@pytest.mark.parametrize(
  'line, whole, wire',
  [
    # The result is the whole; three quarters of it come from elsewhere.
    ('bf16[16,8] all-gather(%x)', 256, 192),
    # The whole is four results.
    ('bf16[16,8] reduce-scatter(%x)', 1024, 768),
    ('f32[16,8] all-reduce(%x)', 512, 768),
    ('f32[16,8] all-to-all(%x)', 512, 384),
    ('(f32[4,8], f32[4,8], f32[4,8], f32[4,8]) all-to-all(%a)', 512, 384),
    # Several at once, one in another type, with layouts of a TPU.
    (
      '(f32[]{:T(128)}, bf16[6,8]{1,0:T(8,128)(2,1)S(1)}) all-reduce(%x)',
      100,
      150,
    ),
  ],
)
def test_bytes_of_one(line, whole, wire):
  found = only(entry(f'%r = {line}, replica_groups=[2,4]<=[8]'))
  assert (found.bytes, found.wire) == (whole, wire)
  assert found.count == 1
  assert not found.asynchronous


# ---- start and done ----------------------------------------------------------


@pytest.mark.parametrize(
  'start, done, whole',
  [
    (
      '(bf16[4,8], bf16[16,8]) all-gather-start(%x)',
      'bf16[16,8] all-gather-done(%s)',
      256,
    ),
    (
      '((bf16[4,8], f32[4]), (bf16[16,8], f32[16])) all-gather-start(%x, %y)',
      '(bf16[16,8], f32[16]) all-gather-done(%s)',
      320,
    ),
    ('f32[16] all-reduce-start(%x)', 'f32[16] all-reduce-done(%s)', 64),
    (
      '(f32[1,64]{1,0:T(1,128)S(1)}, f32[1,64]{1,0}, u32[]{:S(2)}, u32[]) '
      'collective-permute-start(%x)',
      'f32[1,64] collective-permute-done(%s)',
      256,
    ),
  ],
)
def test_start_and_done_are_one(start, done, whole):
  found = only(
    entry(
      f'%s = {start}, channel_id=3, replica_groups=[2,4]<=[8], '
      'source_target_pairs={{0,1},{1,2},{2,3},{3,0}}',
      f'%d = {done}',
    )
  )
  assert (found.bytes, found.asynchronous) == (whole, True)
  assert found.axes == ('fsdp',)


def test_a_wrapped_start_is_asynchronous():
  before = (
    '%wrapped (x: f32[8]) -> f32[2] {\n'
    '  %r = f32[2] reduce-scatter(%x), replica_groups=[2,4]<=[8]\n}'
  )
  found = only(
    entry(
      '%s = ((f32[8]), f32[2]) async-start(%x), calls=%wrapped',
      '%d = f32[2] async-done(%s)',
      before=before,
    )
  )
  assert (found.bytes, found.asynchronous) == (32, True)


def test_a_sum_of_which_each_keeps_a_slice_is_scattered():
  """How TPUs write a reduce-scatter."""
  before = (
    '%all-reduce-scatter (x: bf16[16,8]) -> bf16[4,8] {\n'
    '  %r.1 = bf16[16,8] all-reduce(%x), channel_id=3, '
    'replica_groups=[2,4]<=[8], to_apply=%add\n'
    '  ROOT %s = bf16[4,8] dynamic-slice(%r.1, %i, %zero), '
    'dynamic_slice_sizes={4,8}\n}'
  )
  call = '%f = bf16[4,8] fusion(%x), calls=%all-reduce-scatter'
  found = only(entry(call, before=before))
  assert (found.kind, found.bytes, found.axes) == (
    'reduce-scatter',
    256,
    ('fsdp',),
  )
  assert found.wire == 192


def test_pieces_of_one_operation_count_once():
  """On TPUs fusions that work meanwhile repeat it, with its channel."""
  gather = (
    '  %g.{0} = bf16[16,8] all-gather(%x), channel_id=7, '
    'replica_groups=[2,4]<=[8]\n'
  )
  before = ''.join(
    f'%piece.{i} (x: bf16[4,8]) -> bf16[16,8] {{\n{gather.format(i)}}}\n\n'
    for i in range(3)
  )
  lines = [
    f'%f.{i} = bf16[16,8] fusion(%x), calls=%piece.{i}' for i in range(3)
  ]
  found = only(entry(*lines, before=before))
  assert (found.count, found.asynchronous) == (1, True)


# ---- loops -------------------------------------------------------------------

INNER = """
%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%inner_body (p: (s32[], /*index=1*/f32[8])) -> (s32[], f32[8]) {
  %g = f32[8] all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8]
  ROOT %t = (s32[], f32[8]) tuple(%i, %g)
}

%outer_condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] fusion(%p), calls=%compare
}

%outer_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%p), condition=%inner_condition, body=%inner_body
  %r = f32[8] all-reduce(%x), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0)
}
"""
OUTER = (
  '%w = (s32[], f32[8]) while(%t), condition=%outer_condition, '
  'body=%outer_body, backend_config={"known_trip_count":{"n":"5"},'
  '"known_init_step":{"init":"0","step":"1"}}'
)


def test_loops_multiply():
  found = collectives.read(entry(OUTER, before=INNER), MESH)
  counts = {x.kind: (x.count, x.total) for x in found}
  # One loop says its turns, the other has them in its condition.
  assert counts == {'all-gather': (15, 480), 'all-reduce': (5, 160)}


def test_a_body_of_two_loops_happens_in_both():
  found = collectives.read(entry(OUTER, OUTER, before=INNER), MESH)
  assert {x.kind: x.count for x in found}['all-gather'] == 30


def test_what_is_alike_is_gathered():
  line = '%r = f32[8] all-gather(%x), channel_id={}, replica_groups=[2,4]<=[8]'
  large = '%l = f32[8,8] all-reduce(%x), channel_id=9'
  text = entry(line.format(1), large, line.format(2))
  first, second = collectives.gathered(collectives.read(text, MESH))
  assert (first.kind, first.count) == ('all-reduce', 1)
  assert (second.kind, second.count, second.total) == ('all-gather', 2, 64)


# ---- a compiled program ------------------------------------------------------


def test_a_scanned_model_of_split_kernels(host_mesh):
  """Each layer gathers its kernel in both passes, and nothing else moves."""
  layers, width = 3, 64
  whole = NamedSharding(host_mesh, P())

  def loss(kernels, x):
    def layer(x, kernel):
      kernel = jax.lax.with_sharding_constraint(kernel, whole)
      return jnp.tanh(x @ kernel), None

    return jax.lax.scan(layer, x, kernels)[0].sum()

  place = lambda shape, *axes: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(host_mesh, P(*axes))
  )
  compiled = (
    jax.jit(loss)
    .lower(
      place((layers, width, width), None, 'fsdp'),
      place((8, width), ('data', 'fsdp')),
    )
    .compile()
  )
  found = collectives.read(compiled.as_text(), dict(host_mesh.shape))
  gathers = [x for x in found if x.kind == 'all-gather']
  assert sum(x.total for x in gathers) == layers * width * width * 4
  assert {x.axes for x in gathers} == {('fsdp',)}
  (reduced,) = [x for x in found if x.kind == 'all-reduce']
  assert (reduced.axes, reduced.bytes) == (('data', 'fsdp'), 4)


@pytest.fixture
def host_mesh():
  return jax.make_mesh(
    (2, 4), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
