"""Items from a language model and pictures from an image model."""

import json
import sys

import numpy as np
from PIL import Image
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
import torch
import transformers

from dcjax.errors import DcjaxError
from dcjax.evals import item_file, proposals
from dcjax.evals.items import Benchmark, Item, Reference


@pytest.fixture(autouse=True, scope='module')
def one_thread():
  """Networks this small are faster on one, beside other work much faster."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


ANSWER = {
  'prompt': 'a fox and a hen in a yard',
  'subjects': [
    {'word': 'fox', 'description': 'a red fox', 'start': 0.5, 'end': 3.0},
    {'word': 'hen', 'description': 'a white hen', 'start': 2.0, 'end': 5.0},
  ],
  'events': [{'text': 'the fox runs in', 'start': 0.5, 'end': 2.0}],
}


def test_an_answer_becomes_an_item():
  told = f'Sure! Here it is:\n```json\n{json.dumps(ANSWER)}\n```\nEnjoy.'
  item = proposals.parse(told, 'llm_000')
  assert item.prompt == ANSWER['prompt'] and item.kind == 'two'
  assert [s.word for s in item.subjects] == ['fox', 'hen']
  assert item.subjects[0].image == 'images/llm_000_0.png'
  assert item.subjects[1].intervals == ((2.0, 5.0),)
  assert [e.text for e in item.events] == ['the fox runs in']


def changed(**changes):
  return json.dumps(ANSWER | changes)


def subjects(**changes):
  first, second = ANSWER['subjects']
  return changed(subjects=[first | changes, second])


@pytest.mark.parametrize(
  'answer, line',
  [
    ('I cannot do that.', 'has no JSON object'),
    ('{"prompt": ', 'has no JSON object'),
    (json.dumps({'prompt': 'a'}), 'expected the keys prompt, subjects'),
    (changed(title='x'), 'not prompt, subjects, events, title'),
    (changed(subjects=[]), '0 subjects; expected 1 or 2'),
    (changed(prompt='a hen'), "the word 'fox' is not in the prompt"),
    (changed(prompt=None), 'prompt is None; expected a text'),
    (subjects(end=9.0), 'interval 0.5 to 9 s'),
    (subjects(end=0.6), 'fox is there for a moment only'),
    (subjects(end='soon'), "end is 'soon'; expected a number"),
    (subjects(colour='red'), "unknown key 'colour'"),
    (subjects(description=''), 'fox has no description'),
    (subjects(word='hen'), 'two subjects have the same word'),
    (subjects(word='a'), "'a' is in the prompt more than once"),
    (changed(subjects=['fox']), "reference 0 is 'fox'"),
    (
      changed(events=[dict(text='x', start=0, end=2)] * 2),
      'events: intervals must be in order and apart',
    ),
  ],
)
def test_wrong_answers_are_refused(answer, line):
  with pytest.raises(DcjaxError, match=line) as error:
    proposals.parse(answer, 'llm_000')
  assert '\n' not in str(error.value)


def test_asks_again_until_an_answer_is_right():
  asked = []

  def generate(prompt, seed):
    asked.append((prompt, seed))
    count = 2 if 'two subjects' in prompt else 1
    right = changed(subjects=ANSWER['subjects'][:count])
    return right if len(asked) % 3 == 0 else 'no'

  found = proposals.propose(generate, 2, seed=5)
  assert [x.id for x in found] == ['llm_000', 'llm_001']
  assert len(asked) == 6 and len({seed for _, seed in asked}) == 6
  assert 'one subject that comes' in asked[0][0]
  assert 'two subjects that come and go.' in asked[3][0]
  assert '"start": 0.5' in asked[0][0] and '{{' not in asked[0][0]


def test_gives_up_with_the_last_reason():
  with pytest.raises(DcjaxError, match='4 answers .* item 0 .*no JSON object'):
    proposals.propose(lambda prompt, seed: 'no', 1)
  with pytest.raises(DcjaxError, match='0 items'):
    proposals.propose(lambda prompt, seed: 'no', 0)


def test_pictures_are_drawn_once(tmp_path):
  asked = []

  def paint(prompt, seed):
    asked.append((prompt, seed))
    return np.full((8, 8, 3), 10 * len(asked), np.uint8)

  items = [
    proposals.parse(json.dumps(ANSWER), 'a'),
    Item('b', 'a cat', 5.0, (8, 8), 8.0, (Reference('', 'cat', 0, 1),)),
  ]
  kept = tmp_path / 'images' / 'a_1.png'
  kept.parent.mkdir()
  Image.new('RGB', (4, 4), 'red').save(kept)
  drawn = proposals.draw(paint, items, tmp_path, seed=7)
  assert [seed for _, seed in asked] == [7, 9]  # the second one was there
  assert asked[0][0].startswith('a red fox, the whole of it')
  assert asked[1][0].startswith('cat, ')
  assert drawn[1].references[0].image == 'images/b_0.png'
  with Image.open(kept) as image:
    assert image.size == (4, 4)
  made = Benchmark('x', tuple(drawn), tmp_path)
  item_file.write(tmp_path / 'b.json', made)
  assert item_file.read(tmp_path / 'b.json') == made


def test_pictures_of_something_else_are_drawn_anew(tmp_path):
  asked = []

  def paint(prompt, seed):
    asked.append(prompt)
    return np.zeros((8, 8, 3), np.uint8)

  def draw(description, seed=0):
    of = Reference('', 'bird', 0, 1, description)
    item = Item('b', 'a bird', 5.0, (8, 8), 8.0, (of,))
    proposals.draw(paint, [item], tmp_path, seed=seed)
    return len(asked)

  assert draw('a penguin') == draw('a penguin') == 1
  assert draw('a kite') == 2 and asked[-1].startswith('a kite')
  assert draw('a kite', seed=1) == 3
  (tmp_path / 'images' / 'b_0.png').write_text('no picture')
  with pytest.raises(DcjaxError, match='b_0.png is no picture'):
    draw('a kite')


def test_as_many_subjects_as_were_asked_for():
  asked = []

  def generate(prompt, seed):
    asked.append(prompt)
    return json.dumps(ANSWER)  # two, always

  with pytest.raises(DcjaxError, match='2 subjects; 1 were asked for'):
    proposals.propose(generate, 1)
  assert len(asked) == proposals.TRIES


# ---- small random models of the same classes ---------------------------------


def words(**special):
  names = ['<pad>', '<unk>', '</s>', *'abcdefghijklmnopqrstuvwxyz{}":,.']
  tokenizer = Tokenizer(
    models.WordLevel({x: i for i, x in enumerate(names)}, unk_token='<unk>')
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Split('', 'isolated')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token='<pad>',
    unk_token='<unk>',
    eos_token='</s>',
    **special,
  )


def test_a_random_language_model_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(proposals, 'TOKENS', 12)
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    bos_token_id=2,
    eos_token_id=2,
    pad_token_id=0,
  )
  transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
  words().save_pretrained(tmp_path)
  generate = proposals.language_model(str(tmp_path))
  answers = [generate('a fox', seed) for seed in (0, 0, 1)]
  assert answers[0] == answers[1] != answers[2]
  with pytest.raises(DcjaxError, match='answers of the language model'):
    proposals.propose(generate, 1)


def test_chat_models_are_asked_in_their_form():
  class Model:
    device = 'cpu'

    def generate(self, input_ids, **options):
      self.asked = tokenizer.decode(input_ids[0])
      return torch.cat([input_ids, torch.tensor([[3, 4]])], 1)

  tokenizer = words()
  tokenizer.chat_template = (
    '{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}'
  )
  model = Model()
  answer = proposals.generate(model, tokenizer, 'fox', 0)
  assert model.asked.replace(' ', '') == 'user:fox'
  assert answer.replace(' ', '') == 'ab'


def test_a_random_image_model_draws(tmp_path):
  diffusers = pytest.importorskip('diffusers')
  torch.manual_seed(0)
  letters = 'abcdefghijklmnopqrstuvwxyz'
  names = ['<|startoftext|>', '<|endoftext|>', *letters]
  names += [f'{x}</w>' for x in letters]
  tokenizer = transformers.CLIPTokenizer(
    vocab={x: i for i, x in enumerate(names)}, merges=[]
  )
  tokenizer.model_max_length = 16
  text = transformers.CLIPTextConfig(
    vocab_size=len(names),
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    max_position_embeddings=16,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
  )
  blocks = dict(
    down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
    up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
  )
  pipeline = diffusers.StableDiffusionPipeline(
    vae=diffusers.AutoencoderKL(
      block_out_channels=(8,), norm_num_groups=2, latent_channels=4
    ),
    text_encoder=transformers.CLIPTextModel(text),
    tokenizer=tokenizer,
    unet=diffusers.UNet2DConditionModel(
      sample_size=8,
      block_out_channels=(8, 16),
      norm_num_groups=2,
      layers_per_block=1,
      attention_head_dim=2,
      cross_attention_dim=8,
      **blocks,
    ),
    scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipeline.save_pretrained(tmp_path)
  paint = proposals.image_model(str(tmp_path))
  one, same, other = (paint('a fox', seed) for seed in (0, 0, 1))
  assert one.dtype == np.uint8 and one.ndim == 3 and one.shape[-1] == 3
  assert (one == same).all() and (one != other).any()


def test_missing_models_are_one_line(tmp_path, monkeypatch):
  with pytest.raises(DcjaxError, match='need one: give'):
    proposals.language_model('')
  with pytest.raises(DcjaxError, match='owner/llm is not here'):
    proposals.language_model('owner/llm')
  with pytest.raises(DcjaxError, match='cannot be read .*give a folder'):
    proposals.image_model(str(tmp_path))
  monkeypatch.setitem(sys.modules, 'diffusers', None)
  with pytest.raises(DcjaxError, match='needs diffusers'):
    proposals.image_model('owner/t2i')
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(DcjaxError, match='needs PyTorch'):
    proposals.language_model('owner/llm')
