"""What Set-and-Sequence makes of concepts that the world kept from training.

  python benchmarks/concepts.py
  python benchmarks/concepts.py --concepts=1 --name=longer \
    --set=sequence.steps=600

Each concept is learnt from its one clip by the default recipe, sampled on its
training prompts, on four other backgrounds, with two actions that the base
knows, and its motion alone on another object; the clips are read from pixels.
Beside every number stands what the same clips score when they are drawn and
decoded from their own latents. A command that was stopped goes on where it was.
README.md in this folder says what the numbers mean; ceilings.py measures them
without a model.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record

from dcjax import material, recipes, sampling
from dcjax.concept import Concept as Learnt
from dcjax.data import cache, world
from dcjax.data import prompts as prompts_lib
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.evals import concepts as judge
from dcjax.evals.sighting import Finder
from dcjax.personalization import Personalization
from dcjax.weights.base import Base, load_base

PATTERNS = ('plain', 'striped', 'checkered', 'gradient')
ACTIONS = ('moving right', 'still')
# The object that shows the motion alone. A ball looks the same however it
# leans, and yellow on navy is far from every tone of the concepts.
OTHER = {'shape': 'ball', 'color': 'yellow', 'background': 'navy'}

# (group, metric, goal, whether it is a part of what decoded clips score)
GOALS = (
  ('training', 'detected', 0.95, False),
  ('training', 'identity', 0.8, True),
  ('training', 'correlation', 0.7, False),
  ('background', 'adherence', 0.9, False),
  ('background', 'identity', 0.6, True),
  ('background', 'correlation', 0.5, False),
)
# What is printed of each group; the file holds everything.
SHOWN = {
  'training': 'detected identity stray correlation shifted extent action '
  'mse mse_pm1 mse_empty',
  'background': 'adherence kept detected identity correlation shifted extent '
  'action',
  'action': 'action detected identity adherence',
  'motion alone': 'subject correlation shifted extent action leaked',
}

Scores = dict[str, dict[str, float]]  # {group: {metric: mean over clips}}


class Ask(NamedTuple):
  """A prompt, and what it should give."""

  group: str
  prompt: str
  target: np.ndarray  # [f h w 3] uint8, drawn
  asked: dict[str, Any]  # arguments of `judge.score`


def asks(concept: world.Concept) -> list[Ask]:
  """All prompts of one concept."""
  c, moves = concept, 'the thing is [u] moving.'
  place = lambda ground, pattern: (
    f'a [v] thing on a {pattern} {ground} background.'
  )
  own = {'background': c.background, 'pattern': 'plain'}
  full = prompts_lib.join(c.appearance, c.motion)
  found = [Ask('training', full, c.video, own | {'same': True})]
  grounds = judge.grounds(c, len(PATTERNS))
  for ground, pattern in zip(grounds, PATTERNS, strict=True):
    there = {'background': ground, 'pattern': pattern}
    prompt = prompts_lib.join(place(ground, pattern), moves)
    target = judge.wanted(c, **there)
    found.append(Ask('background', prompt, target, there))
  for motion in ACTIONS:
    prompt = prompts_lib.join(c.appearance, f'the thing is {motion}.')
    target = judge.wanted(c, motion=motion)
    found.append(Ask('action', prompt, target, own | {'motion': motion}))
  prompt = (
    f'a large {OTHER["color"]} {OTHER["shape"]} on a plain '
    f'{OTHER["background"]} background. the {OTHER["shape"]} is [u] moving.'
  )
  target = judge.wanted(c, **OTHER, decoration='')
  return [*found, Ask('motion alone', prompt, target, {})]


def score(prompts: Sequence[Ask], videos: np.ndarray, finder: Finder) -> Scores:
  """Means over the clips of each group, of what can be judged."""
  rows: dict[str, list[dict[str, float]]] = {}
  for ask, video in zip(prompts, videos, strict=True):
    if ask.group == 'motion alone':
      row = judge.score_motion_alone(
        video, finder, OTHER['color'], OTHER['shape']
      )
    else:
      row = judge.score(video, finder, **ask.asked)
    rows.setdefault(ask.group, []).append(row)
  return {
    group: {key: _mean([row[key] for row in some]) for key in some[0]}
    for group, some in rows.items()
  }


def learn(base: Base, index: int, options: argparse.Namespace) -> Learnt:
  """The concept of a number, learnt now or before."""
  folder = _folder(options, index)
  concept = world.concept(index)
  clip = folder / 'clip.png'  # animated, and without loss
  folder.mkdir(parents=True, exist_ok=True)
  if not clip.exists():
    video_lib.write_video(clip, concept.video, world.FPS)
  config = recipes.personalize('world')
  config.base, config.data.video = options.base, str(clip)
  config.prompts.appearance = concept.appearance
  config.prompts.motion = concept.motion
  config.preview_every = 0
  record.override(config, options.set)
  done = folder / 'concept.safetensors'
  if not done.exists():
    print(f'concept {index}: learning', flush=True)
    return Personalization(base, config, folder).run()
  before = json.loads((folder / 'config.json').read_text())
  now = json.loads(config.to_json_best_effort())
  changed = [key for key in now if before['config'].get(key) != now[key]]
  if changed or before['base']['fingerprint'] != base.fingerprint:
    raise DcjaxError(
      f'{folder} holds a run with another {(*changed, "base")[0]}; give '
      'another --name'
    )
  return Learnt.load(done)


def sample(
  base: Base,
  learnt: Learnt,
  prompts: Sequence[Ask],
  options: argparse.Namespace,
  index: int,
) -> np.ndarray:
  """[s n f h w 3]: all prompts with each of the noises."""
  folder = _folder(options, index)
  settings = json.loads((folder / 'config.json').read_text())['config']
  chosen = {k: settings['sample'][k] or None for k in ('steps', 'guidance')}
  texts = [ask.prompt for ask in prompts]
  key = {
    'concept': folder / 'concept.safetensors',
    'prompts': texts,
    'seeds': options.seeds,
    'sample': chosen,
  }

  def compute():
    print(f'concept {index}: sampling', flush=True)
    many = [
      material.sample_many(base, texts, seed=seed, concepts=[learnt], **chosen)
      for seed in range(options.seeds)
    ]
    return {'videos': np.stack(many)}

  return cache.cached(folder / 'cache', key, compute)['videos']


def measure(
  base: Base, index: int, options: argparse.Namespace
) -> dict[str, Any]:
  """Scores of one concept: sampled, decoded and drawn."""
  concept = world.concept(index)
  prompts, finder = asks(concept), Finder(concept)
  learnt = learn(base, index, options)
  videos = sample(base, learnt, prompts, options, index)
  targets = np.stack([ask.target for ask in prompts])
  decoded = sampling.decode(base, sampling.encode_video(base, targets))
  folder = _folder(options, index)
  # What was asked for above what came.
  rows = np.concatenate([targets[None], videos])
  sheet = np.concatenate(list(np.concatenate(list(rows), 2)), 2)
  video_lib.write_video(folder / 'sheet.gif', sheet, world.FPS, scale=2)
  timings = folder / 'timings.json'
  return {
    'concept': _describe(concept),
    'sampled': score(
      [*prompts] * options.seeds, videos.reshape(-1, *targets.shape[1:]), finder
    ),
    'decoded': score(prompts, decoded, finder),
    'drawn': score(prompts, targets, finder),
    'floor': judge.floor(finder),
    'timings': json.loads(timings.read_text()) if timings.exists() else {},
  }


def summary(rows: Sequence[Scores]) -> dict[str, dict[str, dict[str, float]]]:
  """{group: {metric: mean and spread over concepts, and how many had it}}."""
  result: dict[str, dict[str, dict[str, float]]] = {}
  for group in rows[0]:
    result[group] = {}
    for key in rows[0][group]:
      values = np.array([row[group][key] for row in rows])
      values = values[~np.isnan(values)]
      result[group][key] = {
        'mean': _mean(values),
        'spread': float(values.std()) if len(values) else float('nan'),
        'judged': len(values),
      }
  return result


def goals(sampled: dict, decoded: dict) -> list[dict[str, Any]]:
  """Each goal, what was reached, and whether that is enough."""
  rows = []
  for group, metric, goal, relative in GOALS:
    value = sampled[group][metric]['mean']
    if relative:
      value /= decoded[group][metric]['mean']
    rows.append(
      {
        'group': group,
        'metric': metric + (' / decoded' if relative else ''),
        'goal': goal,
        'reached': value,
        'met': bool(value >= goal),
      }
    )
  return rows


def report(results: dict[str, dict], reached: dict, best: dict) -> None:
  """Prints the table: one column a concept, then the mean and the ceiling."""
  names = list(results)
  head = ''.join(f'{name:>8}' for name in names)
  print(f'\n{"":26}{head}    mean  spread  decoded')
  floors = [results[name]['floor'] for name in names]
  row = ''.join(f'{value:8.3f}' for value in floors)
  print(f'{"identity of base shapes":26}{row}{_mean(floors):8.3f}')
  for group, metrics in SHOWN.items():
    print(group)
    for key in metrics.split():
      values = [results[n]['sampled'][group][key] for n in names]
      row = ''.join(f'{value:8.3f}' for value in values)
      mean, top = reached[group][key], best[group][key]['mean']
      print(
        f'  {key:24}{row}{mean["mean"]:8.3f}{mean["spread"]:8.3f}{top:9.3f}'
      )


def main() -> None:
  """The command line."""
  options = _options()
  base = load_base(options.base)
  results = {}
  for index in range(options.concepts):
    results[str(index)] = measure(base, index, options)
    (_folder(options, index) / 'scores.json').write_text(
      json.dumps(record.plain(results[str(index)]), indent=2) + '\n'
    )
  reached = summary([row['sampled'] for row in results.values()])
  best = summary([row['decoded'] for row in results.values()])
  report(results, reached, best)
  met = goals(reached, best)
  print(f'\n{"goal":40}{"asked":>8}{"reached":>9}')
  for row in met:
    words = f'{row["group"]}: {row["metric"]}'
    end = '' if row['met'] else '   missed'
    print(f'{words:40}{row["goal"]:8.2f}{row["reached"]:9.3f}{end}')
  path = record.write(
    '-'.join(filter(None, ('concepts', options.name))),
    {
      'base': base.fingerprint,
      'overrides': options.set,
      'seeds': options.seeds,
      'goals': met,
      'summary': {'sampled': reached, 'decoded': best},
      'results': results,
    },
  )
  print(f'\n{path}')


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  add = parser.add_argument
  add('--concepts', type=int, default=5, help='how many, from number 0')
  add('--seeds', type=int, default=2, help='clips of each prompt')
  add(
    '--set',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='another value of the recipe, such as sequence.steps=600',
  )
  add('--name', default='', help='of runs with other settings')
  add('--base', default='world', help='name or folder of the base')
  add('--workdir', default='runs/bench_concepts', help='where runs are kept')
  options = parser.parse_args()
  for name in ('concepts', 'seeds'):
    if getattr(options, name) < 1:
      raise DcjaxError(
        f'--{name} is {getattr(options, name)}, expected 1 or more'
      )
  if options.set and not options.name:
    raise DcjaxError('give runs with --set a --name of their own')
  return options


def _folder(options: argparse.Namespace, index: int) -> Path:
  return Path(options.workdir) / options.name / str(index)


def _describe(concept: world.Concept) -> str:
  c = concept
  return f'{c.shape} {c.decoration}, {c.moves}, on {c.background}'


def _mean(values: Sequence[float]) -> float:
  values = [value for value in values if value == value]
  return float(np.mean(values)) if values else float('nan')


if __name__ == '__main__':
  record.run(main)
