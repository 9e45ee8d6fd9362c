"""A user's mistake is one line on stderr and exit code 2, whatever it is."""

import errno
import functools
import os
import pathlib
import re
import subprocess
import sys

from absl import flags
import numpy as np
import pytest
from safetensors import SafetensorError
import tiny

from dcjax import generation, lora, main, personalization
from dcjax.concept import Concept
from dcjax.data import video
from dcjax.errors import DcjaxError
from dcjax.weights.base import load_base

# How ml_collections loads a config, in this process for once.
pytestmark = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)

ROOT = pathlib.Path(__file__).parents[1]
TRAIN, SAMPLE = 'set_seq.py:tiny', 'sample.py'
V, U = '--config.prompts.appearance=', '--config.prompts.motion='

# name: (config, words of the command line, what the line says). In words, {x}
# is a file the fixture makes. The right video, prompts and base come first,
# so that every line below has one thing wrong with it.
MISTAKES = {
  'unknown option': (
    TRAIN,
    ['--config.set.stepps=5'],
    r'config\.set\.stepps is not an option; there is .*\bsteps\b',
  ),
  'unknown option above': (
    TRAIN,
    ['--config.sed=5'],
    r'config\.sed is not an option; there is .*\bseed\b',
  ),
  'option of an option': (
    TRAIN,
    ['--config.seed.first=5'],
    r'config\.seed\.first is not an option; .*nothing below it',
  ),
  'unknown flag': (TRAIN, ['--wrkdir=x'], r'wrkdir.*workdir'),
  'address': (TRAIN, ['--workdir=gs://b/run'], r'--workdir is gs://b/run; '),
  'stray word': (TRAIN, ['cat.mp4'], r"unexpected argument 'cat\.mp4'"),
  'wrong type': (TRAIN, ['--config.set.steps=many'], r'steps.*many'),
  'fraction of a step': (TRAIN, ['--config.set.steps=2.5'], r'steps.*2\.5'),
  'no steps': (TRAIN, ['--config.set.steps=0'], r'config\.set\.steps is 0'),
  'dropout': (
    TRAIN,
    ['--config.sequence.dropout=1.5'],
    r'config\.sequence\.dropout is 1\.5; expected .*below 1',
  ),
  'rate': (
    TRAIN,
    ['--config.set.optimizer.lr=-1'],
    r'config\.set\.optimizer\.lr is -1\.0; expected a positive number',
  ),
  'accumulation': (
    TRAIN,
    ['--config.set.batch=3', '--config.set.accumulate=2'],
    r'config\.set\.accumulate is 2; expected a divisor of the batch, 3',
  ),
  'optimizer': (
    TRAIN,
    ['--config.set.optimizer.kind=sgd'],
    r"optimizer\.kind is 'sgd'; expected adamw or muon",
  ),
  'remat': (
    TRAIN,
    ['--config.remat=some'],
    r"remat is 'some'; use one of none",
  ),
  'base dtype': (
    TRAIN,
    ['--config.base_dtype=int8'],
    r"base_dtype is 'int8'; use bfloat16, float32",
  ),
  'shift': (TRAIN, ['--config.shift=-3.0'], r'shift is -3\.0; expected a pos'),
  'clip length': (
    TRAIN,
    ['--config.format.frames=6'],
    r'cannot make 6 frames of 16x32; it takes 1 \+ 4k frames',
  ),
  'clip size': (
    TRAIN,
    ['--config.format.width=-32'],
    r'format\.width is -32; expected a positive number',
  ),
  'seed': (TRAIN, ['--config.seed=-1'], r'seed is -1; expected 0 or more'),
  'log': (TRAIN, ['--config.log_every=0'], r'log_every is 0'),
  'vectors': (
    TRAIN,
    ['--config.tokens.vectors=0'],
    r'config\.tokens\.vectors is 0; expected 1',
  ),
  'rank': (
    TRAIN,
    ['--config.lora.rank=1000'],
    r'no LoRA of rank 1000 fits .*take a rank from 1 to 23',
  ),
  'side': (TRAIN, ['--config.lora.side=up'], r"side 'up'; use 'in' or 'out'"),
  'targets': (
    TRAIN,
    ['--config.lora.targets=attention/z'],
    r"'attention/z' matches no",
  ),
  'not a pattern': (TRAIN, ['--config.lora.targets=(q'], r"pattern '\(q'"),
  'nothing trained': (
    TRAIN,
    ['--config.sequence.train=lora/b3'],
    r"'lora/b3' matches no parameter",
  ),
  'variant': ('set_seq.py:tinny', [], r"no variant 'tinny'; use tiny"),
  'sample variant': ('sample.py:x', [], r"sample\.py has no variant 'x'"),
  'config': (
    'set_sec.py',
    [],
    r'config .*set_sec\.py cannot be read: .*no such',
  ),
  'no video': (
    TRAIN,
    ['--config.data.video=cat.mp4'],
    r'cat\.mp4 does not exist',
  ),
  'text': (
    TRAIN,
    ['--config.data.video={text}'],
    r'words\.mp4 cannot be read as a video',
  ),
  'empty': (TRAIN, ['--config.data.video={empty}'], r'empty \(0 bytes\)'),
  'still': (TRAIN, ['--config.data.video={still}'], r'1 frame \(a still\)'),
  'fps': (TRAIN, ['--config.data.fps=-3'], r'fps is -3\.0; expected'),
  'no [v]': (TRAIN, [V + 'a cat.'], r'appearance prompt holds \[v\] 0 times'),
  'two [v]': (TRAIN, [V + 'a [v] [v] cat.'], r'holds \[v\] 2 times'),
  '[u] there': (
    TRAIN,
    [V + 'a [v] [u] cat.'],
    r'appearance prompt holds \[u\]',
  ),
  'no [u]': (TRAIN, [U + 'it jumps.'], r'motion prompt holds \[u\] 0 times'),
  'misspelt': (TRAIN, [V + 'a [V] cat.'], r'\[V\] .*not a learned word'),
  'too long': (TRAIN, [V + 'a red ' * 20 + '[v] cat.'], r'prompt is too long'),
  'edit': (
    TRAIN,
    ["--config.edits=('a [v] cat',)"],
    r"config\.edits holds 'a \[v\] cat'; expected \"label: prompt\"",
  ),
  'edit word': (
    TRAIN,
    ["--config.edits=('new: a [w] cat',)"],
    r'\[w\] .*not a learned word',
  ),
  'no base': (TRAIN, ['--config.base={tmp}/none'], r'no base model at .*none'),
  'not a base': (TRAIN, ['--config.base={tmp}'], r'config\.json is missing'),
  'workdir file': (
    TRAIN,
    ['--workdir={text}'],
    r'cannot write to .*words\.mp4; give another --workdir',
  ),
  'below a file': (
    SAMPLE,
    ['--workdir={text}/run'],
    r'cannot write to .*words',
  ),
  'no prompt': (SAMPLE, [], r'there is no prompt; give --config\.prompt='),
  'format': (
    SAMPLE,
    ['--config.prompt=a cat', '--config.format=avi'],
    r"'avi'",
  ),
  'no concept': (
    SAMPLE,
    ['--config.prompt=a [v] cat', '--config.concepts=none.safetensors'],
    r'none\.safetensors',
  ),
  'text concept': (
    SAMPLE,
    ['--config.prompt=a [v] cat', '--config.concepts={text}'],
    r'words\.mp4',
  ),
  'other base': (
    SAMPLE,
    ['--config.prompt=a [v] cat', '--config.concepts={other}'],
    r"learnt on base 'another' .*'tiny'",
  ),
  'not learnt': (
    SAMPLE,
    ['--config.prompt=a [v] cat'],
    r'\[v\] .*has not been learnt; known: none',
  ),
  'steps': (
    SAMPLE,
    ['--config.prompt=a cat', '--config.steps=-2'],
    r'steps is -2',
  ),
  'sampler': (
    SAMPLE,
    ['--config.prompt=a cat', '--config.sampler=ddim'],
    r"unknown sampler 'ddim'; use one of euler",
  ),
  'frames': (
    SAMPLE,
    ['--config.prompt=a cat', '--config.frames=6'],
    r'cannot make 6 frames of 16x32; it takes 1 \+ 4k frames',
  ),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Everything that command lines below name."""
  tmp = tmp_path_factory.mktemp('main')
  tiny.base_folder(tmp / 'base')
  tiny.clip(tmp / 'clip.mp4')
  (tmp / 'words.mp4').write_text('this is a letter\n' * 50)
  (tmp / 'empty.mp4').write_bytes(b'')
  video.write_video(tmp / 'still.mp4', np.zeros((1, 16, 24, 3), np.uint8), 8.0)
  other = tiny.trainable_base(seed=1, name='another')
  params = {
    'transformer': lora.attach(
      other.params['transformer'], 'attn/q/kernel', 2, tiny.key()
    ),
    'tokens': {'v': np.zeros((1, 16), np.float32)},
  }
  Concept.from_params(params, other).save(tmp / 'other.safetensors')
  return tmp


def command(folder, config, words):
  places = {
    'tmp': folder,
    'text': folder / 'words.mp4',
    'empty': folder / 'empty.mp4',
    'still': folder / 'still.mp4',
    'other': folder / 'other.safetensors',
  }
  right = ['--config.base={tmp}/base', '--workdir={tmp}/run']
  if config.startswith('set_seq'):
    right += ['--config.data.video={tmp}/clip.mp4', '--config.lora.rank=2']
    right += [V + tiny.APPEARANCE, U + tiny.MOTION, '--config.prior.videos=0']
  if config.endswith(('tinny', 'set_sec.py', ':x')):
    right = []
  argv = ['main', f'--config={ROOT}/configs/{config}', *right, *words]
  return [argv[0], *(a.format(**places) for a in argv[1:])]


@pytest.fixture(scope='module')
def once():
  """Loads each base once for all command lines."""
  return functools.cache(load_base)


@pytest.fixture
def run(monkeypatch, capsys, once):
  """Runs a command line as if in a process of its own: (exit code, stderr)."""
  monkeypatch.setattr(
    main.app, 'run', lambda job, flags_parser: job(flags_parser(sys.argv))
  )
  for module in (personalization, generation):
    monkeypatch.setattr(module, 'load_base', once)

  def call(argv):
    monkeypatch.setattr(sys, 'argv', argv)
    with pytest.raises(SystemExit) as error:
      main.run()
    return error.value.code, capsys.readouterr().err

  yield call
  flags.FLAGS.unparse_flags()
  # The options of a job are flags of its own.
  for name in [n for n in flags.FLAGS if n.startswith('config.')]:
    delattr(flags.FLAGS, name)
  for name in ('config', 'workdir'):
    flags.FLAGS[name].unparse()


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line(run, folder, mistake):
  config, words, line = MISTAKES[mistake]
  code, text = run(command(folder, config, words))
  assert code == 2
  assert text.count('error: ') == 1
  last = text.splitlines()[-1]
  assert last.startswith('error: ')
  assert re.search(line, last)
  # And it is found before anything is trained.
  assert not (folder / 'run' / 'metrics.jsonl').exists()


def test_a_command_without_a_job_says_which_flag_to_give():
  done = subprocess.run(
    [sys.executable, '-m', 'dcjax.main'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == 'error: give a job: --config=configs/set_seq.py\n'


def test_a_folder_that_is_not_ours_is_refused(tmp_path, monkeypatch):
  main._check_workdir(tmp_path / 'new' / 'run')
  monkeypatch.setattr(os, 'access', lambda *_: False)
  with pytest.raises(DcjaxError, match=f'cannot write to {tmp_path}; give'):
    main._check_workdir(tmp_path / 'new' / 'run')


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'metrics.jsonl'),
    # As Orbax says it of a checkpoint.
    ValueError(
      'RESOURCE_EXHAUSTED: Failed to write 402564 bytes to file 18: No space '
      "left on device [os_error_code='28']"
    ),
    SafetensorError(
      'Error while serializing: I/O error: No space left on device (os error '
      '28)'
    ),
  ],
)
def test_a_full_disk_is_one_line(run, folder, monkeypatch, error):
  def fill(config, workdir):
    raise error

  monkeypatch.setattr(personalization, 'run', fill)
  code, text = run(command(folder, TRAIN, []))
  assert code == 2
  assert re.fullmatch(
    r'error: the disk is full; .*goes on from .*', text.strip()
  )


def test_another_error_of_the_system_is_not_taken_for_a_full_disk(
  run, folder, monkeypatch
):
  def fail(config, workdir):
    raise ValueError('a slip of ours')

  monkeypatch.setattr(personalization, 'run', fail)
  with pytest.raises(ValueError, match='a slip of ours'):
    run(command(folder, TRAIN, []))
