"""Who am I, of how many; and the ways in which a group does not come together.

Real processes where jax is part of the claim, threads for the roll call.
"""

from concurrent import futures
import contextlib
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny

from dcjax import processes, roll_call
from dcjax.errors import DcjaxError
from dcjax.processes import DETECTED, Group

ROOT = Path(__file__).parents[1]
SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[1-2]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}
GIVEN = {'DCJAX_COORDINATOR': 'a:1', 'DCJAX_PROCESS_COUNT': '4'}


@pytest.mark.parametrize(
  'environ, group',
  [
    ({}, None),
    ({**GIVEN, 'DCJAX_PROCESS_INDEX': '3'}, Group('a:1', 4, 3)),
    ({**GIVEN, 'JOB_COMPLETION_INDEX': '2'}, Group('a:1', 4, 2)),
    (
      {**GIVEN, 'DCJAX_PROCESS_INDEX': '0', 'JOB_COMPLETION_INDEX': '2'},
      Group('a:1', 4, 0),
    ),
    ({**GIVEN, 'DCJAX_PROCESS_INDEX': '1', 'DCJAX_DISTRIBUTED': 'off'}, None),
    # Any indexed Job of Kubernetes has one.
    ({'JOB_COMPLETION_INDEX': '2'}, None),
    ({'DCJAX_PROCESS_COUNT': '1', 'DCJAX_PROCESS_INDEX': '0'}, None),
    ({'DCJAX_DISTRIBUTED': 'auto'}, DETECTED),
    (SLURM, DETECTED),
    (SLURM | {'DCJAX_DISTRIBUTED': 'off'}, None),
    (SLURM | {'SLURM_NTASKS': '1'}, None),
    # A shell inside an allocation is no step of it.
    ({k: v for k, v in SLURM.items() if 'STEP' not in k}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, DETECTED),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'WARNING: no hosts or IPs, please set'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, DETECTED),
    # What is given outranks what is found.
    (SLURM | GIVEN | {'DCJAX_PROCESS_INDEX': '1'}, Group('a:1', 4, 1)),
  ],
)
def test_the_environment_says_who_this_is(environ, group):
  assert processes.find(environ=environ) == group


def test_flags_outrank_the_environment_one_by_one():
  environ = {**GIVEN, 'DCJAX_PROCESS_INDEX': '3'}
  assert processes.find('b:2', 2, 1, environ) == Group('b:2', 2, 1)
  assert processes.find(index=0, environ=environ) == Group('a:1', 4, 0)
  assert processes.find('[::1]:9', 2, 0, {}) == Group('[::1]:9', 2, 0)


@pytest.mark.parametrize(
  'given, environ, line',
  [
    (('a:1', 2, 2), {}, r'process_index is 2; expected 0 to 1, as process_c'),
    (('a:1', 2, -1), {}, r'process_index is -1; expected 0 to 1'),
    (('a:1', 0, 0), {}, r'process_count is 0; expected 1 or more'),
    ((None, 2, 0), {}, r'no coordinator; give --coordinator=HOST:PORT or DCJA'),
    (('a:1', None, 0), {}, r'no process_count; give --process_count or DCJAX'),
    (('a:1', 2, None), {}, r'no process_index; give --process_index or DCJAX'),
    (('a', 2, 0), {}, r"coordinator is 'a'; expected HOST:PORT"),
    ((':80', 2, 0), {}, r"coordinator is ':80'; expected HOST:PORT"),
    (
      ('a:b', 2, 0),
      {},
      r"coordinator is 'a:b'; expected HOST:PORT with a port",
    ),
    (('a:0', 2, 0), {}, r'port from 1 to 65535'),
    (('a:65536', 2, 0), {}, r'port from 1 to 65535'),
    ((), {'DCJAX_DISTRIBUTED': 'yes'}, r"is 'yes'; use 'auto' or 'off'"),
    ((), {'DCJAX_PROCESS_COUNT': 'two'}, r"_COUNT is 'two'; expected a whole"),
    ((), {'DCJAX_PROCESS_INDEX': '-1'}, r"_INDEX is '-1'; expected a whole"),
    ((), {'DCJAX_PROCESS_INDEX': '1'}, r'no process_count'),
  ],
)
def test_a_mistake_says_what_would_be_accepted(given, environ, line):
  with pytest.raises(DcjaxError, match=line):
    processes.find(*given, environ=environ)


@pytest.mark.parametrize('name', ['DCJAX_START_TIMEOUT', 'DCJAX_SILENCE'])
@pytest.mark.parametrize('text', ['soon', '0', '-3', 'nan'])
def test_an_impossible_timeout_is_refused(monkeypatch, name, text):
  monkeypatch.setenv(name, text)
  with pytest.raises(DcjaxError, match=f'{name} .*expected seconds, 1 or more'):
    processes.initialize('localhost:1', 2, 1)


def meet(port, members, timeout=5.0, strangers=()):
  """What each (count, index) got: None, or the line of its error."""

  def one(count, index):
    try:
      roll_call.meet(f'localhost:{port}', count, index, timeout)
    except DcjaxError as error:
      return str(error)
    return None

  with futures.ThreadPoolExecutor() as pool:
    told = [pool.submit(one, *member) for member in members]
    for words in strangers:
      greet(port, words)
    return [t.result() for t in told]


def greet(port, words):
  """Somebody who does not belong here, and hangs up."""
  for _ in range(50):
    with contextlib.suppress(OSError):
      with socket.create_connection(('localhost', port), 1.0) as connection:
        connection.sendall(words)
      return
    time.sleep(0.05)


@pytest.fixture
def port():
  with socket.socket() as free:
    free.bind(('', 0))
    return free.getsockname()[1]


def test_all_meet_in_any_order(port):
  assert meet(port, [(4, 2), (4, 3), (4, 0), (4, 1)]) == [None] * 4
  # And the port is free for jax, which binds it next.
  socket.create_server(('', port)).close()


def test_strangers_are_no_processes(port):
  junk = [b'', b'GET / HTTP/1.1\r\n\r\n', b'{"index": "x"}\n', b'[1]\n']
  said = meet(port, [(2, 0)], timeout=1.0, strangers=junk)
  assert 'did not come within 1 s: 1; see' in said[0]


def test_who_is_missing_is_named_to_all(port):
  said = meet(port, [(5, 0), (5, 3)], timeout=1.0)
  assert said[0] == said[1]
  assert said[0].startswith('3 of 5 processes did not come within 1 s: 1, 2, 4')


def test_two_of_a_number_are_told(port):
  said = meet(port, [(4, 0), (4, 1), (4, 1)])
  assert said == ['two processes were told that they are process 1'] * 3


def test_another_count_is_told(port):
  said = meet(port, [(2, 0), (3, 1)])
  assert (
    said[0]
    == said[1]
    == (
      'process 1 was told that there are 3 processes, '
      'process 0 that there are 2'
    )
  )


def test_a_coordinator_that_is_not_there_is_one_line(port):
  began = time.monotonic()
  with pytest.raises(DcjaxError, match='did not reach process 0 at localhost:'):
    roll_call.meet(f'localhost:{port}', 2, 1, 1.0)
  with pytest.raises(DcjaxError, match=r'at nowhere\.invalid:9 within 1 s: '):
    roll_call.meet('nowhere.invalid:9', 2, 1, 1.0)
  assert 2.0 <= time.monotonic() - began < 6.0


def test_a_port_that_is_taken_is_one_line(port):
  with (
    socket.create_server(('', port)),
    pytest.raises(DcjaxError, match=f'cannot have port {port}: Address'),
  ):
    roll_call.meet(f'localhost:{port}', 2, 0, 1.0)


PROGRAM = """
import sys, time
from dcjax import processes

processes.initialize(preemption='polls' in sys.argv)
import jax
from jax.experimental import multihost_utils

polls = 'polls' in sys.argv
# A stage; behind it the next one is compiled, and begins with step 0.
for step in range(300 if polls else 0):
  assert not processes.told_to_go(False)
total = multihost_utils.process_allgather(jax.numpy.ones(3))
if processes.is_main():
  print('all', int(total.sum()), 'devices', jax.device_count(), flush=True)
time.sleep(3 if polls else 0)
for step in range(200 if len(sys.argv) > 1 else 0):
  time.sleep(0.05)
  if polls and processes.told_to_go(False):
    print('saved', step, flush=True)
    sys.exit(processes.PREEMPTED)
"""


def start(port, count, *words):
  """Starts the processes of a group, each with its two devices."""
  environ = os.environ | {
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': tiny.xla_flags(devices=2),
    'DCJAX_COORDINATOR': f'localhost:{port}',
    'DCJAX_PROCESS_COUNT': str(count),
    'DCJAX_START_TIMEOUT': '60',
  }
  return [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, *words],
      env=environ | {'DCJAX_PROCESS_INDEX': str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]


def finish(group, line):
  """(exit codes, what each printed after gloo's greeting)."""
  try:
    said = [process.communicate(timeout=60)[0] for process in group]
  finally:
    for process in group:
      process.kill()
  said = [[x for x in s.splitlines() if line in x] for s in said]
  return [process.returncode for process in group], said


def until_running(group):
  """Waits for the line of process 0: after it, jax has SIGTERM or has not."""
  for line in group[0].stdout:
    if line.startswith('all'):
      return


def test_two_processes_are_one_group_and_one_of_them_speaks(port):
  codes, said = finish(start(port, 2), 'all')
  assert codes == [0, 0]
  assert said == [['all 6 devices 4'], []]


def test_a_job_that_does_not_ask_dies_of_sigterm(port):
  group = start(port, 2, 'sleeps')
  until_running(group)
  for process in group:
    process.send_signal(signal.SIGTERM)
  codes, _ = finish(group, '')
  assert codes == [-signal.SIGTERM] * 2


def test_a_training_that_asks_ends_at_one_step_if_one_process_is_told(port):
  group = start(port, 2, 'polls')
  until_running(group)
  group[1].send_signal(signal.SIGTERM)
  codes, said = finish(group, 'saved')
  assert codes == [processes.PREEMPTED] * 2
  assert len(said[0]) == 1
  assert said[0] == said[1]


def run(program, **environ):
  return subprocess.run(
    [sys.executable, *program],
    env=os.environ | {'PYTHONPATH': str(ROOT)} | environ,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def test_who_is_alone_does_not_pay_for_jax():
  done = run(
    [
      '-c',
      'import sys\nfrom dcjax import processes\nprocesses.initialize()\n'
      "print('jax' in sys.modules)",
    ]
  )
  assert done.stdout == 'False\n'


def test_detection_that_finds_nothing_is_one_line():
  done = run(
    ['-c', 'from dcjax import processes\nprocesses.initialize()'],
    DCJAX_DISTRIBUTED='auto',
    TPU_SKIP_MDS_QUERY='1',
  )
  last = done.stderr.splitlines()[-1]
  assert last.startswith('dcjax.errors.DcjaxError: jax does not join the')
  assert 'coordinator_address' in last
  assert 'or DCJAX_DISTRIBUTED=off for one process' in last


@pytest.mark.parametrize(
  'words, line',
  [
    (['--process_count=2'], 'error: there is no process_index; give'),
    (
      ['--coordinator=localhost:1', '--process_count=2', '--process_index=1'],
      'error: process 1 did not reach process 0 at localhost:1 within 1 s: ',
    ),
    (['--process_count=two'], 'error: flag --process_count=two: '),
  ],
)
def test_the_command_line_ends_with_one_line(tmp_path, words, line):
  done = run(
    [
      '-m',
      'dcjax.main',
      '--config=configs/sample.py',
      f'--workdir={tmp_path}',
      *words,
    ],
    DCJAX_START_TIMEOUT='1',
  )
  assert done.returncode == 2
  assert done.stderr.startswith(line)
  assert done.stderr.count('\n') == 1
