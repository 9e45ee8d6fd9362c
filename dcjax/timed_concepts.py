"""Learnt concepts on a timeline: a look and a way of moving, from then to then.

What a storyboard asks of a concept is met twice: its LoRA acts on the tokens of
its frames only, and it is announced to the transformer as something with an
interval. That is either a picture of it, as a reference, or its sentence, as a
timed caption.
"""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from dcjax import concept_shapes as shapes
from dcjax import tree
from dcjax.concept import Concept, join
from dcjax.data import canvas
from dcjax.data import prompts as prompts_lib
from dcjax.errors import DcjaxError
from dcjax.models import intervals as times_lib
from dcjax.storyboard import TimedConcept
from dcjax.weights.base import Base

# A timed caption is read by a branch that began as a copy of this one.
_READS, _READS_TIMED = 'blocks/cross_attn/', 'blocks/timed_attn/'


def load(timed: Sequence[TimedConcept]) -> list[Concept]:
  """The files, their weights times those of the storyboard."""
  return [Concept.load(x.file).times(x.identity, x.motion) for x in timed]


def put_into(
  base: Base,
  transformer: tree.Tree,
  timed: Sequence[TimedConcept],
  concepts: Sequence[Concept],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Adds LoRA leaves that are gated apart, and the learned words.

  Args:
    base: that the concepts were learnt on.
    transformer: of that base, with what references need.
    timed: how each concept is placed.
    concepts: as many.

  Returns:
    (transformer with leaves `lora/{a1,b1,b2}` and, for several concepts,
    `lora/group`, see `lora.with_lora`; learned words).

  Raises:
    DcjaxError: as `Concept.put_into`.
  """
  joined = join(concepts)
  transformer, tokens = joined.put_into(base, transformer)
  flat = tree.flatten(transformer)
  flat |= _groups(concepts, flat)
  if any(x.timing == 'event' for x in timed):
    for name, x in list(flat.items()):
      timed_name = name.replace(_READS, _READS_TIMED)
      kernel = f'{timed_name.partition("/lora/")[0]}/kernel'
      if name.startswith(_READS) and '/lora/' in name and kernel in flat:
        flat[timed_name] = x
  return tree.unflatten(flat), tokens


def _groups(
  concepts: Sequence[Concept], flat: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Leaves that say of each rank of a joined LoRA whose it is."""
  if len(concepts) == 1:
    return {}
  owners: dict[str, list[int]] = {}
  for i, concept in enumerate(concepts):
    for layer, leaves in shapes.layers(concept.lora).items():
      # As `join` lays them side by side.
      rank = shapes.rank(shapes.with_basis_on_input(leaves))
      owners.setdefault(layer, []).extend([i] * rank)
  found = {}
  for layer, ranks in owners.items():
    lead = flat[f'{layer}/lora/a1'].shape[:-2]
    found[f'{layer}/lora/group'] = np.broadcast_to(
      np.asarray(ranks, np.int32), (*lead, len(ranks))
    )
  return found


def gate(
  frames: int,
  intervals: np.ndarray,
  fades: np.ndarray,
  parts: int,
  area: int,
  owners: Sequence[Sequence[int | None]],
  tag_tokens: int,
) -> np.ndarray:
  """How much of each concept's LoRA each token of the stream gets.

  Args:
    frames: T, latent frames of the video.
    intervals: [b g 2] of the concepts, in latent time.
    fades: [b g] latent frames over which each comes and goes.
    parts: video frames of a latent frame.
    area: tokens of a latent frame.
    owners: of each of the b videos, the concept that each of its m references
      belongs to, or None.
    tag_tokens: s, tokens of a word.

  Returns:
    [b n g] float32 of the stream of video, references and tags. The tokens of a
    concept's own picture and word get all of it.
  """
  of_frames = frame_gate(frames, intervals, fades, parts)
  video = np.repeat(of_frames, area, axis=1)
  count = intervals.shape[1]
  own = np.asarray(
    [[[float(o == g) for g in range(count)] for o in row] for row in owners],
    np.float32,
  ).reshape(len(video), -1, count)
  tail = [np.repeat(own, n, axis=1) for n in (area, tag_tokens)]
  return np.concatenate([video, *tail], axis=1).astype(np.float32)


def frame_gate(
  frames: int, intervals: np.ndarray, fades: np.ndarray, parts: int
) -> np.ndarray:
  """[b T g]: 1 in the latent frames of an interval, 0 outside.

  A latent frame belongs to an interval that holds any of its video frames: a
  concept that is cut off at a border is worse than one that stays a few frames
  longer (docs/results.md). A fade of w latent frames is a straight line over as
  many, centred on an end of the interval; there is none where the video itself
  begins or ends.

  Args:
    frames: T, latent frames of the video.
    intervals: [b g 2] latent times.
    fades: [b g] latent frames.
    parts: video frames of a latent frame.
  """
  t = np.asarray(times_lib.frame_times(frames, parts))[None, :, :, None]
  start, end = np.moveaxis(intervals, -1, 0)[:, :, None, None]
  touches = times_lib.TOUCHES
  start = np.where(start <= touches, -np.inf, start)
  end = np.where(end >= frames - 1 - touches, np.inf, end)
  outside = np.maximum(start - t, t - end)
  width = fades[:, None]
  ramp = 0.5 - outside / np.maximum(width, touches)[:, None]
  faded = np.clip(ramp, 0.0, 1.0).mean(2)
  return np.where(width > 0, faded, (outside <= touches).any(2))


def numbered(concepts: Sequence[Concept]) -> list[dict[str, str]]:
  """{learned word: its name on the storyboard} of each concept."""
  return shapes.numbering([concept.tokens for concept in concepts])


def check_prompt(
  timed: TimedConcept, names: dict[str, str], prompt: str, where: str
) -> None:
  """A look that was learnt as [v] is called by it, and once.

  Raises:
    DcjaxError: the prompt does not hold its [v], for a concept that is placed
      by a picture, or holds it twice.
  """
  for old, new in names.items():
    count = prompt.count(f'[{new}]')
    least = 1 if timed.timing == 'reference' else 0
    if old.startswith('v') and not least <= count <= 1:
      raise DcjaxError(
        f'the prompt holds [{new}] of {where} {count} times; expected it once: '
        f'{prompt!r}'
      )


def word(
  timed: TimedConcept, names: dict[str, str], prompt: str, where: str
) -> str:
  """What a concept is called in the prompt: its word, or that after its [v].

  Raises:
    DcjaxError: it has none.
  """
  if timed.word:
    return timed.word
  for old, new in names.items():
    found = re.search(rf'\[{new}\]\s+([^\W\d_][\w-]*)', prompt)
    if old.startswith('v') and found:
      return found[1]
  raise DcjaxError(
    f'{where} has no word: no noun follows its [v] in the prompt {prompt!r}; '
    'give it a "word" of the prompt'
  )


def picture(
  timed: TimedConcept, concept: Concept, size: tuple[int, int], where: str
) -> np.ndarray:
  """A picture of a concept on a canvas, uint8 [h w 3].

  Raises:
    DcjaxError: the file carries no frames and the storyboard gives no image.
  """
  if timed.image:
    return canvas.load_reference(timed.image, size)
  if concept.frames is None:
    raise DcjaxError(
      f'{where}: {timed.file} carries no frames; give an "image" of it, or '
      'place it with "timing": "event"'
    )
  return canvas.canvas(concept.frames[len(concept.frames) // 2], size)


def sentence(
  timed: TimedConcept, concept: Concept, names: dict[str, str], where: str
) -> str:
  """The timed caption of a concept, with its words as the storyboard has them.

  Raises:
    DcjaxError: neither the storyboard nor the file tells one.
  """
  if timed.text:
    return timed.text
  prompts = concept.meta.get('prompts') or {}
  text = prompts_lib.join(
    prompts.get('appearance', ''), prompts.get('motion', '')
  )
  if not text:
    raise DcjaxError(
      f'{where}: {timed.file} tells no prompts; give it a "text"'
    )
  return re.sub(
    r'\[([vu]\d*)\]', lambda found: f'[{names.get(found[1], found[1])}]', text
  )
