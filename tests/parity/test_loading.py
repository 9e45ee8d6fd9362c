"""Names of Wan's own code and prompts, against diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import tiny

from dcjax import sampling, tree
from dcjax.weights import names, original
from dcjax.weights.base import load_base, save_base

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

DIT_FILE = 'transformer/diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def base():
  return tiny.base()


@pytest.fixture(scope='module')
def folder(base, tmp_path_factory):
  folder = tmp_path_factory.mktemp('base') / 'tiny'
  save_base(base, folder, dtype=jnp.float32)
  return folder


@pytest.mark.parametrize('prefix', original.PREFIXES[:2])
def test_original_names_are_those_of_diffusers_converter(base, prefix):
  """The same random tensors under both names give the same parameters."""
  from diffusers.loaders import single_file_utils

  table = names.transformer_table(tiny.DIT)
  own = original.fitting(table, {prefix + 'blocks.0.self_attn.q.weight'})
  tensors = names.write_tensors(own, base.params['transformer'])
  converted = single_file_utils.convert_wan_transformer_to_diffusers(
    {key: torch.tensor(x) for key, x in tensors.items()}
  )
  theirs = names.write_tensors(table, base.params['transformer'])
  assert converted.keys() == theirs.keys()
  for key, x in theirs.items():
    np.testing.assert_array_equal(converted[key].numpy(), x, err_msg=key)


def test_a_folder_in_original_names_makes_the_same_video(
  base, folder, tmp_path
):
  save_base(base, tmp_path, dtype=jnp.float32)
  table = names.transformer_table(tiny.DIT)
  own = original.fitting(table, {'blocks.0.self_attn.q.weight'})
  save_file(
    names.write_tensors(own, base.params['transformer']), tmp_path / DIT_FILE
  )
  assert load_file(tmp_path / DIT_FILE).keys() != (
    load_file(folder / DIT_FILE).keys()
  )
  a, b = (tree.flatten(load_base(x).params) for x in (folder, tmp_path))
  assert all(np.array_equal(a[name], b[name]) for name in a)


PROMPTS = {
  'plain': 'a red cat jumps in the snow.',
  'capitals and spaces': '  A red  cat\n\tjumps in   the snow. ',
  'entities': 'a red &amp;quot;cat&amp;quot; &lt;jumps&gt; in&nbsp;the snow.',
  'mended encoding': 'a catâ€™s ball, in the snoｗ.',
  'unknown words': 'a red zebra jumps over the moon.',
  'too long': 'a red cat jumps in the snow, ' * 4,
  'empty': '',
}


@pytest.mark.parametrize('name', PROMPTS)
def test_features_are_those_of_the_pipeline(base, folder, name, pipeline):
  length = base.format.text_length
  ours, mask = sampling.encode_prompts(base, [PROMPTS[name]], {})
  theirs, negative = pipeline.encode_prompt(
    PROMPTS[name], negative_prompt='', max_sequence_length=length
  )
  np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)
  # The padding, which nothing masks, is zeros for both.
  assert not np.any(np.asarray(ours)[~np.asarray(mask)])
  empty, _ = sampling.encode_prompts(base, [''], {})
  np.testing.assert_allclose(empty, negative.detach(), atol=1e-5)


@pytest.fixture(scope='module')
def pipeline(folder):
  return diffusers.WanPipeline.from_pretrained(
    folder, local_files_only=True
  ).to(torch.float32)
