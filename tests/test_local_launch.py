"""The command of a manifest, by several processes on this machine."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import gke
from launch.job import MOUNT, Job

ROOT = Path(__file__).parents[1]
LOCAL = str(ROOT / 'launch/local.sh')
JOB = Job(
  name='cat',
  accelerator='h200',
  topology='16',
  image='us-docker.pkg.dev/p/dcjax/dcjax:cuda',
  bucket='a-bucket',
  command=('--config=configs/set_seq.py:tiny',),
)

PROGRAM = """
import sys
from dcjax import processes
processes.initialize()
import jax
from jax.experimental import multihost_utils
rows = multihost_utils.process_allgather(jax.numpy.ones(3))
if processes.is_main():
  with open(sys.argv[1] + '/sum', 'x') as file:
    file.write(f'{int(rows.sum())} of {jax.device_count()}')
  print('once', flush=True)
"""


def environ(folder, **more):
  bins = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
  return os.environ | {
    'PATH': bins,
    'PYTHONPATH': str(ROOT),
    'LOGS': str(folder / 'logs'),
    **more,
  }


def local(folder, *words, limit=120, **more):
  return subprocess.run(
    [LOCAL, *words],
    cwd=ROOT,
    env=environ(folder, **more),
    capture_output=True,
    text=True,
    timeout=limit,
    check=False,
  )


def command_of(described, bucket):
  """The words and variables of the container, with the bucket elsewhere."""
  pod = gke.manifest(described)['spec']['replicatedJobs'][0]['template']['spec']
  container = pod['template']['spec']['containers'][0]
  words = [x.replace(MOUNT, str(bucket)) for x in container['command']]
  env = {x['name']: x['value'] for x in container['env']}
  env['DCJAX_CACHE'] = env['DCJAX_CACHE'].replace(MOUNT, str(bucket))
  return words, env


def test_the_command_of_the_manifest_runs_on_two_processes(tmp_path):
  (tmp_path / 'program.py').write_text(PROGRAM)
  described = dataclasses.replace(
    JOB, command=('python', f'{MOUNT}/program.py', MOUNT)
  )
  words, env = command_of(described, tmp_path)
  done = local(tmp_path, str(described.processes), *words, **env, DEVICES='2')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'sum').read_text() == '6 of 4'
  said = [x for x in done.stdout.splitlines() if '[Gloo]' not in x]
  assert said == ['once']
  logs = sorted(x.name for x in (tmp_path / 'logs').iterdir())
  assert logs == ['process-0.log', 'process-1.log']
  assert 'once' not in (tmp_path / 'logs/process-1.log').read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_processes_learn_what_one_learns(tmp_path):
  """Both stages of the method, by the command of a manifest.

  Sums over rows are taken in another order, and Adam makes a whole step of a
  gradient that is nearly nothing: leaves agree by their norm, not one by one.
  """
  learnt = []
  for count in ('1', '2'):
    folder = tmp_path / count
    folder.mkdir()
    words, env = command_of(JOB, folder)
    done = local(folder, count, *words, limit=1800, **env)
    assert done.returncode == 0, done.stderr
    learnt.append(load_file(folder / 'runs/cat/concept.safetensors'))
  one, two = learnt
  assert set(one) == set(two)
  for name, value in one.items():
    apart = np.linalg.norm(value - two[name]) / np.linalg.norm(value)
    assert apart < 0.01, name


MEMBER = """
import os, signal, sys, time
index = int(os.environ['DCJAX_PROCESS_INDEX'])
def stop(*_):
  print('saved', index, flush=True)
  time.sleep(0.3)
  sys.exit(143)
if 'saves' in sys.argv:
  signal.signal(signal.SIGTERM, stop)
if 'deaf' in sys.argv:
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(f'{sys.argv[1]}/{index}-{os.getpid()}', 'x').close()
if 'fails' in sys.argv and index == 1:
  print('a reason', flush=True)
  sys.exit(7)
if 'sleeps' in sys.argv:
  time.sleep(60)
"""


def test_one_that_fails_ends_all_and_says_why(tmp_path):
  began = time.monotonic()
  done = local(
    tmp_path, '3', 'python', '-c', MEMBER, str(tmp_path), 'fails', 'sleeps'
  )
  assert done.returncode == 7
  assert 'process 1 ended with code 7' in done.stderr
  assert '  a reason' in done.stderr
  assert time.monotonic() - began < 20
  for path in tmp_path.glob('[0-9]-*'):
    assert not alive(int(path.name.partition('-')[2]))


def alive(pid):
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, 0)
    return True
  return False


def started(folder, count):
  """Waits until all members are there."""
  for _ in range(400):
    if len(list(folder.glob('[0-9]-*'))) == count:
      return
    time.sleep(0.05)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_they_may_save(tmp_path, number):
  process = subprocess.Popen(
    [LOCAL, '2', 'python', '-c', MEMBER, str(tmp_path), 'saves', 'sleeps'],
    env=environ(tmp_path),
    stdout=subprocess.PIPE,
    text=True,
  )
  started(tmp_path, 2)
  process.send_signal(number)
  said = process.communicate(timeout=30)[0]
  assert process.returncode == 143
  assert said == 'saved 0\n'
  assert (tmp_path / 'logs/process-1.log').read_text() == 'saved 1\n'


def test_a_second_signal_kills(tmp_path):
  process = subprocess.Popen(
    [LOCAL, '2', 'python', '-c', MEMBER, str(tmp_path), 'deaf', 'sleeps'],
    env=environ(tmp_path),
  )
  started(tmp_path, 2)
  for _ in range(2):
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == 137


@pytest.mark.parametrize(
  'words, line',
  [
    ((), 'give a number and a command'),
    (('2',), 'give a number and a command'),
    (('two', 'true'), "the number of processes is 'two'; expected 1 or more"),
    (('2', 'no-such-program'), 'no-such-program: No such file'),
  ],
)
def test_a_slip_of_the_local_command_is_one_line(tmp_path, words, line):
  done = local(tmp_path, *words)
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: {line}')
  assert done.stderr.count('\n') == 1


# Slurm and images ------------------------------------------------------------


@pytest.mark.parametrize(
  'code, requeued', [(0, False), (143, True), (2, False)]
)
def test_slurm_puts_back_what_was_told_to_go(tmp_path, code, requeued):
  for name, then in (('srun', f'exit {code}'), ('scontrol', '')):
    stub = tmp_path / name
    stub.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/said\n{then}\n')
    stub.chmod(0o755)
  done = subprocess.run(
    [ROOT / 'launch/slurm.sh', '--config=a.py', '--x=a b'],
    env=environ(tmp_path, SLURM_JOB_ID='7')
    | {'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
    check=False,
  )
  assert done.returncode == code
  said = (tmp_path / 'said').read_text()
  assert 'python -m dcjax.main --config=a.py --x=a b\n' in said
  assert ('scontrol requeue 7' in said) == requeued


def test_the_image_holds_what_a_job_reads():
  text = (ROOT / 'launch/Dockerfile').read_text().replace('\\\n', ' ')
  steps = [x.split(' ', 1) for x in text.splitlines() if x[:1].isupper()]
  (entry,) = [json.loads(rest) for word, rest in steps if word == 'ENTRYPOINT']
  # The words of one program, as in a manifest; not those of a shell.
  assert entry[-3:] == ['python', '-m', 'dcjax.main']
  ignored = (ROOT / 'launch/Dockerfile.dockerignore').read_text().split()
  kept = {x[1:] for x in ignored if x.startswith('!')}
  for word, rest in steps:
    if word == 'COPY':
      for source in rest.split()[:-1]:
        assert source == '.' or source.split('/')[0] in kept
  assert all((ROOT / x).exists() for x in kept)
  assert {'configs', 'dcjax'} <= kept
