"""A stage of training as a value.

A method, a baseline or an ablation is a list of stages in a config; there is one
trainer for all of them. What a stage trains is a regular expression over
parameter names: the appearance stage of Set-and-Sequence is `lora/(a1|b1)`, its
motion stage `lora/b2`, textual inversion `^tokens/`, pretraining `.*`.
"""

import dataclasses


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
    eps: of Adam.
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


@dataclasses.dataclass(frozen=True)
class Stage:
  """What is trained, on what, for how long.

  Attributes:
    name: of its checkpoints, metrics and previews.
    objective: 'flow' (latents and prompts in the batch), 'world' (renders the
      procedural world, then flow) or 'autoencoder'.
    data: 'frames' (unordered stills), 'clip', or 'world'.
    train: regex over parameter names; everything else is frozen.
    steps: optimizer steps.
    batch: samples of an optimizer step, over all devices.
    optimizer: how.
    accumulate: microbatches of an optimizer step.
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
  """

  name: str
  objective: str
  data: str
  train: str
  steps: int
  batch: int
  optimizer: Optimizer = Optimizer()
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
