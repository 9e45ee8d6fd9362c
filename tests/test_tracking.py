"""The metrics file tells one undisturbed story; the progress says how long."""

import json
import sys
import types
from unittest import mock

import pytest

from dcjax import tracking


def write(folder, stage, steps, *, resume=0):
  metrics = tracking.Metrics(folder, stage, resume=resume)
  for step in steps:
    metrics.write(step, {'loss': 1.0 / step})
  metrics.close()
  return folder / 'metrics.jsonl'


def test_a_record_a_line_in_order(tmp_path):
  write(tmp_path, 'set', (1, 2))
  path = write(tmp_path, 'sequence', (1,))
  assert tracking.read(path) == [
    {'stage': 'set', 'step': 1, 'loss': 1.0},
    {'stage': 'set', 'step': 2, 'loss': 0.5},
    {'stage': 'sequence', 'step': 1, 'loss': 1.0},
  ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
  """A killed process has flushed nothing that was not flushed before."""
  metrics = tracking.Metrics(tmp_path, 'set')
  metrics.write(1, {'loss': 2.0})
  assert len(tracking.read(tmp_path / 'metrics.jsonl')) == 1
  metrics.close()


def test_resume_drops_only_the_later_lines_of_its_stage(tmp_path):
  write(tmp_path, 'set', (1, 2, 3))
  undisturbed = write(tmp_path, 'sequence', (1, 2, 3, 4)).read_bytes()
  path = write(tmp_path, 'sequence', (3, 4), resume=2)
  assert path.read_bytes() == undisturbed


def test_resume_drops_only_the_later_previews_of_its_stage(tmp_path):
  (tmp_path / 'samples').mkdir()
  names = 'set_00002_preview.mp4 set_00004_preview-1a.png set_2_00004_preview.x'
  for name in names.split():
    (tmp_path / 'samples' / name).touch()
  tracking.forget_previews(tmp_path, 'set', resume=2)
  left = sorted(x.name for x in (tmp_path / 'samples').iterdir())
  assert left == ['set_00002_preview.mp4', 'set_2_00004_preview.x']
  tracking.forget_previews(tmp_path / 'new', 'set', resume=0)


@pytest.mark.parametrize('cut', [1, 9, 30])
def test_a_torn_last_line_is_forgotten(tmp_path, cut):
  undisturbed = write(tmp_path, 'set', (1, 2, 3)).read_bytes()
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(undisturbed[:-cut])
  # One byte less and only the end of the line is missing.
  kept = 3 if cut == 1 else 2
  assert [r['step'] for r in tracking.read(path)] == [1, 2, 3][:kept]
  write(tmp_path, 'set', (3,), resume=2)
  assert path.read_bytes() == undisturbed


def test_without_tensorboard_there_are_metrics_all_the_same(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  path = write(tmp_path, 'set', (1,))
  assert json.loads(path.read_text()) == {'stage': 'set', 'step': 1, 'loss': 1}
  assert not (tmp_path / 'tensorboard').exists()


@pytest.mark.parametrize('resume', [0, 2])
def test_tensorboard_forgets_the_same_lines(tmp_path, monkeypatch, resume):
  """It drops the events of `purge_step` and of the steps after it."""
  module, board = types.ModuleType('tensorboardX'), mock.Mock()
  module.SummaryWriter = board
  monkeypatch.setitem(sys.modules, 'tensorboardX', module)
  write(tmp_path, 'set', (resume + 1,), resume=resume)
  board.assert_called_once_with(
    str(tmp_path / 'tensorboard' / 'set'), purge_step=resume + 1
  )


class Clock:
  """Time that passes when it is told to."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(tracking.time, 'monotonic', lambda: self.now)


def test_progress_gives_rate_and_time_left(monkeypatch, capsys):
  clock = Clock(monkeypatch)
  progress = tracking.Progress('set', 1000)
  clock.now += 60.0  # compilation: not part of the rate
  progress.update(1, 3.0)
  clock.now += 20.0
  progress.update(41, 2.5)
  progress.close()
  compiled, line = capsys.readouterr().err.splitlines()
  assert compiled == 'set: compiled, 999 steps to go'
  assert line == 'set 41/1000  loss 2.5000  2.00 steps/s  7:59 left'


def test_progress_of_a_resumed_run_counts_its_own_steps(monkeypatch, capsys):
  clock = Clock(monkeypatch)
  progress = tracking.Progress('set', 600, start=500)
  progress.update(501, 1.0)
  clock.now += 16.0
  progress.update(517, 1.0)
  assert '1.00 steps/s  1:23 left' in capsys.readouterr().err


def test_where_there_is_no_terminal_lines_are_few(monkeypatch, capsys):
  clock = Clock(monkeypatch)
  progress = tracking.Progress('set', 200)
  for step in range(1, 201):
    clock.now += 0.5
    progress.update(step, 1.0)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) < 10
  assert lines[-1].startswith('set 200/200')


SECONDS = {'compile': 1.0, 'steps': 8.0, 'step': 2.0}


def test_a_stage_that_is_done_keeps_its_times_whatever_comes_after(
  tmp_path, monkeypatch
):
  """The next command goes on with them, and with the total."""
  clock = Clock(monkeypatch)
  timings = tracking.Timings(tmp_path)
  clock.now += 9.0
  timings.add('set', SECONDS)
  clock.now += 5.0  # and then it is killed
  again = tracking.Timings(tmp_path)
  clock.now += 3.0
  again.add('set', dict.fromkeys(SECONDS, 0.0))
  again.add('sequence', SECONDS)
  clock.now += 1.0
  found = again.write()
  assert (found['set'], found['sequence']) == (SECONDS, SECONDS)
  assert found['total'] == 9.0 + 3.0 + 1.0
  assert json.loads((tmp_path / 'timings.json').read_text()) == found


@pytest.mark.parametrize('text', ['', '{"set": {"comp', '[1]', '\xff'])
def test_times_that_were_cut_off_begin_anew(tmp_path, text):
  (tmp_path / 'timings.json').write_bytes(text.encode('latin-1'))
  assert 'set' not in tracking.Timings(tmp_path).write()


def test_a_full_disk_leaves_the_times_of_before(tmp_path, monkeypatch):
  tracking.Timings(tmp_path).add('set', SECONDS)
  before = (tmp_path / 'timings.json').read_bytes()

  def full(path, text):
    path.write_bytes(b'')
    raise OSError('No space left on device')

  timings = tracking.Timings(tmp_path)
  monkeypatch.setattr(tracking.Path, 'write_text', full)
  with pytest.raises(OSError, match='No space'):
    timings.add('sequence', SECONDS)
  assert (tmp_path / 'timings.json').read_bytes() == before


@pytest.mark.parametrize(
  'seconds,text', [(0, '0:00'), (59.9, '0:59'), (61, '1:01'), (3725, '1:02:05')]
)
def test_clock(seconds, text):
  assert tracking.clock(seconds) == text
