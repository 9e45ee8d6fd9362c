r"""S2VTime: whether subjects are on screen when they should be.

  python -m dcjax.main --config=configs/s2vtime.py:build --workdir=runs/s2vtime
  python -m dcjax.main --config=configs/s2vtime.py:make --workdir=runs/s2vtime
  python -m dcjax.main --config=configs/s2vtime.py:score \
    --workdir=runs/s2vtime \
    --config.score.videos=runs/s2vtime/videos/references

The first writes runs/s2vtime/benchmark.json and its pictures: 128 items of the
procedural world, half a minute on two cores. The second makes their videos with
a base of ours; any other model may make them instead. The third judges
FOLDER/ID.mp4 of every item from its pixels (a quarter of a second each), prints
the table and writes timing.json. Scoring downloads nothing and reads no base.

Variants, of which several may be given (:build,templates): `build`, `make` or
`score`;
`templates` builds items of real subjects, `extended` with intervals of 0.5 to
4.5 s, and `experts` judges with Grounding DINO, SAM 2 and CLIP, whose weights
it needs. docs/s2vtime.md says what the numbers mean.
"""

from ml_collections import ConfigDict

from dcjax.errors import DcjaxError
from dcjax.evals import options


def get_config(variant: str = '') -> ConfigDict:
  c = ConfigDict()
  c.task = 's2vtime'
  c.name = 's2vtime'
  c.job = 'build'  # or make, score
  c.build = ConfigDict()
  # world, templates, llm, or the layout of cinebenchsyn or tempocontrol
  c.build.source = 'world'
  c.build.count = 128
  c.build.seed = 0
  c.build.again = 0  # further items in which a subject comes back (world)
  c.build.kinds = ('one', 'two', 'one', 'same_class')  # in turn (world)
  c.build.rendered = False  # draw the perfect videos too (world)
  c.build.extended = False  # enter and leave, for 0.5 to 4.5 s (templates)
  c.build.path = ''  # of the other benchmark
  c.build.language_model = ''  # folder or hub id, proposes items (llm)
  c.build.image_model = ''  # folder or hub id, draws the pictures
  c.build.download = False  # may models come from the hub?
  c.make = ConfigDict()
  c.make.benchmark = ''  # JSON file; '' is benchmark.json of the workdir
  c.make.base = 'world'
  # How the model is told the time: references, events, both, or in its prompt
  # alone, by prompt or by phrases.
  c.make.system = 'references'
  c.make.references = ''  # folder of trained references; '' is the base's own
  c.make.batch = 8
  c.make.seed = 0
  c.make.steps = 0  # 0: the base's own
  c.score = options.score()
  for name in filter(None, variant.split(',')):
    if name not in _VARIANTS:
      raise DcjaxError(
        f's2vtime.py has no variant {name!r}; use {", ".join(_VARIANTS)}'
      )
    _VARIANTS[name](c)
  return c


def _build(c):
  c.job = 'build'


def _make(c):
  c.job = 'make'


def _score(c):
  c.job = 'score'


def _templates(c):
  c.build.source = 'templates'


def _extended(c):
  c.build.extended = True


def _experts(c):
  c.score.judge = 'experts'


def _tiny(c):
  c.build.count = 4


_VARIANTS = {
  'build': _build,
  'make': _make,
  'score': _score,
  'templates': _templates,
  'extended': _extended,
  'experts': _experts,
  'tiny': _tiny,
}
