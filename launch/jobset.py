"""Whether a JobSet would run, said without a cluster.

  python -m launch.jobset job.yaml

Two looks. The schema, `jobset.schema.json`, knows every key that such a
manifest may have, at every depth: a cluster drops or refuses a key that is
misspelt. `check` knows what no schema can say: that machines, chips, processes
and names fit together. Both read the manifest alone, not what made it.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
import re
import sys
from typing import Any

from dcjax.errors import DcjaxError
from launch.job import (
  ACCELERATORS,
  NAME_LENGTH,
  chips,
  longest_pod,
  topology_problem,
)

SCHEMA = Path(__file__).with_name('jobset.schema.json')

_SERVICE = r'[a-z]([-a-z0-9]*[a-z0-9])?'
_NAME = r'[a-z0-9]([-a-z0-9]*[a-z0-9])?'
_LABEL_VALUE = r'([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?'
_PREFIX = r'[a-z0-9]([-a-z0-9.]*[a-z0-9])?/'
_LABEL_KEY = rf'({_PREFIX})?[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?'
EXCLUSIVE = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
NODE_POOL = 'cloud.google.com/gke-nodepool'
_TPU = 'cloud.google.com/gke-tpu-accelerator'
_TOPOLOGY = 'cloud.google.com/gke-tpu-topology'
_GPU = 'cloud.google.com/gke-accelerator'


def validate(manifest: Mapping[str, Any]) -> None:
  """Both looks at a manifest.

  Raises:
    DcjaxError: one thing that is wrong a line.
  """
  import jsonschema

  validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
  found = sorted(validator.iter_errors(manifest), key=lambda e: e.json_path)
  _refuse(f'{error.json_path}: {error.message}' for error in found)
  check(manifest)


def check(manifest: Mapping[str, Any]) -> None:
  """What the schema cannot say, of a manifest that it takes.

  Raises:
    DcjaxError: one thing that is wrong a line.
  """
  _refuse(_problems(manifest))


def _refuse(problems: Iterator[str]) -> None:
  problems = list(problems)
  if problems:
    raise DcjaxError('this JobSet would not run:\n  ' + '\n  '.join(problems))


def _problems(manifest: Mapping[str, Any]) -> Iterator[str]:
  jobs = manifest['spec']['replicatedJobs']
  yield from _labels(manifest['metadata'])
  names = [job['name'] for job in jobs]
  if len(set(names)) < len(names):
    yield 'two replicatedJobs have one name'
  for job in jobs:
    yield from _job(job)
    yield from _pod_names(manifest['metadata']['name'], job)
    yield from _pod(job['template']['spec'])
    yield from _processes(manifest, job)
    yield from _placement(manifest['metadata'], job)


def _labels(metadata: Mapping[str, Any]) -> Iterator[str]:
  if not re.fullmatch(_SERVICE, metadata['name']):
    yield f'metadata.name is {metadata["name"]!r}, no label of DNS'
  for key, value in metadata.get('labels', {}).items():
    if not re.fullmatch(_LABEL_VALUE, value, re.ASCII):
      yield f'label {key} is {value!r}; expected at most 63 letters and digits'
  for kind in ('labels', 'annotations'):
    for key in metadata.get(kind, {}):
      name = key.rpartition('/')[2]
      if not re.fullmatch(_LABEL_KEY, key, re.ASCII) or len(name) > 63:
        yield f'{kind} have a key {key!r} that Kubernetes does not take'


def _pod_names(name: str, job: Mapping[str, Any]) -> Iterator[str]:
  if not re.fullmatch(_NAME, job['name']):
    yield f'replicated job {job["name"]!r} is no name of Kubernetes'
  pods = job['template']['spec'].get('completions', 1)
  pod = longest_pod(name, job['name'], job.get('replicas', 1), pods)
  if len(pod) > NAME_LENGTH:
    yield f'the pod {pod} has {len(pod)} characters; at most {NAME_LENGTH}'


def _job(job: Mapping[str, Any]) -> Iterator[str]:
  """All pods of a Job at once, each once, under a number."""
  spec = job['template']['spec']
  pods = spec.get('parallelism', 1)
  if pods != spec.get('completions'):
    yield f'parallelism is {pods} and completions {spec.get("completions")}'
  if spec.get('completionMode') != 'Indexed':
    yield 'completionMode is not Indexed: the processes have no number'
  if spec.get('backoffLimit') != 0:
    yield 'backoffLimit is not 0: a process that came back alone finds nobody'


def _pod(spec: Mapping[str, Any]) -> Iterator[str]:
  pod = spec['template']['spec']
  container = pod['containers'][0]
  if pod['restartPolicy'] != 'Never':
    yield f'restartPolicy is {pod["restartPolicy"]}; expected Never'
  if pod.get('terminationGracePeriodSeconds', 30) < 120:
    yield 'terminationGracePeriodSeconds is below 120: too short to save in'
  if not pod.get('shareProcessNamespace'):
    yield 'shareProcessNamespace is not set: SIGTERM may not end the program'
  program = container['command'][0].rpartition('/')[2]
  if program in ('sh', 'bash', 'dash'):
    yield f'command is a script of {program}, which keeps SIGTERM to itself'
  for rule in spec.get('podFailurePolicy', {}).get('rules', ()):
    named = rule.get('onExitCodes', {}).get('containerName', container['name'])
    if named != container['name']:
      yield f'podFailurePolicy names container {named!r}, which is not there'
  yield from _volumes(spec['template'], container)
  names = [x['name'] for x in container.get('env', ())]
  for name in sorted({x for x in names if names.count(x) > 1}):
    yield f'env holds {name} twice'


def _volumes(
  template: Mapping[str, Any], container: Mapping[str, Any]
) -> Iterator[str]:
  volumes = [x['name'] for x in template['spec'].get('volumes', ())]
  mounts = [x['name'] for x in container.get('volumeMounts', ())]
  if sorted(volumes) != sorted(mounts):
    yield f'volumes are {volumes} and mounts {mounts}'
  fuse = any('csi' in x for x in template['spec'].get('volumes', ()))
  notes = template.get('metadata', {}).get('annotations', {})
  if fuse and notes.get('gke-gcsfuse/volumes') != 'true':
    yield 'gke-gcsfuse/volumes is not true: nobody would mount the bucket'


def _machines(job: Mapping[str, Any]) -> tuple[str | None, str]:
  """(key of the accelerator, form of a slice) that the pods select."""
  spec = job['template']['spec']
  selector = spec['template']['spec'].get('nodeSelector', {})
  label = selector.get(_TPU, selector.get(_GPU))
  kind = next((k for k, v in ACCELERATORS.items() if v.label == label), None)
  if kind and not ACCELERATORS[kind].is_tpu:
    whole = ACCELERATORS[kind].per_vm * spec.get('parallelism', 1)
    return kind, str(whole)
  return kind, selector.get(_TOPOLOGY, '')


def _placement(
  metadata: Mapping[str, Any], job: Mapping[str, Any]
) -> Iterator[str]:
  """Chips, machines and pods have one number."""
  kind, topology = _machines(job)
  if kind is None:
    yield 'nodeSelector selects no accelerator that is known'
    return
  chip = ACCELERATORS[kind]
  problem = topology_problem(kind, topology)
  if problem:
    yield f'topology {problem}'
    return
  spec, slices = job['template']['spec'], job.get('replicas', 1)
  pods, vms = spec.get('parallelism', 1), chips(topology) // chip.per_vm
  if pods != vms:
    yield f'{kind} {topology} has {vms} machines, and the Job {pods} pods'
  if slices > 1 and (not chip.is_tpu or vms == 1):
    yield f'{slices} replicas; {kind} {topology} cannot be joined to others'
  where = metadata.get('annotations', {}).get(EXCLUSIVE)
  if chip.is_tpu and vms > 1 and where != NODE_POOL:
    yield f'{EXCLUSIVE} is not set: pods of one slice may land on two'
  pod = spec['template']['spec']
  resources = pod['containers'][0]['resources']
  if resources['limits'] != {chip.resource: chip.per_vm}:
    yield f'limits are {resources["limits"]}; a machine has {chip.per_vm} chips'
  if resources.get('requests', resources['limits']) != resources['limits']:
    yield 'requests are not the limits'
  if not any(x.get('key') == chip.resource for x in pod.get('tolerations', ())):
    yield f'the taint {chip.resource} of the machines is not tolerated'


def _processes(
  manifest: Mapping[str, Any], job: Mapping[str, Any]
) -> Iterator[str]:
  """The processes will look for each other, where they are, and all of them."""
  spec, name = job['template']['spec'], manifest['metadata']['name']
  container = spec['template']['spec']['containers'][0]
  env = {x['name']: x['value'] for x in container.get('env', ())}
  count = job.get('replicas', 1) * spec.get('parallelism', 1)
  mode = env.get('DCJAX_DISTRIBUTED', '')
  if count == 1:
    return
  if mode == 'off':
    yield f'DCJAX_DISTRIBUTED is off, and there are {count} processes'
  network = manifest['spec'].get('network', {})
  if not network.get('enableDNSHostnames', True):
    yield 'enableDNSHostnames is off: the processes cannot find process 0'
  if mode:
    return
  if env.get('DCJAX_PROCESS_COUNT') != str(count):
    yield f'DCJAX_PROCESS_COUNT is not {count}, the number of pods'
  host, _, port = env.get('DCJAX_COORDINATOR', '').rpartition(':')
  subdomain = network.get('subdomain', name)
  if host != f'{name}-{job["name"]}-0-0.{subdomain}':
    yield f'DCJAX_COORDINATOR is at {host!r}, which is not the first pod'
  if port not in [str(x['containerPort']) for x in container.get('ports', ())]:
    yield f'the container has no port {port}, of DCJAX_COORDINATOR'


def main(argv: Sequence[str]) -> int:
  """Validates files; the exit code."""
  import yaml

  if not argv:
    print('error: give the file of a JobSet, such as job.yaml', file=sys.stderr)
    return 2
  for path in argv:
    try:
      manifest = yaml.safe_load(Path(path).read_text())
      validate(manifest)
    except (ModuleNotFoundError, OSError, yaml.YAMLError, DcjaxError) as error:
      print(f'error: {path}: {error}', file=sys.stderr)
      return 2
    print(f'{path} is well')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
