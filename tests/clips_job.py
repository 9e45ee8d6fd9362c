"""Clips that several processes encode, for `test_pods.py`.

  python tests/clips_job.py WORKDIR MESH CLIPS SHORT

Process I writes which clips it read, and the examples that it came to, into
WORKDIR/I.npz. Clip SHORT is too short, if there is one of that number.
"""

import dataclasses
from pathlib import Path
import sys

import jax
import numpy as np
import tiny

from dcjax import mesh, processes, sharding, tree
from dcjax.alchemint import dataset, recipe
from dcjax.data.subjects import AnnotatedClip, Subject
from dcjax.errors import DcjaxError
from dcjax.models.reference_config import ReferenceConfig


class Clips:
  """A red square that moves, at another place in each clip."""

  def __init__(self, clips, short):
    self.read, self._clips, self._short = [], clips, short

  def __len__(self):
    return self._clips

  def __getitem__(self, index):
    self.read.append(index)
    f = tiny.FORMAT
    frames = f.frames + (-1 if index == self._short else 2)
    video = np.full((frames, f.height, f.width, 3), 90, np.uint8)
    red = np.zeros(video.shape[:3], bool)
    for t in range(frames):
      red[t, 2:10, 2 * index + t : 2 * index + t + 8] = True
    video[red] = 230, 40, 30
    cast = (Subject('ball', red),)
    return AnnotatedClip(video, f.fps, 'a red ball', cast, ())


def main(workdir, sizes, clips, short):
  processes.initialize()
  config = recipe.alchemint('world')
  pairs = (pair.split('=') for pair in sizes.split(','))
  source = Clips(int(clips), int(short))
  with mesh.use(mesh.make({axis: int(n) for axis, n in pairs})):
    base = tiny.base()
    base = dataclasses.replace(base, params=sharding.place(base.params))
    samples = dataset.encode(
      base,
      source,
      config.data,
      ReferenceConfig(tag_tokens=3, max_references=4),
      processes.own(workdir) / 'cache',
      seed=0,
      views=2,
    )
  examples = [samples[i] for i in range(len(samples))]
  found = tree.flatten(jax.tree.map(lambda *x: np.stack(x), *examples))
  path = Path(workdir, f'{jax.process_index()}.npz')
  names = {name.replace('/', '.'): x for name, x in found.items()}
  np.savez(path, read=sorted(source.read), **names)


if __name__ == '__main__':
  try:
    main(*sys.argv[1:])
  except DcjaxError as error:
    sys.exit(f'error: {error}')
