"""What became of a storyboard: the lanes of its timeline picture.

On the embedded base who is there is read from the pixels: a subject by the
colour of its reference, a concept by its two tones. On other bases nothing here
measures it, and the picture says so; `evals.experts` does.
"""

from collections import Counter
from collections.abc import Sequence
import re

import numpy as np

from dcjax import timed_concepts
from dcjax.concept import Concept
from dcjax.data import canvas
from dcjax.errors import DcjaxError
from dcjax.evals import oracle, timing, two_tones, world_judge
from dcjax.report.timeline import Lane
from dcjax.storyboard import Storyboard, TimedConcept
from dcjax.weights.base import Base

_THUMBNAIL = (96, 96)


def lanes(
  base: Base,
  story: Storyboard,
  video: np.ndarray,
  concepts: Sequence[Concept] = (),
) -> tuple[list[Lane], str]:
  """Lanes of `report.timeline`, and a note on how presence was measured.

  Args:
    base: that made the video.
    story: resolved, see `timed_plan.resolve`.
    video: uint8 [f h w 3].
    concepts: of the storyboard, in its order.
  """
  subjects: dict[tuple[str, str], list[tuple[float, float]]] = {}
  for x in story.references:
    subjects.setdefault((x.word, x.image), []).append((x.start, x.end))
  pictures = {
    image: canvas.load_reference(image, _THUMBNAIL) for _, image in subjects
  }
  measured = base.name == 'world'
  seen = _seen(video, pictures) if measured else {}
  rows = [
    Lane(word, 'reference', sorted(times), pictures[image], seen.get(image))
    for (word, image), times in subjects.items()
  ]
  names = timed_concepts.numbered(concepts) if concepts else []
  for placed, concept, words in zip(
    story.concepts, concepts, names, strict=True
  ):
    name = _called(placed, words, story.prompt)
    rows.append(_of_concept(name, placed, concept, video, measured))
  rows += [
    Lane(x.text, 'event', [(x.start, x.end)])
    for x in sorted(story.events, key=lambda x: x.start)
  ]
  return rows, _note(rows, measured)


def _note(rows: Sequence[Lane], measured: bool) -> str:
  subjects = [x for x in rows if x.kind != 'event']
  if not subjects:
    return ''
  if not measured:
    return 'presence was not measured: only the embedded base has a judge'
  unread = [x.name for x in subjects if x.present is None]
  if unread:
    return f'not told apart by colour: {", ".join(unread)}'
  return 'presence by colour, from pixels alone'


def _seen(
  video: np.ndarray, pictures: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """{picture: [f] bool} of those that have a colour of their own."""
  colors = {}
  for name, picture in pictures.items():
    try:
      colors[name] = world_judge.color_of(picture)
    except DcjaxError:  # pale or white: it has none
      continue
  shared = Counter(colors.values())
  return {
    name: timing.presence(oracle.read(video, color).mask)
    for name, color in colors.items()
    if shared[color] == 1
  }


def _called(placed: TimedConcept, words: dict[str, str], prompt: str) -> str:
  """Its word, or its [v] with the noun that follows it."""
  look = next((new for old, new in words.items() if old[0] == 'v'), '')
  found = look and re.search(rf'\[{look}\]\s+[\w-]+', prompt)
  return placed.word or (found[0] if found else f'[{look}]')


def _of_concept(
  name: str,
  placed: TimedConcept,
  concept: Concept,
  video: np.ndarray,
  measured: bool,
) -> Lane:
  picture = None
  if placed.image:
    picture = canvas.load_reference(placed.image, _THUMBNAIL)
  elif concept.frames is not None:
    still = concept.frames[len(concept.frames) // 2]
    picture = canvas.canvas(still, _THUMBNAIL)
  present = None
  if measured and concept.frames is not None:
    present = _shows(video, concept.frames)
  return Lane(name, 'concept', [(placed.start, placed.end)], picture, present)


def _shows(video: np.ndarray, frames: np.ndarray) -> np.ndarray | None:
  """In which frames of a video a concept is, [f] bool, if it can be known."""
  if frames.shape[1:] != video.shape[1:]:
    return None
  finder = two_tones.finder(frames)
  return None if finder is None else finder.find(video).present
