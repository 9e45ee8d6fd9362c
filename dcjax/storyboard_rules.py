"""What a storyboard may not be: each rule with its line.

Times are seconds. Nothing is loaded or compiled here.
"""

import itertools
import math
import numbers
import re
from typing import Any

from dcjax.errors import DcjaxError

# How a concept is put on the timeline, see `storyboard.TimedConcept`.
TIMINGS = ('reference', 'event')
# Guidance -> its scales; their formulas are in `flow`.
FORMS = {
  'three_weight': ('text', 'reference', 'both', 'time'),
  'video_alchemist': ('text', 'reference', 'time'),
  'instruct_pix2pix': ('text', 'reference', 'time'),
}
# So many seeds are noises of their own; jax reads no more bits of one.
SEEDS = 2**32
# Two times that are nearer than this are one.
_SAME = 1e-6


def check(story: Any) -> None:
  """Raises DcjaxError for the first rule that a `Storyboard` breaks."""
  text(story.prompt, 'prompt')
  for key in ('seconds', 'fps', 'shift'):
    if getattr(story, key) is not None:
      number(getattr(story, key), key, above=0)
  _size(story.size)
  check_seed(story.seed, 'seed')
  if story.steps is not None:
    whole(story.steps, 'steps', 1)
  if not (story.references or story.concepts or story.events):
    raise DcjaxError(
      'nobody is on the timeline; give references, concepts or events, or '
      'sample the prompt alone'
    )
  for i, reference in enumerate(story.references):
    _check_reference(story, reference, f'references[{i}]')
  for i, concept in enumerate(story.concepts):
    _check_concept(story, concept, f'concepts[{i}]')
  for i, event in enumerate(story.events):
    text(event.text, f'events[{i}].text')
    _interval(story, event, f'events[{i}]')
  _check_words(story)
  _check_lane(story)
  if story.guidance is not None:
    check_guidance(story.guidance)


def _check_reference(story: Any, x: Any, where: str) -> None:
  text(x.image, f'{where}.image')
  text(x.word, f'{where}.word')
  _in_prompt(x.word, story.prompt, f'{where}.word')
  _interval(story, x, where)


def _check_concept(story: Any, x: Any, where: str) -> None:
  text(x.file, f'{where}.file')
  for key in ('identity', 'motion'):
    number(getattr(x, key), f'{where}.{key}')
  if number(x.fade, f'{where}.fade') < 0:
    raise DcjaxError(f'{where}.fade is {x.fade:g}; expected 0 s or more')
  if not isinstance(x.gate, bool):
    raise DcjaxError(f'{where}.gate is {x.gate!r}; expected true or false')
  if x.timing not in TIMINGS:
    raise DcjaxError(
      f'{where}.timing is {x.timing!r}; use one of {", ".join(TIMINGS)}'
    )
  for key in ('word', 'image', 'text'):
    if not isinstance(getattr(x, key), str):
      raise DcjaxError(f'{where}.{key} is {getattr(x, key)!r}; expected a text')
  unread = {'reference': ('text',), 'event': ('word', 'image')}[x.timing]
  for key in unread:
    if getattr(x, key):
      raise DcjaxError(
        f'{where}.{key} is not read with timing {x.timing!r}; leave it out'
      )
  if x.word:
    _in_prompt(x.word, story.prompt, f'{where}.word')
  _interval(story, x, where)


def _in_prompt(word: str, prompt: str, where: str) -> None:
  if not _count(word, prompt):
    raise DcjaxError(
      f'{where} {word!r} is not in the prompt {prompt!r}; expected one or more '
      'whole words of it'
    )


def _count(word: str, prompt: str) -> int:
  """How often the word is in the prompt, as whole words."""
  return len(re.findall(rf'(?<!\w){re.escape(word)}(?!\w)', prompt))


def _check_words(story: Any) -> None:
  """One word, one look; a subject that returns is not there twice at once."""
  pictures: dict[str, list[str]] = {}
  for x in story.references:
    if x.image not in pictures.setdefault(x.word, []):
      pictures[x.word].append(x.image)
  for word, images in pictures.items():
    if len(images) > 1 and _count(word, story.prompt) < len(images):
      raise DcjaxError(
        f'{len(images)} pictures have the word {word!r}, which is in the '
        f'prompt {_count(word, story.prompt)} times; call each by words of its '
        'own, such as "small star" and "large star"'
      )
  for a, b in itertools.combinations(story.references, 2):
    if (a.word, a.image) == (b.word, b.image) and _overlap(story, a, b):
      raise DcjaxError(
        f'two intervals of {a.word!r} overlap; make them one, or leave a gap'
      )


def _check_lane(story: Any) -> None:
  """Timed captions, and concepts that are placed by one, do not overlap."""
  told = [(f'events[{i}]', x) for i, x in enumerate(story.events)] + [
    (f'concepts[{i}]', x)
    for i, x in enumerate(story.concepts)
    if x.timing == 'event'
  ]
  for (one, a), (other, b) in itertools.combinations(told, 2):
    if _overlap(story, a, b):
      raise DcjaxError(
        f'{one} and {other} overlap in time; timed captions may follow each '
        'other, but only one holds at a time'
      )


def _overlap(story: Any, a: Any, b: Any) -> bool:
  end = lambda x: math.inf if x.end is None else x.end
  return min(end(a), end(b)) - max(a.start, b.start) > _SAME


def _interval(story: Any, x: Any, where: str) -> None:
  start = number(x.start, f'{where}.start')
  end = story.seconds if x.end is None else number(x.end, f'{where}.end')
  if start < 0:
    raise DcjaxError(f'{where} starts at {start:g} s; expected 0 or later')
  if end is None:
    return
  if end <= start:
    what = 'is empty' if end == start else 'ends before it starts'
    raise DcjaxError(
      f'{where} {what}: {start:g} to {end:g} s; expected start < end'
    )
  if story.seconds is not None and end > story.seconds + _SAME:
    raise DcjaxError(
      f'{where} is outside the video: {start:g} to {end:g} s of '
      f'{story.seconds:g} s'
    )


def check_guidance(guidance: Any) -> None:
  """Raises DcjaxError for an unknown form, or a scale that is no number."""
  if not isinstance(guidance.form, str) or guidance.form not in FORMS:
    raise DcjaxError(
      f'guidance.form is {guidance.form!r}; use one of {", ".join(FORMS)}'
    )
  for key in ('text', 'reference', 'both', 'time'):
    scale = number(getattr(guidance, key), f'guidance.{key}')
    if scale and key not in FORMS[guidance.form]:
      raise DcjaxError(
        f'guidance.{key} is {scale:g}, but the form {guidance.form!r} has only '
        f'{", ".join(FORMS[guidance.form])}'
      )


def check_seed(value: Any, where: str) -> None:
  """Raises DcjaxError for what is no seed of a noise."""
  whole(value, where, 0)
  if value >= SEEDS:
    raise DcjaxError(
      f'{where} is {value}; expected a whole number below {SEEDS}'
    )


def text(value: Any, where: str) -> str:
  """The value; DcjaxError if it is no text, or an empty one."""
  if not isinstance(value, str) or not value.strip():
    raise DcjaxError(f'{where} is {value!r}; expected a text')
  return value


def number(value: Any, where: str, above: float | None = None) -> float:
  """The value; DcjaxError if it is no finite number, or not above another."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not real or not math.isfinite(value):
    raise DcjaxError(f'{where} is {value!r}; expected a number')
  if above is not None and value <= above:
    raise DcjaxError(f'{where} is {value!r}; expected more than {above:g}')
  return float(value)


def whole(value: Any, where: str, least: int) -> None:
  """Raises DcjaxError for what is no whole number, or a smaller one."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < least:
    raise DcjaxError(
      f'{where} is {value!r}; expected a whole number from {least}'
    )


def _size(size: Any) -> None:
  if size is None:
    return
  if len(size) != 2:
    raise DcjaxError(f'size is {list(size)!r}; expected [height, width]')
  for key, value in zip(('height', 'width'), size, strict=True):
    whole(value, f'the {key} of size', 1)
