"""The judge of real videos on small random networks of the same classes."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import safetensors.torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
import torch
import transformers

from dcjax.errors import DcjaxError
from dcjax.evals import crops, experts, pretrained, timing
from dcjax.evals.items import Item, Reference, Subject


@pytest.fixture(autouse=True, scope='module')
def one_thread():
  """Networks this small are faster on one, beside other work much faster."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


SIDE = 64  # of what the tracker sees
WORDS = 'dog cat a red small'.split()


def words():
  """A tokenizer with its special tokens where BERT has them."""
  names = [f'[u{i}]' for i in range(1100)]
  names[0], names[100], names[101], names[102] = (
    *('[PAD]', '[UNK]'),
    *('[CLS]', '[SEP]'),
  )
  names[1012], names[1013 : 1013 + len(WORDS)] = '.', WORDS
  vocabulary = {name: i for i, name in enumerate(names)}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 101), ('[SEP]', 102)]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token='[PAD]',
    unk_token='[UNK]',
    cls_token='[CLS]',
    sep_token='[SEP]',
    model_max_length=16,
  )


def detector():
  swin = transformers.SwinConfig(
    image_size=64,
    patch_size=4,
    embed_dim=8,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 1, 1],
    window_size=2,
    out_features=['stage2', 'stage3', 'stage4'],
  )
  bert = transformers.BertConfig(
    vocab_size=1100,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=64,
  )
  config = transformers.GroundingDinoConfig(
    backbone_config=swin,
    text_config=bert,
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    num_queries=8,
    max_text_len=16,
    encoder_n_points=2,
    decoder_n_points=2,
  )
  return transformers.GroundingDinoForObjectDetection(config).eval()


def segmenter():
  hiera = transformers.Sam2HieraDetConfig(
    hidden_size=8,
    image_size=[SIDE, SIDE],
    blocks_per_stage=[1, 1, 2, 1],
    embed_dim_per_stage=[8, 16, 32, 64],
    num_attention_heads_per_stage=[1, 1, 1, 1],
    window_size_per_stage=[4, 4, 4, 2],
    global_attention_blocks=[3],
    window_positional_embedding_background_size=[4, 4],
  )
  vision = transformers.Sam2VisionConfig(
    backbone_config=hiera,
    backbone_channel_list=[64, 32, 16, 8],
    backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    fpn_hidden_size=128,
  )
  config = transformers.Sam2VideoConfig(
    vision_config=vision,
    prompt_encoder_config=dict(
      hidden_size=128, image_size=SIDE, mask_input_channels=4
    ),
    mask_decoder_config=dict(
      hidden_size=128,
      mlp_dim=16,
      num_hidden_layers=1,
      num_attention_heads=2,
      iou_head_hidden_dim=16,
    ),
    image_size=SIDE,
    memory_attention_hidden_size=128,
    memory_attention_num_layers=1,
    memory_attention_feed_forward_hidden_size=16,
    memory_attention_rope_feat_sizes=[4, 4],
    memory_encoder_hidden_size=128,
    memory_encoder_output_channels=64,
    mask_downsampler_embed_dim=128,
    memory_fuser_num_layers=1,
    memory_fuser_embed_dim=128,
    memory_fuser_intermediate_dim=16,
    num_maskmem=3,
  )
  model = transformers.Sam2VideoModel(config).eval()
  with torch.no_grad():  # or a random one says that nothing is there
    for x in model.mask_decoder.pred_obj_score_head.parameters():
      x.abs_()
  return model


def clip():
  small = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
  )
  config = transformers.CLIPConfig(
    text_config=small
    | dict(
      vocab_size=1100,
      max_position_embeddings=16,
      eos_token_id=102,
      bos_token_id=101,
      pad_token_id=0,
    ),
    vision_config=small | dict(image_size=32, patch_size=8),
    projection_dim=16,
  )
  return transformers.CLIPModel(config).eval()


@pytest.fixture(scope='module')
def judge():
  torch.manual_seed(0)
  return experts.Experts(
    detector(),
    words(),
    segmenter(),
    clip(),
    words(),
    looks=3,
    box=0.0,
    sides=(64, 96),
  )


@pytest.fixture(scope='module')
def video():
  return np.random.default_rng(0).integers(0, 255, (9, 48, 64, 3), np.uint8)


ITEM = Item(
  'a',
  'a dog and a cat',
  1.0,
  (48, 64),
  8.0,
  (
    Reference('a.png', 'dog', 0.2, 0.6, 'a red dog'),
    Reference('b.png', 'cat', 0.5, 1.0, 'a small cat'),
  ),
)


def test_random_networks_judge(judge, video):
  pictures = [video[0], video[1, :20]]
  found = judge(video, 8.0, ITEM, pictures)
  assert found.masks.shape == (2, 9, 48, 64) and found.masks.dtype == bool
  assert timing.presence(found.masks).any()
  assert (np.abs(found.similarity) <= 1 + 1e-5).all()
  np.testing.assert_allclose(found.reference, np.diagonal(found.similarity))
  np.testing.assert_allclose(np.diagonal(found.between), 1, atol=1e-5)
  again = judge(video, 8.0, ITEM, pictures)
  np.testing.assert_array_equal(found.masks, again.masks)
  np.testing.assert_array_equal(found.similarity, again.similarity)


def test_who_is_not_found_is_nowhere(judge, video):
  blind = dataclasses.replace(judge, box=1.1)
  found = blind(video, 8.0, ITEM, [video[0], video[1]])
  assert not found.masks.any()
  assert np.isnan(found.text).all() and np.isnan(found.similarity).all()


def test_words_are_enough(judge, video):
  found = judge(video, 8.0, ITEM, [None, video[1]])
  assert np.isfinite(found.text).all()
  assert np.isnan(found.reference[0]) and np.isfinite(found.reference[1])
  assert np.isnan(timing.swaps(found.similarity)).all()


def boxes_of(monkeypatch, judge, centers, scores):
  """A detector that answers with these boxes; returns what it was asked."""
  asked = []

  def answer(self, **inputs):
    asked.append(inputs)
    logits = torch.full((1, len(scores), 4), -20.0)
    logits[0, :, 1] = torch.logit(torch.tensor(scores))
    return types.SimpleNamespace(
      logits=logits, pred_boxes=torch.tensor([centers])
    )

  monkeypatch.setattr(type(judge.detector), '__call__', answer)
  return asked


def test_boxes_are_in_pixels_and_the_best_come_first(monkeypatch, judge):
  asked = boxes_of(
    monkeypatch,
    judge,
    # (center x, center y, width, height) of the frame.
    [
      [0.5, 0.5, 0.5, 0.5],
      [0.5, 0.52, 0.5, 0.5],
      [0.1, 0.1, 0.4, 0.2],
      [0.8, 0.8, 0.1, 0.1],
    ],
    [0.6, 0.7, 0.9, 0.3],
  )
  strict = dataclasses.replace(judge, box=0.35)
  found = strict.detect(np.zeros((100, 200, 3), np.uint8), 'Red dog')
  # The third one is cut at the border, the first overlaps the second.
  np.testing.assert_allclose(found, [[0, 0, 60, 20], [50, 27, 150, 77]])
  assert asked[0]['pixel_values'].shape == (1, 3, 48, 96)
  assert asked[0]['input_ids'].tolist() == [[101, 1016, 1013, 1012, 102]]


def test_looks_within_the_asked_intervals_alone(monkeypatch, judge, video):
  seen = []
  empty = lambda self, picture, phrase: seen.append(int(picture[0, 0, 0])) or []
  monkeypatch.setattr(experts.Experts, 'detect', empty)
  numbered = np.zeros((33, 8, 8, 3), np.uint8)
  numbered[:, 0, 0, 0] = np.arange(33)
  subject = Subject('dog', '', '', ((0.5, 1.0), (3.0, 3.5)))
  assert judge.find(numbered, 8.0, subject) is None
  assert len(seen) == judge.looks
  assert all(4 <= f <= 8 or 24 <= f <= 28 for f in seen)
  assert seen[0] <= 8 and seen[-1] >= 24


def test_the_box_that_looks_most_like_the_words_is_kept(
  monkeypatch, judge, video
):
  boxes = [np.array([0, 0, 10, 10.0]), np.array([20, 20, 40, 40.0])]
  monkeypatch.setattr(experts.Experts, 'detect', lambda *x: boxes)
  frame, box = judge.find(video, 8.0, ITEM.subjects[0])
  text = judge.read(['a red dog'])[0]
  best = max(
    ((f, b) for f in (2, 3, 4) for b in (0, 1)),
    key=lambda x: judge.see([crops.crop(video[x[0]], boxes[x[1]])])[0] @ text,
  )
  assert (frame, box.tolist()) == (best[0], boxes[best[1]].tolist())


def test_tracks_both_ways_from_the_box(monkeypatch, judge, video):
  """The box reaches the tracker in its scale, the masks come back in ours."""
  calls = []

  def propagate(self, session, start_frame_idx, reverse):
    calls.append((start_frame_idx, reverse, session))
    forward, back = range(start_frame_idx, 9), range(start_frame_idx, -1, -1)
    for frame in back if reverse else forward:
      scores = torch.full((1, 1, 16, 16), -1.0)
      scores[..., 4:8, 8:12] = 1.0  # y of 1/4 to 1/2, x of 1/2 to 3/4
      yield types.SimpleNamespace(pred_masks=scores, frame_idx=frame)

  monkeypatch.setattr(
    type(judge.segmenter), 'propagate_in_video_iterator', propagate
  )
  box = np.array([32.0, 12.0, 48.0, 24.0])
  masks = judge.track(video, 3, box)
  assert [x[:2] for x in calls] == [(3, False), (3, True)]
  point = calls[0][2].point_inputs_per_obj[0][3]
  assert point['point_coords'].tolist() == [[[[32.0, 16.0], [48.0, 32.0]]]]
  assert point['point_labels'].tolist() == [[[2, 3]]]
  assert calls[0][2].num_frames == 9
  assert masks.any((1, 2)).all()
  y, x = np.nonzero(masks[0])
  assert (y.min(), y.max() + 1, x.min(), x.max() + 1) == (12, 24, 32, 48)


def test_crops_by_hand():
  picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
  mask = np.zeros((4, 6), bool)
  mask[1, 2], mask[2, 4] = True, True
  cut = crops.cut_out(picture, mask)
  assert cut.shape == (2, 3, 3)
  assert (cut[0, 0] == picture[1, 2]).all() and (cut[0, 1] == 255).all()
  wide = crops.square(picture)
  assert wide.shape == (6, 6, 3) and (wide[0] == 255).all()
  assert (wide[1:5] == picture).all()
  boxes = np.array([[0, 0, 4, 4], [1, 0, 5, 4], [8, 8, 9, 9.0]])
  kept = crops.suppress(boxes, np.array([0.5, 0.9, 0.1]), 0.5)
  assert [x.tolist() for x in kept] == [[1, 0, 5, 4], [8, 8, 9, 9]]
  assert len(crops.suppress(boxes, np.array([0.5, 0.9, 0.1]), 0.7)) == 3


def test_saved_networks_judge_alike(judge, video, tmp_path):
  for name in ('detector', 'segmenter', 'clip'):
    getattr(judge, name).save_pretrained(tmp_path / name)
    words().save_pretrained(tmp_path / name)
  loaded = experts.load(
    detector=str(tmp_path / 'detector'),
    segmenter=str(tmp_path / 'segmenter'),
    clip=str(tmp_path / 'clip'),
    device='cpu',
    area=0.01,
  )
  assert (loaded.box, loaded.area) == (
    0.35,
    0.01,
  ) and not loaded.detector.training
  box = np.array([10, 10, 30, 30.0])
  np.testing.assert_array_equal(
    loaded.track(video, 4, box), judge.track(video, 4, box)
  )
  np.testing.assert_allclose(
    loaded.read(['a red dog']), judge.read(['a red dog']), atol=1e-6
  )


def test_missing_weights_are_one_line(tmp_path):
  names = dict(segmenter='owner/sam', clip='owner/clip')
  with pytest.raises(DcjaxError, match='Grounding.*owner/dino is not here'):
    experts.load(detector='owner/dino', **names)
  with pytest.raises(DcjaxError, match='cannot be read .*give a fold') as error:
    experts.load(detector=str(tmp_path), **names)
  assert '\n' not in str(error.value)
  with pytest.raises(DcjaxError, match='looks is 0'):
    experts.load(detector='x', looks=0, **names)


def test_networks_that_are_not_whole_are_refused(judge, tmp_path):
  """transformers would draw what is missing at random, and say nothing."""
  judge.clip.save_pretrained(tmp_path)
  weights = tmp_path / 'model.safetensors'
  whole = safetensors.torch.load_file(weights)

  def line(kind=transformers.CLIPModel):
    with pytest.raises(DcjaxError) as error:
      pretrained.load(kind, str(tmp_path), False)
    assert '\n' not in str(error.value)
    return str(error.value)

  assert 'Sam2VideoModel' in line(transformers.Sam2VideoModel)
  assert 'GroundingDino' in line(transformers.GroundingDinoForObjectDetection)
  text_only = {k: x for k, x in whole.items() if 'vision' not in k}
  safetensors.torch.save_file(text_only, weights, {'format': 'pt'})
  assert 'or not all of it' in line() and 'vision' in line()
  weights.write_bytes(weights.read_bytes()[:500])
  assert 'cannot be read' in line()
  (tmp_path / 'config.json').write_text('{')
  assert 'cannot be read' in line() and 'JSON' in line()


def test_a_tokenizer_that_knows_no_word_is_refused(judge, tmp_path):
  judge.clip.save_pretrained(tmp_path)
  with pytest.raises(DcjaxError, match='has no tokenizer'):
    pretrained.load_tokenizer(str(tmp_path), False)
  words().save_pretrained(tmp_path)
  assert len(pretrained.load_tokenizer(str(tmp_path), False)) == len(words())


@pytest.mark.parametrize('name', ['gpu', 'cuda:99', 'meta'])
def test_devices_that_are_not_there_are_one_line(name):
  with pytest.raises(DcjaxError, match=f'no device {name!r} here') as error:
    experts.load(detector='x', segmenter='y', clip='z', device=name)
  assert '\n' not in str(error.value)


def test_missing_torch_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(DcjaxError, match=r"pip install 'dcjax\[eval\]'"):
    experts.load(detector='a', segmenter='b', clip='c')
