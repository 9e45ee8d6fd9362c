"""What a folder of captioned files gives, before anything is encoded.

    folder or table -> listing -> probes -> buckets

Needs no weights of the base: an inspection shows the same survey that training
starts from.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import logging
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from dcjax.data import buckets as buckets_lib
from dcjax.data import cache as cache_lib
from dcjax.data import folder as folder_lib
from dcjax.data import probe as probe_lib
from dcjax.data import windows
from dcjax.data.buckets import Bucket, Grid, Place, Size
from dcjax.data.folder import Item, Skipped
from dcjax.data.probe import Probe
from dcjax.errors import DcjaxError
from dcjax.weights.base import Base

# Fewer files than this are all learnt: none is held out.
FEW = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
  """A file that is used.

  Attributes:
    item: file, caption and mask.
    probe: what it holds.
    place: its bucket.
    digest: of the bytes of the file and its mask.
    notes: what the decoder warned of.
  """

  item: Item
  probe: Probe
  place: Place
  digest: str
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
  """What a folder gives.

  Attributes:
    entries: the files that are used.
    skipped: those that are not.
    fps: rate at which clips are learnt.
    grid: on which the buckets were chosen.
  """

  entries: list[Entry]
  skipped: list[Skipped]
  fps: float
  grid: Grid

  @property
  def buckets(self) -> list[Bucket]:
    return sorted({entry.place.bucket for entry in self.entries})

  @property
  def samples(self) -> int:
    return sum(entry.place.windows for entry in self.entries)


def read(
  base: Base,
  data: ConfigDict,
  *,
  cache: Path | None = None,
  look: Callable[[Item, np.ndarray], None] | None = None,
) -> Survey:
  """Finds out what can be learnt from a folder or a table.

  Args:
    base: whose sizes, rate and length are used; its weights are not.
    data: of `recipes.finetune`.
    cache: folder that keeps the probes.
    look: called with every frame of every file; the cache is then not used.

  Raises:
    DcjaxError: nothing can be used, or a number is impossible.
  """
  check(data)
  wording = folder_lib.Wording(data.caption, data.trigger, data.placeholder)
  listing = folder_lib.read(data.path, wording)
  grid, fps = grid_of(base), base.format.fps
  skipped, probed = list(listing.skipped), []
  for item in listing.items:
    try:
      probed.append(_probed(item, grid, fps, cache, look))
    except DcjaxError as error:
      reason = str(error).removeprefix(f'{item.path} ')
      skipped.append(Skipped(item.name, reason))
  if not probed:
    raise DcjaxError(
      f'{data.path} holds nothing to learn from: {_reasons(skipped)}'
    )
  shapes = buckets_lib.choose([x[1] for x in probed], grid, data.buckets.max)
  entries = []
  for item, size, probe, digest, notes in probed:
    place = buckets_lib.place(size, shapes, grid, data.windows)
    if place is None:
      reason = f'its {size.frames} frames are too few for the shapes chosen'
      skipped.append(
        Skipped(item.name, f'{reason}; allow more with data.buckets.max')
      )
    else:
      entries.append(Entry(item, probe, place, digest, notes))
  return Survey(entries, skipped, fps, grid)


def check(data: ConfigDict) -> None:
  """Refuses impossible numbers; DcjaxError names the key."""
  if data.windows < 0:
    raise DcjaxError(f'data.windows is {data.windows}; expected 0 or more')
  for key, value in (
    ('held_out', data.held_out),
    ('mask.outside', data.mask.outside),
  ):
    if not 0 <= value <= 1:
      raise DcjaxError(f'data.{key} is {value}; expected a number from 0 to 1')
  if data.mask.time not in windows.OVER_TIME:
    raise DcjaxError(
      f'data.mask.time is {data.mask.time!r}; use '
      f'{" or ".join(windows.OVER_TIME)}'
    )


def grid_of(base: Base) -> Grid:
  """What the base can make, about the size of its format."""
  f, space = base.format, base.vae.scale_factor_spatial
  rows, columns = (space * p for p in base.dit.patch[1:])
  time = base.vae.scale_factor_temporal
  return Grid(f.frames, f.height, f.width, rows, columns, time)


def describe(found: Survey) -> list[str]:
  """Lines for a person, before anything takes long."""
  clips = sum(not x.probe.is_still for x in found.entries)
  stills = len(found.entries) - clips
  lines = [
    f'data: {clips} clips and {stills} pictures at {found.fps:g} fps, '
    f'{found.samples} samples; {len(found.skipped)} files skipped'
  ]
  lines += [f'  skipped {x.name}: {x.reason}' for x in found.skipped]
  lines += [f'  note: {note}' for x in found.entries for note in x.notes]
  table = buckets_lib.table([x.place for x in found.entries])
  return lines + buckets_lib.lines(table)


def split(
  entries: Sequence[Entry], share: float
) -> tuple[list[Entry], list[Entry]]:
  """(files to learn, files held out), the same whatever their names."""
  count = 0
  if share and len(entries) >= FEW:
    count = min(max(1, round(share * len(entries))), len(entries) - 1)
  order = sorted(entries, key=lambda x: cache_lib.content_hash(x.digest))
  chosen = {id(x) for x in order[:count]}
  return (
    [x for x in entries if id(x) not in chosen],
    [x for x in entries if id(x) in chosen],
  )


# ---- one file ---------------------------------------------------------------


def _probed(
  item: Item, grid: Grid, fps: float, cache: Path | None, look
) -> tuple[Item, Size, Probe, str, tuple[str, ...]]:
  if not item.path.is_file() and not item.path.is_dir():
    raise DcjaxError(f'{item.path} is neither a file nor a folder')
  with _warnings() as notes:
    see = None if look is None else lambda image: look(item, image)
    probe = _probe(item.path, cache if look is None else None, see)
  frames = probe.count(fps)
  if not probe.is_still and frames <= grid.time:
    raise DcjaxError(
      f'it lasts {frames} frames at {fps:g} fps; a clip has {grid.time + 1} or '
      'more'
    )
  parts = [item.path]
  if item.mask is not None:
    _check_mask(_probe(item.mask, cache), probe, item.mask, fps)
    parts.append(item.mask)
  size = Size(frames, probe.height, probe.width)
  return item, size, probe, cache_lib.content_hash(*parts), tuple(notes)


def _probe(path: Path, cache: Path | None, see=None) -> Probe:
  if cache is None:
    return probe_lib.probe(path, see)
  arrays = cache_lib.cached(
    cache, {'probe': path}, lambda: probe_lib.to_arrays(probe_lib.probe(path))
  )
  return probe_lib.from_arrays(arrays)


def _check_mask(mask: Probe, clip: Probe, path: Path, fps: float) -> None:
  """Refuses a mask of another shape or length; a still one fits any clip."""
  aspect = mask.width * clip.height / (mask.height * clip.width)
  if abs(aspect - 1) > 0.02:
    raise DcjaxError(
      f'its mask {path.name} is {mask.width}x{mask.height} and it is '
      f'{clip.width}x{clip.height}: the shapes differ'
    )
  counts = mask.count(fps), clip.count(fps)
  if not mask.is_still and abs(counts[0] - counts[1]) > 1:
    raise DcjaxError(
      f'its mask {path.name} has {counts[0]} frames at {fps:g} fps and it has '
      f'{counts[1]}'
    )


def _reasons(skipped: Sequence[Skipped]) -> str:
  if not skipped:
    return 'it is empty'
  shown = '; '.join(f'{x.name}: {x.reason}' for x in skipped[:3])
  more = f'; and {len(skipped) - 3} more' if len(skipped) > 3 else ''
  return shown + more


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
  """Collects what the decoder warns of, instead of logging it."""
  messages: list[str] = []
  handler = logging.Handler()
  handler.emit = lambda record: messages.append(record.getMessage())
  logger = logging.getLogger('dcjax.data.decode')
  propagate, logger.propagate = logger.propagate, False
  logger.addHandler(handler)
  try:
    yield messages
  finally:
    logger.removeHandler(handler)
    logger.propagate = propagate
