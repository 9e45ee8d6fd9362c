"""The storyboard: who is on screen, and when. Every time is in seconds.

  {"prompt": "a dog and a cat in a garden", "seconds": 5.0, "size": [480, 832],
   "fps": 16, "seed": 0,
   "references": [{"image": "dog.png", "word": "dog", "start": 0.5, "end": 3}],
   "concepts": [{"file": "cat/concept.safetensors", "start": 2, "end": 5}],
   "events": [{"text": "the dog runs in", "start": 0.5, "end": 2}],
   "guidance": {"text": 4.0, "reference": 1.5, "both": 0.0},
   "steps": 40, "shift": 5.66}

Paths are relative to the file's folder. Whatever is left out is the base's own,
and who has no interval is there all the time. A subject that comes back is two
references with the same word and image.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from dcjax import storyboard_rules as rules
from dcjax import strict_json
from dcjax.errors import DcjaxError


@dataclasses.dataclass(frozen=True)
class Reference:
  """A picture of a subject, and when it is to be there.

  Attributes:
    image: path.
    word: what it is called in the prompt, an exact part of it.
    start: seconds.
    end: seconds; None: to the end of the video.
  """

  image: str
  word: str
  start: float = 0.0
  end: float | None = None


@dataclasses.dataclass(frozen=True)
class TimedConcept:
  """A learnt concept, and when it is to be there.

  Attributes:
    file: path of the concept, or of the LoRA of another tool.
    identity: weight of the look, times that of the file.
    motion: weight of the motion, times that of the file.
    start: seconds.
    end: seconds; None: to the end of the video.
    timing: 'reference', frames of the concept are references with this
      interval; 'event', its sentence is a timed caption with this interval.
    word: for 'reference', what it is called in the prompt; '' takes the word
      after its [v].
    image: for 'reference', path of a picture instead of the frames that the
      file carries.
    text: for 'event', its sentence; '' takes the prompts of its training.
    gate: whether its LoRA acts on the frames of the interval only.
    fade: seconds over which a gated LoRA comes and goes.
  """

  file: str
  identity: float = 1.0
  motion: float = 1.0
  start: float = 0.0
  end: float | None = None
  timing: str = 'reference'
  word: str = ''
  image: str = ''
  text: str = ''
  gate: bool = True
  fade: float = 0.0


@dataclasses.dataclass(frozen=True)
class Event:
  """A timed caption, in seconds."""

  text: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Scales of the guidance; what they multiply, says the function of `flow`.

  Attributes:
    text: s_T.
    reference: s_R, or s_I.
    both: s_RT, of 'three_weight' only.
    time: s_W, of every form.
    form: a key of `storyboard_rules.FORMS`.
  """

  text: float
  reference: float
  both: float = 0.0
  time: float = 0.0
  form: str = 'three_weight'


@dataclasses.dataclass(frozen=True)
class Storyboard:
  """One video to make.

  Attributes:
    prompt: of the whole video.
    seconds: from the first instant to the last: (frames - 1) / fps.
    size: (height, width) in pixels.
    fps: frames a second.
    seed: of the noise.
    references: pictures with words and intervals; they may overlap.
    concepts: learnt concepts with intervals; their words are numbered in order:
      [v1] [u1] [v2] [u2] ..., or [v] [u] if there is one.
    events: timed captions, which may not overlap.
    guidance: of references and text.
    steps: of the sampler.
    shift: time shift of the sampler.

  None stands for the base's own value.

  Raises:
    DcjaxError: an interval is empty, reversed or outside the video, a word is
      not in the prompt, and so on: one line, before anything is loaded.
  """

  prompt: str
  seconds: float | None = None
  size: tuple[int, int] | None = None
  fps: float | None = None
  seed: int = 0
  references: Sequence[Reference] = ()
  concepts: Sequence[TimedConcept] = ()
  events: Sequence[Event] = ()
  guidance: Guidance | None = None
  steps: int | None = None
  shift: float | None = None

  def __post_init__(self):
    for name in ('references', 'concepts', 'events'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if self.size is not None:
      object.__setattr__(self, 'size', tuple(self.size))
    rules.check(self)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Storyboard':
    """Reads a JSON file, strictly.

    Raises:
      DcjaxError: the file is missing or no storyboard; the line names the key
        that is wrong and what would be accepted. A picture or concept file is
        missing.
    """
    path = Path(path)
    if not path.exists():
      raise DcjaxError(f'there is no storyboard {path}')
    record = strict_json.read(path)
    try:
      story = parse(record, path.parent)
      story.check_files()
    except DcjaxError as error:
      raise DcjaxError(f'{path}: {error}') from error
    return story

  def save(self, path: str | os.PathLike) -> Path:
    """Writes the JSON file that `load` reads; files are named from there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = self.to_json(path.parent)
    path.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
    return path

  def to_json(self, folder: str | os.PathLike | None = None) -> dict[str, Any]:
    """As JSON values, without what is left to the base.

    Args:
      folder: that paths are to start from; None leaves them as they are.
    """
    record = {k: v for k, v in dataclasses.asdict(self).items() if _said(v)}
    for key in ('references', 'concepts', 'events'):
      if key in record:
        record[key] = [
          {k: v for k, v in x.items() if _said(v)} for x in record[key]
        ]
        for x in record[key]:
          for field in ('image', 'file'):
            if field in x and folder is not None:
              x[field] = _relative(x[field], folder)
    if 'size' in record:
      record['size'] = list(record['size'])
    return record

  def check_files(self) -> None:
    """Raises DcjaxError if a picture or a concept file is missing."""
    paths = [x.image for x in self.references]
    paths += [x.image for x in self.concepts if x.image]
    paths += [x.file for x in self.concepts]
    for path in paths:
      if not Path(path).is_file():
        raise DcjaxError(f'there is no file {path}')


# ---- from JSON ---------------------------------------------------------------


def parse(record: Any, folder: str | os.PathLike = '.') -> Storyboard:
  """A storyboard from its JSON values; paths start from the folder.

  Raises:
    DcjaxError: as `Storyboard`; or a key is unknown, missing or of a wrong
      type.
  """
  fields = _fields(record, Storyboard, 'the storyboard')
  for key, kind in _LISTS.items():
    values = fields.get(key, [])
    if not isinstance(values, list):
      raise DcjaxError(f'{key} is {values!r}; expected a list')
    fields[key] = tuple(
      kind(**_located(_fields(x, kind, f'{key}[{i}]'), folder))
      for i, x in enumerate(values)
    )
  if fields.get('guidance') is not None:
    fields['guidance'] = Guidance(
      **_fields(fields['guidance'], Guidance, 'guidance')
    )
  if 'size' in fields and not isinstance(fields['size'], list):
    raise DcjaxError(f'size is {fields["size"]!r}; expected [height, width]')
  return Storyboard(**fields)


_LISTS = {'references': Reference, 'concepts': TimedConcept, 'events': Event}


def _fields(record: Any, kind: type, where: str) -> dict[str, Any]:
  """The record, if its keys are the fields of a dataclass."""
  if not isinstance(record, dict):
    raise DcjaxError(f'{where} is {record!r}; expected an object with keys')
  fields = dataclasses.fields(kind)
  names = [field.name for field in fields]
  unknown = [key for key in record if key not in names]
  if unknown:
    raise DcjaxError(
      f'{where} has the unknown key {unknown[0]!r}; there is {", ".join(names)}'
    )
  for field in fields:
    if field.default is dataclasses.MISSING and field.name not in record:
      raise DcjaxError(f'{where} has no key {field.name!r}')
  return dict(record)


def _located(fields: dict[str, Any], folder: Any) -> dict[str, Any]:
  for key in ('image', 'file'):
    if isinstance(fields.get(key), str) and fields[key]:
      fields[key] = str(Path(folder) / fields[key])
  return fields


def _relative(path: str, folder: Any) -> str:
  """From the folder, if the file lies below it; else absolute."""
  path, folder = Path(path).resolve(), Path(folder).resolve()
  below = path.is_relative_to(folder)
  return path.relative_to(folder).as_posix() if below else str(path)


def _said(value: Any) -> bool:
  return value is not None and value != '' and value != ()
