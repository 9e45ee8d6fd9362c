"""The inspection page: one card a file, what is wrong with it first."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import re

import numpy as np

from dcjax.report import clips, shell, words
from dcjax.report.clips import Panel


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
  """A file of the data.

  Attributes:
    name: of the file.
    problems: what is wrong with it, a sentence each.
    facts: what it is, in words: {'size': '640 × 480'}.
    caption: as it is learnt.
    strip: uint8 [h w 3], some of its frames side by side.
    preview: the clip as the model will see it; None for the strip alone.
  """

  name: str
  problems: Sequence[str]
  facts: Mapping[str, str]
  caption: str
  strip: np.ndarray
  preview: Panel | None = None


def write(
  path: str | os.PathLike,
  *,
  title: str,
  totals: Mapping[str, str],
  table: Sequence[Sequence[str]],
  cards: Sequence[Card],
  skipped: Sequence[tuple[str, str]],
  trigger: str = '',
) -> Path:
  """Writes the page.

  Args:
    path: of the HTML file; its folder is made if missing.
    title: of the folder.
    totals: figures below the title.
    table: of the buckets; the first row is the head, the last the sum.
    cards: of the files, shown with the troubled ones first.
    skipped: (name, reason) of files that are not used.
    trigger: marked in the captions.

  Raises:
    DcjaxError: if the disk refuses.
  """
  cards = sorted(cards, key=lambda card: -len(card.problems))
  places = {id(card): f'file-{i}' for i, card in enumerate(cards)}
  troubled = [card for card in cards if card.problems]
  fine = [card for card in cards if not card.problems]
  show = lambda some: [_card(x, places[id(x)], trigger) for x in some]
  body = [
    _overview(troubled, places, skipped),
    _table(table),
    _section('Files with problems', show(troubled)),
    _section('Files without problems' if troubled else 'Files', show(fine)),
  ]
  facts = shell.facts({key: words.text(value) for key, value in totals.items()})
  return shell.write(
    Path(path), title=title, body=body, facts=facts, style='sheet.css'
  )


def _overview(
  troubled: Sequence[Card],
  places: Mapping[int, str],
  skipped: Sequence[tuple[str, str]],
) -> str:
  """Every problem in one list, and the files that are not used."""
  rows = ''.join(
    f'<tr><th scope="row">{words.text(name)}</th>'
    f'<td>not used: {words.text(reason)}</td></tr>'
    for name, reason in skipped
  )
  rows += ''.join(
    f'<tr><th scope="row"><a href="#{places[id(card)]}">'
    f'{words.text(card.name)}</a></th><td>'
    + '<br>'.join(words.text(problem) for problem in card.problems)
    + '</td></tr>'
    for card in troubled
  )
  inside = '<p>None was found.</p>'
  if rows:
    inside = f'<table class="problems"><tbody>{rows}</tbody></table>'
  return f'<section><h2>Problems</h2>{inside}</section>'


def _table(table: Sequence[Sequence[str]]) -> str:
  head, *rows = table
  cells = lambda row: ''.join(f'<td>{words.text(x)}</td>' for x in row[1:])
  columns = ''.join(f'<th scope="col">{words.heading(x)}</th>' for x in head)
  body = ''.join(
    f'<tr><th scope="row">{words.text(row[0])}</th>{cells(row)}</tr>'
    for row in rows
  )
  return (
    '<section><h2>Shapes</h2><div class="scroll"><table><thead>'
    f'<tr>{columns}</tr></thead><tbody>{body}</tbody></table></div></section>'
  )


def _section(name: str, cards: Sequence[str]) -> str:
  if not cards:
    return ''
  return f'<section><h2>{words.text(name)}</h2>{"".join(cards)}</section>'


def _card(card: Card, place: str, trigger: str) -> str:
  shown = card.preview
  media = '' if shown is None else clips.media(shown, lazy=True)
  strip = clips.picture(card.strip, f'frames of {card.name}')
  problems = ''.join(f'<li>{words.text(x)}</li>' for x in card.problems)
  problems = f'<ul class="notes">{problems}</ul>' if problems else ''
  pairs = ''.join(
    f'<div><dt>{words.heading(key)}</dt><dd>{words.text(value)}</dd></div>'
    for key, value in card.facts.items()
  )
  return (
    f'<article class="stage" id="{place}"><header>'
    f'<h3>{words.text(card.name)}</h3></header>'
    f'<div class="frames">{strip}</div>'
    f'<div class="file"><div class="clip">{media}</div><div>'
    f'{_caption(card.caption, trigger)}{problems}'
    f'<dl class="pairs">{pairs}</dl></div></div></article>'
  )


def _caption(caption: str, trigger: str) -> str:
  marked = words.text(caption)
  if trigger:
    word = re.escape(words.text(trigger))
    marked = re.sub(word, lambda m: f'<b class="v">{m[0]}</b>', marked)
  return f'<p class="prompt" dir="auto">{marked}</p>'
