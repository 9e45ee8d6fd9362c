"""What every page has: one file, its style and script inside.

Its content security policy forbids the browser to fetch anything, and runs no
script but ours. Whoever fills it escapes what comes from a person.
"""

import base64
from collections.abc import Mapping, Sequence
import contextlib
import functools
import hashlib
from importlib import resources
import os
from pathlib import Path
import string

from dcjax.errors import DcjaxError
from dcjax.report import words


def write(
  path: Path,
  *,
  title: str,
  body: Sequence[str],
  prompts: str = '',
  facts: str = '',
  hero: str = '',
  style: str = '',
) -> Path:
  """Writes a page; it appears whole or not at all.

  Args:
    path: of the HTML file; its folder is made if missing.
    title: text, escaped here.
    body: markup of the sections; empty ones are left out.
    prompts: markup below the title.
    facts: markup below that.
    hero: markup beside the title.
    style: name of a further style sheet of this package.

  Raises:
    DcjaxError: if the disk refuses.
  """
  script = _asset('script.js')
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  page = string.Template(_asset('page.html')).substitute(
    title=words.text(title),
    style=_asset('style.css') + (_asset(style) if style else ''),
    script=script,
    script_hash=f'sha256-{digest}',
    prompts=prompts,
    facts=facts,
    hero=hero,
    body='\n'.join(part for part in body if part),
  )
  _save(path, page)
  return path


def facts(pairs: Mapping[str, str]) -> str:
  """A line of figures below the title; the values are markup."""
  rows = ''.join(
    f'<div><dt>{words.heading(key)}</dt><dd>{value}</dd></div>'
    for key, value in pairs.items()
  )
  return f'<dl class="facts">{rows}</dl>' if rows else ''


@functools.cache
def _asset(name: str) -> str:
  folder = resources.files('dcjax.report')
  return (folder / name).read_text(encoding='utf-8')


def _save(path: Path, page: str) -> None:
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair, from a broken config, must not lose the report.
    temporary.write_bytes(page.encode('utf-8', 'replace'))
    os.replace(temporary, path)
  except OSError as error:
    raise DcjaxError(
      f'cannot write {path}: {error.strerror or error}'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
