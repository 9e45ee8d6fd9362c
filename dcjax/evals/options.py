"""Options of S2VTime's score, for the config and for the command of its own."""

from ml_collections import ConfigDict

from dcjax.evals.timing import AREA

JUDGES = ('world', 'experts')
# What the experts alone read.
OF_EXPERTS = ('detector', 'segmenter', 'clip', 'looks', 'device', 'download')


def score() -> ConfigDict:
  """How videos are judged."""
  return ConfigDict(
    dict(
      benchmark='',  # JSON file; '' is benchmark.json of the workdir
      videos='',  # folder with one file an item, named by its id
      judge='world',  # or experts
      partial=False,  # score what there is
      stretch=False,  # compare fractions of the duration, not seconds
      area=AREA,  # part of a frame that makes a subject present
      seed=0,  # of the bootstrap
      detector='IDEA-Research/grounding-dino-base',
      segmenter='facebook/sam2.1-hiera-large',
      clip='openai/clip-vit-large-patch14',
      looks=5,  # frames in which a subject is looked for
      device='',  # of torch; '' is cuda if there is one
      download=False,  # may networks come from the hub?
    )
  )
