"""The procedural world as annotated clips: objects that come, go and return.

  world = timeline.World(2048, seed=0)
  clip = world[5]      # AnnotatedClip, the same on every run

One, two or three objects, each there all the time, for a while, or twice.
Captions say what there is and how it moves, never when. After the frames of the
clip comes one more frame for each object, which shows it alone: a picture to
refer to that is not part of the clip.
"""

import collections
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.data import appearances
from dcjax.data.appearances import Appearances
from dcjax.data.render import FPS, SIZE, render
from dcjax.data.scene import OBJECT_FIELDS, Scene
from dcjax.data.subjects import AnnotatedClip, Subject, TimedText
from dcjax.errors import DcjaxError

FRAMES = 17
SPLITS = ('train', 'test')
CHUNK = 32  # scenes that are drawn at once
_KEPT = 4  # chunks in memory


class World:
  """A source of annotated clips, 64x64 pixels at 8 frames a second.

  Clip i depends on (seed, split, i, frames) alone. Its video has `frames`
  frames and one for each of its subjects, so that the window to learn from is
  the first one.

  Args:
    count: of clips.
    seed: 0 or more.
    split: 'train' never shows a held-out (colour, shape, motion) of
      `scene.is_held_out`, 'test' shows nothing else.
    frames: of the clip, without the pictures after it.

  Raises:
    DcjaxError: a number is too small, or the split unknown.
  """

  def __init__(
    self,
    count: int,
    *,
    seed: int = 0,
    split: str = 'train',
    frames: int = FRAMES,
  ):
    for name, value, least in (
      ('count', count, 0),
      ('seed', seed, 0),
      ('frames', frames, 2),
    ):
      if value < least:
        raise DcjaxError(f'{name} is {value}, expected {least} or more')
    if split not in SPLITS:
      raise DcjaxError(f"split is {split!r}, expected 'train' or 'test'")
    self.frames = frames
    self._count, self._seed, self._split = count, seed, split
    self._chunks = collections.OrderedDict()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> AnnotatedClip:
    index = self._checked(index)
    chunk, place = divmod(index, CHUNK)
    drawn = self._drawn(chunk)
    return _annotate(self.appearances(index), *(x[place] for x in drawn))

  def appearances(self, index: int) -> Appearances:
    """The scene of clip `index`, for judges that need the truth."""
    index = self._checked(index)
    return self._appearances(index)

  def _checked(self, index: int) -> int:
    if not 0 <= index < self._count:
      raise IndexError(f'clip {index} of {self._count}')
    return int(index)

  def _appearances(self, index: int) -> Appearances:
    rng = np.random.default_rng((self._seed, SPLITS.index(self._split), index))
    return appearances.draw(rng, split=self._split)

  def _drawn(self, chunk: int) -> tuple[np.ndarray, ...]:
    """Pictures and masks of all scenes of a chunk, the latest few kept."""
    with self._lock:
      if chunk not in self._chunks:
        scenes = [
          self._appearances(chunk * CHUNK + i)[::2] for i in range(CHUNK)
        ]
        batch = jax.tree.map(lambda *x: np.stack(x), *scenes)
        drawn = _draw(*batch, self.frames)
        self._chunks[chunk] = tuple(np.asarray(x) for x in drawn)
      self._chunks.move_to_end(chunk)
      if len(self._chunks) > _KEPT:
        self._chunks.popitem(last=False)
      return self._chunks[chunk]


@functools.partial(jax.jit, static_argnames='frames')
def _draw(scene: Scene, portrait: Scene, frames: int) -> tuple[jax.Array, ...]:
  """(video [n f h w 3], masks [n o f h w], portraits and their masks).

  Of [n] scenes and [n o] portraits; pictures are uint8.
  """
  # Only a loop branches: half of the work is not to draw what is not there.
  video, masks = jax.lax.map(
    lambda one: jax.lax.switch(
      one.count - 1,
      [
        functools.partial(_draw_some, count=n + 1, frames=frames)
        for n in range(appearances.OBJECTS)
      ],
      one,
    ),
    scene,
  )
  alone = jax.vmap(jax.vmap(lambda x: render(x, 2)))(portrait)
  return (
    video,
    masks,
    _to_uint8(alone.video[:, :, 0]),
    alone.mask[:, :, 0, 0],
  )


def _draw_some(
  scene: Scene, count: int, frames: int
) -> tuple[jax.Array, jax.Array]:
  """(video [f h w 3] uint8, masks [o f h w]) of the first `count` objects."""
  first = {name: getattr(scene, name)[:count] for name in OBJECT_FIELDS}
  clip = render(scene._replace(**first), frames)
  none = len(scene.shape) - count
  return _to_uint8(clip.video), jnp.pad(
    clip.mask, ((0, none), (0, 0), (0, 0), (0, 0))
  )


def _to_uint8(video: jax.Array) -> jax.Array:
  return jnp.round(video * 255.0).astype(jnp.uint8)


def _annotate(
  shown: Appearances,
  video: np.ndarray,
  masks: np.ndarray,
  portraits: np.ndarray,
  portrait_masks: np.ndarray,
) -> AnnotatedClip:
  """A clip from its pictures: see `_draw`, without the axis n."""
  scene, said, _ = shown
  count = int(scene.count)
  frames = len(video)
  words = appearances.names(scene, said)
  subjects = []
  for o, word in enumerate(words):
    after = np.zeros((count, SIZE, SIZE), bool)
    after[o] = portrait_masks[o]
    subjects.append(Subject(word, np.concatenate([masks[o], after])))
  seconds = (frames - 1) / FPS
  events = [
    TimedText(text, float(start * seconds), float(end * seconds))
    for text, spans in zip(
      appearances.sentences(scene, said), scene.interval[:count], strict=True
    )
    for start, end in spans
    if end > start
  ]
  return AnnotatedClip(
    video=np.concatenate([video, portraits[:count]]),
    fps=float(FPS),
    caption=appearances.caption(scene, said),
    subjects=tuple(subjects),
    events=tuple(events),
  )
