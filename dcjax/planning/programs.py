"""The programs of a job, as traces, before it runs them.

Everything is made by the functions that the job itself calls, from shapes in
place of arrays: the same parameters, batches, objective and optimizer step; and
on a mesh, each lies where the job puts it. What a job consists of, says
`tasks`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from dcjax import (
  machine,
  optim,
  sharding,
  start,
  step,
  text_features,
  train,
  tree,
)
from dcjax import mesh as mesh_lib
from dcjax import state as state_lib
from dcjax.errors import DcjaxError
from dcjax.models import vae as vae_lib
from dcjax.models import vae_chunks
from dcjax.models.text import UMT5Encoder
from dcjax.objective import Objective
from dcjax.planning import flops
from dcjax.planning.program import (
  Passes,
  Program,
  Shape,
  shard_bytes,
  spec_leaves,
)
from dcjax.stage import Stage
from dcjax.weights.base import Base
from dcjax.weights.outline import nbytes


@dataclasses.dataclass(frozen=True)
class Run:
  """A job by its shapes.

  Attributes:
    base: from `outline`, adapted to the config.
    config: of the job.
    stages: of the config.
    params: {'transformer': ..., ...}, with what is added to the base's.
    context: what the objectives read beside the batch.
    batch: shapes of what the loader of a stage yields.
    objective: what a stage minimises.
    work: operations of a step of a stage.
    parts: [(samples, tokens of each)] of the losses of a stage's step; tokens
      of references count.
    what: of a step of a stage, in words.
    sampling: {'jitted', 'arguments', 'what', 'work', 'runs', 'passes',
      'shares'} of the
      program that samples, where the job samples.
    prompts: (texts that are encoded, tokens of each); (0, 0) for none.
    clips: whether clips are encoded and decoded.
  """

  base: Base
  config: ConfigDict
  stages: tuple[Stage, ...]
  params: dict[str, Any]
  context: dict[str, Any]
  batch: Callable[[Stage], Any]
  objective: Callable[[Stage], Objective]
  work: Callable[[Stage], flops.Step]
  parts: Callable[[Stage], list[tuple[int, int]]]
  what: Callable[[Stage], str]
  sampling: Callable[[], dict[str, Any]] | None = None
  prompts: tuple[int, int] = (0, 0)
  clips: bool = True

  @property
  def rules(self) -> tuple[sharding.Rule, ...]:
    return start.rules(self.config)


def on(sizes: dict[str, int]) -> Any:
  """A context in which programs are made for a mesh that is not there."""
  if math.prod(sizes.values()) == 1:
    return mesh_lib.use(None)
  axes = tuple(sizes)
  abstract = jax.sharding.AbstractMesh(
    tuple(sizes.values()), axes, axis_types=(AxisType.Auto,) * len(axes)
  )
  return jax.sharding.use_abstract_mesh(abstract)


def programs(
  run: Run, names: Sequence[str] = (), sizes: dict[str, int] | None = None
) -> list[Program]:
  """The programs that take much memory or time, in the order of a job.

  Args:
    run: from `tasks.outline`.
    names: those that are asked for; all if there are none.
    sizes: of the mesh; one device by default.

  Raises:
    DcjaxError: the batch of a stage cannot be shared out over the mesh.
  """
  sizes = sizes or dict.fromkeys(mesh_lib.AXES, 1)
  makers: dict[str, Callable] = {}
  if run.prompts[0]:
    makers['encode text'] = lambda: _encode_text(run)
  if run.clips:
    makers['encode video'] = lambda: _autoencoder(run, 'encode')
    makers['decode video'] = lambda: _autoencoder(run, 'decode')
  if run.sampling:
    makers['sample'] = lambda: _sample(run)
  makers |= {stage.name: lambda s=stage: _stage(run, s) for stage in run.stages}
  wanted = names or makers
  with on(sizes):
    made = [make() for name, make in makers.items() if name in wanted]
  return [_keyed(x, run, sizes) for x in made]


def _keyed(program: Program, run: Run, sizes: dict[str, int]) -> Program:
  """With its mesh, and what its trace without one follows from."""
  config = machine.plain(run.config)
  config.pop('mesh', None)
  key = f'{program.name} {config}'
  alone = program.alone
  if alone is not None:
    alone = dataclasses.replace(alone, mesh=sizes, key=key)
  return dataclasses.replace(program, mesh=sizes, key=key, alone=alone)


def state(run: Run, stage: Stage) -> tuple[Any, Any]:
  """(the stage's train state, the frozen parameters)."""
  trainable, frozen = tree.partition(run.params, stage.train)
  optimizer = optim.make(stage.optimizer, stage.steps)
  init = lambda leaves: state_lib.init(leaves, optimizer, ema=stage.ema > 0)
  return jax.eval_shape(init, trainable), frozen


def _stage(run: Run, stage: Stage) -> Program:
  """The optimizer step of a stage."""
  shares = mesh_lib.size(*mesh_lib.ROWS)
  for samples, _ in run.parts(stage):
    if samples % shares:
      raise DcjaxError(
        f'config.{stage.name} has batches of {samples}; expected a multiple of '
        f'{shares}, the shares that config.mesh.data and fsdp make of it'
      )
  program = _step(run, stage)
  if shares == 1:
    return program
  own = dataclasses.replace(
    stage,
    batch=stage.batch // shares,
    accumulate=step.microbatches(stage, shares),
    mix=tuple((frames, n // shares) for frames, n in stage.mix),
  )
  return dataclasses.replace(program, alone=_step(run, own))


def _step(run: Run, stage: Stage) -> Program:
  rules = run.rules
  held, frozen = state(run, stage)
  batch = run.batch(stage)
  key = jax.eval_shape(lambda: jax.random.key(0))
  passes = _passes(run, stage)
  transformer = {'transformer': run.base.params['transformer']}
  return Program(
    stage.name,
    run.what(stage),
    train.make_step(
      run.objective(stage),
      optim.make(stage.optimizer, stage.steps),
      stage,
      rules,
    ),
    (held, frozen, batch, run.context, key),
    (
      sharding.specs(held, rules),
      sharding.specs(frozen, rules),
      _all(batch, P(mesh_lib.ROWS)),
      _all(run.context, P()),
      P(),
    ),
    _loaded(run) - _held(run, transformer),
    {},
    run.work(stage),
    stage.steps,
    passes=passes,
    spread=mesh_lib.size(),
    trains=True,
  )


def _passes(run: Run, stage: Stage) -> Passes:
  """Each microbatch has all losses, each with passes of its own."""
  parts = run.parts(stage)
  shares = mesh_lib.size(*mesh_lib.ROWS)
  micro = step.microbatches(stage, shares)
  cut, losses = shares * micro, micro * len(parts)
  samples = max(1, parts[0][0] // cut)
  # Of losses of several lengths, the mean.
  tokens = sum(n * each for n, each in parts) // (cut * len(parts) * samples)
  return Passes(
    samples,
    tokens,
    losses * (2 if run.base.dit.self_cond else 1),
    losses,
    losses if run.config.remat in ('attention', 'full') else 0,
  )


def _all(tree: Any, spec: P) -> Any:
  return jax.tree.map(lambda _: spec, tree)


def _sample(run: Run) -> Program:
  """Sampling of as many videos as are sampled at once."""
  found = run.sampling()
  arguments = found['arguments']
  params = arguments[0]['params']
  specs = sharding.specs({'transformer': params}, run.rules)['transformer']
  transformer = {'transformer': run.base.params['transformer']}
  return Program(
    'sample',
    found['what'],
    found['jitted'],
    arguments,
    ({'params': specs}, *(_all(x, P()) for x in arguments[1:])),
    # Previews are sampled while a stage keeps its state.
    _loaded(run) - _held(run, transformer) + _kept(run),
    {},
    flops.Step(found['work'], found['work']),
    found['runs'],
    passes=found['passes'],
    # What cannot be shared out, every device does.
    spread=found['shares'] * mesh_lib.size('tensor', 'context'),
  )


def _encode_text(run: Run) -> Program:
  base, config = run.base, run.base.text
  prompts, length = run.prompts
  encoder = UMT5Encoder(config)
  params = base.params['text_encoder']
  part = {'text_encoder': params}
  resident = _loaded(run)
  if _encoder_on_disk(base):
    rows = 1
  else:
    rows = max(1, min(prompts, text_features.TOKENS // length))
    resident -= _held(run, part)
  return Program(
    'encode text',
    f'{rows} of {prompts} prompts at once, up to {length} tokens',
    jax.jit(lambda p, ids, mask: encoder.apply({'params': p}, ids, mask)),
    (params, Shape((rows, length), jnp.int32), Shape((rows, length), bool)),
    (sharding.specs(part, run.rules)['text_encoder'], P(), P()),
    resident,
    {},
    runs=-(-prompts // rows),
  )


def _autoencoder(run: Run, method: str) -> Program:
  """Encoding or decoding of a clip, whole or a chunk of it."""
  base, f = run.base, run.base.format
  vae, params = vae_lib.build(base.vae), base.params['vae']
  shape = base.latent_shape(f.frames, f.height, f.width)
  chunked = vae_chunks.is_large(base.vae, f.frames, f.height, f.width)
  frames = base.vae.scale_factor_temporal if chunked else f.frames
  sizes = {
    'encode': (1, frames, f.height, f.width, 3),
    'decode': (1, 1 if chunked else shape[0], *shape[1:]),
  }
  size, past = sizes[method], None

  def one(p, past, x):
    if not chunked:
      return vae.apply({'params': p}, x, method=method)
    return vae_chunks.step(vae, p, past, x, method)

  if chunked:
    first = Shape((1, 1, *size[2:]), jnp.float32)
    past = jax.eval_shape(one, params, None, first)[1]
  chunks = shape[0] if chunked else 1
  arguments = (params, past, Shape(size, jnp.float32))
  return Program(
    f'{method} video',
    f'{f.frames} frames of {f.height}x{f.width}'
    + (f' in {chunks} chunks' if chunked else ''),
    jax.jit(one, donate_argnums=1),
    arguments,
    tuple(_all(x, P()) for x in arguments),
    _loaded(run) - _held(run, {'vae': params}) + _kept(run),
    {},
    runs=chunks,
  )


def _held(run: Run, parts: Any) -> int:
  """Bytes of parameters on one device of the current mesh."""
  sizes = {axis: mesh_lib.size(axis) for axis in mesh_lib.AXES}
  specs = spec_leaves(sharding.specs(parts, run.rules))
  leaves = jax.tree.leaves(parts)
  return sum(
    shard_bytes(x, s, sizes) for x, s in zip(leaves, specs, strict=True)
  )


def _loaded(run: Run) -> int:
  """Bytes of the base that are on a device throughout."""
  return sum(
    _held(run, {part: leaves})
    for part, leaves in run.base.params.items()
    if not (part == 'text_encoder' and _encoder_on_disk(run.base))
  )


def _encoder_on_disk(base: Base) -> bool:
  """Whether the text encoder is there only while prompts are encoded."""
  return nbytes(base.params['text_encoder']) > 2**30


def _kept(run: Run) -> int:
  """Bytes of the largest train state and of the prompts' features."""
  states = [_held(run, state(run, stage)[0]) for stage in run.stages]
  return max(states) + nbytes(run.context)
