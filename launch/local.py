"""N processes of one job on this machine, as on N machines of a pod.

  launch/local.sh N COMMAND...

Each process has CPU devices of its own: DEVICES of them, or 1. Process 0 speaks
on the terminal, and every one into LOGS/process-I.log; LOGS is runs/local if it
is not set. JAX_PLATFORMS is cpu if it is not set.

If a process fails, the others are ended, the end of its log is shown, and its
exit code is the result. SIGTERM and Ctrl-C go on as SIGTERM, so that a training
saves; a second one kills.
"""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import threading
import time

_POLL = 0.05  # seconds
# Seconds that the others have to end once one has failed: they are ended
# because of a mistake, and need not save.
_PATIENCE = 10.0
_SHOWN = 20  # lines of the log of what failed


class Processes:
  """A command, run by several processes.

  Args:
    command: its words.
    count: of processes.
    devices: CPU devices of each.
    logs: folder for process-I.log.
    environ: of this process, which theirs are made from.
  """

  def __init__(
    self,
    command: Sequence[str],
    count: int,
    devices: int,
    logs: Path,
    environ: Mapping[str, str],
  ):
    logs.mkdir(parents=True, exist_ok=True)
    self.logs = [logs / f'process-{i}.log' for i in range(count)]
    self._told = 0
    self._processes = []
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._tell)
    shared = environment(environ, count, devices)
    for index, log in enumerate(self.logs):
      with log.open('wb') as file:
        process = subprocess.Popen(
          command,
          env={**shared, 'DCJAX_PROCESS_INDEX': str(index)},
          stdin=subprocess.DEVNULL,
          stdout=file if index else subprocess.PIPE,
          stderr=subprocess.STDOUT,
          # Or Ctrl-C would reach them past us.
          start_new_session=True,
        )
      self._processes.append(process)
    if self._told:  # meanwhile, when not all of them were there
      self._signal(signal.SIGTERM)
    self._echo = threading.Thread(target=self._copy, daemon=True)
    self._echo.start()

  def _tell(self, *_) -> None:
    """SIGTERM to all; the second time, SIGKILL."""
    self._told += 1
    self._signal(signal.SIGTERM if self._told == 1 else signal.SIGKILL)

  def wait(self) -> int:
    """Until all have ended; the exit code of the first that failed, or 0."""
    failed, deadline = None, None
    while any(p.poll() is None for p in self._processes):
      codes = [p.poll() for p in self._processes]
      bad = [i for i, code in enumerate(codes) if code]
      if bad and failed is None:
        failed = bad[0]
        if not self._told:
          deadline = time.monotonic() + _PATIENCE
          self._signal(signal.SIGTERM)
      if deadline and time.monotonic() > deadline:
        self._signal(signal.SIGKILL)
      time.sleep(_POLL)
    self._echo.join()
    codes = [p.returncode for p in self._processes]
    if failed is None:
      failed = next((i for i, code in enumerate(codes) if code), None)
    if failed is None:
      return 0
    code = codes[failed]
    # As a shell says that a signal ended it.
    code = code if code > 0 else 128 - code
    if failed and not self._told:
      self._show(failed, code)
    return code

  def _signal(self, number: int) -> None:
    for process in self._processes:
      if process.poll() is None:
        process.send_signal(number)

  def _copy(self) -> None:
    """What process 0 says: to the terminal and to its log."""
    pipe = self._processes[0].stdout
    with self.logs[0].open('wb') as log:
      while block := pipe.read1(1 << 16):
        log.write(block)
        log.flush()
        sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()

  def _show(self, index: int, code: int) -> None:
    lines = self.logs[index].read_text(errors='replace').splitlines()
    print(
      f'process {index} ended with code {code}; {self.logs[index]} ends so:',
      *(f'  {line}' for line in lines[-_SHOWN:]),
      sep='\n',
      file=sys.stderr,
    )


def environment(
  environ: Mapping[str, str], count: int, devices: int
) -> dict[str, str]:
  """What all processes have in common: how they find each other."""
  flags = environ.get('XLA_FLAGS', '').split()
  flags = [x for x in flags if 'host_platform_device_count' not in x]
  flags.append(f'--xla_force_host_platform_device_count={devices}')
  return {
    'JAX_PLATFORMS': 'cpu',
    **environ,
    'XLA_FLAGS': ' '.join(flags),
    'DCJAX_COORDINATOR': f'localhost:{_free_port()}',
    'DCJAX_PROCESS_COUNT': str(count),
    'DCJAX_DISTRIBUTED': '',
  }


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def _positive(name: str, text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    sys.exit(_mistake(f'{name} is {text!r}; expected 1 or more'))
  return int(text)


def _mistake(line: str) -> int:
  print(f'error: {line}', file=sys.stderr)
  return 2


def main(argv: Sequence[str]) -> int:
  """Runs the command; the exit code."""
  if len(argv) < 2:
    return _mistake('give a number and a command: launch/local.sh 2 COMMAND...')
  count = _positive('the number of processes', argv[0])
  devices = _positive('DEVICES', os.environ.get('DEVICES', '1'))
  logs = Path(os.environ.get('LOGS', 'runs/local'))
  try:
    processes = Processes(argv[1:], count, devices, logs, os.environ)
  except OSError as error:
    return _mistake(f'{error.filename or argv[1]}: {error.strerror}')
  return processes.wait()


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
