"""A training that several processes share, for `test_pods.py`.

  python tests/pod_job.py WORKDIR MESH STEPS [EVENT AT PROCESS]

One matrix, split over 'fsdp', and one vector, which every device has, learn a
noisy line. Process 0 writes what they came to. EVENT is a signal that PROCESS
sends itself once it has drawn the batch of step AT.
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dcjax import mesh, objective, processes, sharding, train, tree
from dcjax.data import pipeline
from dcjax.stage import Optimizer, Stage

RULES = (('kernel$', ('fsdp', None)),)


def loss(params, batch, context, key):
  """Of y = W x + b, on inputs with noise of their own."""
  keys = objective.sample_keys(key, {**batch, 'latents': batch['x']})
  noise = jax.vmap(lambda k: jax.random.normal(k, (8,)))(keys)
  x = batch['x'] + 0.1 * noise
  y = x @ params['kernel'] + params['bias'][None]
  error = jnp.square(y - batch['x'][:, ::-1] @ context['to']).mean(-1)
  half = batch['x'][:, 0] > 0
  aux = objective.Average(jnp.where(half, error, 0.0).sum(), half.sum())
  return error.mean(), {'loss/half': aux}


class Batches:
  """The loader, and what happens while it is asked."""

  def __init__(self, loader, event, at):
    self._loader, self._event, self._left = loader, event, at

  def __next__(self):
    batch = next(self._loader)
    if self._event and self._left == 0:
      os.kill(os.getpid(), self._event)
    self._left -= 1
    time.sleep(0.02)
    return batch

  def get_state(self):
    return self._loader.get_state()

  def set_state(self, state):
    self._loader.set_state(state)
    self._left -= state['next_index']


def main(workdir, sizes, steps, event='', at='0', process='0'):
  processes.initialize(preemption=True)
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  source = [{'x': draw(8)} for _ in range(12)]
  params = {'kernel': 0.1 * draw(8, 8), 'bias': np.zeros(8, np.float32)}
  context = {'to': draw(8, 8)}
  stage = Stage(
    'line',
    'flow',
    'clip',
    '.*',
    steps=int(steps),
    batch=8,
    accumulate=2,
    ema=0.5,
    optimizer=Optimizer(lr=0.02, clip=0.0),
  )
  mine = event and int(process) == jax.process_index()
  number = getattr(signal, event) if mine else 0
  pairs = (pair.split('=') for pair in sizes.split(','))
  run = mesh.make({axis: int(n) for axis, n in pairs})
  own = processes.own(workdir)
  with mesh.use(run):
    loop = train.Loop(
      str(own), log_every=1, save_every=2, identity={'a': 1}, rules=RULES
    )
    batches = Batches(pipeline.loader(source, batch=8, seed=0), number, int(at))
    result, _ = train.fit(stage, loss, params, batches, loop, context=context)
    kernel = result['kernel']
    held = kernel.addressable_shards[0].data.shape
    found = sharding.fetch(tree.flatten(result))
  np.savez(own / 'result.npz', **found)
  print('done', jax.process_count(), 'kernel', held, flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
