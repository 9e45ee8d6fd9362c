r"""A JobSet of GKE from a short description of the job.

  python -m launch.gke --name=cat --accelerator=v6e --topology=4x4 \
    --image=IMAGE --bucket=BUCKET -- --config=configs/set_seq.py:wan_14b \
    --config.mesh.fsdp=2 --config.mesh.context=2 > job.yaml
  kubectl apply -f job.yaml
  python -m launch.gke --job=launch/example.py > job.yaml

A description file defines JOB, a `launch.job.Job`; options change its values.
What follows -- is the command; options alone are those of `dcjax.main`.

The bucket is a folder of the container, mounted by the Cloud Storage FUSE
driver of GKE, and not a gs:// address: a run is more than checkpoints (metrics,
media, a cache, a report), and all of it is plain files, the same on one machine
and on a pod. It needs a bucket with a hierarchical namespace: a checkpoint is
complete once its folder is renamed, in one step, and only such buckets can.
"""

import argparse
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import runpy
import sys
from typing import Any

from dcjax.errors import DcjaxError
from dcjax.processes import PREEMPTED
from launch import jobset
from launch.job import MOUNT, Job

CONTAINER = 'dcjax'
# Of the coordinator, on the first pod.
PORT = 8476
# Nothing is remembered of names: a process sees at once what another one made.
_MOUNT_OPTIONS = (
  'implicit-dirs',
  'metadata-cache:ttl-secs:0',
  'metadata-cache:negative-ttl-secs:0',
)


def manifest(job: Job) -> dict[str, Any]:
  """The JobSet of a job, as YAML values."""
  # Two node pools may have slices of one form: a slice is one pool, whole.
  whole = {jobset.EXCLUSIVE: jobset.NODE_POOL}
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': job.name,
      'namespace': job.namespace,
      'labels': {
        'app.kubernetes.io/name': 'dcjax',
        **({'kueue.x-k8s.io/queue-name': job.queue} if job.queue else {}),
      },
      'annotations': whole if job.chip.is_tpu and job.vms > 1 else {},
    },
    'spec': {
      # The manifest and the logs stay for a day.
      'ttlSecondsAfterFinished': 86400,
      'network': {'enableDNSHostnames': True, 'publishNotReadyAddresses': True},
      'failurePolicy': _failure_policy(job),
      'replicatedJobs': [
        {'name': 'slice', 'replicas': job.slices, 'template': _template(job)}
      ],
    },
  }


def _failure_policy(job: Job) -> dict[str, Any]:
  return {
    'maxRestarts': job.max_restarts,
    # Nobody of the last attempt still writes when the next one begins.
    'restartStrategy': 'BlockingRecreate',
    'rules': [
      {
        'name': 'preempted',
        'action': 'RestartJobSetAndIgnoreMaxRestarts',
        'onJobFailureReasons': ['PodFailurePolicy'],
      }
    ],
  }


def _template(job: Job) -> dict[str, Any]:
  """The Job of one slice: a pod a machine, all of them or none."""
  return {
    'spec': {
      'parallelism': job.vms,
      'completions': job.vms,
      'completionMode': 'Indexed',
      'backoffLimit': 0,
      # What ends so was sent away, and is no failure of the program.
      'podFailurePolicy': {
        'rules': [
          {
            'action': 'FailJob',
            'onExitCodes': {
              'containerName': CONTAINER,
              'operator': 'In',
              'values': [PREEMPTED],
            },
          },
          {
            'action': 'FailJob',
            'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
          },
        ]
      },
      'template': {'metadata': {'annotations': _fuse()}, 'spec': _pod(job)},
    }
  }


def _fuse() -> dict[str, str]:
  """The sidecar that mounts the bucket, without limits of its own."""
  keys = ('cpu-limit', 'memory-limit', 'ephemeral-storage-limit')
  return {
    'gke-gcsfuse/volumes': 'true',
    **{f'gke-gcsfuse/{key}': '0' for key in keys},
  }


def _pod(job: Job) -> dict[str, Any]:
  selector = {'cloud.google.com/gke-accelerator': job.chip.label}
  if job.chip.is_tpu:
    selector = {
      'cloud.google.com/gke-tpu-accelerator': job.chip.label,
      'cloud.google.com/gke-tpu-topology': job.topology,
    }
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': job.grace,
    # Else the program is process 1 of its container, which does not die of
    # SIGTERM unless it asks for it.
    'shareProcessNamespace': True,
    'serviceAccountName': job.service_account,
    **({'priorityClassName': job.priority} if job.priority else {}),
    'nodeSelector': selector,
    'tolerations': [{'key': job.chip.resource, 'operator': 'Exists'}],
    'containers': [_container(job)],
    'volumes': [
      # Workers that load data hand it over in shared memory.
      {'name': 'shm', 'emptyDir': {'medium': 'Memory'}},
      {
        'name': 'bucket',
        'csi': {
          'driver': 'gcsfuse.csi.storage.gke.io',
          'volumeAttributes': {
            'bucketName': job.bucket,
            'mountOptions': ','.join(_MOUNT_OPTIONS),
          },
        },
      },
    ],
  }


def _container(job: Job) -> dict[str, Any]:
  count = {job.chip.resource: job.chip.per_vm}
  tpu = {
    # The chips are devices of the machine.
    'securityContext': {'privileged': True},
    # Of the slice's own network, and of the one between slices.
    'ports': [{'containerPort': 8471}, {'containerPort': 8080}],
  }
  gpu = {'ports': [{'containerPort': PORT}]}
  return {
    'name': CONTAINER,
    'image': job.image,
    'command': list(job.argv),
    'env': [{'name': k, 'value': v} for k, v in environment(job).items()],
    **(tpu if job.chip.is_tpu else gpu),
    'resources': {'requests': count, 'limits': dict(count)},
    'volumeMounts': [
      {'name': 'shm', 'mountPath': '/dev/shm'},
      {'name': 'bucket', 'mountPath': MOUNT},
    ],
  }


def environment(job: Job) -> dict[str, str]:
  """Variables of the container: how its process finds the others."""
  env = {'PYTHONUNBUFFERED': '1', 'DCJAX_CACHE': f'{MOUNT}/cache'}
  if job.processes == 1:
    env['DCJAX_DISTRIBUTED'] = 'off'
  elif job.chip.is_tpu:
    # GKE tells it to jax; should it not, that is an error, and not one run a
    # machine.
    env['DCJAX_DISTRIBUTED'] = 'auto'
  else:
    # Pod 0 by the name that JobSet gives it; Kubernetes adds the index.
    env['DCJAX_COORDINATOR'] = f'{job.name}-slice-0-0.{job.name}:{PORT}'
    env['DCJAX_PROCESS_COUNT'] = str(job.processes)
  return {**env, **job.env}


def read(path: str) -> Job:
  """The JOB of a description file.

  Raises:
    DcjaxError: there is none.
  """
  if not Path(path).is_file():
    raise DcjaxError(f'{path} does not exist; give a Python file with a JOB')
  job = runpy.run_path(path).get('JOB')
  if not isinstance(job, Job):
    raise DcjaxError(f'{path} defines no JOB; expected a launch.job.Job')
  return job


def parse(argv: Sequence[str]) -> Job:
  """The job of a command line.

  Raises:
    DcjaxError: a value is missing or impossible.
  """
  words = list(argv)
  command = ()
  if '--' in words:
    at = words.index('--')
    words, command = words[:at], tuple(words[at + 1 :])
  parser = argparse.ArgumentParser(
    prog='python -m launch.gke',
    description='Prints the JobSet of a job; the command follows --.',
    allow_abbrev=False,
    exit_on_error=False,
  )
  parser.add_argument('--job', help='a Python file with a JOB')
  fields = {f.name: f for f in dataclasses.fields(Job) if f.name != 'command'}
  for name, field in fields.items():
    if name == 'env':
      parser.add_argument('--env', action='append', metavar='NAME=TEXT')
    else:
      parser.add_argument(f'--{name}', type=field.type)
  try:
    given, unknown = parser.parse_known_args(words)
  except argparse.ArgumentError as error:
    raise DcjaxError(str(error)) from error
  if unknown:
    raise DcjaxError(
      f'{unknown[0]} is not an option; use --{", --".join(fields)}'
    )
  values = {k: v for k, v in vars(given).items() if v is not None}
  if command:
    values['command'] = command
  if 'env' in values:
    for pair in values['env']:
      if '=' not in pair:
        raise DcjaxError(f'--env is {pair!r}; expected NAME=TEXT')
    values['env'] = dict(x.partition('=')[::2] for x in values['env'])
  file = values.pop('job', None)
  if file:
    return dataclasses.replace(read(file), **values)
  required = ('name', 'accelerator', 'topology', 'image', 'bucket', 'command')
  absent = [x for x in required if x not in values]
  if absent:
    ways = [f'--{x}' if x != 'command' else '-- COMMAND' for x in absent]
    raise DcjaxError(f'give {", ".join(ways)}')
  return Job(**values)


def main(argv: Sequence[str]) -> int:
  """Prints the manifest; the exit code."""
  import yaml

  try:
    made = manifest(parse(argv))
    jobset.check(made)
  except DcjaxError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(yaml.safe_dump(made, sort_keys=False), end='')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
