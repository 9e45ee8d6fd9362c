"""The report of a run: one HTML file that opens from disk in any browser.

Clips and curves are inside it. Whatever comes from a person (prompts, notes,
settings) is escaped. What every page of ours has lies in `shell`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import os
from pathlib import Path
from typing import Any

import numpy as np

from dcjax.report import clips, shell, words
from dcjax.report.clips import Panel
from dcjax.report.curves import by_stage, charts

# A row of previews is spread over the steps down to this many.
MAX_PREVIEWS = 8

# `train.Timing`, in words.
_COLUMNS = {'compile': 'compilation', 'step': 'one step', 'steps': 'all steps'}


def write(
  path: str | os.PathLike,
  *,
  title: str,
  videos: Sequence[Panel],
  metrics: Sequence[Mapping],
  settings: Mapping[str, Any],
  timings: Mapping[str, Any],
  notes: Sequence[str] = (),
  prompts: Mapping[str, str] | None = None,
  commands: Mapping[str, str] | None = None,
) -> Path:
  """Writes the report of a run.

  The file appears whole or not at all, and depends on the arguments alone.

  Args:
    path: of the HTML file; its folder is made if missing.
    title: of the run.
    videos: clips and previews, grouped in the order of first appearance.
    metrics: records of `metrics.jsonl`, see `tracking.read`.
    settings: of `config.json`, nested at will; 'machine' and 'versions' stand
      apart.
    timings: what the run cost. A mapping is a row of the table, one a stage;
      anything else is a figure of the whole run. A number is in seconds, or in
      bytes if its key ends in 'memory' or 'bytes'; text is shown as it is.
    notes: sentences for the reader.
    prompts: those that were learnt from, by role: {'appearance': ...}.
    commands: how to go on: what for -> command line.

  Returns:
    The path.

  Raises:
    DcjaxError: if a video is of another kind, or if the disk refuses.
  """
  for panel in videos:
    clips.check(panel)
  stills = [p for p in videos if p.step is None]
  groups = _grouped(stills, lambda p: p.group)
  first = next(iter(groups), None)
  body = [
    *(_group(name, groups[name]) for name in groups if name != first),
    _learning(metrics, [p for p in videos if p.step is not None], timings),
    _going_on(commands or {}, notes),
    _cost(timings, settings),
    _settings(settings),
  ]
  return shell.write(
    Path(path),
    title=title,
    prompts=_prompts(prompts or {}),
    facts=_facts(groups.get(first, []), metrics, timings),
    hero=_hero(first, groups.get(first, [])),
    body=body,
  )


# ---- sections ---------------------------------------------------------------


def _prompts(prompts: Mapping[str, str]) -> str:
  rows = ''.join(
    f'<div><dt class="label">{words.heading(role)}</dt>'
    f'<dd>{words.prompt(text)}</dd></div>'
    for role, text in prompts.items()
  )
  return f'<dl class="prompts">{rows}</dl>' if rows else ''


def _facts(
  panels: Sequence[Panel],
  metrics: Sequence[Mapping],
  timings: Mapping[str, Any],
) -> str:
  """A line of figures: the clip, the steps, what the whole run cost."""
  facts = {}
  if panels:
    f, h, w, _ = panels[0].video.shape
    facts['clip'] = f'{f} frames' if f > 1 else '1 frame'
    facts['size'] = f'{w} × {h}'
    if f > 1:
      facts['rate'] = f'{panels[0].fps:g} fps'
  for stage, records in by_stage(metrics).items():
    steps = max((int(r.get('step', 0)) for r in records), default=0)
    # A thin space parts the thousands.
    count = f'{steps:,}'.replace(',', '\u2009')
    facts[stage] = f'{count} steps' if steps != 1 else '1 step'
  for key, value in timings.items():
    if not isinstance(value, Mapping):
      facts[key] = words.amount(key, value)
  return shell.facts(facts)


def _hero(name: str | None, panels: Sequence[Panel]) -> str:
  if not panels:
    return ''
  inside = ''.join(map(clips.clip, panels))
  label = words.heading(name)
  return f'<section class="hero" aria-label="{label}">{inside}</section>'


def _group(name: str, panels: Sequence[Panel]) -> str:
  inside = ''.join(map(clips.clip, panels))
  return (
    f'<section><h2>{words.heading(name)}</h2>'
    f'<div class="grid" style="--columns: {_columns(len(panels))}">'
    f'{inside}</div></section>'
  )


def _columns(count: int) -> int:
  """3 or 4, whichever leaves the last row the fuller."""
  return max((4, 3), key=lambda n: -(-count % n) if count > 3 else -n)


def _learning(
  metrics: Sequence[Mapping],
  previews: Sequence[Panel],
  timings: Mapping[str, Any],
) -> str:
  """For each stage its curves and its previews over time."""
  records = by_stage(metrics)
  rows = _grouped(previews, lambda p: p.group)
  stages = ''
  for name in dict.fromkeys([*records, *rows]):
    strips = _grouped(rows.get(name, []), lambda p: p.prompt)
    inside = charts(records.get(name, [])) + ''.join(map(_row, strips.values()))
    stages += (
      f'<article class="stage"><header><h3>{words.heading(name)}</h3>'
      f'{_speed(timings.get(name))}</header>{inside}</article>'
    )
  return f'<section><h2>Training</h2>{stages}</section>' if stages else ''


def _speed(cost: Any) -> str:
  if not isinstance(cost, Mapping) or not cost.get('step'):
    return ''
  return f'<p class="label">{words.amount("step", cost["step"])} a step</p>'


def _row(panels: Sequence[Panel]) -> str:
  panels = sorted(panels, key=lambda p: p.step)
  if len(panels) > MAX_PREVIEWS:
    index = np.linspace(0, len(panels) - 1, MAX_PREVIEWS).round().astype(int)
    panels = [panels[i] for i in index]
  inside = ''.join(
    f'<figure class="clip">{clips.media(p, lazy=True)}'
    f'<figcaption class="label">step {p.step}</figcaption></figure>'
    for p in panels
  )
  return (
    f'<div class="row">{words.prompt(panels[0].prompt)}'
    f'<div class="strip" tabindex="0">{inside}</div></div>'
  )


def _going_on(commands: Mapping[str, str], notes: Sequence[str]) -> str:
  if not commands and not notes:
    return ''
  blocks = ''.join(
    f'<div class="command"><p class="label">{words.text(what)}</p>'
    f'<pre><code>{words.command(command)}</code></pre>'
    '<button type="button" hidden>Copy</button></div>'
    for what, command in commands.items()
  )
  items = ''.join(f'<li>{words.text(note)}</li>' for note in notes)
  items = f'<ul class="notes">{items}</ul>' if items else ''
  name = 'How to go on' if commands else 'Notes'
  return f'<section><h2>{name}</h2>{blocks}{items}</section>'


def _cost(timings: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  """Time and memory, and the machine and the versions they belong to."""
  columns = ''
  stages = {k: v for k, v in timings.items() if isinstance(v, Mapping)}
  if stages:
    keys = list(dict.fromkeys(key for row in stages.values() for key in row))
    head = ''.join(
      f'<th scope="col">{words.heading(_COLUMNS.get(k, k))}</th>' for k in keys
    )
    rows = ''
    for name, row in stages.items():
      cells = (words.amount(k, row[k]) if k in row else '' for k in keys)
      cells = ''.join(f'<td>{cell}</td>' for cell in cells)
      rows += f'<tr><th scope="row">{words.heading(name)}</th>{cells}</tr>'
    columns += (
      '<div class="wide"><h3>Time and memory</h3><div class="scroll"><table>'
      f'<thead><tr><th scope="col">Stage</th>{head}</tr></thead>'
      f'<tbody>{rows}</tbody></table></div></div>'
    )
  for key in ('machine', 'versions'):
    if settings.get(key):
      value = settings[key]
      inside = (
        _tree(value) if _entries(value) else f'<p>{words.text(value)}</p>'
      )
      columns += f'<div><h3>{words.heading(key)}</h3>{inside}</div>'
  if not columns:
    return ''
  return (
    '<section><h2>What it cost</h2>'
    f'<div class="columns">{columns}</div></section>'
  )


def _settings(settings: Mapping[str, Any]) -> str:
  rest = {k: v for k, v in settings.items() if k not in ('machine', 'versions')}
  return f'<section><h2>Settings</h2>{_tree(rest)}</section>' if rest else ''


def _tree(value: Any) -> str:
  """Nested settings: plain values as pairs, the rest folded below them."""
  pairs, folds = '', ''
  for key, item in _entries(value).items():
    inner = _entries(item)
    if inner:
      folds += (
        f'<details><summary>{words.text(key)}<span>{len(inner)}</span>'
        f'</summary><div>{_tree(item)}</div></details>'
      )
    else:
      key, item = words.text(key), words.plain(item)
      pairs += f'<div><dt>{key}</dt><dd>{item}</dd></div>'
  return f'<dl class="pairs">{pairs}</dl>{folds}'


def _entries(value: Any) -> dict[str, Any]:
  """What can be folded out of a value; {} of a plain one."""
  if isinstance(value, Mapping):
    return dict(value)
  if isinstance(value, list | tuple) and any(map(_entries, value)):
    names = [
      str(x.get('name', i)) if isinstance(x, Mapping) else str(i)
      for i, x in enumerate(value)
    ]
    # Two of one name would hide each other.
    if len(set(names)) < len(names):
      names = [str(i) for i in range(len(value))]
    return dict(zip(names, value, strict=True))
  return {}


def _grouped(panels: Iterable[Panel], key: Callable) -> dict[Any, list[Panel]]:
  groups: dict[Any, list[Panel]] = {}
  for panel in panels:
    groups.setdefault(key(panel), []).append(panel)
  return groups
