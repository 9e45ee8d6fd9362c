"""What a storyboard may not be: each rule with its line.

Times are seconds. Nothing is loaded or compiled here.
"""

from collections.abc import Iterable
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
# Beyond these nobody means what he wrote: an hour, an 8K picture, the steps of
# training, weights that leave no picture.
SECONDS, FPS, SIDE, STEPS, SCALE = 3600.0, 1000.0, 8192, 1000, 1000.0
# So many seeds are noises of their own; jax reads no more bits of one.
SEEDS = 2**32
# Two times that are nearer than this are one.
_SAME = 1e-6


def check(story: Any) -> None:
  """Raises DcjaxError for the first rule that a `Storyboard` breaks."""
  text(story.prompt, 'prompt')
  for key, most in (('seconds', SECONDS), ('fps', FPS), ('shift', SCALE)):
    if getattr(story, key) is not None:
      number(getattr(story, key), key, above=0, most=most)
  _size(story.size)
  check_seed(story.seed, 'seed')
  if story.steps is not None:
    whole(story.steps, 'steps', 1, STEPS)
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
    number(event.end, f'events[{i}].end')
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
    _scale(getattr(x, key), f'{where}.{key}')
  if number(x.fade, f'{where}.fade', most=SECONDS) < 0:
    raise DcjaxError(f'{where}.fade is {x.fade:g}; expected 0 s or more')
  if not isinstance(x.gate, bool):
    raise DcjaxError(f'{where}.gate is {x.gate!r}; expected true or false')
  if x.fade and not x.gate:
    raise DcjaxError(
      f'{where}.fade is {x.fade:g} s, but without a gate nothing fades; leave '
      'one of the two out'
    )
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
  return len(re.findall(_whole_words(word), prompt))


def _whole_words(text: str) -> str:
  return rf'(?<!\w){re.escape(text)}(?!\w)'


def _check_words(story: Any) -> None:
  """One word, one look; a subject that returns is not there twice at once."""
  looks: dict[str, set[str]] = {}
  for x in story.references:
    looks.setdefault(x.word, set()).add(x.image)
  for x in story.concepts:
    if x.word:
      looks.setdefault(x.word, set()).add(x.image or x.file)
  for word, of in looks.items():
    if len(of) > 1:
      raise DcjaxError(
        f'{len(of)} pictures have the word {word!r}; call each by words of its '
        'own, such as "small star" and "large star"'
      )
    _check_apart(word, looks, story.prompt)
  for a, b in itertools.combinations(story.references, 2):
    if (a.word, a.image) == (b.word, b.image) and _overlap(story, a, b):
      raise DcjaxError(
        f'two intervals of {a.word!r} overlap; make them one, or leave a gap'
      )


def _check_apart(word: str, words: Iterable[str], prompt: str) -> None:
  """Beside 'red star', 'star' must be somewhere on its own."""
  rest = prompt
  for other in words:
    if other != word and _count(word, other):
      rest = re.sub(_whole_words(other), ' | ', rest)
      if not _count(word, rest):
        raise DcjaxError(
          f'the word {word!r} is in the prompt as a part of {other!r} alone; '
          'call each by words of its own'
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
    scale = _scale(getattr(guidance, key), f'guidance.{key}')
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


def number(
  value: Any, where: str, above: float | None = None, most: float = 1e9
) -> float:
  """The value; DcjaxError if it is no number, or not between two others."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not real or value != value or abs(value) == math.inf:
    raise DcjaxError(f'{where} is {_told(value)}; expected a number')
  if above is not None and value <= above:
    raise DcjaxError(f'{where} is {_told(value)}; expected more than {above:g}')
  if abs(value) > most:
    raise DcjaxError(f'{where} is {_told(value)}; expected {most:g} at most')
  return float(value)


def whole(value: Any, where: str, least: int, most: int | None = None) -> None:
  """Raises DcjaxError for what is no whole number, or not between two."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < least or (most is not None and value > most):
    upto = '' if most is None else f' to {most}'
    raise DcjaxError(
      f'{where} is {_told(value)}; expected a whole number from {least}{upto}'
    )


def _scale(value: Any, where: str) -> float:
  return number(value, where, most=SCALE)


def _told(value: Any) -> str:
  """As Python writes it, but for numbers that fill a page."""
  if isinstance(value, int) and abs(value) > 10**30:
    return 'a number of more than 30 digits'
  return repr(value)


def _size(size: Any) -> None:
  if size is None:
    return
  if len(size) != 2:
    raise DcjaxError(f'size is {list(size)!r}; expected [height, width]')
  for key, value in zip(('height', 'width'), size, strict=True):
    whole(value, f'the {key} of size', 1, SIDE)
