"""Descriptions of jobs, and the manifests that a cluster would take."""

import dataclasses
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from dcjax.errors import DcjaxError
from dcjax.planning import devices
from launch import gke, jobset
from launch.job import ACCELERATORS, MOUNT, Job

ROOT = Path(__file__).parents[1]
JOB = Job(
  name='cat',
  accelerator='v6e',
  topology='8x8',
  image='us-docker.pkg.dev/p/dcjax/dcjax:tpu',
  bucket='a-bucket',
  command=('--config=configs/set_seq.py',),
  slices=2,
  queue='dcjax',
  priority='high',
  env={'A_VARIABLE': '1'},
)
GPUS = dataclasses.replace(JOB, accelerator='h200', topology='16', slices=1)


def job(**values):
  return dataclasses.replace(JOB, **values)


# What is said of a job -------------------------------------------------------


@pytest.mark.parametrize(
  'values, line',
  [
    (dict(accelerator='v7'), r"accelerator is 'v7'; use v5e, v5p, v6e, h100"),
    (dict(topology='3x3'), r'topology is 3x3; v6e has 2x2, 2x4, 4x4'),
    (dict(topology='4*4'), r"topology is '4\*4'; expected a form such as 4x4"),
    (dict(topology='0x4'), r"topology is '0x4'"),
    (dict(topology='4'), r"topology is '4'; expected a form"),
    (
      dict(accelerator='v5p'),
      r'topology is 8x8; v5p has 2x2x1, .*multiples of',
    ),
    (dict(accelerator='v5p', topology='8x4x4'), r'from small to large'),
    (dict(accelerator='v5p', topology='32x32x32'), r'at most 8960 chips'),
    (
      dict(accelerator='h100', topology='12'),
      r'is 12; expected whole machines',
    ),
    (dict(accelerator='h100', topology='2x8'), r'expected a number of GPUs'),
    (dict(accelerator='h100', topology='16'), r'slices is 2; GPUs have none'),
    (dict(topology='2x2'), r'slices is 2; GKE joins slices of several machin'),
    (dict(slices=0), r'slices is 0; expected 1 or more'),
    (dict(name='Cat'), r"name is 'Cat'; expected a letter, then small"),
    (dict(name='1cat'), r"name is '1cat'"),
    (dict(name='cat-'), r"name is 'cat-'"),
    (dict(name='c' * 47), r'name has 47 characters; expected at most 46'),
    (dict(bucket='gs://a'), r"bucket is 'gs://a'; .*without gs://"),
    (dict(image='a b'), r"image is 'a b'; expected REGISTRY/NAME:TAG"),
    (dict(queue='my queue'), r"queue is 'my queue'"),
    (dict(checkpoints='/runs'), r"checkpoints is '/runs'; expected a folder"),
    (dict(checkpoints='runs/../a'), r"checkpoints is 'runs/../a'"),
    (dict(grace=30), r'grace is 30; expected 120 s or more'),
    (dict(max_restarts=-1), r'max_restarts is -1'),
    (dict(command='python -m x'), r"command is 'python -m x'; expected its wo"),
    (dict(command=()), r'command is \(\); expected its words'),
    (dict(command=('bash', '-c', 'x')), r'a script of bash, which would keep'),
    (dict(env={'A B': 'x'}), r"env holds A B='x'; expected NAME=TEXT"),
    (dict(env={'A': 1}), r'env holds A=1; expected NAME=TEXT'),
    (dict(env={'DCJAX_PROCESS_COUNT': '3'}), r'which the manifest says itself'),
  ],
)
def test_what_no_cluster_would_run_is_one_line(values, line):
  with pytest.raises(DcjaxError, match=line) as error:
    job(**values)
  assert '\n' not in str(error.value)


def test_a_name_may_have_what_jobset_leaves_it():
  """Of 63 characters: those of -slice-1-15 and a random end."""
  made = gke.manifest(job(name='c' * 46))
  jobset.validate(made)
  made['metadata']['name'] += 'c'
  with pytest.raises(DcjaxError, match='has 64 characters; at most 63'):
    jobset.check(made)


def test_options_alone_are_those_of_the_main_program():
  assert JOB.argv == (
    *('python', '-m', 'dcjax.main', '--config=configs/set_seq.py'),
    f'--workdir={MOUNT}/runs/cat',
  )
  own = ('--config=a.py', '--workdir=/bucket/b')
  assert job(command=own).argv[3:] == own
  assert job(command=('python', 'a.py')).argv == ('python', 'a.py')
  assert job(checkpoints='x/y').argv[-1] == f'--workdir={MOUNT}/x/y'


def test_jobs_and_forecasts_call_chips_the_same():
  assert set(ACCELERATORS) <= set(devices.DEVICES)
  for name, chip in ACCELERATORS.items():
    assert chip.is_tpu == (devices.DEVICES[name].platform == 'tpu')


# Manifests -------------------------------------------------------------------


@pytest.mark.parametrize(
  'accelerator, topology, slices, pods',
  [
    ('v5e', '2x2', 1, 1),
    ('v5e', '16x16', 1, 64),
    ('v5e', '2x4', 3, 2),
    ('v5p', '2x2x1', 1, 1),
    ('v5p', '4x4x4', 1, 16),
    ('v5p', '8x12x16', 2, 384),
    ('v6e', '8x8', 2, 16),
    ('h100', '8', 1, 1),
    ('h200', '64', 1, 8),
  ],
)
def test_manifests_are_what_a_cluster_takes(
  accelerator, topology, slices, pods
):
  made = gke.manifest(
    job(accelerator=accelerator, topology=topology, slices=slices)
  )
  jobset.validate(made)
  (replicated,) = made['spec']['replicatedJobs']
  spec = replicated['template']['spec']
  assert (replicated['replicas'], spec['parallelism']) == (slices, pods)
  assert spec['completions'] == pods


def test_a_slice_of_v6e_as_written_by_hand():
  made = gke.manifest(JOB)
  assert made['metadata']['labels']['kueue.x-k8s.io/queue-name'] == 'dcjax'
  template = made['spec']['replicatedJobs'][0]['template']['spec']['template']
  pod = template['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v6e-slice',
    'cloud.google.com/gke-tpu-topology': '8x8',
  }
  assert pod['priorityClassName'] == 'high'
  assert pod['terminationGracePeriodSeconds'] == 180
  container = pod['containers'][0]
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  env = {x['name']: x['value'] for x in container['env']}
  assert env['DCJAX_DISTRIBUTED'] == 'auto'
  assert env['A_VARIABLE'] == '1'
  assert 'DCJAX_COORDINATOR' not in env


def test_gpu_processes_are_told_where_the_first_one_is():
  assert gke.environment(GPUS) | GPUS.env == gke.environment(GPUS)
  env = gke.environment(GPUS)
  assert env['DCJAX_COORDINATOR'] == 'cat-slice-0-0.cat:8476'
  assert env['DCJAX_PROCESS_COUNT'] == '2'
  alone = dataclasses.replace(GPUS, topology='8')
  assert gke.environment(alone)['DCJAX_DISTRIBUTED'] == 'off'


def objects(value, path=()):
  """(path, object) of every JSON object in a value."""
  if isinstance(value, dict):
    yield path, value
    for key, inner in value.items():
      yield from objects(inner, (*path, key))
  elif isinstance(value, list):
    for index, inner in enumerate(value):
      yield from objects(inner, (*path, index))


# Maps whose keys are anybody's.
FREE = ('labels', 'annotations', 'nodeSelector')


@pytest.mark.parametrize('made', [JOB, GPUS], ids=['tpu', 'gpu'])
def test_a_misspelt_key_is_found_at_every_depth(made):
  made = gke.manifest(made)
  depths = set()
  for path, place in list(objects(made)):
    if path and path[-1] in FREE:
      continue
    place['replicaz'] = 1
    with pytest.raises(DcjaxError, match='replicaz'):
      jobset.validate(made)
    del place['replicaz']
    depths.add(len(path))
  assert max(depths) >= 11
  jobset.validate(made)


def edit(path, value):
  """Puts a value where a path leads, with ~ for / in keys; None: takes it."""

  def change(made):
    node = made
    keys = [x.replace('~', '/') for x in path.split('/')]
    *way, last = [int(x) if x.isdecimal() else x for x in keys]
    for key in way:
      node = node[key]
    if value is None:
      del node[last]
    else:
      node[last] = value

  return change


REPLICATED = 'spec/replicatedJobs/0'
SPEC = f'{REPLICATED}/template/spec'
POD = f'{SPEC}/template/spec'
CONTAINER = f'{POD}/containers/0'


@pytest.mark.parametrize(
  'base, change, line',
  [
    (JOB, edit('kind', 'Job'), r"\$\.kind: 'JobSet' was expected"),
    (JOB, edit('spec/replicatedJobs', []), r'replicatedJobs: \[\] '),
    (JOB, edit(f'{SPEC}/parallelism', '16'), r"'16' is not of type 'integer'"),
    (JOB, edit(f'{CONTAINER}/command', 'python'), r'not of type .array.'),
    (JOB, edit(f'{CONTAINER}/image', None), r"'image' is a required"),
    (JOB, edit('metadata/name', 'Cat'), r"metadata\.name is 'Cat'"),
    (
      JOB,
      edit('metadata/name', 'c' * 60),
      r'the pod c+-slice-1-15-\S+ has 77',
    ),
    (JOB, edit('metadata/labels/a', 'x' * 64), r'label a is .*at most 63'),
    (JOB, edit('metadata/labels/a b', 'x'), r"labels have a key 'a b'"),
    (JOB, edit('metadata/annotations', {}), r'pods of one slice may land on'),
    (JOB, edit(f'{SPEC}/parallelism', 8), r'parallelism is 8 and completions'),
    (JOB, edit(f'{SPEC}/completionMode', None), r'the processes have no numb'),
    (JOB, edit(f'{SPEC}/backoffLimit', 6), r'backoffLimit is not 0'),
    (JOB, edit(f'{POD}/restartPolicy', 'OnFailure'), r'restartPolicy is OnFai'),
    (JOB, edit(f'{POD}/terminationGracePeriodSeconds', 30), r'is below 120'),
    (JOB, edit(f'{POD}/shareProcessNamespace', None), r'SIGTERM may not end'),
    (JOB, edit(f'{POD}/tolerations', []), r'taint google\.com/tpu .*not toler'),
    (JOB, edit(f'{POD}/nodeSelector', {}), r'selects no accelerator'),
    (
      JOB,
      edit(f'{POD}/nodeSelector/cloud.google.com~gke-tpu-topology', '4x4'),
      r'v6e 4x4 has 4 machines, and the Job 16 pods',
    ),
    (
      JOB,
      edit(f'{POD}/nodeSelector/cloud.google.com~gke-tpu-topology', '5x5'),
      r'topology is 5x5; v6e has',
    ),
    (
      JOB,
      edit(f'{CONTAINER}/resources/limits/google.com~tpu', 8),
      r"limits are \{'google\.com/tpu': 8\}; a machine has 4",
    ),
    (
      JOB,
      edit(f'{CONTAINER}/resources/requests/google.com~tpu', 2),
      r'requests are not the limits',
    ),
    (JOB, edit(f'{CONTAINER}/command/0', '/bin/sh'), r'a script of sh'),
    (JOB, edit(f'{CONTAINER}/env/0/name', 'DCJAX_CACHE'), r'DCJAX_CACHE twice'),
    (JOB, edit(f'{CONTAINER}/volumeMounts/0', None), r'volumes are .*mounts'),
    (
      JOB,
      edit(f'{SPEC}/template/metadata/annotations', {}),
      r'nobody would mount the bucket',
    ),
    (
      JOB,
      edit(f'{SPEC}/podFailurePolicy/rules/0/onExitCodes/containerName', 'a'),
      r"names container 'a', which is not there",
    ),
    (JOB, edit('spec/network/enableDNSHostnames', False), r'cannot find proce'),
    (JOB, edit(f'{CONTAINER}/env/2/value', 'off'), r'there are 32 processes'),
    (GPUS, edit(f'{REPLICATED}/replicas', 2), r'h200 16 cannot be joined'),
    (GPUS, edit('metadata/name', 'dog'), r"'cat-slice-0-0\.cat', which is not"),
    (GPUS, edit(f'{REPLICATED}/name', 'node'), r'which is not the first pod'),
    (GPUS, edit(f'{CONTAINER}/ports/0/containerPort', 80), r'no port 8476'),
    (
      GPUS,
      lambda made: [edit(f'{SPEC}/{x}', 3)(made) for x in PODS],
      r'DCJAX_PROCESS_COUNT is not 3',
    ),
  ],
)
def test_a_broken_manifest_is_refused(base, change, line):
  made = gke.manifest(base)
  jobset.validate(made)
  change(made)
  with pytest.raises(DcjaxError, match=line):
    jobset.validate(made)


PODS = ('parallelism', 'completions')


# Command lines ---------------------------------------------------------------


def module(*words, **environ):
  return subprocess.run(
    [sys.executable, '-m', *words],
    cwd=ROOT,
    env=os.environ | environ,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_command_line_prints_what_the_description_says(tmp_path):
  options = '--name=c --accelerator=h100 --topology=16 --bucket=abc --image=a'
  words = [*options.split(), '--env=A=b=c', '--', '--config=a.py', '--x=a b']
  done = module('launch.gke', *words)
  assert done.stderr == ''
  made = yaml.safe_load(done.stdout)
  assert made == gke.manifest(gke.parse(words))
  pod = made['spec']['replicatedJobs'][0]['template']['spec']['template']
  container = pod['spec']['containers'][0]
  assert container['command'][3:5] == ['--config=a.py', '--x=a b']
  assert {'name': 'A', 'value': 'b=c'} in container['env']
  path = tmp_path / 'job.yaml'
  path.write_text(done.stdout)
  assert jobset.main([str(path)]) == 0
  for broken in (done.stdout.replace('completions: 2', 'completions: 3'), '-'):
    path.write_text(broken)
    assert jobset.main([str(path)]) == 2


def test_no_manifest_is_one_line(capsys):
  assert jobset.main([]) == 2
  assert capsys.readouterr().err.startswith('error: give the file of a JobSet')


def test_options_change_a_description():
  path = str(ROOT / 'launch/example.py')
  described = gke.read(path)
  jobset.validate(gke.manifest(described))
  changed = gke.parse(['--job', path, '--topology=8x8', '--slices=2'])
  assert changed == dataclasses.replace(described, topology='8x8', slices=2)
  own = gke.parse(['--job', path, '--', 'python', 'a.py'])
  assert own.argv == ('python', 'a.py')


@pytest.mark.parametrize(
  'words, line',
  [
    (
      ['--name=a'],
      r'give --accelerator, --topology, --image, --bucket, -- COM',
    ),
    (['--nome=a'], r'--nome=a is not an option; use --name, --accelerator'),
    (['--env=FOO'], r"--env is 'FOO'; expected NAME=TEXT"),
    (['--slices=two'], r"invalid int value: 'two'"),
    (['--job=none.py'], r'none\.py does not exist'),
    (['--job=configs/plan.py'], r'configs/plan\.py defines no JOB'),
  ],
)
def test_a_slip_on_the_command_line_is_one_line(capsys, words, line):
  assert gke.main(words) == 2
  said = capsys.readouterr()
  assert said.out == ''
  assert re.fullmatch(rf'error: .*{line}.*\n', said.err)


def test_the_commands_of_the_guide_make_manifests():
  text = (ROOT / 'docs/launch.md').read_text().replace('\\\n', ' ')
  found = re.findall(r'python -m launch\.gke (--[^`\n]*?)(?: >|`|\n)', text)
  assert len(found) >= 2
  for line in found:
    line = re.sub(r'\$(\w+)', lambda m: m[1].lower(), line)
    jobset.validate(gke.manifest(gke.parse(shlex.split(line))))


def test_the_queue_of_the_guide_takes_its_chips():
  queues = list(yaml.safe_load_all((ROOT / 'launch/kueue.yaml').read_text()))
  kinds = {(x['kind'], x['metadata']['name']): x for x in queues}
  local = kinds['LocalQueue', gke.read(str(ROOT / 'launch/example.py')).queue]
  groups = kinds['ClusterQueue', local['spec']['clusterQueue']]['spec']
  for group in groups['resourceGroups']:
    (flavor,) = group['flavors']
    labels = kinds['ResourceFlavor', flavor['name']]['spec']['nodeLabels']
    chip = ACCELERATORS[flavor['name']]
    assert list(labels.values()) == [chip.label]
    assert group['coveredResources'] == [chip.resource]
    assert [x['name'] for x in flavor['resources']] == [chip.resource]
