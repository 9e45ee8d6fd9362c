"""The programs that a personalisation runs, as traces, before it runs them.

Everything is made by the functions that the run itself calls, from shapes in
place of arrays: the same parameters, batches, objective and optimizer step.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dcjax import material, optim, sampling, start, text_features, train, tree
from dcjax import stage as stage_lib
from dcjax import state as state_lib
from dcjax.models import vae_chunks
from dcjax.models.dit import DiT
from dcjax.models.text import UMT5Encoder
from dcjax.models.wan_vae import WanVAE
from dcjax.planning import flops
from dcjax.stage import Stage
from dcjax.weights.base import Base
from dcjax.weights.outline import nbytes

# Scenes of a report, its reconstruction and what the prior takes are sampled
# alike; a report shows about this many.
SCENES = 5
Shape = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a run.

  Attributes:
    name: 'set', 'sequence', 'sample', 'encode text', 'encode video', 'decode'.
    what: its work, in words.
    jitted: the function.
    arguments: of it, as shapes, static ones as they are.
    resident: bytes that lie beside its arguments in the same memory.
    work: operations of one run; None where they are not counted.
    runs: how often it runs.
  """

  name: str
  what: str
  jitted: Callable
  arguments: tuple[Any, ...]
  resident: int
  work: flops.Step | None = None
  runs: int = 1

  def trace(self, sharding: Any = None) -> Any:
    """`jax.stages.Traced`; the arguments lie as `sharding` says."""

    def place(x):
      if sharding is None or not isinstance(x, Shape):
        return x
      return Shape(x.shape, x.dtype, sharding=sharding)

    arguments = jax.tree.map(place, self.arguments)
    return self.jitted.trace(*arguments)


@dataclasses.dataclass(frozen=True)
class Run:
  """A personalisation by its shapes.

  Attributes:
    base: from `outline`, adapted to the config.
    config: of `recipes.personalize`.
    stages: of the config.
    params: {'transformer', 'tokens'}, with LoRA leaves.
    context: what the objectives read beside the batch.
  """

  base: Base
  config: ConfigDict
  stages: tuple[Stage, ...]
  params: dict[str, Any]
  context: dict[str, Any]

  @property
  def prior(self) -> bool:
    """Whether videos of the untouched base are sampled and trained on."""
    return bool(self.config.prior.videos and any(s.prior for s in self.stages))


def outline(base: Base, config: ConfigDict) -> Run:
  """The shapes of a run.

  Args:
    base: from `weights.outline`.
    config: of `recipes.personalize`.

  Raises:
    DcjaxError: for what the run itself would refuse.
  """
  start.check_numbers(config)
  base = start.adapted(base, config)
  stages = tuple(
    stage_lib.from_config(name, config[name].to_dict())
    for name in config.stages
  )

  def params(transformer):
    loaded = dataclasses.replace(base, params={'transformer': transformer})
    return start.initial_params(loaded, config)

  run = Run(
    base,
    config,
    stages,
    jax.eval_shape(params, base.params['transformer']),
    {},
  )
  prompts = 2 + (2 * config.prior.videos if run.prior else 0)
  length = base.format.text_length
  context = {
    'features': Shape((prompts, length, base.text.d_model), jnp.float32),
    'mask': Shape((prompts, length), jnp.bool_),
    'slots': Shape((prompts, length), jnp.int32),
  }
  return dataclasses.replace(run, context=context)


def programs(run: Run, names: Sequence[str] = ()) -> list[Program]:
  """The programs that take much memory or time, in the order of a run.

  Args:
    run: from `outline`.
    names: those that are asked for; all if there are none.
  """
  makers = {
    'encode text': lambda: _encode_text(run),
    'encode video': lambda: _autoencoder(run, 'encode'),
    'decode video': lambda: _autoencoder(run, 'decode'),
    'sample': lambda: _sample(run),
  } | {stage.name: lambda s=stage: _stage(run, s) for stage in run.stages}
  return [make() for name, make in makers.items() if name in (names or makers)]


def latents(run: Run, stage: Stage) -> tuple[int, ...]:
  """[f h w c] of a sample of a stage."""
  f = run.base.format
  frames = 1 if stage.data == 'frames' else f.frames
  return run.base.latent_shape(frames, f.height, f.width)


def batch(run: Run, stage: Stage) -> dict[str, Any]:
  """What the stage's loader yields."""
  samples = {
    'latents': Shape((stage.batch, *latents(run, stage)), jnp.float32),
    'prompt': Shape((stage.batch,), jnp.int32),
  }
  if run.prior and stage.prior:
    return {'concept': samples, 'prior': samples}
  return samples


def state(run: Run, stage: Stage) -> tuple[Any, Any]:
  """(the stage's train state, the frozen parameters)."""
  trainable, frozen = tree.partition(run.params, stage.train)
  optimizer = optim.make(stage.optimizer, stage.steps)
  init = lambda leaves: state_lib.init(leaves, optimizer, ema=stage.ema > 0)
  return jax.eval_shape(init, trainable), frozen


def _stage(run: Run, stage: Stage) -> Program:
  """The optimizer step of a stage."""
  base, c = run.base, run.config
  shape = latents(run, stage)
  prior = 'prior' in batch(run, stage)
  arguments = (
    *state(run, stage),
    batch(run, stage),
    run.context,
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  micro = stage.batch // stage.accumulate
  kind = 'stills' if stage.data == 'frames' else 'clips'
  tokens = flops.tokens(base.dit, shape)
  return Program(
    stage.name,
    f'{stage.accumulate} x {micro * (1 + prior)} {kind} of {tokens} tokens, '
    f'remat {c.remat}',
    train.make_step(
      start.objective(base, c, stage),
      optim.make(stage.optimizer, stage.steps),
      stage,
    ),
    arguments,
    _loaded(run) - nbytes(base.params['transformer']),
    flops.step(
      base.dit,
      stage,
      run.params,
      shape,
      base.format.text_length,
      remat=c.remat,
      prior=prior,
    ),
    stage.steps,
  )


def _sample(run: Run) -> Program:
  """Sampling of as many videos as are sampled at once."""
  base, c, f = run.base, run.config, run.base.format
  shape = base.latent_shape(f.frames, f.height, f.width)
  videos = SCENES + (c.prior.videos if run.prior else 0)
  n = min(material.videos_at_once(base, shape), videos)
  steps, guidance = c.sample.steps or f.steps, c.sample.guidance or f.guidance
  rows = (2 * n, f.text_length)
  jitted = jax.jit(
    lambda variables, noise, text, mask: sampling.generate(
      variables,
      noise,
      text,
      mask,
      dit=DiT(base.dit, sampling.working_dtype()),
      sampler='unipc',
      steps=steps,
      shift=float(base.shift),
      guidance=float(guidance),
    )
  )
  passes = n * steps * (1 if guidance == 1.0 else 2)
  work = flops.forward(base.dit, shape, f.text_length).times(passes).total
  return Program(
    'sample',
    f'{n} x {f.frames} frames at once, {steps} steps, guidance {guidance:g}',
    jitted,
    (
      {'params': run.params['transformer']},
      Shape((n, *shape), jnp.float32),
      Shape((*rows, base.dit.text_width), jnp.float32),
      Shape(rows, jnp.bool_),
    ),
    # Previews are sampled while a stage keeps its state.
    _loaded(run) - nbytes(base.params['transformer']) + _kept(run),
    flops.Step(work, work),
    -(-videos // n),
  )


def _encode_text(run: Run) -> Program:
  base, config = run.base, run.base.text
  prompts, length = run.context['mask'].shape
  encoder = UMT5Encoder(config)
  params = base.params['text_encoder']
  resident = _loaded(run)
  if _encoder_on_disk(base):
    rows = 1
  else:
    rows = max(1, min(prompts, text_features.TOKENS // length))
    resident -= nbytes(params)
  return Program(
    'encode text',
    f'{rows} of {prompts} prompts at once, up to {length} tokens',
    jax.jit(lambda p, ids, mask: encoder.apply({'params': p}, ids, mask)),
    (params, Shape((rows, length), jnp.int32), Shape((rows, length), bool)),
    resident,
    runs=-(-prompts // rows),
  )


def _autoencoder(run: Run, method: str) -> Program:
  """Encoding or decoding of a clip, whole or a chunk of it."""
  base, f = run.base, run.base.format
  vae, params = WanVAE(base.vae), base.params['vae']
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
  return Program(
    f'{method} video',
    f'{f.frames} frames of {f.height}x{f.width}'
    + (f' in {chunks} chunks' if chunked else ''),
    jax.jit(one, donate_argnums=1),
    (params, past, Shape(size, jnp.float32)),
    _loaded(run) - nbytes(params) + _kept(run),
    runs=chunks,
  )


def _loaded(run: Run) -> int:
  """Bytes of the base that are on the device throughout."""
  base = run.base
  return sum(
    nbytes(x)
    for part, x in base.params.items()
    if not (part == 'text_encoder' and _encoder_on_disk(base))
  )


def _encoder_on_disk(base: Base) -> bool:
  """Whether the text encoder is there only while prompts are encoded."""
  return nbytes(base.params['text_encoder']) > 2**30


def _kept(run: Run) -> int:
  """Bytes of the largest train state and of the prompts' features."""
  states = [nbytes(state(run, stage)[0]) for stage in run.stages]
  return max(states) + nbytes(run.context)
