"""A stage of training as a value.

A method, a baseline or an ablation is a list of stages in a config; there is
one trainer for all of them. What a stage trains is a regular expression over
parameter names: the appearance stage of Set-and-Sequence is `lora/(a1|b1)`, its
motion stage `lora/b2`, textual inversion `^tokens/`, pretraining `.*`.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from ml_collections import ConfigDict

from dcjax.errors import DcjaxError

OBJECTIVES = ('flow', 'subjects', 'world', 'autoencoder')
DATA = ('frames', 'clip', 'folder', 'world', 'subjects', 'latents')
OPTIMIZERS = ('adamw', 'muon')
SCHEDULES = ('constant', 'linear', 'cosine', 'trapezoid')
T_SAMPLERS = ('uniform', 'logit_normal', 'cosine_biased')


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """One optax chain.

  Attributes:
    kind: 'adamw', or 'muon', which orthogonalises the updates of the hidden
      kernels and gives everything else to AdamW.
    lr: peak learning rate.
    groups: (regex, factor) pairs; the learning rate of a matching parameter is
      multiplied by the factor of the first pair that matches.
    schedule: 'constant', 'linear' (decay to 0), 'cosine' (decay to 0) or
      'trapezoid' (constant, then linear to 0 over the last `cooldown`).
    warmup: steps of linear warm-up from 0.
    cooldown: fraction of the steps, for 'trapezoid'.
    betas: of Adam.
    eps: of Adam, and of the norms that 'muon' divides by.
    weight_decay: decoupled, on parameters of two or more axes.
    clip: bound on the global gradient norm; 0 for none.
  """

  kind: str = 'adamw'
  lr: float = 1e-4
  groups: tuple[tuple[str, float], ...] = ()
  schedule: str = 'constant'
  warmup: int = 0
  cooldown: float = 0.2
  betas: tuple[float, float] = (0.9, 0.99)
  eps: float = 1e-8
  weight_decay: float = 0.01
  clip: float = 0.05

  def __post_init__(self):
    for key, names in (('kind', OPTIMIZERS), ('schedule', SCHEDULES)):
      value = getattr(self, key)
      _require(value in names, f'optimizer.{key}', value, ' or '.join(names))
    _require(self.lr > 0, 'optimizer.lr', self.lr, 'a positive number')
    _require(
      self.warmup >= 0, 'optimizer.warmup', self.warmup, '0 or more steps'
    )
    _require(
      0 <= self.cooldown <= 1,
      'optimizer.cooldown',
      self.cooldown,
      'a fraction of the steps, from 0 to 1',
    )
    _require(
      len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
      'optimizer.betas',
      self.betas,
      'two numbers from 0 to below 1',
    )
    _require(self.eps > 0, 'optimizer.eps', self.eps, 'a positive number')
    for key in ('weight_decay', 'clip'):
      value = getattr(self, key)
      _require(value >= 0, f'optimizer.{key}', value, '0 (none) or more')
    _require(
      all(_is_group(group) for group in self.groups),
      'optimizer.groups',
      self.groups,
      'pairs of a regular expression and a factor of 0 or more',
    )


@dataclasses.dataclass(frozen=True)
class Stage:
  """What is trained, on what, for how long.

  Attributes:
    name: of its checkpoints, metrics and previews.
    objective: 'flow' (latents and prompts in the batch), 'subjects' (with
      references and timed captions), 'world' (renders the procedural world,
      then flow) or 'autoencoder'.
    data: 'frames' (unordered stills), 'clip', 'folder' (captioned files),
      'subjects' (annotated clips), 'latents' (encoded clips) or 'world'.
    train: regex over parameter names; everything else is frozen.
    steps: optimizer steps.
    batch: samples of an optimizer step, over all devices.
    optimizer: how.
    accumulate: microbatches of an optimizer step, on one device; on a mesh,
      those that have samples share them.
    dropout: rate p of dropping single LoRA coefficients (Set-and-Sequence,
      Sec. 3.3), from the leaves that match `dropped`.
    dropped: regex over parameter names.
    text_drop: probability of zeroing each row of the text features.
    prompt_drop: probability of replacing the whole prompt by the null prompt.
    prior: weight of the prior-preservation loss; 0 for none.
    t_sampler: distribution of the flow time, see `flow.sample_t`.
    train_shift: time shift of that draw.
    self_cond: probability of feeding the model its own estimate of x0, for a
      base that was trained with self-conditioning.
    ema: decay of an exponential moving average of the trained parameters, which
      is then the stage's result; 0 for none.
    mix: for `data` 'world' and 'latents', (frames, samples) pairs that make up
      the batch.
  """

  name: str
  objective: str
  data: str
  train: str
  steps: int
  batch: int
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  accumulate: int = 1
  dropout: float = 0.0
  dropped: str = 'lora/b'
  text_drop: float = 0.0
  prompt_drop: float = 0.0
  prior: float = 0.0
  t_sampler: str = 'logit_normal'
  train_shift: float = 1.0
  self_cond: float = 0.9
  ema: float = 0.0
  mix: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    known = {'objective': OBJECTIVES, 'data': DATA, 't_sampler': T_SAMPLERS}
    for key, names in known.items():
      value = getattr(self, key)
      _require(value in names, key, value, ' or '.join(names))
    _require(self.steps >= 1, 'steps', self.steps, 'at least 1')
    _require(self.batch >= 1, 'batch', self.batch, 'at least 1')
    _require(
      self.accumulate >= 1 and self.batch % self.accumulate == 0,
      'accumulate',
      self.accumulate,
      f'a divisor of the batch, {self.batch}',
    )
    for key in ('dropout', 'text_drop', 'prompt_drop', 'ema'):
      value = getattr(self, key)
      _require(0 <= value < 1, key, value, 'a number from 0 to below 1')
    _require(
      0 <= self.self_cond <= 1,
      'self_cond',
      self.self_cond,
      'a number from 0 to 1',
    )
    _require(self.train_shift > 0, 'train_shift', self.train_shift, 'above 0')
    _require(self.prior >= 0, 'prior', self.prior, '0 or more')

  def check_data(self, *names: str) -> None:
    """Raises DcjaxError if `data` is none of those that a job has."""
    key = f'config.{self.name}.data'
    _require(self.data in names, key, self.data, ' or '.join(names))


def from_config(name: str, options: Mapping[str, Any]) -> Stage:
  """A stage from the options of a config.

  Args:
    name: of the stage.
    options: fields of `Stage`; `optimizer` is a mapping of `Optimizer` fields.

  Raises:
    DcjaxError: naming the key, for an unknown one or an impossible value.
  """
  options = dict(options)
  mix = tuple(tuple(pair) for pair in options.get('mix', ()))
  if mix:
    options |= {'mix': mix, 'batch': sum(samples for _, samples in mix)}
  optimizer = dict(options.pop('optimizer', {}))
  _known(Optimizer, f'{name}.optimizer', optimizer)
  _known(Stage, name, options)
  try:
    return Stage(name=name, optimizer=Optimizer(**optimizer), **options)
  except DcjaxError as error:
    raise DcjaxError(f'config.{name}.{error}') from None


def several(config: ConfigDict, *, least: int = 1) -> tuple[Stage, ...]:
  """The stages that `config.stages` names, in that order.

  Args:
    config: of a run; the options of a stage are under its name.
    least: how few will do.

  Raises:
    DcjaxError: as `from_config`; a stage is unknown or comes twice, or there
      are too few.
  """
  names = tuple(config.stages)
  known = [k for k, x in config.items() if 'objective' in _options(x)]
  # Twice would be once: a stage's checkpoints are found by its name.
  twice = len(set(names)) < len(names)
  if twice or set(names) - set(known) or len(names) < least:
    raise DcjaxError(
      f'config.stages is {names}; expected {"some" if least else "any"} of '
      f'{", ".join(known)}, each once'
    )
  return tuple(from_config(name, config[name].to_dict()) for name in names)


def _options(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, ConfigDict) else {}


def _known(kind: type, where: str, options: Mapping[str, Any]) -> None:
  fields = [field.name for field in dataclasses.fields(kind)]
  unknown = sorted(set(options) - set(fields))
  if unknown:
    raise DcjaxError(
      f'config.{where}.{unknown[0]} is not an option; use one of '
      f'{", ".join(fields)}'
    )


def _require(holds: bool, key: str, value: Any, accepted: str) -> None:
  if not holds:
    raise DcjaxError(f'{key} is {value!r}; expected {accepted}')


def _is_group(group: Any) -> bool:
  try:
    regex, factor = group
    re.compile(regex)
    return factor >= 0
  except (TypeError, ValueError, re.error):
    return False
