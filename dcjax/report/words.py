"""Words and figures of the report, as markup: everything here is escaped."""

from collections.abc import Mapping
import html
import math
import re
from typing import Any


def text(value: Any) -> str:
  """Escaped, for text and for attributes in double quotes."""
  return html.escape(str(value))


def heading(name: Any) -> str:
  """'peak_memory' -> 'Peak memory'."""
  name = str(name).replace('_', ' ')
  return text(name[:1].upper() + name[1:])


def prompt(words: str) -> str:
  """A prompt with its learned words marked."""
  marked = re.sub(
    r'\[([uv])\d*\]',
    lambda m: f'<b class="{m[1]}">{m[0]}</b>',
    text(words),
  )
  return f'<p class="prompt" dir="auto">{marked}</p>'


def command(line: str) -> str:
  """A command line that wraps between its words, not after their dashes."""
  return ' '.join(f'<span>{text(word)}</span>' for word in line.split(' '))


def plain(value: Any) -> str:
  """A setting without entries of its own."""
  if isinstance(value, Mapping) and not value:
    return 'none'
  if isinstance(value, list | tuple):
    return ', '.join(map(plain, value)) or 'none'
  if isinstance(value, bool) or value is None:
    return {True: 'yes', False: 'no', None: 'none'}[value]
  if isinstance(value, float):
    return f'{value:.6g}'
  return text(value)


def amount(key: str, value: Any) -> str:
  """Bytes if the key ends in 'memory' or 'bytes', else seconds."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return plain(value)
  if not math.isfinite(value):
    return 'unknown'
  if str(key).endswith(('memory', 'bytes')):
    return _bytes(value)
  if value < 1:
    return f'{value * 1000:.3g} ms'
  if value < 100:
    return f'{value:.3g} s'
  minutes, seconds = divmod(round(value), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02} min'
  return f'{minutes} min {seconds} s'


def _bytes(value: float) -> str:
  for unit in ('B', 'KiB', 'MiB'):
    # 1000 rather than 1024, so that three digits are enough.
    if value < 1000:
      return f'{value:.3g} {unit}'
    value /= 1024
  return f'{value:.3g} GiB'
