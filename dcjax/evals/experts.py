"""The judge of S2VTime for real videos: Grounding DINO, SAM 2 and CLIP.

As AlcheMinT measures (Sec. 4): the subject's word is looked for in several
frames of its asked intervals, of the boxes found the one that looks most like
its description is kept, and its object is tracked through the whole video, both
ways. CLIP compares what is in the masks, before white, with the description and
with every reference picture.

The three networks are those of transformers, with PyTorch; install
`dcjax[eval]`. Nothing is downloaded unless asked for. Pictures are scaled and
normalised here, as the models' own processors want torchvision.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from dcjax.errors import DcjaxError
from dcjax.evals import crops, pretrained, timing
from dcjax.evals.items import Item, Subject
from dcjax.evals.judging import Verdict

_BATCH = 16  # crops that CLIP sees at once
_NAN = float('nan')


@dataclasses.dataclass(frozen=True)
class Experts:
  """A judge (see `judging`).

  Attributes:
    detector: GroundingDinoForObjectDetection.
    detector_words: its tokenizer.
    segmenter: Sam2VideoModel.
    clip: CLIPModel.
    clip_words: its tokenizer.
    looks: frames of the asked intervals in which a subject is looked for.
    box: least score of a box.
    overlap: of two boxes with a larger IoU the better one is kept.
    sides: (shortest, longest) side of the pictures that the detector sees.
    area: part of a frame that a mask must cover to be compared.
  """

  detector: Any
  detector_words: Any
  segmenter: Any
  clip: Any
  clip_words: Any
  looks: int = 5
  box: float = 0.35
  overlap: float = 0.5
  sides: tuple[int, int] = (800, 1333)
  area: float = timing.AREA

  def __call__(
    self,
    video: np.ndarray,
    fps: float,
    item: Item,
    pictures: Sequence[np.ndarray | None],
  ) -> Verdict:
    """Judges a video, uint8 [f h w 3]."""
    subjects = item.subjects
    masks = np.stack([self.masks(video, fps, x) for x in subjects])
    said = [x.description or x.word for x in subjects]
    texts = self.read(said)
    blank = np.full(texts.shape[1], _NAN)
    looks = np.stack(
      [blank if x is None else self.see([x])[0] for x in pictures]
    )
    count = len(subjects)
    text, similarity = np.full(count, _NAN), np.full((count, count), _NAN)
    for s in range(count):
      seen = np.flatnonzero(timing.presence(masks[s], self.area))
      if len(seen):
        found = self.see([crops.cut_out(video[f], masks[s, f]) for f in seen])
        text[s] = (found @ texts[s]).mean()
        similarity[s] = (found @ looks.T).mean(0)
    return Verdict(
      masks=masks,
      text=text,
      reference=np.diagonal(similarity).copy(),
      similarity=similarity,
      between=looks @ looks.T,
    )

  def masks(
    self, video: np.ndarray, fps: float, subject: Subject
  ) -> np.ndarray:
    """[f h w] bool of a subject; empty where it is not, or was never found."""
    found = self.find(video, fps, subject)
    if found is None:
      return np.zeros(video.shape[:3], bool)
    return self.track(video, *found)

  # ---- boxes -----------------------------------------------------------------

  def find(
    self, video: np.ndarray, fps: float, subject: Subject
  ) -> tuple[int, np.ndarray] | None:
    """(frame, box [x0 y0 x1 y1] in pixels) that looks most like the subject."""
    asked = timing.asked_frames(subject.intervals, len(video), fps)
    frames = np.flatnonzero(asked)
    if not len(frames):
      return None
    place = (np.arange(self.looks) + 0.5) / self.looks * len(frames)
    frames = np.unique(frames[place.astype(int)])
    boxes = [
      (f, x) for f in frames for x in self.detect(video[f], subject.word)
    ]
    if not boxes:
      return None
    found = [crops.square(crops.crop(video[f], box)) for f, box in boxes]
    words = self.read([subject.description or subject.word])
    frame, box = boxes[int((self.see(found) @ words[0]).argmax())]
    return int(frame), box

  def detect(self, picture: np.ndarray, phrase: str) -> list[np.ndarray]:
    """Boxes [x0 y0 x1 y1] in pixels of a phrase in uint8 [h w 3]."""
    import torch

    h, w, _ = picture.shape
    size = crops.fitted(h, w, *self.sides)
    words = self.detector_words(
      phrase.lower().rstrip('.') + '.', return_tensors='pt'
    )
    device = self.detector.device
    with torch.inference_mode():
      out = self.detector(
        pixel_values=crops.pixels([picture], size, crops.IMAGENET).to(device),
        **{k: v.to(device) for k, v in words.items()},
      )
    scores = out.logits[0].sigmoid().amax(-1).float().cpu().numpy()
    center = out.pred_boxes[0].float().cpu().numpy() * [w, h, w, h]
    keep = scores > self.box
    half = center[keep, 2:] / 2
    corners = np.concatenate(
      [center[keep, :2] - half, center[keep, :2] + half], 1
    )
    corners = np.clip(corners, 0, [w, h, w, h])
    sides = corners[:, 2:] - corners[:, :2]
    good = (sides >= 2).all(1)
    return crops.suppress(corners[good], scores[keep][good], self.overlap)

  # ---- masks -----------------------------------------------------------------

  def track(self, video: np.ndarray, frame: int, box: np.ndarray) -> np.ndarray:
    """[f h w] bool of the object in a box of one frame, tracked both ways."""
    import torch
    from transformers.models.sam2_video.modeling_sam2_video import (
      Sam2VideoInferenceSession,
    )

    f, h, w, _ = video.shape
    model = self.segmenter
    side = model.config.image_size
    size = (side, side) if isinstance(side, int) else tuple(side)
    session = Sam2VideoInferenceSession(
      video=crops.pixels(video, size, crops.IMAGENET),
      video_height=h,
      video_width=w,
      inference_device=model.device,
      inference_state_device=model.device,
      video_storage_device='cpu',
      dtype=model.dtype,
    )
    corners = np.reshape(box, (2, 2)) * [size[1] / w, size[0] / h]
    prompt = {
      'point_coords': torch.tensor(corners, dtype=torch.float32)[None, None],
      # A box is its upper left (2) and lower right (3) corner.
      'point_labels': torch.tensor([[[2, 3]]], dtype=torch.int32),
    }
    session.add_point_inputs(session.obj_id_to_idx(1), frame, prompt)
    session.obj_with_new_inputs = [1]
    masks = np.zeros((f, h, w), bool)
    for reverse in (False, True):
      for out in model.propagate_in_video_iterator(
        session, start_frame_idx=frame, reverse=reverse
      ):
        scores = torch.nn.functional.interpolate(
          out.pred_masks.float(), (h, w), mode='bilinear', align_corners=False
        )
        masks[out.frame_idx] = (scores[0, 0] > 0).cpu().numpy()
    return masks

  # ---- likeness --------------------------------------------------------------

  def see(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Unit features [n d] of pictures uint8 [h w 3], made square on white."""
    import torch

    side = self.clip.config.vision_config.image_size
    found = []
    for i in range(0, len(pictures), _BATCH):
      batch = [
        crops.pixels([crops.square(x)], (side, side), crops.CLIP)
        for x in pictures[i : i + _BATCH]
      ]
      with torch.inference_mode():
        out = self.clip.get_image_features(
          torch.cat(batch).to(self.clip.device)
        )
      found.append(crops.unit(out))
    return np.concatenate(found)

  def read(self, texts: Sequence[str]) -> np.ndarray:
    """Unit features [n d] of texts."""
    import torch

    words = self.clip_words(
      list(texts),
      padding=True,
      truncation=True,
      max_length=self.clip.config.text_config.max_position_embeddings,
      return_tensors='pt',
    )
    device = self.clip.device
    with torch.inference_mode():
      out = self.clip.get_text_features(
        input_ids=words['input_ids'].to(device),
        attention_mask=words['attention_mask'].to(device),
      )
    return crops.unit(out)


def load(
  *,
  detector: str,
  segmenter: str,
  clip: str,
  looks: int = 5,
  area: float = timing.AREA,
  device: str = '',
  download: bool = False,
) -> Experts:
  """Reads the three networks.

  Args:
    detector: folder or hub id of a Grounding DINO.
    segmenter: of a SAM 2 or 2.1.
    clip: of a CLIP.
    looks: see `Experts`.
    area: see `Experts`.
    device: of torch; '' is cuda if there is one, else cpu.
    download: whether the hub may be asked for what is not in its cache.

  Raises:
    DcjaxError: PyTorch is not installed, or weights are not there.
  """
  if looks < 1:
    raise DcjaxError(f'looks is {looks}; expected 1 frame or more')
  pretrained.require_torch('the judge of real videos')
  import transformers

  device = pretrained.device(device)

  def model(kind: str, name: str) -> Any:
    network = pretrained.load(getattr(transformers, kind), name, download)
    return network.to(device)

  return Experts(
    model('GroundingDinoForObjectDetection', detector),
    pretrained.load_tokenizer(detector, download),
    model('Sam2VideoModel', segmenter),
    model('CLIPModel', clip),
    pretrained.load_tokenizer(clip, download),
    looks=looks,
    area=area,
  )
