"""Prompt text -> token ids, as the UMT5 encoder of a base reads them."""

from collections.abc import Iterable, Sequence
import html
import logging
import pathlib
import re
import struct
from typing import Any

import numpy as np

from dcjax.errors import DcjaxError

EXTRA_IDS = 8  # sentinels of a word tokenizer: learned vectors in one prompt
_FILES = ('tokenizer.json', 'spiece.model')


def clean(prompt: str) -> str:
  """Wan's prompt cleaning: mended encoding, entities, single spaces.

  Entities are resolved twice because scraped text often holds `&amp;quot;`.
  The encoding is mended only where ftfy is installed, as diffusers does.
  """
  try:
    import ftfy

    prompt = ftfy.fix_text(prompt)
  except ImportError:
    pass
  return re.sub(r'\s+', ' ', html.unescape(html.unescape(prompt))).strip()


def load_tokenizer(folder: str | pathlib.Path) -> Any:
  """The tokenizer saved in a folder (`BASE/tokenizer`), never from a network.

  Raises:
    DcjaxError: the folder is not a tokenizer that ends prompts and pads them.
  """
  folder = pathlib.Path(folder)
  if not any((folder / name).is_file() for name in _FILES):
    raise DcjaxError(
      f'{folder} is not a tokenizer: expected a folder with '
      f'{" or ".join(_FILES)}'
    )
  from transformers import AutoTokenizer

  try:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
  except Exception as error:  # tokenizers raises bare Exception on bad files
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise DcjaxError(
      f'{folder} is not a tokenizer that transformers can read: {reason}'
    ) from error
  if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
    raise DcjaxError(
      f'{folder} has no end or no padding token, expected a T5 tokenizer'
    )
  return tokenizer


def tokenize(
  tokenizer: Any, prompts: str | Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cleans, encodes and pads prompts; each row ends with </s>.

  What does not fit and words that the base has never seen are named in a
  warning.

  Args:
    tokenizer: from `load_tokenizer` or `build_word_tokenizer`.
    prompts: one or several; the empty prompt is just </s>.
    length: l, tokens including </s>.

  Returns:
    ids [b l] int32, and mask [b l] bool, True for tokens, False for padding.
  """
  prompts = [prompts] if isinstance(prompts, str) else list(prompts)
  ids = np.full((len(prompts), length), tokenizer.pad_token_id, np.int32)
  mask = np.zeros((len(prompts), length), bool)
  for row, prompt in enumerate(map(clean, prompts)):
    encoded = tokenizer(prompt, verbose=False)
    tokens = list(encoded['input_ids'])
    _warn_unknown(tokenizer, encoded, prompt)
    if len(tokens) > length:
      cut = tokenizer.decode(tokens[length - 1 : -1])
      logging.warning(
        'The prompt has %d tokens and the limit is %d; this was cut off: %s',
        *(len(tokens), length, cut),
      )
      tokens = tokens[: length - 1] + tokens[-1:]
    ids[row, : len(tokens)] = tokens
    mask[row, : len(tokens)] = True
  return ids, mask


def build_word_tokenizer(words: Iterable[str], *, length: int = 48) -> Any:
  """A T5 tokenizer whose pieces are whole words.

  Ids: 0 <pad>, 1 </s>, 2 <unk>, 3 ".", 4 ",", then the words in their order,
  then <extra_id_0> and on. Capitals are read as small letters. An unknown word
  is one <unk>, or a known word and one <unk> where it begins with that word.

  Args:
    words: distinct, of small letters, digits and inner hyphens.
    length: the tokenizer's `model_max_length`.

  Returns:
    transformers' T5Tokenizer (5.0 or later).

  Raises:
    ValueError: a word is malformed or given twice.
  """
  words = list(words)
  bad = [w for w in words if not re.fullmatch(r'[a-z0-9]+(-[a-z0-9]+)*', w)]
  if bad or len(set(words)) < len(words):
    raise ValueError(f'words must be distinct, of small letters; got {bad}')
  from transformers import T5Tokenizer

  pieces = ['<pad>', '</s>', '<unk>', '.', ',']
  pieces += [f'▁{word}' for word in words]
  pieces += [f'<extra_id_{i}>' for i in range(EXTRA_IDS)]
  return T5Tokenizer(
    vocab=[(piece, 0.0) for piece in pieces],
    extra_ids=EXTRA_IDS,
    model_max_length=length,
    _spm_precompiled_charsmap=_lowercase_charsmap(),
  )


def word_ids(tokenizer: Any, words: Iterable[str]) -> dict[str, int]:
  """{word: id} of words (also "." and ",") that are one token each.

  Raises:
    DcjaxError: naming the words that are not.
  """
  vocabulary = tokenizer.get_vocab()
  ids = {
    word: vocabulary.get(f'▁{word}', vocabulary.get(word)) for word in words
  }
  unknown = [word for word, i in ids.items() if i is None]
  if unknown:
    raise DcjaxError(
      f'not in the vocabulary as one token each: {", ".join(unknown)}'
    )
  return ids


def unread(tokenizer: Any, prompt: str, length: int) -> tuple[list[str], str]:
  """What the encoder will not read of a prompt: (unknown words, cut-off text).

  Args:
    tokenizer: from `load_tokenizer` or `build_word_tokenizer`.
    prompt: one.
    length: tokens including </s>.
  """
  encoded = tokenizer(clean(prompt), verbose=False)
  tokens = list(encoded['input_ids'])
  rest = tokens[length - 1 : -1] if len(tokens) > length else []
  return _unknown(tokenizer, encoded), tokenizer.decode(rest)


def _unknown(tokenizer, encoded) -> list[str]:
  tokens = zip(encoded['input_ids'], encoded.tokens(), strict=True)
  parts = [text for i, text in tokens if i == tokenizer.unk_token_id]
  return sorted({part.strip('▁') for part in parts} - {''})


def _warn_unknown(tokenizer, encoded, prompt: str) -> None:
  unknown = _unknown(tokenizer, encoded)
  if unknown:
    logging.warning(
      'The text encoder does not know %s in %r',
      *(', '.join(map(repr, unknown)), prompt),
    )


def _lowercase_charsmap() -> bytes:
  """SentencePiece's normalisation table with A-Z -> a-z.

  transformers builds T5Tokenizer anew when it loads one and drops every
  normaliser but this kind. It is a double-array trie (Aoe 1989, in the layout
  of darts-clone) over the UTF-8 bytes, then the replacements, each ending in 0.
  A step from node n by byte c is to n ^ offset(n) ^ c, which must bear c as its
  label; a leaf's value is at n ^ offset(n).
  """
  nodes, leaves, has_leaf = 256, 512, 1 << 8

  def offset(x):
    return x << 10

  trie = [0] * 1024
  trie[0] = offset(nodes)
  capitals = bytes(range(ord('A'), ord('Z') + 1))
  for i, c in enumerate(capitals):
    trie[nodes ^ c] = offset(nodes ^ leaves) | has_leaf | c
    trie[leaves ^ c] = 1 << 31 | 2 * i
  replacements = b''.join(bytes((c, 0)) for c in capitals.lower())
  packed = struct.pack(f'<{len(trie)}I', *trie)
  return struct.pack('<I', len(packed)) + packed + replacements
