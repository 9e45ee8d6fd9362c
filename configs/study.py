"""Compares ways to tell a model when subjects are on screen.

  python -m dcjax.main --config=configs/study.py:alchemint \
    --workdir=runs/study
  python -m dcjax.main --config=configs/study.py:alchemint \
    --config.only=midrope,werope --config.training.subjects.steps=600

Every row is trained on the same clips with the same budget, makes the same
videos from the same noises and is judged by the oracle of the procedural world.
The table is runs/study/study.md, and grows while the rows come in; below it is
how far each row lies above the first, item by item. On two cores the
training of a row takes about eighty minutes and its videos 15; rows that are
done are not done again. Two runs with rows of their own (`only`) may share a
folder, a core each; rows that are sampled `of` another's training come after
that one, or in its run. What else differs needs another folder.

Variant: `tiny` after a comma runs two steps of everything.
"""

from ml_collections import ConfigDict

from dcjax.alchemint import recipe
from dcjax.errors import DcjaxError


def get_config(variant: str = '') -> ConfigDict:
  names = [name for name in variant.split(',') if name]
  unknown = [name for name in names if name not in ('alchemint', 'tiny')]
  if unknown:
    raise DcjaxError(
      f'study.py has no variant {unknown[0]!r}; use alchemint or tiny'
    )
  c = ConfigDict()
  c.task = 'study'
  c.name = 'study'
  c.training = recipe.alchemint('world')
  # Rotations are compared as the paper has them: alone.
  c.training.references.presence = 0
  c.benchmark = ConfigDict(
    dict(
      source='world',
      count=64,
      seed=1,
      again=8,
      kinds=('one', 'two', 'one', 'same_class'),
      rendered=False,
    )
  )
  c.sample = ConfigDict(dict(steps=0, batch=8))  # 0 steps: the base's own
  c.seeds = (0, 1)
  rows = _alchemint()
  c.order = tuple(rows)  # of the table
  # Rows to make, with commas, for all `seeds`; empty: all, for their own.
  c.only = ''
  # Keys with dots are kept as they are: they are paths into the training.
  c.rows = ConfigDict(rows, convert_dict=False)
  if 'tiny' in names:
    _shrink(c)
  return c


def _alchemint() -> dict[str, dict]:
  """training: what differs; of: whose training; system: how it is told."""
  return {
    'werope': dict(training={}),
    'midrope': dict(training={'references.scheme': 'midrope'}),
    'norope': dict(training={'references.scheme': 'norope'}, seeds=(0,)),
    'werope_keep': dict(training={'references.border': 'keep'}),
    'werope_printed': dict(
      training={'references.anchors': 'printed', 'references.border': 'keep'},
      seeds=(0,),
    ),
    'werope_margin': dict(
      training={'references.anchors': 'margin'}, seeds=(0,)
    ),
    'werope_margin_keep': dict(
      training={'references.anchors': 'margin', 'references.border': 'keep'},
      seeds=(1,),
    ),
    'werope_keys': dict(training={'references.rotate': 'k'}, seeds=(0,)),
    'presence': dict(training={'references.presence': 4}),
    'presence_norope': dict(
      training={'references.presence': 4, 'references.scheme': 'norope'}
    ),
    'no_tags': dict(training={'references.tag_tokens': 0}),
    # The events' sentences are in the caption: one text for all.
    'one_text': dict(training={'references.event_length': 0.0}, seeds=(0,)),
    'events': dict(of='werope', system='events'),
    'references_and_events': dict(of='werope', system='both'),
    'prompt': dict(system='prompt', seeds=(0,)),
    'phrases': dict(system='phrases', seeds=(0,)),
    # What the autoencoder lets through of perfect videos.
    'decoded': dict(system='decoded', seeds=(0,)),
  }


def _shrink(c: ConfigDict) -> None:
  c.training.subjects.update(dict(steps=2, batch=2))
  c.training.data.update(dict(clips=4, views=2, held_out=2))
  c.training.log_every = 1
  for key in ('save_every', 'eval_every', 'preview_every'):
    c.training[key] = 2
  c.benchmark.update(dict(count=2, again=0))
  c.sample.update(dict(steps=2, batch=2))
  c.seeds = (0,)
