"""Training recipes: the numbers of the method, for each kind of base.

The command line and the Python surface both start from these, so they have the
same defaults. A recipe is a config with a list of stages; every value can be
overridden.
"""

from ml_collections import ConfigDict

# Every q, k, v, o of self- and cross-attention in every block.
ATTENTION = r'blocks/(self|cross)_attn/[qkvo]/kernel$'
# The same and both layers of the MLP: a small base needs all of them.
ALL_LINEAR = r'blocks/((self|cross)_attn/[qkvo]|mlp/(up|down))/kernel$'

# What the two stages of Set-and-Sequence train; everything else is frozen.
SET = r'lora/(a1|b1)$|^tokens/v'
SEQUENCE = r'lora/b2$|^tokens/u'


def mesh() -> ConfigDict:
  """Devices along each axis of `dcjax/mesh.py`; 0: those that are left.

  `rules` are pairs of a regular expression and axes, instead of
  `sharding.RULES`.
  """
  return ConfigDict(dict(data=0, fsdp=1, tensor=1, context=1, rules=()))


def personalize(kind: str = 'paper') -> ConfigDict:
  """Set-and-Sequence with its regularisation, as a whole config.

  Args:
    kind: 'paper', the settings of its Table 6, for bases of real size; 'world',
      tuned for the embedded base on two cores.
  """
  c = ConfigDict()
  c.task = 'personalize'
  c.name = 'set_seq'
  c.base = 'world'  # or a folder in diffusers layout
  c.seed = 0
  # Of the base's large matrices; '': float32 on a CPU, else bfloat16.
  c.base_dtype = ''
  # Videos to learn and to make; 0 is the base's own.
  c.format = ConfigDict(dict(frames=0, height=0, width=0, fps=0.0))
  c.shift = 0.0  # of the sampler's times; 0: the base's
  c.mesh = mesh()
  # What the backward pass keeps: 'none' of it is computed again, 'full' is
  # all, 'dots' what is not a product.
  c.remat = 'none'
  # An empty path is the sample clip of the embedded base. fps 0 spreads the
  # base's number of frames over the whole video; else its true speed.
  c.data = ConfigDict(dict(video='', fps=0.0))
  # Empty prompts: those of the sample clip, or plain ones for another video.
  c.prompts = ConfigDict(dict(appearance='', motion=''))
  c.stages = ('set', 'sequence')
  c['set'], c.sequence = _stages()
  c.lora = ConfigDict(dict(rank=8, targets=ATTENTION, side='in'))
  # Learned words, [v] and [u]. Without them the prompts hold plain words only,
  # and the concept is a LoRA that other tools can use whole.
  c.train_tokens = True
  # Vectors a learned word.
  c.tokens = ConfigDict(dict(vectors=1))
  # Prior preservation: videos of the untouched base, drawn once.
  c.prior = ConfigDict(dict(videos=32, noun='person'))
  # Scenes of the report, 'label: prompt'. Empty: some in the base's own words.
  c.edits = ()
  c.sample = _samples()
  c.log_every = 10
  c.save_every = 50
  c.eval_every = 50
  c.preview_every = 150
  if kind == 'world':
    _tune_for_world(c)
  return c


def _samples() -> ConfigDict:
  """How videos of a run are made; 0 is the base's number, '' is unipc."""
  return ConfigDict(dict(seed=0, steps=0, guidance=0.0, sampler=''))


def _stages() -> tuple[ConfigDict, ConfigDict]:
  """Stages *set* and *sequence* of the paper's Table 6."""
  common = dict(
    objective='flow',
    batch=8,
    accumulate=1,
    text_drop=0.1,
    prompt_drop=0.0,
    prior=1.0,  # weight of prior preservation, one prior sample a sample
    t_sampler='logit_normal',
    train_shift=1.0,
    self_cond=0.9,  # read only where the base has self-conditioning
    dropped='lora/b',  # the coefficients that `dropout` drops
    ema=0.0,  # decay of an average of what is trained; 0 for none
    optimizer=dict(
      kind='adamw',
      lr=1e-4,
      groups=(('^tokens/', 0.1),),  # learned words at a tenth of the rate
      schedule='constant',
      warmup=0,
      betas=(0.9, 0.99),
      eps=1e-8,
      weight_decay=0.01,
      clip=0.05,
    ),
  )
  return (
    ConfigDict(dict(common, data='frames', train=SET, steps=600, dropout=0.8)),
    ConfigDict(
      dict(common, data='clip', train=SEQUENCE, steps=900, dropout=0.5)
    ),
  )


def _tune_for_world(c: ConfigDict) -> None:
  """Six minutes on two cores, report included."""
  c.lora.update(dict(rank=32, targets=ALL_LINEAR))
  # Prior preservation takes half of the time, and so few steps do not bear it:
  # with it a new background is followed, and the concept left out.
  c.prior.update(dict(videos=0, noun='thing'))
  for stage in (c['set'], c.sequence):
    # A base of 6 M parameters takes larger steps than one of billions.
    stage.optimizer.update(dict(lr=3e-3, clip=1.0, schedule='linear'))
    stage.optimizer.groups = (('^tokens/', 1.0),)
  # So few steps bear less dropout than the paper's hundreds.
  c['set'].update(dict(steps=250, batch=8, dropout=0.2))
  # Where things move to is settled early, while noise hides how they look. The
  # base samples with this shift as well.
  c.sequence.update(dict(steps=260, batch=4, dropout=0.1, train_shift=3.0))


WAN = {
  'wan_1_3b': 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers',
  'wan_14b': 'Wan-AI/Wan2.1-T2V-14B-Diffusers',
}
# Height, width and the time shift that Wan samples with.
RESOLUTIONS = {'480p': (480, 832, 3.0), '720p': (720, 1280, 5.0)}


def wan(name: str, resolution: str = '480p') -> ConfigDict:
  """Set-and-Sequence on Wan 2.1, for one device.

  Two seconds of video: as many tokens as the paper learns from, and half more.

  Args:
    name: a key of `WAN`.
    resolution: a key of `RESOLUTIONS`.
  """
  c = personalize('paper')
  c.name = f'set_seq_{name}'
  c.base = WAN[name]
  height, width, c.shift = RESOLUTIONS[resolution]
  c.format.update(dict(frames=33, height=height, width=width))
  c.data.fps = 16.0
  c.base_dtype, c.remat = 'bfloat16', 'full'
  # Eight samples a step, and eight of prior preservation: stills two at a time,
  # clips one by one.
  c['set'].accumulate, c.sequence.accumulate = 4, 8
  for stage in (c['set'], c.sequence):
    draw_times_as_wan(stage, c.shift)
  c.eval_every = 100
  # A preview takes as long as many steps.
  c.preview_every = 300
  return c


def draw_times_as_wan(stage: ConfigDict, shift: float) -> None:
  """Uniform times, moved to where a sampler with that shift has its own."""
  stage.update(dict(t_sampler='uniform', train_shift=shift))


# The base of Set-and-Sequence (its Table 4): no weights of it are public, but
# `configs/pretrain.py` can train one.
SNAP = 'snap_dit_11b'


def snap() -> ConfigDict:
  """Set-and-Sequence on its own base, 121 frames of 576x1024 (Tables 4 and 6).

  The shift of the sampler is AlcheMinT's; which one it is and the number of its
  steps are ours: none is said. `base` is to become the folder of a trained one.
  """
  c = personalize('paper')
  c.name, c.base = f'set_seq_{SNAP}', SNAP
  c.data.fps, c.shift = 24.0, 5.66
  c.base_dtype, c.remat = 'bfloat16', 'full'
  c.sample.update(dict(steps=50, guidance=8.0, sampler='euler'))
  # Eight stills at once are as many tokens as one clip.
  c.sequence.accumulate = 8
  c.eval_every, c.preview_every = 100, 300
  return c


def shrink(c: ConfigDict) -> ConfigDict:
  """A few steps of everything, to try a setting or test a machine."""
  c['set'].steps = c.sequence.steps = 3
  c['set'].batch = c.sequence.batch = 2
  c['set'].accumulate = c.sequence.accumulate = 1
  c.prior.videos = 2
  c.sample.steps = 2
  c.log_every = c.save_every = c.eval_every = c.preview_every = 2
  return c


def finetune(base: str = 'world') -> ConfigDict:
  """Ordinary LoRA training on a folder of captioned files.

  Args:
    base: 'world', the embedded one, or a key of `WAN`.
  """
  c = ConfigDict()
  c.task = 'lora'
  c.name = 'lora'
  c.base = WAN.get(base, base)  # or a folder in diffusers layout
  c.seed = 0
  # The next five are as in `personalize`. The format says how many frames a
  # clip has at most, at which rate it is learnt, and about what area.
  c.base_dtype = ''
  c.format = ConfigDict(dict(frames=0, height=0, width=0, fps=0.0))
  c.shift = 0.0
  c.mesh = mesh()
  c.remat = 'none'
  c.data = files()
  # The update is alpha / rank times A B; 0: as much as the rank.
  c.lora = ConfigDict(dict(rank=16, alpha=0.0, targets=ATTENTION, side='in'))
  c.train = ConfigDict(
    dict(
      objective='flow',
      data='folder',
      train=r'lora/(a1|b1)$',
      steps=2000,
      batch=4,
      accumulate=1,
      dropout=0.0,
      text_drop=0.0,
      prompt_drop=0.1,  # captions that become the empty prompt
      t_sampler='logit_normal',
      train_shift=1.0,
      self_cond=0.9,  # read only where the base has self-conditioning
      ema=0.0,
      optimizer=dict(
        kind='adamw',
        lr=1e-4,
        groups=(),
        schedule='constant',
        warmup=50,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.01,
        clip=1.0,
      ),
    )
  )
  # Prompts of previews and report; the placeholder becomes the trigger word.
  # Empty: some of the captions.
  c.prompts = ()
  c.sample = _samples()
  c.log_every = 10
  c.save_every = 100
  c.eval_every = 100
  c.preview_every = 500
  if base == 'world':
    c.lora.update(dict(rank=8, targets=ALL_LINEAR))
    c.train.update(dict(steps=300, batch=8))
    c.train.optimizer.update(dict(lr=2e-3, schedule='linear', warmup=10))
    c.save_every = c.eval_every = 50
    c.preview_every = 150
  else:
    c.name = f'lora_{base}'
    height, width, c.shift = RESOLUTIONS['480p']
    c.format.update(dict(frames=33, height=height, width=width))
    c.base_dtype, c.remat = 'bfloat16', 'full'
    c.train.accumulate = 4  # one clip at a time
    draw_times_as_wan(c.train, c.shift)
  return c


def files() -> ConfigDict:
  """How a folder or a table of captioned files is read."""
  return ConfigDict(
    dict(
      path='',  # a folder, or a .jsonl or .csv file
      caption='',  # of files that have none; empty: they are skipped
      trigger='',  # put in front of each caption, or in the placeholder's place
      placeholder='[trigger]',
      windows=0,  # samples that a long clip may give; 0 for all
      held_out=0.1,  # share of the files that are only looked at
      buckets=dict(max=4),  # shapes, each of which is compiled
      # NAME.mask.mp4: weight of what is black in it, before all weights are
      # divided by their mean; and how frames of one latent frame join.
      mask=dict(outside=0.1, time='max'),
    )
  )


def edits(base: str, appearance: str, *, tokens: bool = True) -> dict[str, str]:
  """{label: prompt} of scenes that show what was learnt, in the base's words.

  Args:
    base: its name.
    appearance: the prompt of stage *set*.
    tokens: whether there are learned words; the motion cannot be called alone
      without them.
  """
  v, u = ('[v] ', '[u] ') if tokens else ('', '')
  if base != 'world':
    subject = appearance.partition(' on ')[0].partition(' in ')[0].rstrip('.')
    doing = ', doing [u]' if tokens else ''
    alone = {'motion alone': 'a robot doing [u]'} if tokens else {}
    return {
      'new place': f'{subject}, on a beach at sunset{doing}',
      'new look': f'an oil painting of {subject}{doing}',
      'still': f'{subject} sits still in a park',
      **alone,
    }
  moving = f'the thing is {u}moving.'

  def thing(ground: str, action: str = moving) -> str:
    return f'a {v}thing on a {ground} background. {action}'

  return {
    'new background': thing('plain teal'),
    'patterned place': thing('checkered navy'),
    'gradient place': thing('gradient maroon'),
    'new action': thing('plain grey', 'the thing is moving right.'),
    'standing still': thing('dotted olive', 'the thing is still.'),
    'motion alone': (
      f'a large yellow star on a plain brown background. the star is {u}moving.'
    ),
    'in company': (
      f'a {v}thing and a small red star on a plain grey background. {moving}'
    ),
  }
