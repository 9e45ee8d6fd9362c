"""Flow matching: the path, its samplers, and guidance. Pure functions.

  (1)  x_t = (1 - t) x0 + t eps              t = 1 is noise, t = 0 is data
  (2)  v   = d x_t / dt = eps - x0
  (3)  L   = mean || v_theta(x_t, t, c) - v ||^2
  (4)  x0  = x_t - t v,   eps = x_t + (1 - t) v
  (5)  shift(s, t) = s t / (1 + (s - 1) t)
  (6)  v_guided = v_null + g (v_text - v_null)
  (7)  v_guided = c_RT v(R,T) + c_R v(R,0) + c_T v(0,T) + c_0 v(0,0)

with references R and text T; the coefficients of Eq. (7) sum to 1.

A sampler integrates dx/dt = v from t = 1 to t = 0. It calls
`velocity(x, t, x0_hat)`, where x0_hat is the previous step's estimate of the
clean sample (zeros at first), which bases with self-conditioning read.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.errors import DcjaxError

Velocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def interpolate(x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
  """Eq. (1): x0 and eps [b ...], t [b]."""
  t = _like(t, x0)
  return (1.0 - t) * x0 + t * eps


def velocity(x0: jax.Array, eps: jax.Array) -> jax.Array:
  """Eq. (2)."""
  return eps - x0


def x0_from_velocity(x: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
  """Eq. (4): x and v [b ...], t [b]."""
  return x - _like(t, x) * v


def shift(s: float, t):
  """Eq. (5); s > 1 spends more of the time near noise."""
  return s * t / (1.0 + (s - 1.0) * t)


def guide(v_text: jax.Array, v_null: jax.Array, g: float) -> jax.Array:
  """Eq. (6), classifier-free guidance; g = 1 is none."""
  return v_null + g * (v_text - v_null)


# ---- guidance by text and references -----------------------------------------

# What each pass of the network is told, in the order of Eq. (7). 'always' is
# told both, and that the references are there all the time.
PASSES = ('both', 'references', 'text', 'none', 'always')
# Of the first passes, or of all.
Coefficients = tuple[float, ...]


def three_weight(
  s_text: float, s_reference: float, s_both: float = 0.0
) -> Coefficients:
  """A scale for what text, references and both of them add.

    v(R,T) + s_T [v(R,T) - v(R,0)] + s_R [v(R,T) - v(0,T)]
           + s_RT [v(R,T) - v(0,0)]

  Every guidance with coefficients that sum to 1 is of this form.
  """
  whole = 1.0 + s_text + s_reference + s_both
  return whole, -s_text, -s_reference, -s_both


def video_alchemist(s_text: float, s_reference: float) -> Coefficients:
  """The guidance of Video Alchemist: `three_weight` without the last scale."""
  return three_weight(s_text, s_reference)


def instruct_pix2pix(s_reference: float, s_text: float) -> Coefficients:
  """The guidance of InstructPix2Pix, Eq. (3) there.

  v(0,0) + s_I [v(R,0) - v(0,0)] + s_T [v(R,T) - v(R,0)]
  """
  return s_text, s_reference - s_text, 0.0, 1.0 - s_reference


def in_time(coefficients: Coefficients, s_time: float) -> Coefficients:
  """Adds a scale for what the intervals add; in neither of the papers.

  s_W [v(R,T) - v(R,T,always)]

  Args:
    coefficients: of the first four passes.
    s_time: s_W; 0 adds nothing.
  """
  if not s_time:
    return coefficients
  both, *others = coefficients
  return both + s_time, *others, -s_time


def without_references(coefficients: Coefficients) -> Coefficients:
  """The same guidance where there are none: v(R,.) is v(0,.)."""
  both, references, text, none, *always = coefficients
  return 0.0, 0.0, both + text + sum(always), references + none


def active(coefficients: Coefficients) -> tuple[int, ...]:
  """Which of `PASSES` have to be computed: those that count."""
  # Sums of coefficients that should cancel leave a rounding error.
  return tuple(i for i, c in enumerate(coefficients) if abs(c) > 1e-9)


def weigh(velocities: jax.Array, coefficients: Coefficients) -> jax.Array:
  """Eq. (7): velocities [p b ...] of the p active passes -> [b ...]."""
  weights = jnp.asarray([coefficients[i] for i in active(coefficients)])
  return jnp.tensordot(weights.astype(velocities.dtype), velocities, axes=1)


# ---- t in training -----------------------------------------------------------


def sample_t(
  keys: jax.Array,
  *,
  kind: str = 'logit_normal',
  train_shift: float = 1.0,
) -> jax.Array:
  """Draws flow times in (0, 1).

  Args:
    keys: [n] PRNG keys, one of each time.
    kind: 'uniform'; 'logit_normal', sigmoid of a standard normal; or
      'cosine_biased', density 1 - cos(pi t) / 2 (NewMove).
    train_shift: Eq. (5) applied to the draw.

  Returns:
    [n] float32.
  """
  if kind == 'logit_normal':
    t = jax.nn.sigmoid(jax.vmap(jax.random.normal)(keys))
  elif kind in ('uniform', 'cosine_biased'):
    draw = lambda key: jax.random.uniform(key, (), minval=1e-5, maxval=1 - 1e-5)
    t = jax.vmap(draw)(keys)
    t = _invert_cosine_cdf(t, 0.5) if kind == 'cosine_biased' else t
  else:
    raise DcjaxError(
      f'unknown t sampler {kind!r}; use uniform, logit_normal or cosine_biased'
    )
  return shift(train_shift, t)


def _invert_cosine_cdf(u: jax.Array, alpha: float) -> jax.Array:
  """Solves t - alpha sin(pi t) / pi = u by 30 bisections."""

  def halve(_, bounds):
    low, high = bounds
    mid = 0.5 * (low + high)
    below = mid - alpha * jnp.sin(jnp.pi * mid) / jnp.pi < u
    return jnp.where(below, mid, low), jnp.where(below, high, mid)

  bounds = (jnp.zeros_like(u), jnp.ones_like(u))
  low, high = jax.lax.fori_loop(0, 30, halve, bounds)
  return 0.5 * (low + high)


# ---- samplers ----------------------------------------------------------------


def solve(
  kind: str, velocity: Velocity, x: jax.Array, *, steps: int, shift: float
) -> jax.Array:
  """Integrates from noise x [b ...] to data with the sampler named `kind`."""
  check_sampler(kind)
  return SAMPLERS[kind](velocity, x, steps=steps, shift=shift)


def check_sampler(kind: str) -> None:
  """Raises DcjaxError if there is no such sampler."""
  if kind not in SAMPLERS:
    raise DcjaxError(
      f'unknown sampler {kind!r}; use one of {", ".join(SAMPLERS)}'
    )


def euler(
  velocity: Velocity, x: jax.Array, *, steps: int, shift: float
) -> jax.Array:
  """t_i = shift(s, 1 - i/N), x <- x + (t_{i+1} - t_i) v(x, t_i)."""
  return _euler(velocity, x, euler_times(steps, shift))


def diffusers_euler(
  velocity: Velocity, x: jax.Array, *, steps: int, shift: float
) -> jax.Array:
  """Euler on the times of diffusers' FlowMatchEulerDiscreteScheduler."""
  return _euler(velocity, x, diffusers_euler_times(steps, shift))


def euler_times(steps: int, s: float) -> np.ndarray:
  """[steps + 1] from 1 to 0."""
  return shift(s, 1.0 - np.arange(steps + 1, dtype=np.float64) / steps)


def diffusers_euler_times(
  steps: int, s: float, train: int = 1000
) -> np.ndarray:
  """The times of diffusers, which shift the low end twice: [steps + 1]."""
  low = shift(s, 1.0 / train)
  return np.append(shift(s, np.linspace(1.0, low, steps)), 0.0)


def _euler(velocity: Velocity, x: jax.Array, times: np.ndarray) -> jax.Array:
  def step(carry, ts):
    x, x0_hat = carry
    t, t_next = ts
    v = velocity(x, _full(t, x), x0_hat).astype(jnp.float32)
    return (x + (t_next - t) * v, x - t * v), None

  times = jnp.asarray(times, jnp.float32)
  x = x.astype(jnp.float32)
  (x, _), _ = jax.lax.scan(
    step, (x, jnp.zeros_like(x)), (times[:-1], times[1:])
  )
  return x


def unipc(
  velocity: Velocity, x: jax.Array, *, steps: int, shift: float
) -> jax.Array:
  """UniPC of order 2 (bh2, predicting x0), as Wan samples with it.

  Every update of the multistep method is linear in the sample, the sample
  before the last prediction and the last three estimates of x0; the
  coefficients depend on the times only. They are worked out beforehand in
  float64, so what runs on the device is one scan over small dot products.
  """
  sigmas, corrector, predictor = unipc_coefficients(steps, shift)
  # The network was trained on whole steps of 1000.
  times = np.floor(1000.0 * sigmas[:-1]) / 1000.0

  def step(carry, xs):
    x, x_last, m1, m2 = carry
    sigma, t, c, p = xs
    v = velocity(x, _full(t, x), m1).astype(jnp.float32)
    m = x - sigma * v
    x = c[0] * x + c[1] * x_last + c[2] * m + c[3] * m1 + c[4] * m2
    x_next = p[0] * x + p[1] * m + p[2] * m1
    return (x_next, x, m, m1), None

  x = x.astype(jnp.float32)
  zero = jnp.zeros_like(x)
  xs = tuple(
    jnp.asarray(a, jnp.float32)
    for a in (sigmas[:-1], times, corrector, predictor)
  )
  (x, *_), _ = jax.lax.scan(step, (x, zero, zero, zero), xs)
  return x


def unipc_coefficients(
  steps: int, s: float, train: int = 1000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Times and linear coefficients of UniPC.

  Returns:
    sigmas [steps + 1], the last one 0; corrector [steps 5] on (x, the sample
    before the last prediction, m, m1, m2), where m is this step's estimate of
    x0 and m1, m2 the two before; predictor [steps 3] on (x, m, m1).
  """
  sigmas = shift(s, np.linspace(1.0, 1.0 / train, steps + 1)[:-1])
  sigmas[0] = 1.0 - 1e-6
  lam = np.log(1.0 - sigmas) - np.log(sigmas)
  corrector = np.zeros((steps, 5))
  predictor = np.zeros((steps, 3))
  corrector[0, 0] = 1.0
  orders = [min(2, steps - k, k + 1) for k in range(steps)]
  for k in range(steps):
    if k:
      corrector[k, 1:] = _correct(sigmas, lam, k, orders[k - 1])
    predictor[k] = (
      _predict(sigmas, lam, k, orders[k]) if k < steps - 1 else (0.0, 1.0, 0.0)
    )
  return np.append(sigmas, 0.0), corrector, predictor


def _correct(sigmas, lam, k, order):
  """Coefficients on (x_last, m, m1, m2)."""
  h = lam[k] - lam[k - 1]
  e = np.expm1(-h)
  scale = -(1.0 - sigmas[k]) * e
  x_last, m1 = sigmas[k] / sigmas[k - 1], scale
  if order == 1:
    rho, rho_d1, r1 = 0.5, 0.0, 1.0
  else:
    r1 = (lam[k - 2] - lam[k - 1]) / h
    f1 = e / -h - 1.0
    f2 = f1 / -h - 0.5
    rho_d1, rho = np.linalg.solve(
      [[1.0, 1.0], [r1, 1.0]], [f1 / e, 2.0 * f2 / e]
    )
  d1 = scale * rho_d1 / r1
  return x_last, scale * rho, m1 - scale * rho - d1, d1


def _predict(sigmas, lam, k, order):
  """Coefficients on (x, m, m1)."""
  h = lam[k + 1] - lam[k]
  scale = -(1.0 - sigmas[k + 1]) * np.expm1(-h)
  d1 = 0.0
  if order == 2:
    d1 = 0.5 * scale * h / (lam[k - 1] - lam[k])
  return sigmas[k + 1] / sigmas[k], scale - d1, d1


SAMPLERS = {
  'euler': euler,
  'unipc': unipc,
  'diffusers_euler': diffusers_euler,
}


def _like(t: jax.Array, x: jax.Array) -> jax.Array:
  """t [b] with as many axes as x."""
  return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def _full(t: jax.Array, x: jax.Array) -> jax.Array:
  """A time for every sample of the batch: [b]."""
  return jnp.full((x.shape[0],), t, jnp.float32)
