"""The `sample` task: prompts and concepts of a config -> video files.

Beside every video lies a JSON file with all that is needed to make it again.
"""

import json
from pathlib import Path
import re
from typing import Any

from ml_collections import ConfigDict

from dcjax import machine, sampling
from dcjax.concept import Concept
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.weights.base import Base, load_base


def run(config: ConfigDict, workdir: str) -> None:
  """Writes one video a prompt into the folder."""
  prompts = [p for p in (config.prompt, *config.prompts) if p]
  if not prompts:
    raise DcjaxError(
      'there is no prompt; give --config.prompt="a red star on a plain navy '
      'background"'
    )
  suffix = config.format
  if suffix not in ('mp4', 'gif', 'webp'):
    raise DcjaxError(f'config.format is {suffix!r}; use mp4, gif or webp')
  base = load_base(config.base)
  concepts = [
    Concept.load(path.strip()).scaled(config.identity, config.motion)
    for path in config.concepts.split(',')
    if path.strip()
  ]
  options = _options(config)
  videos = sampling.sample(base, prompts, concepts=concepts, **options)
  for i, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
    path = Path(workdir) / f'{_slug(prompt)}_{config.seed}_{i}.{suffix}'
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = config.scale or max(1, 256 // video.shape[1])
    video_lib.write_video(path, video, base.format.fps, scale=scale)
    record = _record(base, config, concepts, prompt, i, options)
    path.with_suffix('.json').write_text(json.dumps(record, indent=2) + '\n')
    print(path)


def _options(config: ConfigDict) -> dict[str, Any]:
  """Options of `sampling.sample`; 0 stands for the base's own value."""
  names = ('steps', 'guidance', 'shift', 'frames', 'height', 'width')
  return {name: config[name] or None for name in names} | {
    'seed': config.seed,
    'sampler': config.sampler,
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
