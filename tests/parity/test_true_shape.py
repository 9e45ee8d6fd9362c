"""Wan 2.1 1.3B at its true size, from disk, against diffusers.

Random bfloat16 weights, float32 arithmetic, few tokens. One side at a time is
in memory: up to 12 GB, and 3 GB of disk.
"""

import gc
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
import tiny

from dcjax import tree
from dcjax.models.dit import DiT
from dcjax.models.dit_config import WAN_1_3B, DiTConfig
from dcjax.weights import container, names, part

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
  """A transformer as it is published, with random numbers."""
  expected = tree.flatten(tiny.dit_shapes(WAN_1_3B))
  rng = np.random.default_rng(0)

  def draw(name, shape):
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 25.0
    x = rng.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)
    if name.endswith('scale'):
      x += 1.0
    return x.astype(ml_dtypes.bfloat16)

  tensors = {}
  for name, entry in names.transformer_table(WAN_1_3B).items():
    shape = entry.their_shape(entry.layer_shape(expected[name].shape))
    tensors |= {key: draw(name, shape) for key in entry.keys}
  save_file(tensors, tmp_path / 'diffusion_pytorch_model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(WAN_1_3B.to_json()))
  yield tmp_path
  (tmp_path / 'diffusion_pytorch_model.safetensors').unlink()


def their_velocity(folder, x, t, text):
  model = diffusers.WanTransformer3DModel.from_pretrained(
    folder, torch_dtype=torch.float32, local_files_only=True
  )
  assert sum(p.numel() for p in model.parameters()) == 1_418_996_800
  channels_first = torch.tensor(x).permute(0, 4, 1, 2, 3)
  with torch.no_grad():
    v = model(channels_first, torch.tensor(1000 * t), torch.tensor(text)).sample
  return v.permute(0, 2, 3, 4, 1).numpy().copy()


def our_velocity(folder, x, t, text):
  raw = json.loads((folder / 'config.json').read_text())
  config = DiTConfig.from_json(raw)
  params = part.Part(
    'transformer',
    str(folder),
    names.transformer_table(config),
    container.stored_in(folder),
    tiny.dit_shapes(config),
    jnp.float32,
  ).load()
  return np.asarray(jax.jit(DiT(config).apply)({'params': params}, x, t, text))


@pytest.mark.timeout(1200)
def test_velocity(folder):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((1, 1, 4, 4, 16), np.float32)
  text = rng.standard_normal((1, 8, 4096), np.float32)
  text[:, 5:] = 0.0
  t = np.array([0.5], np.float32)
  want = their_velocity(folder, x, t, text)
  gc.collect()
  got = our_velocity(folder, x, t, text)
  gap = np.abs(got - want).max() / np.abs(want).max()
  print(
    f'relative difference {gap:.1e}, largest value {np.abs(want).max():.2f}'
  )
  assert np.abs(want).std() > 0.1
  assert gap < 1e-4
