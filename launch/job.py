"""A job on a pod, in a few words: what runs, on which chips, and where to.

  Job(
    name='cat',
    accelerator='v6e',
    topology='4x4',
    image='us-docker.pkg.dev/my-project/dcjax/dcjax:tpu',
    bucket='my-bucket',
    command=(
      '--config=configs/set_seq.py:wan_14b',
      '--config.mesh.fsdp=2',
      '--config.mesh.context=2',
    ),
  )

`launch/gke.py` makes a manifest of it. What no cluster would run is refused
here, in one line, before anything is submitted.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

from dcjax.errors import DcjaxError

# Where the bucket is seen in the container.
MOUNT = '/bucket'
# What the manifest says itself.
OWN_ENV = (
  'DCJAX_CACHE',
  'DCJAX_COORDINATOR',
  'DCJAX_DISTRIBUTED',
  'DCJAX_PROCESS_COUNT',
  'DCJAX_PROCESS_INDEX',
  'JOB_COMPLETION_INDEX',
)

# Of a label of DNS, such as the host of a pod.
NAME_LENGTH = 63
# A label of DNS that begins with a letter, as the name of a Service must.
_LABEL = r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?'
_SUBDOMAIN = r'[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?'
_BUCKET = r'[a-z0-9]([-a-z0-9_.]{1,61})[a-z0-9]'
_FOLDER = r'[\w-][\w.-]*(/[\w-][\w.-]*)*'
_VARIABLE = r'[A-Za-z_]\w*'
_FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A kind of chip on GKE.

  Attributes:
    label: value of the node label that selects it.
    resource: what a container asks for.
    per_vm: chips of a machine that a container gets, all of them.
    machine: type of the machine, for whoever makes the node pool.
    topologies: slices there are; empty: see `topology`.
  """

  label: str
  resource: str
  per_vm: int
  machine: str
  topologies: tuple[str, ...] = ()

  @property
  def is_tpu(self) -> bool:
    return self.resource == 'google.com/tpu'


# As published for GKE, November 2026.
ACCELERATORS = {
  'v5e': Accelerator(
    'tpu-v5-lite-podslice', 'google.com/tpu', 4, 'ct5lp-hightpu-4t', _FLAT
  ),
  'v5p': Accelerator('tpu-v5p-slice', 'google.com/tpu', 4, 'ct5p-hightpu-4t'),
  'v6e': Accelerator(
    'tpu-v6e-slice', 'google.com/tpu', 4, 'ct6e-standard-4t', _FLAT
  ),
  'h100': Accelerator('nvidia-h100-80gb', 'nvidia.com/gpu', 8, 'a3-highgpu-8g'),
  'h200': Accelerator(
    'nvidia-h200-141gb', 'nvidia.com/gpu', 8, 'a3-ultragpu-8g'
  ),
}
# A v5p slice is one of these, or made of cubes of 4x4x4 chips.
_SMALL_V5P = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')
_V5P_CHIPS = 8960


@dataclasses.dataclass(frozen=True)
class Job:
  """A command on every machine of one or several slices.

  Attributes:
    name: of the job; a label of DNS.
    accelerator: a key of `ACCELERATORS`.
    topology: of one slice, '4x4'; or the number of GPUs, '16'.
    image: of the container; `launch/Dockerfile` makes one.
    bucket: of Cloud Storage, without gs://; it keeps the run.
    command: what runs; options alone are those of `dcjax.main`.
    slices: of TPUs, joined by the data centre's network.
    checkpoints: folder of the run in the bucket; 'runs/NAME' if empty.
    queue: LocalQueue of Kueue; none: nothing is queued.
    namespace: of Kubernetes.
    service_account: of Kubernetes, with access to the bucket.
    priority: PriorityClass of the pods; none: the cluster's.
    grace: seconds from SIGTERM to SIGKILL: steps and a checkpoint fit in them.
    max_restarts: after failures; a preemption that was told is not one.
    env: further variables of the container.
  """

  name: str
  accelerator: str
  topology: str
  image: str
  bucket: str
  command: tuple[str, ...]
  slices: int = 1
  checkpoints: str = ''
  queue: str = ''
  namespace: str = 'default'
  service_account: str = 'default'
  priority: str = ''
  grace: int = 180
  max_restarts: int = 3
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Refuses what no cluster would run.

    Raises:
      DcjaxError: a value is impossible; it says which and what would do.
    """
    _check_chips(self)
    _check_names(self)
    _check_numbers(self)
    _check_command(self)
    _check_env(self.env)

  @property
  def chip(self) -> Accelerator:
    return ACCELERATORS[self.accelerator]

  @property
  def vms(self) -> int:
    """Machines of one slice: one process each."""
    return chips(self.topology) // self.chip.per_vm

  @property
  def processes(self) -> int:
    return self.vms * self.slices

  @property
  def workdir(self) -> str:
    """Folder of the run, as the container sees it."""
    return f'{MOUNT}/{self.checkpoints or f"runs/{self.name}"}'

  @property
  def argv(self) -> tuple[str, ...]:
    """The whole command: options alone are completed."""
    if not self.command[0].startswith('-'):
      return tuple(self.command)
    argv = ('python', '-m', 'dcjax.main', *self.command)
    if not any(x.split('=')[0] == '--workdir' for x in argv):
      argv += (f'--workdir={self.workdir}',)
    return argv


def chips(topology: str) -> int:
  """Chips of a topology, '4x4' or '8'."""
  return math.prod(int(x) for x in topology.split('x'))


def topology_problem(accelerator: str, topology: str) -> str | None:
  """What is wrong with a slice of this form; None if there are such."""
  chip = ACCELERATORS[accelerator]
  number = r'[1-9]\d{0,4}'
  form = number if not chip.is_tpu else rf'{number}(x{number}){{1,2}}'
  if not re.fullmatch(form, topology):
    example = '2x4x4' if accelerator == 'v5p' else '4x4'
    wanted = f'a form such as {example}' if chip.is_tpu else 'a number of GPUs'
    return f'is {topology!r}; expected {wanted}'
  if not chip.is_tpu:
    if chips(topology) % chip.per_vm:
      return f'is {topology}; expected whole machines of {chip.per_vm} GPUs'
    return None
  if chip.topologies:
    if topology not in chip.topologies:
      known = ', '.join(chip.topologies)
      return f'is {topology}; {accelerator} has {known}'
    return None
  sides = [int(x) for x in topology.split('x')]
  cubes = (
    len(sides) == 3
    and sides == sorted(sides)
    and not any(x % 4 for x in sides)
    and chips(topology) <= _V5P_CHIPS
  )
  if topology in _SMALL_V5P or cubes:
    return None
  return (
    f'is {topology}; {accelerator} has {", ".join(_SMALL_V5P)} and, from small '
    f'to large, three multiples of 4 with at most {_V5P_CHIPS} chips'
  )


def longest_pod(name: str, job: str, replicas: int, pods: int) -> str:
  """The name of a pod, to which Kubernetes adds five letters or digits.

  JobSet refuses what has more than `NAME_LENGTH` characters with them
  (`ValidateCreate` of pkg/webhooks/jobset_webhook.go).

  Args:
    name: of the JobSet.
    job: of its replicated job.
    replicas: of that job.
    pods: of each.
  """
  return f'{name}-{job}-{replicas - 1}-{pods - 1}-abcde'


def _check_chips(job: Job) -> None:
  if job.accelerator not in ACCELERATORS:
    raise DcjaxError(
      f'accelerator is {job.accelerator!r}; use {", ".join(ACCELERATORS)}'
    )
  problem = topology_problem(job.accelerator, job.topology)
  if problem:
    raise DcjaxError(f'topology {problem}')
  if job.slices < 1:
    raise DcjaxError(f'slices is {job.slices}; expected 1 or more')
  if job.slices > 1 and not job.chip.is_tpu:
    raise DcjaxError(
      f'slices is {job.slices}; GPUs have none: give all of them as topology'
    )
  if job.slices > 1 and job.vms == 1:
    raise DcjaxError(
      f'slices is {job.slices}; GKE joins slices of several machines only, and '
      f'{job.topology} is one'
    )


def _check_names(job: Job) -> None:
  for key, form, wanted in (
    ('name', _LABEL, 'a letter, then small letters, digits and -'),
    ('namespace', _LABEL, 'a name of Kubernetes'),
    ('service_account', _SUBDOMAIN, 'a name of Kubernetes'),
    ('image', r'[a-z0-9][\w./:@-]*', 'REGISTRY/NAME:TAG'),
    ('bucket', _BUCKET, 'the name of a bucket, without gs://'),
    ('queue', f'({_SUBDOMAIN})?', 'a name of Kubernetes'),
    ('priority', f'({_SUBDOMAIN})?', 'a name of Kubernetes'),
    ('checkpoints', f'({_FOLDER})?', 'a folder in the bucket, such as runs/a'),
  ):
    if not re.fullmatch(form, getattr(job, key), re.ASCII):
      raise DcjaxError(f'{key} is {getattr(job, key)!r}; expected {wanted}')
  pod = longest_pod(job.name, 'slice', job.slices, job.vms)
  longest = NAME_LENGTH - (len(pod) - len(job.name))
  if len(job.name) > longest:
    raise DcjaxError(
      f'name has {len(job.name)} characters; expected at most {longest}, since '
      'the names of pods begin with it'
    )


def _check_numbers(job: Job) -> None:
  if job.grace < 120:
    raise DcjaxError(
      f'grace is {job.grace}; expected 120 s or more: a step and a checkpoint '
      'have to fit in it'
    )
  if job.max_restarts < 0:
    raise DcjaxError(f'max_restarts is {job.max_restarts}; expected 0 or more')


def _check_command(job: Job) -> None:
  if isinstance(job.command, str) or not all(job.command or ['']):
    raise DcjaxError(
      f'command is {job.command!r}; expected its words, such as '
      "('--config=configs/set_seq.py',)"
    )
  program = job.command[0].rsplit('/', 1)[-1]
  if program in ('sh', 'bash', 'dash') and '-c' in job.command:
    raise DcjaxError(
      f'command is a script of {program}, which would keep SIGTERM to itself; '
      'give the words of one program'
    )


def _check_env(env: Mapping[str, str]) -> None:
  for name, value in env.items():
    if not re.fullmatch(_VARIABLE, name) or not isinstance(value, str):
      raise DcjaxError(f'env holds {name}={value!r}; expected NAME=TEXT')
    if name in OWN_ENV:
      raise DcjaxError(f'env holds {name}, which the manifest says itself')
