"""What is alive at once, against programs whose memory is plain to see."""

import jax
import jax.numpy as jnp
import pytest

from dcjax.planning import liveness

N = 256
BYTES = N * N * 4
X = jax.ShapeDtypeStruct((N, N), jnp.float32)


def peak(function, *arguments, **options):
  jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
  return liveness.peak_bytes(jaxpr, **options) / BYTES


def test_a_chain_of_products_holds_two_at_once():
  def chain(x):
    for _ in range(6):
      x = x @ x
    return x

  assert peak(chain, X) == 2


def test_what_is_kept_for_later_counts_until_then():
  def keep(x):
    first = x @ x
    y = first
    for _ in range(6):
      y = y @ x
    return y @ first

  assert peak(keep, X) == 3


def test_elementwise_work_takes_no_memory_of_its_own():
  def chain(x):
    return (jnp.tanh(jnp.exp(x @ x) * 2.0 + 1.0) - 3.0).sum()

  assert 1 <= peak(chain, X) < 1.01


def test_what_nothing_needs_is_not_computed():
  def dead(x):
    y = x @ x
    _ = jnp.stack([y @ x, x @ y, y @ y])
    return y

  assert peak(dead, X) == 1


def test_calls_are_looked_into():
  inner = jax.jit(lambda x: (x @ x) @ x)
  assert peak(lambda x: inner(x) @ x, X) == 2


@pytest.mark.parametrize('remat', [False, True])
def test_backward_of_a_loop_keeps_what_remat_says(remat):
  """Ten turns: without remat, what each product read is kept of all of them."""
  turns = 10

  def turn(x, w):
    return jnp.tanh(jnp.tanh(x @ w) @ w), None

  body = jax.checkpoint(turn, prevent_cse=False) if remat else turn

  def loss(x, w):
    return jax.lax.scan(body, x, w)[0].sum()

  weights = jax.ShapeDtypeStruct((turns, N, N), jnp.float32)
  found = peak(jax.grad(loss), X, weights)
  assert turns < found < turns + 8 if remat else found > 2 * turns


def test_a_loop_that_widens_what_it_reads_copies_it_whole():
  def loss(x, w):
    return jax.lax.scan(lambda x, w: (x @ w.astype(x.dtype), None), x, w)[0]

  weights = jax.ShapeDtypeStruct((10, N, N), jnp.bfloat16)
  narrow, wide = (peak(loss, X, weights, widens=w) for w in (False, True))
  assert wide == narrow + 10


def test_results_lie_where_arguments_were_given_away():
  def step(x, y):
    return x @ y, y @ y

  assert peak(step, X, X) == 2
  assert peak(step, X, X, donated=[True, False]) == 1
  assert peak(step, X, X, donated=[True, True]) == 0


def test_what_is_given_away_makes_no_room_before_its_result():
  """The gradient and what it needs are there while the state still is."""

  def step(state, x):
    y = jnp.tanh(x @ x)
    for _ in range(3):
      y = jnp.tanh(y @ y)
    return state + y

  assert peak(step, X, X, donated=[True, False]) == 2


def test_what_is_spread_takes_its_share():
  """A gradient lies as its parameter does; what is between does not."""
  rows = jax.ShapeDtypeStruct((2 * N, N), jnp.float32)
  kernel = jax.ShapeDtypeStruct((N, 4 * N), jnp.float32)
  # The transpose of the rows, what is made of them, and the gradient.
  make = lambda x, w: x.T @ (x @ w)
  assert peak(make, rows, kernel) == 2 + 8 + 4
  assert peak(make, rows, kernel, shares={kernel.shape: 4}) == 2 + 8 + 1
