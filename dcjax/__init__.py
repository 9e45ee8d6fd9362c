"""dcjax: dynamic concepts for text-to-video diffusion transformers, in JAX.

  base = dcjax.load_base('world')
  cat = dcjax.personalize(base, 'clip.mp4', workdir='runs/cat', ...)
  video = dcjax.sample(base, 'a [v] cat [u] in the snow', concepts=[cat])
  dcjax.write_video('out.mp4', video, fps=8)

The axes of all arrays, which are channel-last:

  b batch     f frames      h w grid     c channels    n tokens    d width
  k heads     e head dim    l text tokens              m references
  r rank of LoRA

`t` is the flow time only: t = 1 is noise and t = 0 data, so that
x_t = (1 - t) x0 + t eps and the velocity is v = eps - x0.

Nothing below is imported before it is used: `import dcjax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from dcjax.concept import Concept
  from dcjax.data.video import read_video, write_video
  from dcjax.errors import DcjaxError
  from dcjax.personalization import personalize
  from dcjax.sampling import sample
  from dcjax.storyboard import Storyboard
  from dcjax.weights.base import Base, load_base

__version__ = '0.1.0'

__all__ = [
  'Base',
  'Concept',
  'DcjaxError',
  'Storyboard',
  '__version__',
  'load_base',
  'personalize',
  'read_video',
  'sample',
  'write_video',
]

# Public name -> the module that defines it. No submodule may have a public
# name: importing it would put the module in the name's place.
_HOMES = {
  'Base': 'dcjax.weights.base',
  'Concept': 'dcjax.concept',
  'DcjaxError': 'dcjax.errors',
  'Storyboard': 'dcjax.storyboard',
  'load_base': 'dcjax.weights.base',
  'personalize': 'dcjax.personalization',
  'read_video': 'dcjax.data.video',
  'sample': 'dcjax.sampling',
  'write_video': 'dcjax.data.video',
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  value = getattr(importlib.import_module(_HOMES[name]), name)
  globals()[name] = value  # The next access does not come here.
  return value


def __dir__() -> list[str]:
  return sorted(set(globals()) | set(__all__))
