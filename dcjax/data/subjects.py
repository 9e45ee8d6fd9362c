"""Annotated clips: who is on screen where and when, and what it is called."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Subject:
  """Something that a clip shows.

  Attributes:
    word: what it is called, an exact part of the clip's caption.
    mask: [f h w] bool, its visible pixels in every frame.
  """

  word: str
  mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class TimedText:
  """What happens from `start` to `end`, in seconds of the clip."""

  text: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True)
class AnnotatedClip:
  """A clip, and all that is known of it.

  Attributes:
    video: uint8 [f h w 3].
    fps: frames a second; frame i is the instant i / fps.
    caption: one text of the whole clip.
    subjects: in any order; may be empty.
    events: timed captions, in any order; may overlap.
  """

  video: np.ndarray
  fps: float
  caption: str
  subjects: tuple[Subject, ...]
  events: tuple[TimedText, ...]
