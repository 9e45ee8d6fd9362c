"""Makes the README's picture from a finished run: its clip, then new scenes.

python benchmarks/teaser.py runs/set_seq docs/teaser.webp
"""

from pathlib import Path
import sys

import numpy as np

import dcjax

SCENES = (
  'reconstruction',
  'new_background',
  'patterned_place',
  'gradient_place',
)
SIZE, GAP, WHITE = 128, 6, 255


def main(run: str, out: str) -> None:
  """Writes the samples of a run side by side."""
  folder = Path(run) / 'samples'
  clips = [_clip(folder / f'final_{name}.mp4') for name in SCENES]
  clips = [_clip(folder / 'input.mp4'), *clips]
  frames = min(len(clip) for clip in clips)
  row = [np.pad(c[:frames], _border(), constant_values=WHITE) for c in clips]
  # A wider gap sets the input apart from what was made of it.
  row.insert(1, np.full((*row[0].shape[:2], 4 * GAP, 3), WHITE, np.uint8))
  dcjax.write_video(out, np.concatenate(row, axis=2), fps=8)


def _clip(path: Path) -> np.ndarray:
  video = dcjax.read_video(path, size=(SIZE, SIZE))
  return video.frames


def _border() -> tuple:
  return (0, 0), (GAP, GAP), (GAP, GAP), (0, 0)


if __name__ == '__main__':
  main(*sys.argv[1:])
