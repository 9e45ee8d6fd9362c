"""Scores of clips of the procedural world, judged by their pixels alone."""

import jax
import numpy as np

from dcjax.data.render import visible
from dcjax.data.scene import Scene
from dcjax.errors import DcjaxError
from dcjax.evals.reading import TRAVELLING, Reading, read

__all__ = ['Reading', 'read', 'score']


def score(videos: np.ndarray, scenes: Scene) -> dict[str, float]:
  """Accuracies of clips against the scenes that they should show.

  Args:
    videos: [n f h w 3] uint8.
    scenes: Scene with a leading axis n. Where it has two objects, each is read
      by its colour.

  Returns:
    Means in [0, 1] over objects, nan where nothing was to be judged:
      background, pattern, color, shape, motion: of the right answers.
      motion_centroid: of the motions that move the centre, judged by it alone.
      detected: objects that are seen in any frame.
      present, absent: frames with and without the object, where it should
        (not) be there; presence_iou: frames of both over frames of either.
      An object that is not there counts as a wrong colour, shape and motion.

  Raises:
    DcjaxError: numbers of videos and scenes differ.
  """
  scenes = jax.tree.map(np.asarray, scenes)
  if len(videos) != len(scenes.count):
    raise DcjaxError(
      f'{len(videos)} videos, but {len(scenes.count)} scenes to judge them by'
    )
  there = np.asarray(visible(scenes, videos.shape[1]))
  rows = []
  for i, video in enumerate(videos):
    for o in range(int(scenes.count[i])):
      alone = scenes.count[i] == 1
      reading = read(video, None if alone else int(scenes.color[i, o]))
      truth = jax.tree.map(lambda x, i=i: x[i], scenes)
      rows.append(_judge(reading, truth, o, there[i, o]))
  keys = rows[0].keys() if rows else ()
  return {key: _mean([row[key] for row in rows]) for key in keys}


def _judge(
  reading: Reading, scene: Scene, o: int, there: np.ndarray
) -> dict[str, float]:
  motion = scene.motion[o] if len(there) > 1 else -1
  moves = motion in TRAVELLING
  seen = reading.present
  both, either = (seen & there).sum(), (seen | there).sum()
  nan = float('nan')
  return {
    'background': float(reading.background == scene.background),
    'pattern': float(reading.pattern == scene.pattern),
    'color': float(reading.color == scene.color[o]),
    'shape': float(reading.shape == scene.shape[o]),
    'motion': float(reading.motion == motion) if motion >= 0 else nan,
    'motion_centroid': float(reading.motion_centroid == motion)
    if moves
    else nan,
    'detected': float(seen.any()),
    'present': float(seen[there].mean()) if there.any() else nan,
    'absent': float(1 - seen[~there].mean()) if (~there).any() else nan,
    'presence_iou': float(both / either) if either else nan,
  }


def _mean(values: list[float]) -> float:
  values = [value for value in values if value == value]
  return float(np.mean(values)) if values else float('nan')
