"""Training recipes of AlcheMinT: its numbers, for each kind of base."""

from ml_collections import ConfigDict

from dcjax import recipes

# What AlcheMinT adds to a transformer.
ADDED = r'^transformer/(reference|blocks/timed_attn)/'
# That, and what else of the transformer is trained with it.
WITH = {
  'all': '^transformer/',
  'self_attention': rf'{ADDED}|blocks/self_attn/',
  'lora': rf'{ADDED}|lora/(a1|b1)$',
}


def alchemint(base: str = 'world') -> ConfigDict:
  """References with intervals and timed captions, on annotated clips.

  Args:
    base: 'world', tuned for two cores: self-attention and what is added; or a
      key of `recipes.WAN` or `recipes.SNAP`, the paper's full fine-tuning.
  """
  c = ConfigDict()
  c.task = 'alchemint'
  c.name = 'alchemint'
  c.base = recipes.WAN.get(base, base)  # or a folder in diffusers layout
  # A folder of trained references to go on from, instead of fresh ones.
  c.init = ''
  c.seed = 0
  # The next five are as in `personalize`.
  c.base_dtype = ''
  c.format = ConfigDict(dict(frames=0, height=0, width=0, fps=0.0))
  c.shift = 0.0
  c.mesh = recipes.mesh()
  c.remat = 'none'
  c.references = ConfigDict(
    dict(
      scheme='werope',  # or midrope, norope
      anchors='outside',  # or margin, ends, printed
      border='absorb',  # or keep
      middle=5 / 3,
      edge=-1 / 3,
      margin=3.0,  # latent frames
      rotate='qk',  # or k
      max_references=16,
      tag_tokens=8,  # of a word; 0: no word tags
      event_length=8.0,  # of ReRoPE; 0: no branch of timed captions
      presence=0,  # frames of a latent frame that are told who is there
    )
  )
  c.data = ConfigDict(
    dict(
      path='',  # a dataset of annotated clips; empty: the procedural world
      clips=2048,  # of the world
      held_out=16,  # of the world
      views=4,  # of a clip: its references cut and coloured in other ways
      window='first',  # or random: which part of a longer video is seen
      gap=0.75,  # seconds of absence that make two references of one
      max_references=3,
      max_events=6,
      event_tokens=12,
      emphasis=4.0,  # extra weight of the loss where a subject is
      cache='',  # folder of what is encoded; empty: in the folder of the run
    )
  )
  # Probabilities of hiding the text, the references, both.
  c.drop = (0.1, 0.1, 0.05)
  # And of hiding the timed captions: references shall tell the time alone.
  c.drop_events = 0.5
  # Rank 0: no LoRA.
  c.lora = ConfigDict(dict(rank=0, targets=recipes.ALL_LINEAR, side='in'))
  c.subjects = ConfigDict(
    dict(
      objective='subjects',
      data='subjects',
      train=WITH['self_attention'],
      steps=1600,
      batch=8,
      accumulate=1,
      t_sampler='uniform',
      train_shift=8.0,  # who comes, and when, is settled near noise
      self_cond=0.9,  # read only where the base has self-conditioning
      ema=0.99,
      optimizer=dict(
        kind='muon',
        lr=1e-3,
        groups=(),
        schedule='trapezoid',
        cooldown=0.4,
        warmup=30,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.01,
        clip=1.0,
      ),
    )
  )
  c.log_every = 10
  c.save_every = 100
  c.eval_every = 100
  c.preview_every = 100  # steps between two saves of the folder
  if base == 'world':
    c.data.gap = 0.4
    c.references.update(dict(tag_tokens=4, presence=4))
  else:
    _as_the_paper(c, base)
  return c


def _as_the_paper(c: ConfigDict, base: str) -> None:
  """All weights; the base's at less than a third of the rate."""
  c.name = f'alchemint_{base}'
  if base == recipes.SNAP:
    c.shift = 5.66  # of AlcheMinT's sampler; the format is the base's
  else:
    height, width, c.shift = recipes.RESOLUTIONS['480p']
    c.format.update(dict(frames=81, height=height, width=width))
  c.remat = 'full'
  # As the formula stands: over so many frames one rule then reads all intervals
  # (benchmarks/rotations.py).
  c.references.border = 'keep'
  c.data.update(dict(views=1, window='random', event_tokens=128, emphasis=0.0))
  c.drop_events = 0.0  # they are hidden with the text alone
  c.subjects.update(dict(train=WITH['all'], steps=30_000, batch=32, ema=0.0))
  c.subjects.train_shift = 1.0
  c.subjects.optimizer.update(
    dict(
      kind='adamw',
      lr=1e-4,
      groups=((ADDED, 1.0), ('', 0.3)),
      schedule='constant',
      warmup=1000,
      clip=0.05,
    )
  )
  c.log_every, c.save_every, c.eval_every, c.preview_every = 50, 500, 0, 5000
