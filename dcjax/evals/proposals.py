"""Items of S2VTime from a language model, pictures from an image model.

Both are options beside the templates: a causal language model of transformers
writes one JSON object an item, which is checked as strictly as a file and
rejected with its reason if it is not right; a text-to-image pipeline of
diffusers draws every subject alone before white.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from dcjax.errors import DcjaxError
from dcjax.evals import item_file, pretrained
from dcjax.evals.items import Item

SECONDS, FPS, SIZE = 5.0, 16.0, (480, 832)
TRIES = 4  # answers an item
TOKENS = 512  # of an answer
SUBJECTS = 2  # at most
_SHORTEST = 0.3  # seconds of an interval
_ASK = """\
You plan short videos. Invent a scene of {seconds:g} seconds with {count} that \
come{s} and go{es}. Answer with one JSON object and nothing else:
{{"prompt": "what is seen, without any times", "subjects": [{{"word": "exact \
words of the prompt for the subject", "description": "how it looks", "start": \
0.5, "end": 3.0}}], "events": [{{"text": "what happens", "start": 0.5, "end": \
3.0}}]}}
Times are seconds from 0 to {seconds:g}. Subjects are single things that can \
be touched and seen whole. Events follow each other without overlap.
Theme number {theme}."""
_PICTURE = (
  '{}, the whole of it, alone in the middle of a plain white background, even '
  'light'
)

_ORIGIN = 'drawn from'  # text in a PNG
Generate = Callable[[str, int], str]  # (prompt, seed) -> answer
Draw = Callable[[str, int], np.ndarray]  # (prompt, seed) -> uint8 [h w 3]


def propose(generate: Generate, count: int, *, seed: int = 0) -> list[Item]:
  """Asks a language model for items.

  Args:
    generate: gives the model's answer to a prompt.
    count: items wanted; every other one has two subjects.
    seed: of the answers.

  Raises:
    DcjaxError: none of the answers for an item was right; the line has the
      last reason.
  """
  if count < 1:
    raise DcjaxError(f'{count} items; expected 1 or more')
  items = []
  for n in range(count):
    two = n % SUBJECTS == 1
    asked = _ASK.format(
      seconds=SECONDS,
      count='two subjects' if two else 'one subject',
      s='' if two else 's',
      es='' if two else 'es',
      theme=seed * 100_003 + n,
    )
    reason = ''
    for attempt in range(TRIES):
      try:
        answer = generate(asked, seed * 100_003 + n * TRIES + attempt)
        item = parse(answer, f'llm_{n:03d}')
        if len(item.references) != 1 + two:
          raise DcjaxError(
            f'{item.id}: {len(item.references)} subjects; {1 + two} were asked '
            'for'
          )
        items.append(item)
        break
      except DcjaxError as error:
        reason = str(error)
    else:
      raise DcjaxError(
        f'{TRIES} answers of the language model for item {n} were not right; '
        f'of the last one: {reason}'
      )
  return items


def parse(answer: str, name: str) -> Item:
  """The item in a language model's answer.

  Raises:
    DcjaxError: no JSON object, or one that is no item: see `item_file.read`;
      more than two subjects, or an interval under 0.3 s.
  """
  start = answer.find('{')
  try:
    record, _ = json.JSONDecoder().raw_decode(answer[max(start, 0) :])
  except ValueError as error:
    raise DcjaxError(f'{name}: the answer has no JSON object') from error
  if not isinstance(record, dict):
    raise DcjaxError(f'{name}: the answer is {record!r}; expected an object')
  unknown = sorted(record.keys() - {'prompt', 'subjects', 'events'})
  subjects = record.get('subjects')
  if unknown or not isinstance(subjects, list):
    raise DcjaxError(
      f'{name}: expected the keys prompt, subjects and events, not '
      f'{", ".join(record) or "none"}'
    )
  if not 1 <= len(subjects) <= SUBJECTS:
    raise DcjaxError(f'{name}: {len(subjects)} subjects; expected 1 or 2')
  references = [
    {'image': f'images/{name}_{i}.png', **x} if isinstance(x, dict) else x
    for i, x in enumerate(subjects)
  ]
  item = item_file.parse(
    {
      'id': name,
      'kind': 'one' if len(subjects) == 1 else 'two',
      'prompt': record.get('prompt'),
      'seconds': SECONDS,
      'size': list(SIZE),
      'fps': FPS,
      'references': references,
      'events': record.get('events', []),
    },
    'the answer',
  )
  _check(item)
  return item


def _check(item: Item) -> None:
  """What a benchmark may hold, but a proposal should not."""
  for x in item.references:
    if x.end - x.start < _SHORTEST:
      raise DcjaxError(f'{item.id}: {x.word} is there for a moment only')
    if not x.description.strip():
      raise DcjaxError(f'{item.id}: {x.word} has no description')
    if item.prompt.count(x.word) > 1 and len(item.references) > 1:
      raise DcjaxError(f'{item.id}: {x.word!r} is in the prompt more than once')
  if len({x.word for x in item.references}) < len(item.references):
    raise DcjaxError(f'{item.id}: two subjects have the same word')


def draw(
  paint: Draw, items: Sequence[Item], folder: Path, *, seed: int = 0
) -> list[Item]:
  """Draws the picture of every subject that has none in the folder.

  A picture says in itself what it was drawn from, and is drawn anew where that
  is something else now; one that says nothing is somebody's own, and kept.

  Args:
    paint: gives a picture of a prompt.
    items: whose pictures are drawn; those without a name get one.
    folder: of the benchmark.
    seed: of the first picture; the next one has the next seed.

  Returns:
    The items, all with pictures.
  """
  from PIL import Image, PngImagePlugin

  drawn = []
  for item in items:
    named = []
    words = [x.word for x in item.subjects]
    for reference in item.references:
      place = words.index(reference.word)
      name = reference.image or f'images/{item.id}_{place}.png'
      named.append(dataclasses.replace(reference, image=name))
    item = dataclasses.replace(item, references=tuple(named))
    for subject in item.subjects:
      path = folder / subject.image
      prompt = _PICTURE.format(subject.description or subject.word)
      origin = f'{prompt} seed {seed}'
      if not path.is_file() or _drawn_from(path) not in (None, origin):
        about = PngImagePlugin.PngInfo()
        about.add_text(_ORIGIN, origin)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(prompt, seed)).save(path, 'PNG', pnginfo=about)
      seed += 1
    drawn.append(item)
  return drawn


def _drawn_from(path: Path) -> str | None:
  """What a picture says of itself, if it was drawn here."""
  from PIL import Image

  try:
    with Image.open(path) as image:
      return image.info.get(_ORIGIN)
  except OSError as error:
    raise DcjaxError(f'{path} is no picture: {error}') from error


def language_model(name: str, *, download: bool = False) -> Generate:
  """Answers of a causal language model of transformers.

  Raises:
    DcjaxError: no name, no PyTorch, or no weights.
  """
  if not name:
    raise DcjaxError(
      'items from a language model need one: give '
      '--config.build.language_model=FOLDER, or use --config=...:templates'
    )
  pretrained.require_torch('a language model')
  import transformers

  words = pretrained.load_tokenizer(name, download)
  model = pretrained.load(transformers.AutoModelForCausalLM, name, download)
  model = model.to(pretrained.device('')).eval()
  return lambda prompt, seed: generate(model, words, prompt, seed)


def generate(model: Any, words: Any, prompt: str, seed: int) -> str:
  """The answer of a model with its tokenizer, the same for the same seed."""
  import torch

  if words.chat_template:
    turn = [{'role': 'user', 'content': prompt}]
    prompt = words.apply_chat_template(
      turn, tokenize=False, add_generation_prompt=True
    )
  inputs = words(prompt, return_tensors='pt').to(model.device)
  length = inputs['input_ids'].shape[1]
  with torch.random.fork_rng(), torch.inference_mode():
    torch.manual_seed(seed)
    ids = model.generate(
      input_ids=inputs['input_ids'],
      attention_mask=inputs['attention_mask'],
      max_new_tokens=TOKENS,
      do_sample=True,
      top_p=0.95,
      pad_token_id=words.pad_token_id or words.eos_token_id,
    )
  return words.decode(ids[0, length:], skip_special_tokens=True)


def image_model(name: str, *, download: bool = False) -> Draw:
  """Pictures of a text-to-image pipeline of diffusers.

  Raises:
    DcjaxError: no PyTorch or diffusers, or no weights.
  """
  pretrained.require_torch('an image model')
  try:
    import diffusers
  except ImportError as error:
    raise DcjaxError(
      'an image model needs diffusers, which is not installed: pip install '
      "'dcjax[eval]'"
    ) from error
  kind = diffusers.AutoPipelineForText2Image
  pipeline = pretrained.load(kind, name, download)
  pipeline = pipeline.to(pretrained.device(''))
  pipeline.set_progress_bar_config(disable=True)
  return lambda prompt, seed: paint(pipeline, prompt, seed)


def paint(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
  """A picture uint8 [h w 3], the same for the same seed on one machine."""
  import torch

  noise = torch.Generator().manual_seed(seed)
  picture = pipeline(prompt=prompt, generator=noise).images[0]
  return np.asarray(picture.convert('RGB'))
