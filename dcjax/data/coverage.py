"""Masks of pixels on the grid of a causal autoencoder's latents."""

from typing import Any

from einops import pack, reduce


def on_latents(
  mask: Any, height: int, width: int, time: int, over_time: str = 'max'
) -> Any:
  """How much of the place of each latent pixel a mask covers.

  Averaged over the pixels of a position; over time the first frame stands alone
  and then `time` frames are one latent frame.

  Args:
    mask: [b 1+k*time h w] in 0..1, of numpy or of JAX.
    height: of the latents; a divisor of h.
    width: of the latents; a divisor of w.
    time: frames of a latent frame.
    over_time: 'max', what is covered in any of its frames, or 'mean'.

  Returns:
    [b 1+k height width] of the same library.
  """
  share = reduce(mask, 'b f (h p) (w q) -> b f h w', 'mean', h=height, w=width)
  later = reduce(share[:, 1:], 'b (f t) h w -> b f h w', over_time, t=time)
  return pack([share[:, :1], later], 'b * h w')[0]
