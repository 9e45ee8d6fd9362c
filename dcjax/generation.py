"""The `sample` task: prompts, concepts and storyboards -> video files.

Beside every video lies a JSON file with all that is needed to make it again,
and beside that of a storyboard a picture of its timeline.
"""

import hashlib
import json
from pathlib import Path
import re
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import (
  machine,
  sampling,
  sharding,
  timed_concepts,
  timed_plan,
  timed_report,
)
from dcjax.concept import Concept
from dcjax.data import canvas
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.report import timeline
from dcjax.storyboard import Storyboard
from dcjax.weights.base import Base, load_base
from dcjax.weights.reference import FILE

FORMATS = ('mp4', 'gif', 'webp')
_TRIED = (64, 64)  # size at which pictures are tried


def run(config: ConfigDict, workdir: str) -> None:
  """Writes one video a prompt, or that of a storyboard, into the folder."""
  if config.format not in FORMATS:
    raise DcjaxError(
      f'config.format is {config.format!r}; use mp4, gif or webp'
    )
  if config.scale < 0:
    raise DcjaxError(
      f'config.scale is {config.scale}; expected a positive number, or 0 for '
      'what suits the size'
    )
  if config.storyboard:
    _run_storyboard(config, Path(workdir))
  else:
    _run_prompts(config, Path(workdir))


def _run_prompts(config: ConfigDict, workdir: Path) -> None:
  prompts = [p for p in (config.prompt, *config.prompts) if p]
  if not prompts:
    raise DcjaxError(
      'there is no prompt; give --config.prompt="a red star on a plain navy '
      'background"'
    )
  if config.references:
    raise DcjaxError(
      'config.references is given without config.storyboard, which alone reads '
      'it; leave it out'
    )
  base = _load(config)
  concepts = [
    Concept.load(path.strip()).times(config.identity, config.motion)
    for path in config.concepts.split(',')
    if path.strip()
  ]
  options = _options(config)
  options['sampler'] = options['sampler'] or 'unipc'
  videos = sampling.sample(base, prompts, concepts=concepts, **options)
  for i, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
    name = f'{_slug(prompt)}_{config.seed}_{i}'
    record = _record(base, config, concepts, prompt, i, options)
    _write_video(workdir / name, video, base.format.fps, config)
    _write_record(workdir / name, record)


def _load(config: ConfigDict) -> Base:
  rules = sharding.check_rules(config.mesh.rules)
  return load_base(config.base, sharding=sharding.placement(rules))


def _run_storyboard(config: ConfigDict, workdir: Path) -> None:
  others = {'prompt': '', 'prompts': (), 'concepts': '', 'guidance': 0.0}
  for key, unsaid in (others | {'identity': 1.0, 'motion': 1.0}).items():
    if config[key] != unsaid:
      raise DcjaxError(
        f'config.{key} is given beside config.storyboard, in which it has its '
        'place; give one of the two'
      )
  story = Storyboard.load(config.storyboard)
  # What cannot be read is refused before a base is, which takes long.
  concepts = timed_concepts.load(story.concepts)
  for x in story.references:
    canvas.load_reference(x.image, _TRIED)
  base = _load(config)
  options = _options(config)
  del options['guidance']
  options['seed'] = options['seed'] or None
  given = {k: x for k, x in options.items() if k in timed_plan.Changes._fields}
  changes = timed_plan.Changes(**given)
  story = timed_plan.resolve(base, story, changes)
  video = sampling.sample(
    base,
    story,
    references=config.references or None,
    negative=config.negative,
    sampler=options['sampler'],
  )
  path = workdir / f'{Path(config.storyboard).stem}_{story.seed}'
  # Made for minutes: it is on disk before anything else is asked of it.
  _write_video(path, video, story.fps, config)
  lanes, note = timed_report.lanes(base, story, video, concepts)
  folder = Path(config.references or base.reference_folder)
  record = {
    'storyboard': _absolute(story),
    'base': {'name': base.name, 'fingerprint': base.fingerprint},
    'references': {
      'folder': str(folder.resolve()),
      'sha256': hashlib.sha256((folder / FILE).read_bytes()).hexdigest(),
    },
    'sampler': options['sampler'] or timed_plan.defaults(base)['sampler'],
    'negative': config.negative,
    'seen': [
      {'name': x.name, 'spans': timeline.spans(x.present, story.fps)}
      for x in lanes
      if x.present is not None
    ],
    'machine': machine.describe(),
  }
  _write_record(path, record)
  picture = path.with_name(f'{path.name}_timeline.png')
  title = story.prompt
  timeline.write(picture, video, story.fps, lanes, title=title, note=note)
  print(picture)


def _absolute(story: Storyboard) -> dict[str, Any]:
  """As JSON, with files named in full: to be read from anywhere."""
  record = story.to_json()
  for x in (*record.get('references', ()), *record.get('concepts', ())):
    for key in ('image', 'file'):
      if key in x:
        x[key] = str(Path(x[key]).resolve())
  return record


def _write_video(
  path: Path, video: np.ndarray, fps: float, config: ConfigDict
) -> None:
  """PATH.FORMAT."""
  path.parent.mkdir(parents=True, exist_ok=True)
  file = path.with_name(f'{path.name}.{config.format}')
  scale = config.scale or max(1, 256 // video.shape[1])
  video_lib.write_video(file, video, fps, scale=scale)
  print(file)


def _write_record(path: Path, record: Any) -> None:
  """PATH.json."""
  text = json.dumps(record, indent=2) + '\n'
  path.with_name(f'{path.name}.json').write_text(text)


def _options(config: ConfigDict) -> dict[str, Any]:
  """Options of `sampling.sample`; 0 stands for the base's own value."""
  names = ('steps', 'guidance', 'shift', 'frames', 'height', 'width')
  return {name: config[name] or None for name in names} | {
    'seed': config.seed,
    'sampler': config.sampler or None,
    'negative': config.negative,
  }


def _record(
  base: Base,
  config: ConfigDict,
  concepts: list[Concept],
  prompt: str,
  index: int,
  options: dict[str, Any],
) -> dict[str, Any]:
  return {
    'prompt': prompt,
    # The i-th prompt of a call gets the i-th noise of the seed.
    'index': index,
    'base': {'name': base.name, 'fingerprint': base.fingerprint},
    'concepts': [
      {
        'file': path.strip(),
        'identity': concept.identity,
        'motion': concept.motion,
      }
      for path, concept in zip(
        filter(str.strip, config.concepts.split(',')), concepts, strict=True
      )
    ],
    **options,
    'machine': machine.describe(),
  }


def _slug(prompt: str) -> str:
  """A prompt as part of a file name."""
  return re.sub(r'[^a-z0-9]+', '_', prompt.lower()).strip('_')[:48]
