"""One page about a folder of captioned files, before it is trained on.

The survey is the one that training starts from; to it come what a person would
look for by eye: cuts, frozen and black stretches, near-duplicates, words that
the base does not know, and each clip as the model will see it.
"""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import tree
from dcjax.data import buckets as buckets_lib
from dcjax.data import probe as probe_lib
from dcjax.data import quality, tokenizer, windows
from dcjax.data import video as video_lib
from dcjax.data.buckets import Bucket
from dcjax.data.folder import Item
from dcjax.errors import DcjaxError
from dcjax.finetuning import survey as survey_lib
from dcjax.finetuning.survey import Entry, Survey
from dcjax.report import sheet
from dcjax.report.clips import Panel
from dcjax.weights.base import Base, load_base

SHOWN = 6  # frames of a strip
STRIP = 96  # its height in pixels
PREVIEW = 256  # longest side of a moving preview
# Losses that are worth a word.
CUT, LOST, ENLARGED = 0.25, 0.25, 1.25


def run(config: ConfigDict, workdir: str) -> None:
  """The `inspect` task of the command line."""
  for key, least in (('batch', 1), ('previews', 0)):
    if config[key] < least:
      raise DcjaxError(
        f'config.{key} is {config[key]}; expected {least} or more'
      )
  base = load_base(config.base, weights=False).with_format(**config.format)
  looks: dict[str, Look] = {}

  def look(item: Item, image: np.ndarray) -> None:
    looks.setdefault(item.name, Look()).see(image)

  survey = survey_lib.read(base, config.data, look=look)
  problems = find(base, survey, looks)
  path = sheet.write(
    Path(workdir) / 'inspection.html',
    title=Path(config.data.path).resolve().stem,
    totals=_totals(survey, config),
    table=buckets_lib.table([x.place for x in survey.entries]),
    cards=_cards(survey, looks, problems, config),
    skipped=[(x.name, x.reason) for x in survey.skipped],
    trigger=config.data.trigger,
  )
  print(*survey_lib.describe(survey), sep='\n')
  count = sum(bool(x) for x in problems.values())
  print(f'files with problems: {count} of {len(survey.entries)}')
  print(f'page: {path}')


class Look:
  """What is kept of a file while it is decoded.

  Attributes:
    small: every frame as uint8 [32 32 3].
    frames: some frames, uint8 [96 w 3], evenly spread.
  """

  def __init__(self):
    self.small: list[np.ndarray] = []
    self.frames: list[np.ndarray] = []
    self._every = 1

  def see(self, image: np.ndarray) -> None:
    """Takes the next frame, uint8 [h w 3]."""
    if len(self.small) % self._every == 0:
      self.frames.append(_shrunk(image, STRIP))
      if len(self.frames) == 4 * SHOWN:  # twice as far apart from here on
        self.frames = self.frames[::2]
        self._every *= 2
    self.small.append(quality.small(image))

  def strip(self, bucket: Bucket) -> np.ndarray:
    """Frames side by side; what the bucket crops is dark."""
    count = min(SHOWN, len(self.frames))
    index = np.linspace(0, len(self.frames) - 1, count).round().astype(int)
    shown = [_darkened(self.frames[i], bucket) for i in index]
    gap = np.full((STRIP, 4, 3), 128, np.uint8)
    parts = [x for frame in shown for x in (frame, gap)]
    return np.concatenate(parts[:-1], axis=1)


def find(
  base: Base, survey: Survey, looks: Mapping[str, Look]
) -> dict[str, list[str]]:
  """{file name: problems}, a sentence each."""
  entries = survey.entries
  problems = {
    x.item.name: [
      *x.notes,
      *_seen(x, looks[x.item.name]),
      *_lost(x, survey.fps),
      *_unread(base, x.item.caption),
    ]
    for x in entries
  }
  hashes = [quality.hashes(np.stack(looks[x.item.name].small)) for x in entries]
  alike: dict[str, list[str]] = {}
  for i, j in quality.near_duplicates(hashes):
    for one, other in ((i, j), (j, i)):
      names = alike.setdefault(entries[one].item.name, [])
      names.append(entries[other].item.name)
  for name, others in alike.items():
    problems[name].append(f'looks nearly like {tree.some(others, ", ")}')
  return problems


def _seen(entry: Entry, look: Look) -> list[str]:
  """Cuts and stretches without light or motion."""
  probe, frames = entry.probe, np.stack(look.small)
  if probe.is_still:
    return []
  found = []
  cuts = quality.cuts(frames, probe.times)
  if cuts:
    at = ', '.join(f'{time:.2f}' for time in cuts)
    found.append(f'scene cut at {at} s: split the file there')
  for word, stretches in (
    ('black', quality.black(frames, probe.times, probe.seconds)),
    ('frozen', quality.frozen(frames, probe.times, probe.seconds)),
  ):
    found += [f'{word} from {x.start:.2f} to {x.end:.2f} s' for x in stretches]
  return found


def _lost(entry: Entry, fps: float) -> list[str]:
  """What the bucket costs the file."""
  place, probe, found = entry.place, entry.probe, []
  if place.cut > CUT:
    found.append(f'{place.cut:.0%} of the picture is cropped')
  frames = place.windows * place.bucket.frames + place.lost
  if place.lost > LOST * frames:
    found.append(f'{place.lost} of its {frames} frames are left over')
  if place.scale > ENLARGED:
    found.append(f'it is enlarged {place.scale:.1f} times')
  if not probe.is_still and probe.fps < 0.95 * fps:
    found.append(
      f'its {probe.fps:.4g} fps are fewer than {fps:g}: frames are repeated'
    )
  return found


def _unread(base: Base, caption: str) -> list[str]:
  unknown, rest = tokenizer.unread(
    base.tokenizer, caption, base.format.text_length
  )
  found = []
  if unknown:
    found.append(f'the base does not know {", ".join(map(repr, unknown))}')
  if rest:
    found.append(f'the caption is too long; this is cut off: {rest}')
  return found


# ---- the page ---------------------------------------------------------------


def _totals(survey: Survey, config: ConfigDict) -> dict[str, str]:
  clips = sum(not x.probe.is_still for x in survey.entries)
  learnt, spare = survey_lib.split(survey.entries, config.data.held_out)
  samples = sum(x.place.windows for x in learnt)
  seconds = sum(x.probe.seconds for x in survey.entries)
  return {
    'clips': str(clips),
    'pictures': str(len(survey.entries) - clips),
    'not used': str(len(survey.skipped)),
    'length': f'{seconds:.1f} s',
    'samples': str(survey.samples),
    'held out': f'{len(spare)} of {len(survey.entries)} files',
    'steps an epoch': f'{math.ceil(samples / config.batch)} of {config.batch}',
    'compiled shapes': str(len(survey.buckets)),
    'rate': f'{survey.fps:g} fps',
  }


def _cards(
  survey: Survey,
  looks: Mapping[str, Look],
  problems: Mapping[str, Sequence[str]],
  config: ConfigDict,
) -> list[sheet.Card]:
  _, spare = survey_lib.split(survey.entries, config.data.held_out)
  held_out = {x.item.name for x in spare}
  # The previews go to those with most problems.
  order = sorted(survey.entries, key=lambda x: -len(problems[x.item.name]))
  cards = []
  for i, entry in enumerate(order):
    name = entry.item.name
    cards.append(
      sheet.Card(
        name,
        problems[name],
        _facts(entry, survey, held_out),
        entry.item.caption,
        looks[name].strip(entry.place.bucket),
        _preview(entry, survey.fps) if i < config.previews else None,
      )
    )
  return cards


def _facts(entry: Entry, survey: Survey, held_out: set[str]) -> dict[str, str]:
  probe, place, facts = entry.probe, entry.place, {}
  size = f'{probe.width} × {probe.height}'
  turned = _rotation(entry)
  facts['size'] = size + (f', turned by {turned}°' if turned else '')
  if not probe.is_still:
    uneven = '' if probe.is_even else ', uneven'
    facts['rate'] = f'{probe.fps:.4g} fps{uneven}'
    facts['length'] = f'{probe.seconds:.2f} s, {len(probe.times)} frames'
  f, h, w = place.bucket
  what = f'[{f} frames of {w} × {h}]' if f > 1 else f'a picture of {w} × {h}'
  facts['learnt as'] = f'{place.windows} × {what}'
  facts['loses'] = f'{place.cut:.0%} of the picture' + (
    f', {place.lost} frames at the end' if not probe.is_still else ''
  )
  if entry.item.mask:
    facts['mask'] = entry.item.mask.name
  if entry.item.name in held_out:
    facts['used'] = 'held out, to measure only'
  return facts


def _rotation(entry: Entry) -> int:
  try:
    return probe_lib.rotation(entry.item.path)
  except DcjaxError:
    return 0


def _preview(entry: Entry, fps: float) -> Panel:
  """The first sample, at the rate and in the shape of the model."""
  video = next(windows.windows(entry.item.path, entry.place, fps))
  h, w = video.shape[1:3]
  if max(h, w) > PREVIEW:
    h, w = (max(2, round(x * PREVIEW / max(h, w) / 2) * 2) for x in (h, w))
    video = video_lib.fit(video_lib.Video(video, fps), h, w).frames
  return Panel(entry.item.name, '', video, fps, 'preview')


def _shrunk(image: np.ndarray, height: int) -> np.ndarray:
  width = max(1, round(image.shape[1] * height / image.shape[0]))
  video = video_lib.Video(image[None], 1.0)
  return video_lib.fit(video, height, width).frames[0]


def _darkened(image: np.ndarray, bucket: Bucket) -> np.ndarray:
  """A frame whose parts outside of the bucket's crop are dark."""
  h, w, _ = image.shape
  scale = max(bucket.height / h, bucket.width / w)
  top = round((h - bucket.height / scale) / 2)
  left = round((w - bucket.width / scale) / 2)
  dark: Any = (image * 0.3).astype(np.uint8)
  inside = (slice(top, h - top), slice(left, w - left))
  dark[inside] = image[inside]
  return dark
