"""A roll call: process 0 hears from every other one before jax is started.

On the coordinator's own port, which is then jax's. The others say which of how
many they are, one line of JSON, and wait for the answer: an error, or none.
So a process that is missing, twice there or of another opinion is a line that
names it, on every process.
"""

from collections.abc import Iterator
import contextlib
import json
import socket
import time

from dcjax.errors import DcjaxError

_PAUSE = 0.2  # seconds between two tries
_PATIENCE = 5.0  # seconds for a stranger on the port to say a line
_LONGEST = 4096  # bytes of a line


def meet(coordinator: str, count: int, index: int, timeout: float) -> None:
  """Returns once all processes are there.

  Args:
    coordinator: HOST:PORT of process 0, valid.
    count: of processes, at least 2.
    index: of this one.
    timeout: seconds.

  Raises:
    DcjaxError: the port cannot be had or reached, a process does not come, or
      the processes contradict each other.
  """
  host, _, port = coordinator.rpartition(':')
  deadline = time.monotonic() + timeout
  if index == 0:
    _call(int(port), count, deadline, timeout)
  else:
    _answer(host.strip('[]'), int(port), count, index, deadline, timeout)


def _call(port: int, count: int, deadline: float, timeout: float) -> None:
  """Process 0: waits for the others, then tells them."""
  there: set[int] = set()
  connections = []
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(_server(port))
    except OSError as error:
      raise DcjaxError(
        f'process 0 cannot have port {port}: {error.strerror}; give another '
        '--coordinator=HOST:PORT'
      ) from error
    problem = None
    for connection, said in _callers(server, deadline):
      stack.enter_context(connection)
      connections.append(connection)
      index, others = said
      if others != count:
        problem = (
          f'process {index} was told that there are {others} processes, '
          f'process 0 that there are {count}'
        )
      elif index in there or index == 0:
        problem = f'two processes were told that they are process {index}'
      there.add(index)
      if problem or len(there) == count - 1:
        break
    if problem is None and len(there) < count - 1:
      problem = _missing(count, there, timeout)
    for connection in connections:
      _say(connection, {'problem': problem})
  if problem:
    raise DcjaxError(problem)


def _answer(
  host: str,
  port: int,
  count: int,
  index: int,
  deadline: float,
  timeout: float,
) -> None:
  """The others: find process 0 and do as it says."""
  reason = 'no answer'
  while (left := deadline - time.monotonic()) > 0:
    try:
      # Its name may not be known yet, nor anybody be there.
      with socket.create_connection((host, port), min(left, 5.0)) as connection:
        _say(connection, {'index': index, 'count': count})
        # Process 0 may have begun later, and knows who is missing.
        connection.settimeout(deadline - time.monotonic() + _PATIENCE)
        answer = _hear(connection)
    except OSError as error:
      reason = error.strerror or str(error)
    else:
      if isinstance(answer, dict) and 'problem' in answer:
        if answer['problem']:
          raise DcjaxError(str(answer['problem']))
        return
      reason = 'what answers there is not process 0 of a job'
    time.sleep(_PAUSE)
  raise DcjaxError(
    f'process {index} did not reach process 0 at {host}:{port} within '
    f'{timeout:.0f} s: {reason}; is it running, and is the port open?'
  )


def _server(port: int) -> socket.socket:
  """Listens on all addresses, as jax will."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ('', port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
    )
  return socket.create_server(('', port), backlog=1024)


def _callers(
  server: socket.socket, deadline: float
) -> Iterator[tuple[socket.socket, tuple[int, int]]]:
  """(connection, (index, count)) of every process that comes, until then."""
  while (left := deadline - time.monotonic()) > 0:
    server.settimeout(left)
    try:
      connection, _ = server.accept()
      connection.settimeout(_PATIENCE)
      said = _hear(connection)
    except TimeoutError:
      continue
    except OSError:
      # One that hung up at once, such as a probe of the port.
      continue
    match said:
      case {'index': int(index), 'count': int(count)}:
        yield connection, (index, count)
      case _:
        connection.close()


def _missing(count: int, there: set[int], timeout: float) -> str:
  """Says who did not come, at most a few by number."""
  absent = [index for index in range(1, count) if index not in there]
  named = ', '.join(map(str, absent[:8])) + (', ...' if absent[8:] else '')
  return (
    f'{len(absent)} of {count} processes did not come within {timeout:.0f} s: '
    f'{named}; see why in their logs, or wait longer with DCJAX_START_TIMEOUT'
  )


def _say(connection: socket.socket, value: dict) -> None:
  # Who has gone meanwhile needs no answer, and is missed by jax.
  with contextlib.suppress(OSError):
    connection.sendall(json.dumps(value).encode() + b'\n')


def _hear(connection: socket.socket) -> object:
  """What a line of JSON says; None if it is none."""
  line = b''
  while not line.endswith(b'\n') and len(line) < _LONGEST:
    more = connection.recv(_LONGEST)
    if not more:
      return None
    line += more
  try:
    return json.loads(line)
  except ValueError:
    return None
