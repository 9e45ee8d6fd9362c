"""The Wan form of the transformer against diffusers, random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax.models.dit import DiT
from dcjax.models.dit_config import DiTConfig
from dcjax.weights import names

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

# Odd and single frames, portrait and landscape, heads of several widths.
CASES = {
  'landscape': (dict(layers=2, heads=4, width=32), (2, 3, 6, 10), 7),
  'portrait, 24 channels a head': (
    dict(layers=3, heads=2, width=24),
    (1, 5, 8, 4),
    5,
  ),
  'still, one layer': (dict(layers=1, heads=6, width=16), (3, 1, 4, 6), 9),
  'patches in time': (
    dict(layers=2, heads=2, width=32, patch=(2, 2, 1)),
    (2, 4, 4, 3),
    1,
  ),
}


def peer(layers, heads, width, patch=(1, 2, 2), seed=0):
  """Diffusers' transformer in which every parameter is random and matters."""
  torch.manual_seed(seed)
  model = diffusers.WanTransformer3DModel(
    patch_size=patch,
    num_layers=layers,
    num_attention_heads=heads,
    attention_head_dim=width,
    in_channels=6,
    out_channels=6,
    text_dim=20,
    freq_dim=64,
    ffn_dim=100,
    rope_max_seq_len=32,
  ).eval()
  with torch.no_grad():
    for name, x in model.named_parameters():
      x.normal_(std=0.3 if x.ndim < 2 else 0.6 * x[0].numel() ** -0.5)
      if 'norm' in name and name.endswith('weight'):
        x += 1.0
  return model


def ours(model):
  """Our transformer and its parameters, from the peer's tensors."""
  config = DiTConfig.from_json(dict(model.config))
  expected = tiny.dit_shapes(config)
  tensors = {n: x.float().numpy() for n, x in model.state_dict().items()}
  table = names.transformer_table(config)
  return config, names.read_tensors(table, tensors, expected, what='peer')


def draw(shape, length):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(*shape, 6)).astype(np.float32)
  text = rng.normal(size=(shape[0], length, 20)).astype(np.float32)
  text[0, length // 2 :] = 0.0  # padding, which Wan attends to
  t = rng.integers(1, 1000, shape[0]) / np.float32(1000)
  return x, t.astype(np.float32), text


def peer_velocity(model, x, t, text):
  channels_first = torch.tensor(x).permute(0, 4, 1, 2, 3)
  with torch.no_grad():
    v = model(channels_first, torch.tensor(1000 * t), torch.tensor(text)).sample
  return v.permute(0, 2, 3, 4, 1).float().numpy()


def error(got, want):
  return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


@pytest.mark.parametrize('stored', ['float32', 'bfloat16'])
@pytest.mark.parametrize('case', CASES)
def test_velocity(case, stored):
  sizes, shape, length = CASES[case]
  model = peer(**sizes)
  # Weights that were stored in bfloat16 and are computed with in float32. The
  # module's own `to` would round its rotary tables as well.
  with torch.no_grad():
    for x in model.parameters():
      x.copy_(x.to(getattr(torch, stored)))
  config, params = ours(model)
  stored_params = jax.tree.map(lambda x: jnp.asarray(x, stored), params)
  x, t, text = draw(shape, length)
  got = jax.jit(DiT(config).apply)({'params': stored_params}, x, t, text)
  want = peer_velocity(model, x, t, text)
  assert got.shape == want.shape
  assert np.abs(want).max() > 0.5
  assert error(got, want) < 1e-5


def test_names_go_both_ways():
  model = peer(layers=3, heads=2, width=24)
  config, params = ours(model)
  back = names.write_tensors(names.transformer_table(config), params)
  state = model.state_dict()
  assert back.keys() == state.keys()
  assert all(np.array_equal(back[n], state[n].numpy()) for n in state)


def test_json_opens_in_diffusers():
  model = peer(layers=2, heads=2, width=24)
  config, params = ours(model)
  again = diffusers.WanTransformer3DModel.from_config(config.to_json())
  sizes = {n: tuple(x.shape) for n, x in again.state_dict().items()}
  back = names.write_tensors(names.transformer_table(config), params)
  assert sizes == {n: x.shape for n, x in back.items()}


def test_loss_gradients():
  """Parity of the backward pass, in every parameter."""
  model = peer(layers=2, heads=2, width=16)
  config, params = ours(model)
  x, t, text = draw((2, 2, 4, 4), 3)
  apply = DiT(config).apply
  loss = lambda p: jnp.square(apply({'params': p}, x, t, text)).mean()
  got = names.write_tensors(
    names.transformer_table(config), jax.jit(jax.grad(loss))(params)
  )
  channels_first = torch.tensor(x).permute(0, 4, 1, 2, 3)
  v = model(channels_first, torch.tensor(1000 * t), torch.tensor(text)).sample
  v.square().mean().backward()
  for name, p in model.named_parameters():
    want = p.grad.numpy()
    scale = max(np.abs(want).max(), 1e-4)
    assert np.abs(got[name] - want).max() < 1e-3 * scale, name
