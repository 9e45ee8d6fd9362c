"""What ran, and where."""

import json
import os
import platform
import subprocess

import jax
from ml_collections import ConfigDict
import numpy as np

from dcjax import machine


def test_description_is_json_and_names_what_matters():
  said = json.loads(json.dumps(machine.describe()))
  assert said['python'] == platform.python_version()
  assert said['packages']['jax'] == jax.__version__
  assert said['devices'] == jax.device_count()
  assert 'cpu' in said['device']


def test_config_is_written_whole(tmp_path):
  c = ConfigDict(dict(seed=3, part=dict(groups=(('a', 0.1),))))
  machine.write_config(tmp_path / 'a' / 'b', c, base={'name': 'world'})
  record = json.loads((tmp_path / 'a' / 'b' / 'config.json').read_text())
  assert record['config'] == {'seed': 3, 'part': {'groups': [['a', 0.1]]}}
  assert record['base'] == {'name': 'world'}
  assert record['machine']['packages']['jax']


def test_without_git_there_is_no_commit(monkeypatch):
  def missing(*args, **kwargs):
    raise FileNotFoundError('git')

  monkeypatch.setattr(subprocess, 'run', missing)
  assert machine.describe()['commit'] is None


def test_what_a_user_tells_xla_counts(monkeypatch):
  sync = '--xla_enable_async_all_gather=false'
  monkeypatch.setenv('LIBTPU_INIT_ARGS', sync)
  machine.tell_xla()
  told = os.environ['LIBTPU_INIT_ARGS'].split()
  assert told[-1] == sync
  assert sync.replace('false', 'true') in told
  machine.tell_xla()
  assert os.environ['LIBTPU_INIT_ARGS'].split() == told


def test_peak_memory_is_in_gigabytes_and_only_grows():
  before = machine.peak_memory()
  assert 0.05 < before < 1000
  block = np.ones(40_000_000)  # 0.32 GB, touched
  after = machine.peak_memory()
  assert after >= before
  assert after >= block.nbytes / 1e9
