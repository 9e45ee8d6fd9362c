"""Videos of S2VTime's items, by systems that are told the time in other ways.

  references  pictures with words and intervals
  events      timed captions, no pictures
  both        the two together
  prompt      one text: 'WORD appears between S seconds and E seconds', which is
              how models without time are run (AlcheMinT, Sec. 4)
  phrases     one text that says when in the words of the procedural world

The last two need no trained references. As they see no picture, their text says
what it shows where the item describes it by a few words.
"""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from dcjax import latents, sampling, storyboard
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.evals import items as items_lib
from dcjax.evals.items import Benchmark, Item
from dcjax.storyboard import Storyboard
from dcjax.weights import reference as reference_lib
from dcjax.weights.base import Base

SYSTEMS = ('references', 'events', 'both', 'prompt', 'phrases')
PROMPTS = ('prompt', 'phrases')  # without references
# Of `data.scene.PRESENCES`: what the base was taught of time.
_LATE, _EARLY, _MIDDLE = (
  'appears late',
  'leaves early',
  'appears in the middle',
)


def make(
  base: Base,
  benchmark: Benchmark,
  folder: str | os.PathLike,
  *,
  system: str = 'references',
  references: str | os.PathLike | None = None,
  batch: int = 8,
  seed: int = 0,
  **options: Any,
) -> Path:
  """Makes the video of every item, named by its id; those there are kept.

  Args:
    base: the model.
    benchmark: of items of one length and size.
    folder: of the videos.
    system: how time is told, see the head of this file.
    references: folder of trained added parameters; default the base's own.
    batch: videos made at once.
    seed: added to that of each item.
    **options: steps, shift, guidance.

  Raises:
    DcjaxError: the system is unknown, or an item cannot be made.
  """
  check_system(system)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  path = lambda item: folder / f'{item.id}.mp4'
  missing = [x for x in benchmark.items if not path(x).exists()]
  if system not in PROMPTS:
    references = reference_lib.equip(base, references)
  for start in range(0, len(missing), batch):
    part = missing[start : start + batch]
    # A batch of another size would be compiled anew.
    full = [*part, *part[-1:] * (batch - len(part))]
    if system in PROMPTS:
      videos = _of_prompts(base, full, system, seed, options)
    else:
      stories = [_story(benchmark, x, system, seed) for x in full]
      videos = sampling.sample(base, stories, references=references, **options)
    for item, video in zip(part, videos, strict=False):
      video_lib.write_video(path(item), video, item.fps)
    done = min(start + batch, len(missing))
    print(f'{folder.name}: {done} of {len(missing)} videos', flush=True)
  return folder


def check_system(system: str) -> None:
  """Raises DcjaxError if there is no such system."""
  if system not in SYSTEMS:
    raise DcjaxError(f'system is {system!r}; use one of {", ".join(SYSTEMS)}')


def noise_seed(item: Item, seed: int) -> int:
  """That of an item's noise, which all systems and its whole group share."""
  return item.seed + seed + zlib.crc32((item.group or item.id).encode()) % 2**30


def _story(
  benchmark: Benchmark, item: Item, system: str, seed: int
) -> Storyboard:
  """The item as a storyboard of what the system is told."""
  record = item.storyboard() | {'seed': noise_seed(item, seed)}
  if system == 'references':
    record['events'] = []
  elif system == 'events':
    record['references'] = []
  return storyboard.parse(record, benchmark.folder)


def _of_prompts(
  base: Base, items: Sequence[Item], system: str, seed: int, options: Any
) -> np.ndarray:
  write = items_lib.timed_prompt if system == 'prompt' else phrased_prompt
  frames = round(items[0].seconds * items[0].fps) + 1
  noise = [
    latents.draw_noise(base, 1, noise_seed(x, seed), frames, *x.size)
    for x in items
  ]
  return sampling.sample(
    base,
    [write(described(x)) for x in items],
    noise=np.concatenate(noise),
    **{k: x for k, x in options.items() if k in ('steps', 'shift')},
  )


def described(item: Item) -> Item:
  """The item whose prompt says of 'a small star' that it is small and red.

  A subject's words are replaced where its description ends in the same word.
  """
  prompt, references = item.prompt, []
  for x in item.references:
    look = x.description.partition(' ')[2]
    noun = x.word.split()[-1]
    if noun in look.split():
      extra = [w for w in x.word.split() if w not in look.split()]
      look = ' '.join([*extra, look])
      prompt = prompt.replace(x.word, look, 1) if look not in prompt else prompt
      x = dataclasses.replace(x, word=look)
    references.append(x)
  return dataclasses.replace(item, prompt=prompt, references=tuple(references))


def phrased_prompt(item: Item) -> str:
  """The prompt with what the world's captions can say of an interval."""
  said = []
  for x in item.references:
    late, early = x.start > 0.15 * item.seconds, x.end < 0.85 * item.seconds
    phrase = _MIDDLE if late and early else _LATE if late else _EARLY
    if late or early:
      said.append(f'the {x.word} {phrase}.')
  return ' '.join([item.prompt, *said])
