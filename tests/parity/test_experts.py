"""What networks of others are shown, beside their own processors."""

import numpy as np
import pytest
import torch
import transformers
from transformers.models.clip import image_processing_pil_clip
from transformers.models.grounding_dino import (
  image_processing_pil_grounding_dino,
)

from dcjax.evals import crops, experts


def picture(h, w):
  """Something smooth with edges, uint8 [h w 3]."""
  y, x = np.mgrid[:h, :w] / max(h, w)
  waves = [np.sin(9 * x + 5 * y), np.cos(7 * y), (x > 0.3) - 0.5 * (y > x)]
  return np.uint8(np.clip(127 + 100 * np.stack(waves, -1), 0, 255))


@pytest.mark.parametrize('h, w', [(40, 40), (50, 31), (20, 90)])
def test_clip_sees_the_same(h, w):
  processor = image_processing_pil_clip.CLIPImageProcessorPil(
    size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32}
  )
  square = crops.square(picture(h, w))
  theirs = processor(square, return_tensors='np')['pixel_values'][0]
  ours = crops.pixels([square], (32, 32), crops.CLIP)[0].numpy()
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).mean() < 0.01
  assert np.abs(ours - theirs).max() < 0.1


@pytest.mark.parametrize('h, w', [(48, 83), (83, 48), (30, 120), (64, 64)])
def test_the_detector_sees_the_same(h, w):
  kind = image_processing_pil_grounding_dino.GroundingDinoImageProcessorPil
  processor = kind(size={'shortest_edge': 80, 'longest_edge': 133})
  theirs = processor(picture(h, w), return_tensors='np')['pixel_values'][0]
  size = crops.fitted(h, w, 80, 133)
  # They round down where we round to the nearest.
  assert np.abs(np.subtract(size, theirs.shape[1:])).max() <= 1
  ours = crops.pixels([picture(h, w)], theirs.shape[1:], crops.IMAGENET)[0]
  assert np.abs(ours.numpy() - theirs).mean() < 0.01


def test_boxes_are_those_of_its_own_processor(monkeypatch):
  torch.manual_seed(0)
  out = transformers.models.grounding_dino.modeling_grounding_dino
  answer = out.GroundingDinoObjectDetectionOutput(
    logits=torch.randn(1, 12, 6) * 2 - 2,
    pred_boxes=torch.rand(1, 12, 4) * 0.3 + 0.35,
  )
  answer.input_ids = torch.tensor([[101, 5, 6, 102, 0, 0]])

  class Words:
    def __call__(self, text, **options):
      assert text == 'dog.'
      return {'input_ids': answer.input_ids}

    def batch_decode(self, ids):
      return [''] * len(ids)

  class Detector:
    device = 'cpu'

    def __call__(self, **inputs):
      return answer

  judge = experts.Experts(
    Detector(), Words(), None, None, None, box=0.35, overlap=1.0
  )
  ours = judge.detect(picture(60, 90), 'dog')
  process = transformers.GroundingDinoProcessor
  theirs = process.post_process_grounded_object_detection(
    Words(), answer, threshold=0.35, target_sizes=[(60, 90)]
  )[0]
  best = theirs['scores'].argsort(descending=True)
  expected = theirs['boxes'][best].numpy()
  assert len(ours) == len(expected) > 2
  np.testing.assert_allclose(ours, expected, atol=1e-3)
