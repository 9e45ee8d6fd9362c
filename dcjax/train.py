"""The training loop: one for every stage, method and baseline.

    batch -> objective -> gradient of the trainable leaves -> optax -> state

The loop saves, resumes bit-exactly, reports, and stops at the first number that
is not finite with the last good state still in hand.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
from pathlib import Path
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp

from dcjax import optim, processes, sharding, tree
from dcjax import state as state_lib
from dcjax.checkpoint import Checkpoints
from dcjax.data.pipeline import Loader
from dcjax.errors import DcjaxError
from dcjax.objective import Objective
from dcjax.stage import Stage
from dcjax.step import make_step
from dcjax.tracking import Metrics, Progress, forget_previews


@dataclasses.dataclass(frozen=True)
class Loop:
  """How a run is kept, whatever it trains.

  Attributes:
    workdir: folder of the run.
    seed: of everything random.
    log_every: steps between two lines of the metrics.
    save_every: steps between two checkpoints.
    eval_every: steps between two held-out losses; 0 for none.
    preview_every: steps between two previews; 0 for none.
    identity: what a run must share to resume these checkpoints.
    rules: where parameters lie on a mesh.
  """

  workdir: str
  seed: int = 0
  log_every: int = 10
  save_every: int = 100
  eval_every: int = 0
  preview_every: int = 0
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rules: tuple[sharding.Rule, ...] = sharding.RULES

  def __post_init__(self):
    at_least = {'seed': 0, 'log_every': 1, 'save_every': 0}
    for key in (*at_least, 'eval_every', 'preview_every'):
      value, least = getattr(self, key), at_least.get(key, 0)
      if value < least:
        raise DcjaxError(f'{key} is {value}; expected {least} or more')


@dataclasses.dataclass
class Timing:
  """What a stage cost, in seconds.

  Attributes:
    compile: the first step, with its compilation.
    steps: all others, with evaluations, previews and checkpoints.
    step: one of them, without.
  """

  compile: float = 0.0
  steps: float = 0.0
  step: float = 0.0


def fit(
  stage: Stage,
  objective: Objective,
  params: tree.Tree,
  batches: Loader,
  loop: Loop,
  *,
  context: Any = None,
  held_out: Any = None,
  preview: Callable[[int, tree.Tree], None] | None = None,
) -> tuple[dict[str, Any], Timing]:
  """Runs one stage to its end, from its last checkpoint if there is one.

  Args:
    stage: what to train and how.
    objective: `loss(params, batch, context, key)`.
    params: all parameters; `stage.train` chooses those that are trained.
    batches: where they come from.
    loop: how the run is kept.
    context: passed to the objective, fixed.
    held_out: batch for the objective's `evaluate`, if it has one.
    preview: called with (step, params) every `preview_every` steps.

  Returns:
    The parameters, with the trained leaves replaced; and what it cost.

  Raises:
    DcjaxError: if a number is not finite, or the checkpoints are of another
      run.
  """
  trainable, frozen = tree.partition(params, stage.train)
  optimizer = optim.make(stage.optimizer, stage.steps)

  def initial(trainable):
    copies = jax.tree.map(jnp.copy, trainable)
    return state_lib.init(copies, optimizer, ema=stage.ema > 0)

  state = sharding.create(
    initial, sharding.place(trainable, loop.rules), rules=loop.rules
  )
  checkpoints = Checkpoints(_folder(stage, loop), loop.identity)
  if checkpoints.step is not None:
    state, position = checkpoints.restore(state)
    batches.set_state(position)
  run = _Run(stage, loop, checkpoints, batches, int(state.step))
  context = sharding.place(context, ())
  timing = Timing()
  try:
    if int(state.step) < stage.steps:
      state, timing = run.steps(
        make_step(objective, optimizer, stage, loop.rules),
        state,
        sharding.place(frozen, loop.rules),
        context,
        _evaluator(objective, sharding.place(held_out, ()), context),
        preview,
      )
  finally:
    run.close()
  result = state.trainable if state.ema is None else state.ema
  return tree.combine(result, frozen), timing


def refuse_other_run(stage: Stage, loop: Loop) -> None:
  """Raises DcjaxError if another run has left its checkpoints of the stage."""
  if _folder(stage, loop).is_dir():
    with contextlib.closing(
      Checkpoints(_folder(stage, loop), loop.identity)
    ) as checkpoints:
      checkpoints.check()


def _folder(stage: Stage, loop: Loop) -> Path:
  return processes.shared(loop.workdir) / 'checkpoints' / stage.name


class _Run:
  """One stage while it runs: saves, logs and watches."""

  def __init__(self, stage, loop, checkpoints, batches, start):
    self.stage, self.loop = stage, loop
    self.checkpoints, self.batches = checkpoints, batches
    self.start = start
    self.metrics = Metrics(loop.workdir, stage.name, resume=start)
    forget_previews(loop.workdir, stage.name, resume=start)
    self.progress = Progress(stage.name, stage.steps, start=start)
    self.rate = optim.schedule(stage.optimizer, stage.steps)
    self.stopping = False

  def steps(self, step_fn, state, frozen, context, evaluate, preview):
    """The loop: reads the metrics of a step after sending off the next."""
    stage, loop = self.stage, self.loop
    key = jax.random.fold_in(jax.random.key(loop.seed), _number(stage.name))
    key = sharding.place(key, ())
    timing, pending, began = Timing(), None, time.monotonic()
    aside = 0.0
    # Several processes have a service of jax's for that, which tells all.
    alone = processes.alone()
    with _OnSigterm(self._stop) if alone else contextlib.nullcontext():
      for i in range(self.start, stage.steps):
        batch = sharding.batch(next(self.batches))
        position = self.batches.get_state()
        state, metrics = step_fn(state, frozen, batch, context, key)
        if i == self.start:
          jax.block_until_ready(metrics)
          timing.compile = time.monotonic() - began
          began = time.monotonic()
        if pending is not None:
          self._report(*pending)
        pending = (i, metrics)
        done = i + 1
        at = lambda every: every and (done % every == 0 or done == stage.steps)
        stopping = processes.told_to_go(self.stopping)
        every = (loop.save_every, loop.eval_every, loop.preview_every)
        if stopping or any(map(at, every)):
          self._report(*pending)
          pending = None
        paused = time.monotonic()
        params = lambda: tree.combine(
          state.trainable if state.ema is None else state.ema, frozen
        )
        # Before the checkpoint: a run that is killed between the two does them
        # again, where one that resumes after it would leave them out.
        if at(loop.eval_every) and evaluate is not None:
          self.metrics.write(done, evaluate(params()))
        if at(loop.preview_every) and preview is not None and not stopping:
          preview(done, params())
        if at(loop.save_every):
          self.checkpoints.save(done, state, position)
        aside += time.monotonic() - paused
        if stopping:
          self._leave(done, state, position)
      if pending is not None:
        self._report(*pending)
      jax.block_until_ready(state)
      # What the last step is followed by may take long.
      if self.stopping:
        self._leave(done, state, position)
    timing.steps = time.monotonic() - began
    made = max(stage.steps - self.start - 1, 1)
    timing.step = (timing.steps - aside) / made
    return state, timing

  def _leave(self, done, state, position):
    """Saves, says so and ends the process."""
    self.checkpoints.save(done, state, position)
    self.checkpoints.wait()
    self.progress.say(
      f'{self.stage.name}: stopped at step {done}; the same command goes on'
    )
    raise SystemExit(processes.PREEMPTED)

  def close(self):
    self.progress.close()
    self.metrics.close()
    self.checkpoints.wait()
    self.checkpoints.close()

  def _report(self, i, metrics):
    """Logs step i (from 0), or ends the run if its numbers are not finite."""
    done, loop = i + 1, self.loop
    loss, norm = float(metrics['loss']), float(metrics['grad_norm'])
    if not (math.isfinite(loss) and math.isfinite(norm)):
      self._fail(i, loss, norm)
    self.progress.update(done, loss)
    if done % loop.log_every == 0 or done == self.stage.steps:
      values = {k: float(v) for k, v in metrics.items()}
      values = {k: v for k, v in values.items() if math.isfinite(v)}
      self.metrics.write(done, {**values, 'lr': float(self.rate(i))})

  def _fail(self, i, loss, norm):
    good = self.checkpoints.step
    first = i * self.stage.batch
    raise DcjaxError(
      f'stage {self.stage.name!r} met a number that is not finite at step '
      f'{i + 1} (loss {loss}, gradient norm {norm}, lr {self.rate(i):.2e}, '
      f'samples {first} to {first + self.stage.batch - 1} of '
      f'{self.stage.data!r}); the last good checkpoint is step {good or 0}; '
      'try a lower lr'
    )

  def _stop(self, *_):
    self.stopping = True


class _OnSigterm:
  """Calls a function on SIGTERM while the block runs (main thread only)."""

  def __init__(self, handler):
    self._handler = handler

  def __enter__(self):
    try:
      self._old = signal.signal(signal.SIGTERM, self._handler)
    except ValueError:
      # Not the main thread: whoever runs us there handles signals.
      self._old = None

  def __exit__(self, *_):
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)


def _evaluator(objective, held_out, context):
  evaluate = getattr(objective, 'evaluate', None)
  if evaluate is None or held_out is None:
    return None
  key = sharding.place(jax.random.key(17), ())
  jitted = jax.jit(evaluate)
  return lambda params: {
    name: float(x) for name, x in jitted(params, held_out, context, key).items()
  }


def _number(name: str) -> int:
  """A stage's name as a number, the same in every process."""
  return int.from_bytes(name.encode()[:4].ljust(4, b'\0'), 'big') & 0x7FFFFFFF
