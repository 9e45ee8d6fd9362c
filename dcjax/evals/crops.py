"""Boxes, cut-outs and tensors of pictures for networks of PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Networks were trained with (mean and standard deviation of RGB, resampling).
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'bilinear')
CLIP = (
  (0.48145466, 0.4578275, 0.40821073),
  (0.26862954, 0.26130258, 0.27577711),
  'bicubic',
)


def cut_out(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """What a mask [h w] shows of uint8 [h w 3], before white, cut to its box."""
  white = np.where(mask[..., None], picture, np.uint8(255))
  y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return white[y[0] : y[-1] + 1, x[0] : x[-1] + 1]


def square(picture: np.ndarray) -> np.ndarray:
  """A picture uint8 [h w 3] in the middle of a white square."""
  h, w, _ = picture.shape
  side = max(h, w)
  canvas = np.full((side, side, 3), 255, np.uint8)
  top, left = (side - h) // 2, (side - w) // 2
  canvas[top : top + h, left : left + w] = picture
  return canvas


def suppress(
  boxes: np.ndarray, scores: np.ndarray, overlap: float
) -> list[np.ndarray]:
  """Boxes [n 4], the best first, without those that overlap a better one."""
  kept: list[np.ndarray] = []
  for box in boxes[np.argsort(-scores, kind='stable')]:
    if all(_iou(box, other) <= overlap for other in kept):
      kept.append(box)
  return kept


def _iou(a: np.ndarray, b: np.ndarray) -> float:
  both = np.prod(
    np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
  )
  area = lambda x: np.prod(x[2:] - x[:2])
  return float(both / (area(a) + area(b) - both))


def crop(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
  """The part of a picture [h w 3] in a box [x0 y0 x1 y1]."""
  h, w, _ = picture.shape
  x0, y0 = np.floor(box[:2]).astype(int)
  x1, y1 = np.ceil(box[2:]).astype(int)
  return picture[max(y0, 0) : min(y1, h), max(x0, 0) : min(x1, w)]


def pixels(
  pictures: Sequence[np.ndarray],
  size: tuple[int, int],
  trained: tuple[Sequence[float], Sequence[float], str],
) -> Any:
  """Tensor [n 3 h w] of pictures uint8 [h w 3] of one size, normalised."""
  import torch

  mean, std, mode = trained
  x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
  x = torch.nn.functional.interpolate(
    x, size, mode=mode, align_corners=False, antialias=True
  ).clamp(0, 1)
  mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
  return (x - mean) / std


def fitted(
  height: int, width: int, shortest: int, longest: int
) -> tuple[int, int]:
  """(height, width) with a shortest side, unless the longest is too long."""
  scale = min(shortest / min(height, width), longest / max(height, width))
  return max(1, round(height * scale)), max(1, round(width * scale))


def unit(out: Any) -> np.ndarray:
  """Unit vectors [n d] of CLIP's output, a tensor in older transformers."""
  x = getattr(out, 'pooler_output', out).float().cpu().numpy()
  return x / np.linalg.norm(x, axis=-1, keepdims=True)
