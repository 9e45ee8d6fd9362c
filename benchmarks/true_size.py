"""A personalisation of a base of true size: its memory, and what plan said.

  python benchmarks/true_size.py

Writes a folder with the true transformer of Wan2.1 1.3B in random numbers (and
a small autoencoder and text encoder), learns from a clip of 17x64x64 for two
steps a stage, is stopped after the first, goes on, samples and exports: the
same commands as ever, each in a process of its own whose peak memory is taken
from outside. Takes 3 GB of disk, and of memory what it prints.
"""

import argparse
import dataclasses
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record

from dcjax import tree
from dcjax.data import video
from dcjax.data.tokenizer import build_word_tokenizer
from dcjax.errors import DcjaxError
from dcjax.models.dit_config import PRESETS, DiTConfig
from dcjax.models.text import TextConfig
from dcjax.models.vae_config import VAEConfig
from dcjax.planning import run as plan
from dcjax.planning import text as plan_text
from dcjax.planning import topology
from dcjax.planning.forecast import Forecaster
from dcjax.weights.base import Base, Format, save_base
from dcjax.weights.networks import expected_params

ROOT = Path(__file__).parents[1]
WORDS = tuple('a red blue thing ball on the ground rolls jumps'.split())
# The latents and the features are those of Wan; what makes them is small.
VAE = VAEConfig(base_dim=8)
FORMAT = Format(17, 64, 64, 16.0, text_length=64)
SPECIAL = 5 + 8  # padding, end, unknown, marks, sentinels
JOB = 'configs/set_seq.py:wan_1_3b'


def write_base(folder: Path, dit: DiTConfig) -> None:
  """Writes a base of random bfloat16 numbers."""
  text = TextConfig(
    vocab_size=SPECIAL + len(WORDS),
    d_model=dit.text_width,
    d_kv=32,
    d_ff=128,
    num_layers=1,
    num_heads=2,
  )
  rng = np.random.default_rng(0)

  def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
    scale = x.shape[-2] ** -0.5 if len(x.shape) > 1 else 0.1
    drawn = rng.standard_normal(x.shape, np.float32) * np.float32(scale)
    return drawn.astype(jnp.bfloat16)

  shapes = tree.flatten(expected_params(dit, VAE, text))
  params = {name: draw(x) for name, x in shapes.items()}
  tokenizer = build_word_tokenizer(WORDS, length=FORMAT.text_length)
  base = Base(
    'true-size', dit, VAE, text, tokenizer, tree.unflatten(params), FORMAT
  )
  save_base(base, folder)


def write_clip(path: Path) -> None:
  """A red square that crosses a blue ground."""
  frames = np.full((33, 64, 64, 3), (20, 30, 200), np.uint8)
  for f, frame in enumerate(frames):
    frame[20:44, f : f + 24] = (230, 40, 30)
  video.write_video(path, frames, 16.0)


def job_options(folder: Path, dtype: str) -> dict[str, Any]:
  """Options of the job: the preset in few, small steps."""
  stages = {
    f'{stage}.{key}': value
    for stage in ('set', 'sequence')
    for key, value in dict(steps=2, batch=2, accumulate=2).items()
  }
  return stages | {
    'base': str(folder / 'base'),
    'base_dtype': dtype,
    'format.frames': FORMAT.frames,
    'format.height': FORMAT.height,
    'format.width': FORMAT.width,
    'prior.videos': 0,
    'sample.steps': 2,
    'save_every': 1,
    'log_every': 1,
    'eval_every': 0,
    'preview_every': 0,
    'data.video': str(folder / 'clip.mp4'),
    'prompts.appearance': 'a [v] thing on the ground.',
    'prompts.motion': 'the thing [u] rolls.',
    'edits': ('new: a red [v] ball [u] jumps.',),
  }


def command(config: str, options: dict[str, Any], workdir: Path) -> list[str]:
  """A command line of dcjax."""
  given = [f'--config.{key}={value}' for key, value in options.items()]
  start = [sys.executable, '-m', 'dcjax.main', f'--config={config}']
  return [*start, f'--workdir={workdir}', *given]


def follow(words: list[str], stop: str | None = None) -> tuple[int, str]:
  """Runs a command to its end, or asks it to stop at a line that holds `stop`.

  Returns:
    (its peak memory in bytes, all that it said).

  Raises:
    DcjaxError: it fails.
  """
  said, stopped = [], False
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  with subprocess.Popen(
    words,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    for line in process.stdout:
      said.append(line)
      print(f'  {line}', end='', flush=True)
      if stop and not stopped and re.search(stop, line):
        process.send_signal(signal.SIGTERM)
        stopped = True
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode and not stopped:
    raise DcjaxError(f'a command ended with exit code {process.returncode}')
  return usage.ru_maxrss * 1024, ''.join(said)


def measure(folder: Path, dtype: str) -> dict[str, Any]:
  """Peak memory of every command, and what plan says of the first."""
  options = job_options(folder, dtype)
  job = plan.load_job(str(ROOT / JOB.partition(':')[0]) + ':wan_1_3b')
  job.update_from_flattened_dict(options)
  found = plan.plan(job, Forecaster(topology.find('cpu'), 'compile'))
  print(plan_text.render(found))

  run = command(JOB, options, folder / 'run')
  print('train, and stop after a step')
  first, said = follow(run, stop='set: compiled')
  print('go on')
  second, _ = follow(run)
  print('export')
  file = folder / 'run' / 'concept.safetensors'
  export, _ = follow(
    command(
      'configs/export.py',
      {'file': file, 'base': folder / 'base', 'style': 'diffusers'},
      folder / 'export',
    )
  )
  return {
    'forecast': found['peak'],
    'programs': found['programs'],
    'stopped': first,
    'resumed': second,
    'export': export,
    'went_on': 'goes on' in said,
  }


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--layers', type=int, default=30, help='of 30')
  parser.add_argument(
    '--dtype', default='float32', help='of the base; the preset has bfloat16'
  )
  options = parser.parse_args()
  dit = dataclasses.replace(PRESETS['wan_t2v_1_3b'], layers=options.layers)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_clip(folder / 'clip.mp4')
    # In a process of its own, whose memory is given back.
    writer = (
      f'import sys; sys.path.insert(0, {str(ROOT / "benchmarks")!r}); '
      'import dataclasses, pathlib, true_size; '
      'dit = true_size.PRESETS["wan_t2v_1_3b"]; true_size.write_base('
      f'pathlib.Path({str(folder / "base")!r}), '
      f'dataclasses.replace(dit, layers={options.layers}))'
    )
    follow([sys.executable, '-c', writer])
    found = measure(folder, options.dtype)
  for key in ('forecast', 'stopped', 'resumed', 'export'):
    ratio = found[key] / found['forecast']
    print(f'{key:10}{found[key] / 1e9:8.2f} GB{ratio:8.2f}')
  where = {'layers': dit.layers, 'dtype': options.dtype}
  print(record.write('true-size', where | found))


if __name__ == '__main__':
  record.run(main)
