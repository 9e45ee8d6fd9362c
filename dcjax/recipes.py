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
  # An empty path is the sample clip of the embedded base. fps 0 spreads the
  # base's number of frames over the whole video; else its true speed.
  c.data = ConfigDict(dict(video='', fps=0.0))
  # Empty prompts: those of the sample clip, or plain ones for another video.
  c.prompts = ConfigDict(dict(appearance='', motion=''))
  c.stages = ('set', 'sequence')
  c['set'], c.sequence = _stages()
  c.lora = ConfigDict(dict(rank=8, targets=ATTENTION, side='in'))
  # Learned words: vectors a word.
  c.tokens = ConfigDict(dict(vectors=1))
  # Prior preservation: videos of the untouched base, drawn once.
  c.prior = ConfigDict(dict(videos=32, noun='person'))
  # Scenes of the report, 'label: prompt'. Empty: some in the base's own words.
  c.edits = ()
  c.sample = ConfigDict(dict(seed=0, steps=0, guidance=0.0))  # 0: the base's
  c.log_every = 10
  c.save_every = 50
  c.eval_every = 50
  c.preview_every = 150
  if kind == 'world':
    _tune_for_world(c)
  return c


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
  """Ten minutes on two cores, report included."""
  c.lora.targets = ALL_LINEAR
  c.prior.update(dict(videos=16, noun='thing'))
  for stage in (c['set'], c.sequence):
    # A base of 6 M parameters takes larger steps than one of billions.
    stage.optimizer.update(dict(lr=3e-3, clip=1.0, schedule='linear'))
    stage.optimizer.groups = (('^tokens/', 1.0),)
  # So few steps bear less dropout than the paper's hundreds.
  c['set'].update(dict(steps=250, batch=8, dropout=0.4))
  c.sequence.update(dict(steps=260, batch=4, dropout=0.2))


def shrink(c: ConfigDict) -> ConfigDict:
  """A few steps of everything, to try a setting or test a machine."""
  c['set'].steps = c.sequence.steps = 3
  c['set'].batch = c.sequence.batch = 2
  c.prior.videos = 2
  c.sample.steps = 2
  c.log_every = c.save_every = c.eval_every = c.preview_every = 2
  return c


def edits(base: str, appearance: str) -> dict[str, str]:
  """{label: prompt} of scenes that show what was learnt, in the base's words.

  Args:
    base: its name.
    appearance: the prompt of stage *set*.
  """
  if base != 'world':
    subject = appearance.partition(' on ')[0].partition(' in ')[0].rstrip('.')
    return {
      'new place': f'{subject}, on a beach at sunset, doing [u]',
      'new look': f'an oil painting of {subject}, doing [u]',
      'still': f'{subject} sits still in a park',
      'motion alone': 'a robot doing [u]',
    }
  moving = 'the thing is [u] moving.'

  def thing(ground: str, action: str = moving) -> str:
    return f'a [v] thing on a {ground} background. {action}'

  return {
    'new background': thing('plain teal'),
    'patterned place': thing('checkered navy'),
    'gradient place': thing('gradient maroon'),
    'new action': thing('plain grey', 'the thing is moving right.'),
    'standing still': thing('dotted olive', 'the thing is still.'),
    'motion alone': (
      'a large yellow star on a plain brown background. the star is [u] moving.'
    ),
    'in company': (
      'a [v] thing and a small red star on a plain grey background. ' + moving
    ),
  }
