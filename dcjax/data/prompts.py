"""Learned words in prompts, and what is done to the features of prompts.

A concept has two learned words: `[v]`, its look, and `[u]`, its way of moving
(Set-and-Sequence, section 3). Several concepts in one prompt are `[v1] [u1]
[v2] [u2]` and so on. A learned word is encoded as a sentinel of the tokenizer,
one for each of its vectors, and the vectors then replace those rows of the
frozen encoder's output.

Every look is <extra_id_0> and every motion is <extra_id_1>, whatever the
number: so the rest of the prompt has the same features whether a concept is
alone, as in training, or the second of three. A learned row takes its place
after the encoder and cross-attention reads rows in no order, so a learned word
does not bind to the noun beside it: what it stands for is in the vector and in
the LoRA that was trained with it.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from dcjax.data import tokenizer as tokenizer_lib
from dcjax.errors import DcjaxError

SENTINELS = {'v': '<extra_id_0>', 'u': '<extra_id_1>'}
_TOKEN = re.compile(r'\[([vu](?:[1-9]\d*)?)\]')
_LIKE_TOKEN = re.compile(r'\[\s*[A-Za-z]\s*\d*\s*\]')


class Encoded(NamedTuple):
  """Prompts as numpy arrays.

  Attributes:
    ids: int32 [b l].
    mask: bool [b l], True for tokens and False for padding.
    slots: int32 [b l], the row of `vector_table` that replaces this row, or -1.
  """

  ids: np.ndarray
  mask: np.ndarray
  slots: np.ndarray


def parse(
  prompt: str, sizes: Mapping[str, int] | None = None
) -> tuple[str, list[str]]:
  """Replaces learned words by sentinels.

  Args:
    prompt: for example 'a [v] cat doing [u] boxing'.
    sizes: vectors of each learned word that may be used; None allows all, with
      one vector each.

  Returns:
    The text for the tokenizer, and the names in order: here ['v', 'u'].

  Raises:
    DcjaxError: a learned word is misspelt or not in `sizes`.
  """
  for found in _LIKE_TOKEN.findall(prompt):
    if not _TOKEN.fullmatch(found):
      raise DcjaxError(
        f'{found} in {prompt!r} is not a learned word, expected [v] or [u], '
        'or with a number: [v1], [u1], [v2] ...'
      )
  if re.search(r'<extra_id_\d+>', prompt):
    raise DcjaxError(f'write [v] or [u] rather than a sentinel in {prompt!r}')
  names = _TOKEN.findall(prompt)
  unknown = [n for n in names if sizes is not None and n not in sizes]
  if unknown:
    known = ', '.join(f'[{n}]' for n in sorted(sizes)) or 'none'
    raise DcjaxError(
      f'[{unknown[0]}] in {prompt!r} has not been learnt; known: {known}'
    )

  def sentinel(found):
    name = found.group(1)
    return SENTINELS[name[0]] * (1 if sizes is None else sizes[name])

  return _TOKEN.sub(sentinel, prompt), names


def encode(
  tokenizer: Any,
  prompts: str | Sequence[str],
  length: int,
  sizes: Mapping[str, int] | None = None,
) -> Encoded:
  """Prompts with learned words -> ids, mask and slots.

  Args:
    tokenizer: from `tokenizer.load_tokenizer`.
    prompts: one or several.
    length: l, tokens.
    sizes: vectors of each learned word, as from `sizes_of`. None stands for one
      vector for each word of the prompts.

  Raises:
    DcjaxError: as `parse`; or a learned word is beyond `length`.
  """
  prompts = [prompts] if isinstance(prompts, str) else list(prompts)
  parsed = [parse(prompt, sizes) for prompt in prompts]
  if sizes is None:
    sizes = {name: 1 for _, names in parsed for name in names}
  ids, mask = tokenizer_lib.tokenize(
    tokenizer, [text for text, _ in parsed], length
  )
  rows = [
    _slots(tokenizer, row, names, sizes)
    for row, (_, names) in zip(ids, parsed, strict=True)
  ]
  return Encoded(ids, mask, np.stack(rows))


def sizes_of(tokens: Mapping[str, Array]) -> dict[str, int]:
  """{name: number of vectors}."""
  return {name: vectors.shape[0] for name, vectors in tokens.items()}


def vector_table(
  tokens: Mapping[str, Array],
) -> Array:
  """All vectors [m d] below each other, in the order of the sorted names."""
  return jnp.concatenate([tokens[name] for name in sorted(tokens)])


def place(
  features: Array,
  tokens: Mapping[str, Array],
  slots: Array | np.ndarray,
) -> Array:
  """Puts the learned vectors into the features; differentiable in both.

  Args:
    features: [b l d] of the frozen encoder; or its input rows, from
      `UMT5Encoder.embed`, where vectors are learnt in that space.
    tokens: {name: [n_vec d]}, the names and sizes that `slots` was made with.
    slots: [b l] int32, from `encode`.

  Returns:
    [b l d] in the dtype of the features.
  """
  if not tokens:
    return features
  rows = jnp.take(vector_table(tokens), jnp.maximum(slots, 0), axis=0)
  return jnp.where(
    (slots >= 0)[..., None], rows.astype(features.dtype), features
  )


def zero_padding(features: Array, mask: Array | np.ndarray) -> Array:
  """Zeroes the rows of padding in [b l d], which Wan attends to as zeros."""
  return jnp.where(mask[..., None], features, jnp.zeros_like(features))


def drop_rows(
  keys: Array,
  features: Array,
  mask: Array | np.ndarray,
  rate: float,
) -> Array:
  """Text-token masking: zeroes each row of [b l d] with probability `rate`.

  The rows of learned words are not spared. A dropped row looks like padding,
  which is zeroed too. `keys` [b] are of the samples.
  """
  draw = lambda key: jax.random.bernoulli(key, 1 - rate, mask.shape[1:])
  keep = jax.vmap(draw)(keys)
  return zero_padding(features, mask & keep)


def without_words(prompt: str) -> str:
  """The prompt with its learned words left out."""
  return ' '.join(_TOKEN.sub(' ', prompt).split())


def check_plain_prompts(appearance: str, motion: str) -> None:
  """Checks the two prompts of a concept without learned words.

  Raises:
    DcjaxError: there is no appearance, or one of them holds a learned word.
  """
  if not appearance.strip():
    raise DcjaxError(
      'the appearance prompt is empty; without learned words, it calls the '
      'concept by a word of your own'
    )
  for what, prompt in (('appearance', appearance), ('motion', motion)):
    _, names = parse(prompt)
    if names:
      raise DcjaxError(
        f'the {what} prompt holds [{names[0]}], which train_tokens=False does '
        f'not learn; write a word of your own: {prompt!r}'
      )


def check_training_prompts(
  appearance: str, motion: str, *, concept: str = ''
) -> None:
  """Checks the two prompts of one concept.

  Args:
    appearance: must hold the look once and no other learned word.
    motion: must hold the motion once and no other learned word.
    concept: number of the concept ('1' for [v1] and [u1]), or ''.

  Raises:
    DcjaxError: one of them does not.
  """
  wanted = (
    ('appearance', appearance, f'v{concept}'),
    ('motion', motion, f'u{concept}'),
  )
  for what, prompt, name in wanted:
    _, names = parse(prompt)
    if names.count(name) != 1:
      raise DcjaxError(
        f'the {what} prompt holds [{name}] {names.count(name)} times, expected '
        f'once: {prompt!r}'
      )
    if len(names) > 1:
      other = next(n for n in names if n != name)
      raise DcjaxError(
        f'the {what} prompt holds [{other}], expected [{name}] alone: '
        f'{prompt!r}'
      )


def join(appearance: str, motion: str) -> str:
  """The prompt of stage 2: the appearance, then the motion, as sentences."""
  appearance, motion = appearance.strip(), motion.strip()
  if not appearance or not motion:
    return appearance or motion
  stop = '' if appearance.endswith(('.', '!', '?', ';', ',')) else '.'
  return f'{appearance}{stop} {motion}'


def prior_prompts(noun: str, count: int = 32) -> list[tuple[str, str]]:
  """Two-part prompts for prior preservation: (appearance, motion) pairs.

  Args:
    noun: the concept's class: 'cat', 'woman', 'wooden toy'.
    count: pairs; the first 64 are distinct.

  Raises:
    DcjaxError: the noun is empty or holds a learned word.
  """
  noun = noun.strip()
  if not noun or '[' in noun:
    raise DcjaxError(f'class noun {noun!r}: expected a word such as cat')
  person = noun.lower().split()[-1] in _PEOPLE
  looks = _PERSON_LOOKS if person else _LOOKS
  motions = _PERSON_MOTIONS if person else _MOTIONS
  article = 'An' if noun[0].lower() in 'aeiou' else 'A'
  return [
    (
      f'{article} {noun} {looks[i % len(looks)]}.',
      f'The {noun} {motions[(i + i // len(looks)) % len(motions)]}.',
    )
    for i in range(count)
  ]


def _slots(tokenizer, ids, names, sizes) -> np.ndarray:
  """Slots of one row of ids; `names` are its learned words in order."""
  slots = np.full(ids.shape, -1, np.int32)
  if not names:
    return slots
  first, total = {}, 0
  for name in sorted(sizes):
    first[name], total = total, total + sizes[name]
  sentinels = {
    kind: tokenizer.convert_tokens_to_ids(text)
    for kind, text in SENTINELS.items()
  }
  if tokenizer.unk_token_id in sentinels.values():
    raise DcjaxError(
      'this tokenizer has no <extra_id_0>, expected one of the T5 family'
    )
  (places,) = np.nonzero(np.isin(ids, list(sentinels.values())))
  wanted = [
    (first[name] + i, sentinels[name[0]])
    for name in names
    for i in range(sizes[name])
  ]
  if [i for _, i in wanted] != ids[places].tolist():
    words = ', '.join(f'[{name}]' for name in names)
    raise DcjaxError(
      f'the prompt is too long: not all of {words} are within its first '
      f'{ids.size} tokens, shorten the text before them'
    )
  slots[places] = [slot for slot, _ in wanted]
  return slots


_PEOPLE = frozenset(
  'man woman person boy girl child teenager baby dancer athlete actor actress '
  'singer player worker doctor soldier chef lady gentleman guy'.split()
)

_LOOKS = (
  'on a wooden floor in a bright room',
  'in a green garden on a sunny day',
  'on a city street in the evening',
  'in front of a plain grey wall',
  'on a sandy beach under a clear sky',
  'in fresh snow among pine trees',
  'on a kitchen table beside a window',
  'in a field of tall dry grass',
)

_MOTIONS = (
  'moves slowly from left to right',
  'turns around once',
  'moves towards the camera',
  'stays still while the camera moves closer',
  'moves up and down in the same place',
  'moves away and comes back',
  'shakes a little and then stops',
  'leaves on the right side of the picture',
)

_PERSON_LOOKS = (
  'in a red coat on a sandy beach',
  'in a white shirt in a bright kitchen',
  'in a blue raincoat on a city street at night',
  'in a grey suit in front of a brick wall',
  'in a green sweater in a park in autumn',
  'in a black jacket on a station platform',
  'in a yellow shirt on a football field',
  'in warm winter clothes in a snowy forest',
)

_PERSON_MOTIONS = (
  'walks slowly towards the camera',
  'jogs from left to right',
  'waves with the right hand',
  'turns around and looks back',
  'claps both hands and laughs',
  'sits down and crosses the arms',
  'jumps up and down in the same place',
  'dances while the camera moves closer',
)
