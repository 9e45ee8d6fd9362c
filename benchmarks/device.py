"""What this machine reaches at best: products, memory, attention.

  python benchmarks/device.py

The rates that a step can be compared with. Attention is measured twice: as the
model calls it (`dcjax.models.attention.attend`, which picks a way for the
backend), and as cuDNN's own call, where there is cuDNN; a centred window has no
such call. Operands are random, as constants take less power and so less time. A
machine without an accelerator gets small sizes, to try this, and says so.
"""

import argparse
from collections.abc import Callable
import dataclasses
from pathlib import Path
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import record

from dcjax import machine
from dcjax.models import attention
from dcjax.planning import devices, flops

WARM, MOST = 3, 30
# Shorter calls are repeated for as long: launching takes microseconds.
LEAST = 0.005


@dataclasses.dataclass(frozen=True)
class Case:
  """Self-attention of one sample: its name, tokens, heads, width of a head."""

  name: str
  tokens: int
  heads: int
  head_dim: int = 128
  window: int | None = None  # half width


CASES = (
  Case('paper, full', 9216, 32),
  Case('paper, window', 9216, 32, window=3072),
  Case('Wan 1.3B 480p', 32760, 12),
  Case('Wan 14B 480p', 32760, 40),
)
SMALL = (
  Case('small, full', 1152, 2, 64),
  Case('small, window', 1152, 2, 64, window=384),
)
PRODUCT = {True: 8192, False: 1024}  # width of square matrices
COPY = {True: 2 << 30, False: 64 << 20}  # bytes


def timed(call: Callable, given: tuple, budget: float) -> dict[str, float]:
  """`record.spread` of a compiled function of the operands."""
  compiled = jax.jit(call).lower(*given).compile()
  wait = lambda: jax.block_until_ready(compiled(*given))
  once = min(record.runs(wait, warm=1, most=3, budget=budget / 4))
  times = max(1, round(LEAST / once))

  def several():
    for _ in range(times):
      out = compiled(*given)
    jax.block_until_ready(out)

  found = record.runs(several, warm=WARM, most=MOST, budget=budget)
  return record.spread([x / times for x in found])


def normal(*shape: int, seed: int = 0) -> jax.Array:
  """bfloat16."""
  return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def product(large: bool, budget: float) -> dict[str, Any]:
  """A square product of bfloat16."""
  n = PRODUCT[large]
  found = timed(jnp.matmul, (normal(n, n), normal(n, n, seed=1)), budget)
  return {'width': n, **found, 'tflops': 2e-9 * n**3 / found['ms']}


def copies(large: bool, budget: float) -> dict[str, Any]:
  """Bytes read and written a second: by a copy, and by a kernel."""
  x = normal(COPY[large] // 2)
  ways = {'copy': jnp.copy, 'scaled': lambda x: x * jnp.bfloat16(1.5)}
  found = {name: timed(way, (x,), budget / 2) for name, way in ways.items()}
  moved = 2e-9 * COPY[large]
  return {
    name: {'bytes': COPY[large], **row, 'tb_s': moved / row['ms']}
    for name, row in found.items()
  }


def ways(case: Case) -> dict[str, Callable | str]:
  """{name: attention of q, k, v, or why it is not measured}."""
  own = lambda q, k, v: attention.attend(q, k, v, window=case.window)
  bare = lambda q, k, v: jax.nn.dot_product_attention(
    q, k, v, implementation='cudnn'
  )
  if jax.default_backend() != 'gpu':
    bare = 'there is no cuDNN here'
  elif case.window is not None:
    bare = 'cuDNN takes no centred window'
  return {'dcjax': own, 'cudnn': bare}


def attend(case: Case, way: Callable, budget: float) -> dict[str, Any]:
  """Forward alone, and with all gradients.

  A pair of a query and a key that see each other costs 4 operations a channel
  forward, and 10 backward, where scores are computed again.
  """
  shape = (1, case.tokens, case.heads, case.head_dim)
  q, k, v, slope = (normal(*shape, seed=i) for i in range(4))

  def both(q, k, v, slope):
    out, back = jax.vjp(way, q, k, v)
    return out, back(slope)

  seen = flops.pairs(case.tokens, case.window)
  pairs = seen * case.heads * case.head_dim
  found = {
    'forward': (timed(way, (q, k, v), budget / 2), 4),
    'both': (timed(both, (q, k, v, slope), budget / 2), 14),
  }
  return {
    name: {**row, 'tflops': 1e-9 * cost * pairs / row['ms']}
    for name, (row, cost) in found.items()
  }


def clocks() -> str | None:
  """What the driver says of the GPU at this moment; None without one."""
  asked = 'name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,'
  asked += 'power.limit,temperature.gpu,memory.total'
  try:
    done = subprocess.run(
      ['nvidia-smi', f'--query-gpu={asked}', '--format=csv'],
      capture_output=True,
      text=True,
      check=True,
      timeout=20,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


def failed(error: Exception) -> dict[str, str]:
  """A row of something that does not work here; the others are measured."""
  reason = (str(error).strip() or type(error).__name__).splitlines()[0]
  print(f'  failed: {reason[:200]}', flush=True)
  return {'failed': reason[:400]}


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  add = parser.add_argument
  add('--seconds', type=float, default=4.0, help='for a measurement')
  add('--small', action='store_true', help='small sizes, to try this')
  add('--name', default='device', help='first in the name of the file')
  add('--folder', type=Path, default=record.RESULTS, help='for the file')
  options = parser.parse_args()
  large = machine.backend() != 'cpu' and not options.small
  device, budget = devices.find('local'), options.seconds
  found: dict[str, Any] = {
    'sizes': 'full' if large else 'small, to try this',
    'stated': {'tflops': device.peak / 1e12, 'tb_s': device.bandwidth / 1e12},
    'before': clocks(),
  }
  found['product'] = product(large, budget)
  row = found['product']
  print(f'product of {row["width"]}: {row["tflops"]:.2f} TFLOP/s', flush=True)
  found['memory'] = copies(large, budget)
  for name, row in found['memory'].items():
    print(f'memory, {name}: {row["tb_s"]:.3f} TB/s', flush=True)
  found['attention'] = {}
  for case in CASES if large else SMALL:
    rows: dict[str, Any] = {'shape': dataclasses.asdict(case)}
    for name, way in ways(case).items():
      print(f'{case.name}, {name}', flush=True)
      try:
        rows[name] = (
          {'skipped': way}
          if isinstance(way, str)
          else attend(case, way, budget)
        )
      except Exception as error:  # of this kernel on this device, of any kind
        rows[name] = failed(error)
      for part, row in rows[name].items():
        if isinstance(row, dict):
          print(
            f'  {part:8}{row["ms"]:9.2f} ms{row["tflops"]:9.2f} TFLOP/s',
            flush=True,
          )
    found['attention'][case.name] = rows
    # After each, so that a run that is stopped has measured something.
    path = record.write(
      options.name, found | {'after': clocks()}, options.folder
    )
  print(path)


if __name__ == '__main__':
  record.run(main)
