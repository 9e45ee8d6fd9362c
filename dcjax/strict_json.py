"""JSON whose keys are there once: a second one would replace the first."""

import json
from pathlib import Path
from typing import Any

from dcjax.errors import DcjaxError


def read(path: Path) -> Any:
  """The values of a JSON file.

  Raises:
    DcjaxError: it cannot be read, is nested too deeply, or has a key twice.
  """
  try:
    return loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise DcjaxError(f'{path} is no JSON file: {error}') from error


def loads(text: str | bytes) -> Any:
  """As `json.loads`; ValueError for a key that is there twice."""
  return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in pairs:
    if key in found:
      raise ValueError(f'the key {key!r} is there twice')
    found[key] = value
  return found
