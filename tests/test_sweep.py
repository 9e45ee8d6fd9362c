"""Sweeps: the points, their options, and the jobs that XManager is given."""

import asyncio
import re

import pytest

from launch import xm


def test_points_multiply_in_the_order_they_are_given():
  assert xm.points(['seed=0,1', 'lora.rank=4']) == [
    {'seed': '0', 'lora.rank': '4'},
    {'seed': '1', 'lora.rank': '4'},
  ]
  assert xm.points([]) == [{}]


def test_each_point_has_its_folder_and_outranks_what_all_have():
  each = xm.arguments('a.py:b', ['seed=9', 'p=x=y'], ['seed=0,1'], 'runs/s')
  assert each[1] == {
    'config': 'a.py:b',
    'workdir': 'runs/s/1',
    'config.seed': '1',
    'config.p': 'x=y',
  }
  assert [x['workdir'] for x in each] == ['runs/s/0', 'runs/s/1']


@pytest.mark.parametrize(
  'words, line',
  [
    ([], r'give a job: --config=configs/set_seq\.py'),
    (['--config=a', '--sweep=seed'], r"sweep is 'seed'; expected KEY=VALUE,V"),
    (['--config=a', '--sweep=a=1,'], r"sweep is 'a=1,'"),
    (['--config=a', '--sweep=a=1', '--sweep=a=2'], r'two sweeps are over a'),
    (['--config=a', '--option=x'], r"option is 'x'; expected KEY=VALUE"),
    (['--config=a', '--seed=0'], r'--seed=0 is not an option'),
    (['--config=a', '--executor=moon'], r"invalid choice: 'moon'"),
    (['--config=a', '--executor=vertex'], r'give --image=REGISTRY/NAME:TAG'),
    (
      ['--config=a', '--executor=vertex', '--image=a', '--gpu=v6e'],
      r"gpu is 'v6e'; use a100, a100_80gib, h100, h200",
    ),
    (
      ['--config=a', '--executor=vertex', '--image=a', '--gpus=16'],
      r'gpus is 16; expected 1, 2, 4 or 8, of one machine',
    ),
  ],
)
def test_a_slip_is_one_line(capsys, words, line):
  assert xm.main(words) == 2
  assert re.fullmatch(rf'error: .*{line}.*\n', capsys.readouterr().err)


@pytest.mark.filterwarnings('ignore')  # of XManager's own libraries
@pytest.mark.parametrize('where', ['local', 'vertex'])
def test_xmanager_is_given_a_job_a_point(where):
  mock = pytest.importorskip(
    'xmanager.xm_mock', reason='pip install -e ".[xmanager]" brings XManager'
  )
  each = xm.arguments('a.py', [], ['seed=0,1,2'], 'runs')
  what = xm.here() if where == 'local' else xm.vertex('a/b:cuda', 'h200', 8)

  async def sweep():
    async with mock.MockExperiment() as experiment:
      await xm.launch(experiment, *what, each, together=where != 'local')
      return experiment.launched_jobs

  jobs = asyncio.run(sweep())
  said = [job.args.to_list(str) for job in jobs]
  assert said == [
    ['--config=a.py', f'--workdir=runs/{i}', f'--config.seed={i}']
    for i in range(3)
  ]
  if where == 'vertex':
    (amount,) = jobs[0].executor.requirements.task_requirements.values()
    assert amount == 8
