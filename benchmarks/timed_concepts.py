r"""A learnt concept on a timeline: is it there when it was asked for?

  python benchmarks/timed_concepts.py --number=4 \
    --concept=runs/set_seq/concept.safetensors \
    --references=runs/alchemint/reference

Each way to place it, on the same prompts, intervals and noises, beside a
reference that is there in the other half of the clip. The judge reads pixels.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import record

from dcjax import sampling
from dcjax.data import world
from dcjax.data.canvas import load_reference
from dcjax.errors import DcjaxError
from dcjax.evals import bootstrap, oracle, scoring, timing, world_judge
from dcjax.evals.concepts import grounds
from dcjax.evals.sighting import Finder
from dcjax.storyboard import Reference, Storyboard, TimedConcept
from dcjax.weights.base import Base, load_base
from dcjax.weights.reference import equip

# Fractions of the clip.
INTERVALS = ((1 / 3, 2 / 3), (0.0, 0.5), (0.5, 1.0), (0.2, 0.9))
PROMPT = (
  'a [v] thing and a star on a plain {} background. the thing is [u] moving. '
  'the star is bouncing.'
)
STAR = Path(__file__).parents[1] / 'examples' / 'star.png'
# Row -> how the concept is placed.
WAYS: dict[str, dict[str, Any]] = {
  'reference': {'timing': 'reference'},
  'reference, faded': {'timing': 'reference', 'fade': 0.5},
  'reference, no gate': {'timing': 'reference', 'gate': False},
  'event': {'timing': 'event'},
  'event, no gate': {'timing': 'event', 'gate': False},
}


def stories(
  base: Base, file: str, way: dict[str, Any], places: list[str], seeds: int
) -> list[Storyboard]:
  """All combinations of interval, background and noise."""
  seconds = (base.format.frames - 1) / base.format.fps
  if way['timing'] == 'event':
    way = way | {'text': 'a [v] thing. the thing is [u] moving.'}
  made = []
  for seed, (start, end), place in itertools.product(
    range(seeds), INTERVALS, places
  ):
    # The star is there in the half where the concept mostly is not.
    early = start + end > 1
    star = (0.0, 0.5) if early else (0.5, 1.0)
    made.append(
      Storyboard(
        PROMPT.format(place),
        seconds=seconds,
        seed=seed,
        references=[Reference(str(STAR), 'star', *(x * seconds for x in star))],
        concepts=[
          TimedConcept(file, start=start * seconds, end=end * seconds, **way)
        ],
      )
    )
  return made


def score(video: np.ndarray, story: Storyboard, finder: Finder) -> dict:
  """What one clip shows of what was asked for."""
  fps = (len(video) - 1) / story.seconds
  found = finder.find(video)
  star = story.references[0]
  color = world_judge.color_of(load_reference(star.image, (64, 64)))
  seen = timing.presence(oracle.read(video, color).mask)
  identity = found.identity[found.present]
  out = {'identity': float(identity.mean()) if len(identity) else np.nan}
  for name, x, present in (
    ('', story.concepts[0], found.present),
    ('star ', star, seen),
  ):
    asked = timing.asked_frames([(x.start, x.end)], len(video), fps)
    both, either = (asked & present).sum(), (asked | present).sum()
    out[f'{name}frame IoU'] = float(both / either)
    span = timing.span(present, fps)
    out[f'{name}t-IoU'] = timing.t_iou(span, (x.start, x.end))
    out[f'{name}inside'] = float(present[asked].mean())
    out[f'{name}outside'] = float(present[~asked].mean())
  return out


def measure(
  base: Base, equipped: Base, options: argparse.Namespace, way: dict
) -> list[dict[str, float]]:
  """What each clip of one way shows."""
  concept = world.concept(options.number)
  finder, rows = Finder(concept), []
  places = grounds(concept, 2)
  made = stories(base, options.concept, way, places, options.seeds)
  for i in range(0, len(made), options.batch):
    part = made[i : i + options.batch]
    videos = sampling.sample(base, part, references=equipped)
    rows += [score(v, s, finder) for v, s in zip(videos, part, strict=True)]
  return rows


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--concept', default='runs/set_seq/concept.safetensors')
  parser.add_argument(
    '--number', type=int, default=4, help='of the concept in the world'
  )
  parser.add_argument(
    '--references', default='', help='folder; empty: the base'
  )
  parser.add_argument('--base', default='world', help='name or folder')
  parser.add_argument('--seeds', type=int, default=4, help='noises each')
  parser.add_argument('--batch', type=int, default=8, help='clips at once')
  parser.add_argument('--only', default='', help='one row')
  options = parser.parse_args()
  if options.only not in ('', *WAYS):
    raise DcjaxError(f'--only is {options.only!r}; use {"; ".join(WAYS)}')
  base = load_base(options.base)
  equipped = equip(base, options.references or None)
  clips, means = {}, {}
  for name, way in WAYS.items():
    if not options.only or name == options.only:
      clips[name] = measure(base, equipped, options, way)
      keys = list(clips[name][0])
      means[name] = {
        key: bootstrap.mean([clip[key] for clip in clips[name]]) for key in keys
      }
      if len(means) == 1:
        print(f'{"":20}' + ''.join(f'{key:>15}' for key in keys))
      print(
        f'{name:20}'
        + ''.join(f'{scoring.cell(means[name][key]):>15}' for key in keys),
        flush=True,
      )
  found = {
    name: {key: x._asdict() for key, x in of.items()}
    for name, of in means.items()
  }
  path = record.write(
    'timed-concepts', {'ways': found, 'clips': clips} | vars(options)
  )
  print(f'\n{path}')


if __name__ == '__main__':
  record.run(main)
