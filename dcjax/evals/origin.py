"""What made the videos or scores of a folder: a JSON file beside them.

What is there is kept, so it must be what would be made now.
"""

from collections.abc import Iterable, Mapping
import json
import os
from pathlib import Path
from typing import Any

from dcjax.data.cache import content_hash
from dcjax.errors import DcjaxError
from dcjax.evals.items import Item
from dcjax.weights import container
from dcjax.weights import folder as folder_lib

FILE = 'made.json'


def check(
  folder: str | os.PathLike, made: Mapping[str, Any], kept: bool = True
) -> dict[str, Any]:
  """What the file of a folder says, which must agree with `made`.

  Args:
    folder: of videos or scores.
    made: {what: JSON value}. What only one of the two knows does not count, so
      that items and rows may be added.
    kept: whether anything is there; else the file says nothing any more.

  Returns:
    {what: JSON value}; nothing without a file.

  Raises:
    DcjaxError: they differ.
  """
  path = Path(folder) / FILE
  before = container.read_json(path) if kept and path.exists() else {}
  for key, value in json.loads(json.dumps(made)).items():
    if before.get(key, value) != value:
      raise DcjaxError(
        f'{folder} was made with {key} {before[key]}, not {value}; give '
        'another folder'
      )
  return before


def claim(
  folder: str | os.PathLike, made: Mapping[str, Any], kept: bool
) -> None:
  """Writes the file of a folder, or adds to it; the arguments of `check`."""
  before = check(folder, made, kept)
  folder_lib.write_json(Path(folder) / FILE, {**before, **made})


def of_items(items: Iterable[Item]) -> dict[str, str]:
  """{'item ID': hash} of all that a video is made of, beside pictures."""
  return {f'item {x.id}': _short(x.storyboard(), x.group) for x in items}


def of_files(paths: Iterable[Path]) -> str:
  """Hash of the contents of files."""
  return _short(*paths)


def _short(*parts: Any) -> str:
  return content_hash(*parts)[:16]
