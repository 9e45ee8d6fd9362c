"""Videos of S2VTime's items, by systems that are told the time in other ways.

  references  pictures with words and intervals
  events      timed captions, no pictures
  both        the two together
  prompt      one text: 'WORD appears between S seconds and E seconds', which is
              how models without time are run (AlcheMinT, Sec. 4)
  phrases     one text that says when in the words of the procedural world

The last two need no trained references. Systems that see no picture are told in
words what it shows, where the item describes it by a few.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import json
import os
from pathlib import Path
import re
from typing import Any
import zlib

import numpy as np

from dcjax import latents, sampling, storyboard
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.evals import items as items_lib
from dcjax.evals import origin
from dcjax.evals.items import Benchmark, Item
from dcjax.storyboard import Storyboard
from dcjax.storyboard_rules import SEEDS
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
    benchmark: the items; those of one length, size and options share a batch.
    folder: of the videos, and of the file that says what made them.
    system: how time is told, see the head of this file.
    references: folder of trained added parameters; default the base's own.
    batch: videos made at once.
    seed: added to that of each item.
    **options: steps, shift, guidance; they stand above those of the items.

  Raises:
    DcjaxError: the system is unknown, an item cannot be made, or videos that
      are there were made of or by something else.
  """
  check(system, batch)
  if system in PROMPTS and options.get('guidance') is not None:
    raise DcjaxError(
      f'guidance is that of references, which the system {system!r} has not'
    )
  folder = Path(folder)
  made = {'system': system, 'base': base.fingerprint, 'seed': seed}
  made |= {key: str(x) for key, x in options.items()}
  made |= origin.of_items(benchmark.items)
  if system not in PROMPTS:
    equipped = reference_lib.equip(base, references)
    made |= _shown(benchmark, Path(references or base.reference_folder))
  path = lambda item: folder / f'{item.id}.mp4'
  missing = [x for x in benchmark.items if not path(x).exists()]
  kept = len(benchmark.items) - len(missing)
  if kept:
    _check_kept(folder, made)
    print(f'{folder.name}: {kept} videos are there and kept', flush=True)
  done = 0
  for part in _batches(missing, batch):
    # A batch of another size would be compiled anew.
    full = [*part, *part[-1:] * (batch - len(part))]
    if system in PROMPTS:
      videos = _of_prompts(base, full, system, seed, options)
    else:
      stories = [_story(benchmark, x, system, seed) for x in full]
      videos = sampling.sample(base, stories, references=equipped, **options)
    origin.claim(folder, made, bool(kept))
    for item, video in zip(part, videos, strict=False):
      video_lib.write_video(path(item), video, item.fps)
    done += len(part)
    print(f'{folder.name}: {done} of {len(missing)} videos', flush=True)
  return folder


def check(system: str, batch: int) -> None:
  """Raises DcjaxError if there is no such system, or no such batch."""
  if system not in SYSTEMS:
    raise DcjaxError(f'system is {system!r}; use one of {", ".join(SYSTEMS)}')
  if batch < 1:
    raise DcjaxError(f'batch is {batch}; expected 1 video or more')


def _check_kept(folder: Path, made: dict[str, Any]) -> None:
  if not origin.check(folder, made):
    raise DcjaxError(
      f'{folder} holds videos, and no {origin.FILE} says what made them; give '
      'another folder'
    )


def _shown(benchmark: Benchmark, references: Path) -> dict[str, str]:
  """Hashes of what is read beside the items."""
  weights = ('config.json', reference_lib.FILE)
  pictures = [x.image for item in benchmark.items for x in item.references]
  return {
    'references': origin.of_files(references / name for name in weights)
  } | {
    f'picture {name}': origin.of_files([benchmark.folder / name])
    for name in pictures
    if (benchmark.folder / name).is_file()
  }


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
  """Items that can be sampled together, up to `size` at once."""
  options = lambda x: json.dumps(x.options, sort_keys=True)
  alike = lambda x: (x.seconds, x.fps, x.size, options(x))
  for _, group in itertools.groupby(sorted(items, key=alike), alike):
    same = list(group)
    yield from (same[i : i + size] for i in range(0, len(same), size))


def noise_seed(item: Item, seed: int) -> int:
  """That of an item's noise, which all systems and its whole group share."""
  own = zlib.crc32((item.group or item.id).encode()) % 2**30
  return (item.seed + seed + own) % SEEDS


def _story(
  benchmark: Benchmark, item: Item, system: str, seed: int
) -> Storyboard:
  """The item as a storyboard of what the system is told."""
  if system == 'events':
    item = described(item)
  record = item.storyboard() | {'seed': noise_seed(item, seed)}
  if system == 'references':
    record['events'] = []
  elif system == 'events':
    record['references'] = []
  return storyboard.parse(record, benchmark.folder)


def _of_prompts(
  base: Base, items: Sequence[Item], system: str, seed: int, options: Any
) -> np.ndarray:
  given = {k: x for k, x in options.items() if x is not None}
  options = {**items[0].options, **given}
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
  """The item whose texts say of 'a small star' that it is small and red.

  A subject's words are replaced where its description has the same noun.
  """
  texts, references = [item.prompt, *(x.text for x in item.events)], []
  for x in item.references:
    look = x.description.partition(' ')[2]
    noun = x.word.split()[-1]
    if noun in look.split():
      extra = [w for w in x.word.split() if w not in look.split()]
      look = ' '.join([*extra, look])
      texts = [
        text if look in text else _told_as(text, x.word, look) for text in texts
      ]
      x = dataclasses.replace(x, word=look)
    references.append(x)
  prompt, *said = texts
  events = tuple(
    dataclasses.replace(x, text=text)
    for x, text in zip(item.events, said, strict=True)
  )
  return dataclasses.replace(
    item, prompt=prompt, references=tuple(references), events=events
  )


def _told_as(text: str, word: str, look: str) -> str:
  """The text with other words for a subject, and the article that they take."""

  def told(found: re.Match) -> str:
    article = found.group(1)
    if article:
      article = 'an ' if look[0] in 'aeiou' else 'a '
    return f'{article or ""}{look}'

  return re.sub(rf'\b(an? )?{re.escape(word)}\b', told, text, count=1)


def phrased_prompt(item: Item) -> str:
  """The prompt with what the world's captions can say of an interval."""
  said = []
  for x in item.references:
    late, early = x.start > 0.15 * item.seconds, x.end < 0.85 * item.seconds
    phrase = _MIDDLE if late and early else _LATE if late else _EARLY
    if late or early:
      said.append(f'the {x.word} {phrase}.')
  return ' '.join([item.prompt, *said])
