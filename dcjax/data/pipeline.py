"""Batches for every stage.

A source is a random-access sequence of examples, each a dict of numpy arrays: a
plain list for a concept, whose latents fit in memory, or any grain.MapDataset.
`loader` makes one endless stream of it,

    shuffle anew each epoch -> repeat -> the rows of this process -> batch,

in which row r of step s is the same example on any number of processes: the
position in the data is one number, and a run may resume on other hardware. An
example is told its row as `sample`, by which a step draws its noise. Grain
reads ahead in threads; without it the same batches come, one after the other.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import sys
from typing import Any, Protocol

import jax
import numpy as np

from dcjax import sharding
from dcjax.errors import DcjaxError

# Half of what a length may be: Grain rounds it up to whole batches, as a float.
ENDLESS = sys.maxsize // 2

Example = dict[str, np.ndarray]
Source = Sequence[Example]  # or a grain.MapDataset of the same


class Loader(Protocol):
  """An endless iterator of batches that knows where it is.

  `get_state` is JSON and is independent of the number of processes; after
  `set_state` the iterator goes on with the same batches, bit for bit.
  """

  def __iter__(self) -> Iterator: ...
  def __next__(self) -> dict[str, Any]: ...
  def get_state(self) -> dict[str, Any]: ...
  def set_state(self, state: dict[str, Any]) -> None: ...


def frames(latents: Any, **shared: Any) -> list[Example]:
  """Stage *set*: each frame of a video as an image of its own.

  The frames are to be encoded one by one, as a clip's latents mix time. An
  example carries nothing of a frame's place: the loader draws them uniformly,
  and with one frame each the temporal position is 0 for all (Set-and-Sequence,
  section 3.2).

  Args:
    latents: [n h w c] or [n 1 h w c], one image a frame.
    **shared: arrays that are the same for all, such as text features [l d].

  Returns:
    n examples {'latents': [1 h w c], **shared}. Sets of several videos, each
    with its own text, are joined with `+`.

  Raises:
    DcjaxError: if `latents` has another shape.
  """
  latents = np.asarray(latents)
  if latents.ndim == 4:
    latents = latents[:, None]
  if latents.ndim != 5 or latents.shape[1] != 1 or not len(latents):
    raise DcjaxError(
      f'frames are latents [n 1 h w c] of single images, not '
      f'{list(latents.shape)}'
    )
  return _examples(latents, shared)


def clips(latents: Any, **shared: Any) -> list[Example]:
  """Stage *sequence*: the whole clip, in order, each time.

  Args:
    latents: [f h w c] of one clip, or several as [n f h w c] or a list.
    **shared: arrays that are the same for all.

  Returns:
    One example {'latents': [f h w c], **shared} a clip.

  Raises:
    DcjaxError: if the clips differ in shape or are none.
  """
  if not isinstance(latents, (list, tuple)):
    latents = np.asarray(latents)
    latents = latents[None] if latents.ndim == 4 else latents
  return _examples(_alike(latents), shared)


def prior(latents: Sequence[Any], texts: Sequence[Mapping]) -> list[Example]:
  """Samples of the unmodified base, each under its own text.

  Args:
    latents: one [f h w c] a sample (f is 1 for the stills of stage *set*).
    texts: one dict of arrays a sample, such as {'text': [l d], 'mask': [l]}.

  Returns:
    Examples {'latents': [f h w c], **text}.

  Raises:
    DcjaxError: if the counts or the shapes do not agree.
  """
  if len(latents) != len(texts):
    raise DcjaxError(
      f'{len(latents)} prior samples and {len(texts)} texts; one each is needed'
    )
  pairs = zip(_alike(latents), texts, strict=True)
  return [_examples([x], text)[0] for x, text in pairs]


def loader(
  source: Source,
  *,
  batch: int,
  seed: int,
  rows: Sequence[int] | None = None,
) -> Loader:
  """An endless, deterministic, resumable stream of batches.

  Each example comes once in an epoch; an epoch may end inside a batch, and a
  batch may hold an example several times (the one clip of stage *sequence*,
  which then meets several noises at once).

  Args:
    source: list of examples or grain.MapDataset.
    batch: examples a step over all processes.
    seed: of the order, 0 to 2^32 - 1.
    rows: of each batch, those that this process makes; by default what the
      current mesh gives it.

  Returns:
    A `Loader` of dicts of arrays with a leading axis of `rows`.

  Raises:
    DcjaxError: if the source is empty, or the batch does not divide.
  """
  if not len(source):
    raise DcjaxError('there are no examples to train on')
  return _loader(_Shuffled(source, seed), batch, rows)


def bucketed(
  sources: Sequence[Source],
  *,
  batch: int,
  seed: int,
  rows: Sequence[int] | None = None,
) -> Loader:
  """The same for examples of several shapes: each batch is of one source.

  A source's turn comes in proportion to its examples, exactly so over every
  sum(len(source)) steps, whose turns are shuffled anew. Within a source each
  example comes once in an epoch.

  Args:
    sources: of examples that stack; none is empty.
    batch: examples a step over all processes.
    seed: of turns and orders.
    rows: as of `loader`.

  Raises:
    DcjaxError: as `loader`.
  """
  if not sources or not all(len(source) for source in sources):
    raise DcjaxError('there are no examples to train on')
  return _loader(_Turns(sources, batch, seed), batch, rows)


def _loader(
  stream: Sequence[Example], batch: int, rows: Sequence[int] | None
) -> Loader:
  """Some rows of each batch of an endless sequence."""
  rows = sharding.local_rows(batch) if rows is None else rows
  stream = _Rows(stream, batch, rows)
  try:
    import grain
  except ImportError:
    return _Plain(stream, len(rows))
  # Batched before the iterator, whose state is then the number of the step.
  steps = grain.MapDataset.source(stream).batch(len(rows))
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  return iter(steps.to_iter_dataset(options))


def mix(concept: Loader, prior: Loader) -> 'Mixed':
  """Prior preservation: a batch of each a step, {'concept': .., 'prior': ..}.

  The two keep their own order, length and epochs.
  """
  return Mixed({'concept': concept, 'prior': prior})


class _Shuffled:
  """All epochs of a source, one after the other, each in an order of its own.

  Not Grain's shuffle, which takes milliseconds to draw one of a handful of
  examples: it walks through a whole block of indices to land among the few.
  """

  def __init__(self, source: Source, seed: int):
    self._source, self._seed = source, seed
    self._order = functools.lru_cache(maxsize=4)(self._permutation)

  def __len__(self):
    return ENDLESS

  def __getitem__(self, position: int) -> Example:
    epoch, k = divmod(int(position), len(self._source))
    return self._source[int(self._order(epoch)[k])]

  def _permutation(self, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((self._seed, epoch))
    return rng.permutation(len(self._source))


class _Turns:
  """Runs of `batch` examples, each run from one of several sources."""

  def __init__(self, sources: Sequence[Source], batch: int, seed: int):
    self._streams = [_Shuffled(x, seed + i) for i, x in enumerate(sources)]
    self._sizes = [len(x) for x in sources]
    self._batch, self._seed = batch, seed
    self._cycle = functools.lru_cache(maxsize=4)(self._permutation)

  def __len__(self):
    return ENDLESS

  def __getitem__(self, position: int) -> Example:
    step, place = divmod(int(position), self._batch)
    cycle, k = divmod(step, sum(self._sizes))
    which, earlier = (int(x[k]) for x in self._cycle(cycle))
    turn = cycle * self._sizes[which] + earlier
    return self._streams[which][turn * self._batch + place]

  def _permutation(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each step of a cycle its source, and that one's earlier steps."""
    order = np.repeat(np.arange(len(self._sizes)), self._sizes)
    # The third number tells these draws from those of the orders.
    order = np.random.default_rng((self._seed, cycle, 1)).permutation(order)
    earlier = np.zeros_like(order)
    for which, size in enumerate(self._sizes):
      earlier[order == which] = np.arange(size)
    return order, earlier


class _Rows:
  """Some rows of each batch of a sequence, one after the other."""

  def __init__(
    self, stream: Sequence[Example], batch: int, rows: Sequence[int]
  ):
    self._stream, self._batch, self._rows = stream, batch, rows

  def __len__(self):
    return ENDLESS

  def __getitem__(self, position: int) -> Example:
    step, place = divmod(int(position), len(self._rows))
    row = self._rows[place]
    example = self._stream[step * self._batch + row]
    return {**example, 'sample': np.int32(row)}


class _Plain:
  """What `_loader` builds where Grain is not installed."""

  def __init__(self, stream: Sequence[Example], batch: int):
    self._stream, self._batch, self._step = stream, batch, 0

  def __iter__(self):
    return self

  def __next__(self):
    first = self._step * self._batch
    self._step += 1
    examples = [self._stream[first + k] for k in range(self._batch)]
    return jax.tree.map(lambda *x: np.stack(x), *examples)

  def get_state(self):
    return {'next_index': self._step}

  def set_state(self, state):
    self._step = state['next_index']


class Mixed:
  """Batches of several loaders in one step: {name: batch}.

  Each has its own order and epochs. The state is that of all of them.
  """

  def __init__(self, parts: Mapping[str, Loader]):
    self._parts = parts

  def __iter__(self):
    return self

  def __next__(self):
    return {name: next(part) for name, part in self._parts.items()}

  def get_state(self):
    return {name: part.get_state() for name, part in self._parts.items()}

  def set_state(self, state):
    for name, part in self._parts.items():
      part.set_state(state[name])


def _examples(latents: Sequence[Any], shared: Mapping) -> list[Example]:
  shared = {name: np.asarray(x) for name, x in shared.items()}
  return [{'latents': x, **shared} for x in latents]


def _alike(latents: Sequence[Any]) -> list[np.ndarray]:
  """Clips as arrays, once they are known to stack."""
  arrays = [np.asarray(x) for x in latents]
  shapes = sorted({x.shape for x in arrays})
  if len(shapes) != 1 or len(shapes[0]) != 4:
    raise DcjaxError(
      f'clips are latents [f h w c] of one shape, not '
      f'{", ".join(str(list(x)) for x in shapes) or "none"}'
    )
  return arrays
