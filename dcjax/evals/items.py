"""What S2VTime asks for: storyboards to make videos of, and to judge.

`item_file` reads and writes them.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from pathlib import Path
from typing import Any

from dcjax.data import casting
from dcjax.evals.timing import Interval

_DIGITS = 4  # of seconds at which timed captions are cut


@dataclasses.dataclass(frozen=True)
class Reference:
  """A picture of a subject, and when it is to be there.

  Attributes:
    image: path relative to the benchmark file; '' if there is none yet.
    word: what it is called in the prompt, an exact part of it.
    start: seconds.
    end: seconds.
    description: what the picture shows, in words.
  """

  image: str
  word: str
  start: float
  end: float
  description: str = ''


@dataclasses.dataclass(frozen=True)
class Event:
  """A timed caption, in seconds."""

  text: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True)
class Subject:
  """All references of one item to the same thing.

  Attributes:
    word: what it is called in the prompt.
    image: path of its picture.
    description: what the picture shows.
    intervals: when it is to be there, in seconds and in order of time.
  """

  word: str
  image: str
  description: str
  intervals: tuple[Interval, ...]


@dataclasses.dataclass(frozen=True)
class Item:
  """One video to make.

  Attributes:
    id: name of its video, without the suffix.
    prompt: the global caption.
    seconds: duration, from the first instant to the last.
    size: (height, width) in pixels.
    fps: frames a second.
    references: whom it shows, and when.
    events: timed captions, in order of time.
    kind: by which scores are split.
    group: of items whose first intervals have the same midpoint; '' is none.
    seed: of the noise.
    options: further keys of a storyboard: guidance, steps, shift.
  """

  id: str
  prompt: str
  seconds: float
  size: tuple[int, int]
  fps: float
  references: tuple[Reference, ...]
  events: tuple[Event, ...] = ()
  kind: str = ''
  group: str = ''
  seed: int = 0
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def subjects(self) -> tuple[Subject, ...]:
    """The things that are referred to, in the order of their references."""
    found: dict[tuple[str, str], list[Reference]] = {}
    for reference in self.references:
      key = reference.word, reference.image
      found.setdefault(key, []).append(reference)
    return tuple(
      Subject(
        word,
        image,
        of[0].description,
        tuple(sorted((x.start, x.end) for x in of)),
      )
      for (word, image), of in found.items()
    )

  def storyboard(self) -> dict[str, Any]:
    """The item without what only judges read, as a storyboard's JSON."""
    keys = ('image', 'word', 'start', 'end')
    return {
      'prompt': self.prompt,
      'seconds': self.seconds,
      'size': list(self.size),
      'fps': self.fps,
      'seed': self.seed,
      'references': [{k: getattr(x, k) for k in keys} for x in self.references],
      'events': [dataclasses.asdict(x) for x in self.events],
      **self.options,
    }


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """Items, and the folder that their pictures' paths start from."""

  name: str
  items: tuple[Item, ...]
  folder: Path

  def image(self, subject: Subject | Reference) -> Path:
    return self.folder / subject.image


def lane(told: Iterable[tuple[str, Interval]]) -> tuple[Event, ...]:
  """Timed captions in order of time, cut as by `casting.apart`.

  Args:
    told: (text, (start, end)) of each.
  """
  rows = [(*interval, text) for text, interval in told]
  asked = {time for start, end, _ in rows for time in (start, end)}
  near = lambda time: time if time in asked else round(time, _DIGITS)
  return tuple(
    Event(text, near(start), near(end))
    for start, end, text in casting.apart(rows)
  )


def timed_prompt(item: Item) -> str:
  """The prompt for models that know time by words alone (AlcheMinT, Sec. 4)."""
  said = [
    f'{x.word} appears between {x.start:g} seconds and {x.end:g} seconds.'
    for x in item.references
  ]
  return ' '.join([item.prompt, *said])
