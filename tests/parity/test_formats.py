"""LoRA files against diffusers and peft: the same file, the same video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dcjax import doctor, formats, lora, sampling, tree
from dcjax.concept import Concept
from dcjax.models.dit import DiT
from dcjax.recipes import ALL_LINEAR, ATTENTION
from dcjax.weights import base as base_lib
from dcjax.weights import container, lora_file
from dcjax.weights.lora_names import STYLES

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
peft = pytest.importorskip('peft')

STEPS = 3
PROMPT = 'A red cat jumps in the snow.'
OTHERS = r'^(time_in|time_out|time_modulation|text_in|text_out|head)/kernel$'


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """(our base, diffusers' pipeline, the folder that diffusers wrote)."""
  ours = tmp_path_factory.mktemp('base') / 'ours'
  folder = tmp_path_factory.mktemp('base') / 'theirs'
  base_lib.save_base(tiny.base(), ours, dtype=jnp.float32)
  pipeline = diffusers.WanPipeline.from_pretrained(ours, local_files_only=True)
  pipeline.save_pretrained(folder)
  pipeline.set_progress_bar_config(disable=True)
  return base_lib.load_base(folder), pipeline, folder


@pytest.fixture(scope='module')
def noise(opened):
  return sampling.draw_noise(opened[0], 1, 0, 5, 16, 32)[0]


def concept(base, side='in', targets=ALL_LINEAR):
  """A look and a motion of every linear layer, each of some effect."""
  params = lora.attach(
    base.params['transformer'], targets, 3, jax.random.key(0), side=side
  )
  rng = np.random.default_rng(0)
  flat = {
    name: rng.normal(size=x.shape).astype(np.float32) * 0.3
    if name.endswith(('lora/b1', 'lora/b2'))
    else x
    for name, x in tree.flatten(params).items()
  }
  return Concept.from_params({'transformer': tree.unflatten(flat)}, base)


def write(folder, c, style, identity, motion, fill=lambda pairs: pairs):
  folder.mkdir()
  pairs = fill(formats.to_pairs(c.lora, identity, motion))
  path = folder / 'lora.safetensors'
  container.write(path, formats.to_tensors(pairs, style), {'format': 'pt'})
  return folder


def ours(base, noise, c):
  return sampling.sample(
    base, PROMPT, concepts=[c], noise=noise, steps=STEPS, guidance=3.0
  )


def theirs(pipeline, base, noise):
  video = pipeline(
    prompt=PROMPT,
    negative_prompt='',
    height=16,
    width=32,
    num_frames=5,
    num_inference_steps=STEPS,
    guidance_scale=3.0,
    max_sequence_length=base.format.text_length,
    latents=torch.tensor(np.array(noise)).permute(3, 0, 1, 2)[None],
  ).frames[0]
  return np.round(255 * video).astype(np.uint8)


def largest(a, b):
  return np.abs(np.int32(a) - np.int32(b)).max()


@pytest.mark.filterwarnings('ignore:Already found a `peft_config`')
@pytest.mark.parametrize(
  'style,side', [*((style, 'in') for style in STYLES), ('diffusers', 'out')]
)
def test_diffusers_makes_the_same_video(opened, noise, tmp_path, style, side):
  """Of one merged file, and of two that it weighs by itself."""
  base, pipeline, _ = opened
  c = concept(base, side)
  files = {
    'merged': write(tmp_path / 'm', c, style, 1.0, 1.0),
    'identity': write(tmp_path / 'i', c, style, 1.0, 0.0),
    'motion': write(tmp_path / 'o', c, style, 0.0, 1.0),
  }
  try:
    for name, folder in files.items():
      pipeline.load_lora_weights(
        folder, weight_name='lora.safetensors', adapter_name=name
      )
    pipeline.set_adapters(['merged'], [1.0])
    merged = theirs(pipeline, base, noise)
    pipeline.set_adapters(['identity', 'motion'], [0.6, 1.5])
    weighed = theirs(pipeline, base, noise)
  finally:
    pipeline.unload_lora_weights()
  assert largest(merged, ours(base, noise, c)) <= 2
  assert largest(weighed, ours(base, noise, c.scaled(0.6, 1.5))) <= 2
  # Or agreement would say little.
  assert largest(merged, weighed) > 4
  assert largest(merged, ours(base, noise, c.scaled(0.0, 0.0))) > 4
  assert largest(weighed, ours(base, noise, c.scaled(1.5, 0.6))) > 4


# ---- LoRAs of peft -----------------------------------------------------------

TARGETS = r'blocks\.\d+\.(attn[12]\.to_(q|out\.0)|ffn\.net\.2)|proj_out'


def adapted(folder, **options):
  """diffusers' transformer with a random LoRA of peft in it."""
  transformer = diffusers.WanTransformer3DModel.from_pretrained(
    folder / 'transformer'
  )
  config = peft.LoraConfig(
    r=4,
    lora_alpha=10,
    target_modules=TARGETS,
    init_lora_weights=False,
    **options,
  )
  torch.manual_seed(0)
  transformer.add_adapter(config)
  return transformer.eval(), config


def save(how, transformer, config, folder):
  """Saves the adapter in one of three ways; the path of the file."""
  state = peft.get_peft_model_state_dict(transformer, adapter_name='default')
  if how == 'pipeline':
    diffusers.WanPipeline.save_lora_weights(
      folder,
      transformer_lora_layers=state,
      transformer_lora_adapter_metadata=config_of(transformer),
    )
    return folder / 'pytorch_lora_weights.safetensors'
  if how == 'transformer':
    transformer.save_lora_adapter(folder, adapter_name='default')
    return folder / 'pytorch_lora_weights.safetensors'
  # As peft's own save_pretrained writes it.
  config.save_pretrained(folder)
  tensors = {f'base_model.model.{k}': x.numpy() for k, x in state.items()}
  container.write(folder / 'adapter_model.safetensors', tensors, {})
  return folder / 'adapter_model.safetensors'


def config_of(transformer):
  config = transformer.peft_config['default'].to_dict()
  return {k: list(x) if isinstance(x, set) else x for k, x in config.items()}


OPTIONS = {
  'pipeline': {},
  'transformer': {
    'rank_pattern': {'ffn.net.2': 2},
    'alpha_pattern': {r'attn1\.to_q': 3},
  },
  'peft': {'use_rslora': True},
}


def test_diffusers_takes_the_keys_of_musubi_in_filled_blocks(
  opened, noise, tmp_path
):
  base, pipeline, _ = opened
  c = concept(base, targets=ATTENTION)
  fill = lambda pairs: formats.filled(pairs, base.params['transformer'])
  folder = write(tmp_path / 'f', c, 'musubi', 1.0, 1.0, fill)
  try:
    pipeline.load_lora_weights(folder, weight_name='lora.safetensors')
    video = theirs(pipeline, base, noise)
  finally:
    pipeline.unload_lora_weights()
  assert largest(video, ours(base, noise, c)) <= 2
  assert largest(video, ours(base, noise, c.scaled(0.0, 0.0))) > 4


@pytest.mark.parametrize('how', OPTIONS)
def test_a_lora_of_peft_gives_the_same_velocity(opened, tmp_path, how):
  base, _, folder = opened
  transformer, config = adapted(folder, **OPTIONS[how])
  file = save(how, transformer, config, tmp_path)
  c = Concept.load(file)
  assert lora_file.read(file).configured
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 2, 4, 8, 4)).astype(np.float32)
  text = rng.normal(size=(2, 6, 16)).astype(np.float32)
  t = np.array([0.3, 0.8], np.float32)
  with torch.no_grad():
    want = transformer(
      torch.tensor(x).permute(0, 4, 1, 2, 3),
      torch.tensor(t * 1000),
      torch.tensor(text),
      return_dict=False,
    )[0].permute(0, 2, 3, 4, 1)
  apply = jax.jit(lora.with_lora(DiT(base.dit).apply))
  plain = base.params['transformer']
  got = apply({'params': c.put_into(base, plain)[0]}, x, t, text)
  size = np.abs(want.numpy()).max()
  np.testing.assert_allclose(got, want.numpy(), atol=1e-4 * size, rtol=0)
  without = apply(
    {'params': c.scaled(0.0).put_into(base, plain)[0]}, x, t, text
  )
  assert np.abs(without - want.numpy()).max() > 0.1 * size


# ---- what the doctor says of diffusers ---------------------------------------

PEFT, COMFY, KOHYA = 'transformer.', 'diffusion_model.', 'lora_unet_'
CASES = {
  **{f'{style}, all layers': (style, ALL_LINEAR, {}) for style in STYLES},
  **{f'{style}, attention': (style, ATTENTION, {}) for style in STYLES},
  **{f'{style}, the others': (style, OTHERS, {}) for style in STYLES},
  'no prefix': ('diffusers', ATTENTION, {PEFT: ''}),
  'prefix of peft': ('diffusers', ATTENTION, {PEFT: 'base_model.model.'}),
  'own prefix on Wan names': ('comfyui', ATTENTION, {COMFY: PEFT}),
  'a named adapter': ('diffusers', ATTENTION, {'.weight': '.default.weight'}),
  'lora_A under Wan names': (
    'comfyui',
    ALL_LINEAR,
    {'lora_down': 'lora_A', 'lora_up': 'lora_B'},
  ),
  'no alpha': ('musubi', ALL_LINEAR, {'.alpha': None}),
  'the other underscores': ('musubi', ALL_LINEAR, {KOHYA: 'lora_unet__'}),
  'an alpha beside its own names': ('diffusers', ATTENTION, {'+alpha': PEFT}),
  'an alpha beside Wan names': ('comfyui', ALL_LINEAR, {'+alpha': COMFY}),
}


def rewritten(tensors, changes):
  """Tensors under other keys; None drops them, '+alpha' adds one a layer."""
  if changes.keys() == {'+alpha'}:
    layers = {key.rsplit('.lora_', 1)[0] for key in tensors}
    return tensors | {f'{x}.alpha': np.float32(1.5) for x in layers}
  found = {}
  for key, x in tensors.items():
    for old, new in changes.items():
      key = None if new is None and old in key else key
      key = key and key.replace(old, new or '')
    if key:
      found[key] = np.asarray(x)
  return found


@pytest.mark.parametrize('name', CASES)
@pytest.mark.filterwarnings('ignore')
def test_the_doctor_knows_what_diffusers_loads(opened, tmp_path, name):
  """All of the layers, or an error; nothing loaded is a refusal too."""
  base, pipeline, _ = opened
  style, targets, changes = CASES[name]
  pairs = formats.to_pairs(concept(base, targets=targets).lora)
  tensors = rewritten(formats.to_tensors(pairs, style), changes)
  path = tmp_path / 'lora.safetensors'
  container.write(path, tensors, {'format': 'pt'})
  try:
    pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    parameters = pipeline.transformer.named_parameters()
    # One that was made and not loaded has no memory.
    loaded = [not x.is_meta for n, x in parameters if '.lora_B.' in n]
    loaded = sum(loaded) == len(pairs)
  except (KeyError, ValueError, IndexError, RuntimeError):
    loaded = False
  finally:
    pipeline.unload_lora_weights()
  answer = doctor.loaders(lora_file.read(path))['diffusers']
  assert (answer == 'yes') == loaded, answer
