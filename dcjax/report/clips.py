"""The clips of the report: each a looping video inside the page."""

import base64
from collections.abc import Mapping
import dataclasses
import io
from pathlib import Path
import tempfile
from typing import Any

import numpy as np

from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.report import words

# Clips on the page have sides between these: smaller ones get larger pixels,
# which keeps their colours sharp in H.264; larger ones lie in samples/.
MIN_SIDE, MAX_SIDE = 256, 512


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
  """One clip of the report.

  Attributes:
    caption: what it is, in a few words: 'input clip', 'another place'.
    prompt: what it was made from; learned words such as [v] are marked.
    video: uint8 [f h w 3]; one frame is shown as a picture.
    fps: frames a second.
    group: heading under which it stands. Panels of the first group stand beside
      the title.
    settings: of the sampling, shown small: {'seed': 0, 'guidance': 3.0}.
    step: of the stage named `group`, for a preview during training. Previews
      stand beside that stage's curves, one row a prompt, ordered by step.
  """

  caption: str
  prompt: str
  video: np.ndarray
  fps: float
  group: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  step: int | None = None


def clip(panel: Panel) -> str:
  """A clip above what it is and how it was made."""
  chips = ''.join(
    f'<li>{words.text(key)} {words.plain(value)}</li>'
    for key, value in panel.settings.items()
  )
  chips = f'<ul class="chips">{chips}</ul>' if chips else ''
  prompt = words.prompt(panel.prompt) if panel.prompt else ''
  return (
    f'<figure class="clip">{media(panel)}<figcaption>'
    f'<p class="label">{words.heading(panel.caption)}</p>{prompt}{chips}'
    '</figcaption></figure>'
  )


def media(panel: Panel, *, lazy: bool = False) -> str:
  """A looping clip, or a picture if it has one frame."""
  video, scale = _for_page(panel.video, panel.fps)
  h, w = (side * scale for side in video.shape[1:3])
  shape = f'width="{w}" height="{h}"'
  if scale > 1:
    shape += ' class="small-pixels"'
  poster = _poster(video[0].repeat(scale, 0).repeat(scale, 1))
  label = f'{panel.caption}: {panel.prompt}' if panel.prompt else panel.caption
  label = words.text(label)
  if len(video) == 1:
    return f'<img {shape} src="{poster}" alt="{label}">'
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / 'clip.mp4'
    video_lib.write_video(file, video, panel.fps, scale=scale)
    clip = base64.b64encode(file.read_bytes()).decode()
  # Browsers bound the number of players: previews start when they are seen.
  start = 'preload="none"' if lazy else 'autoplay'
  return (
    f'<video {shape} {start} muted loop playsinline poster="{poster}" '
    f'src="data:video/mp4;base64,{clip}" aria-label="{label}"></video>'
  )


def picture(image: np.ndarray, label: str) -> str:
  """A picture uint8 [h w 3] as it is."""
  h, w, _ = image.shape
  label = words.text(label)
  return f'<img width="{w}" height="{h}" src="{_poster(image)}" alt="{label}">'


def _for_page(video: np.ndarray, fps: float) -> tuple[np.ndarray, int]:
  """A clip of a size that suits a page, and how often to repeat its pixels."""
  h, w = video.shape[1:3]
  if max(h, w) > MAX_SIDE:
    factor = MAX_SIDE / max(h, w)
    # Even sides, or H.264 would add a row that the poster lacks.
    h, w = (max(2, round(side * factor / 2) * 2) for side in (h, w))
    video = video_lib.fit(video_lib.Video(video, fps), h, w).frames
  scale = max(1, min(MIN_SIDE // min(h, w), MAX_SIDE // max(h, w)))
  return video, scale


def _poster(image: np.ndarray) -> str:
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'webp', quality=80)
  encoded = base64.b64encode(buffer.getvalue()).decode()
  return f'data:image/webp;base64,{encoded}'


def check(panel: Panel) -> None:
  """Raises a DcjaxError if the video is of another kind."""
  x = panel.video
  right = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 4
  if not (right and x.shape[-1] == 3 and x.size):
    kind = f'{getattr(x, "dtype", type(x).__name__)} {list(np.shape(x))}'
    raise DcjaxError(
      f'the video of {panel.caption!r} is {kind}; uint8 [f h w 3] is needed'
    )
