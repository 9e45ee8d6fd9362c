"""A plan as text."""

from typing import Any

# The part of its memory that JAX takes of a GPU unless it is told otherwise.
GPU_DEFAULT = 0.75
# Lines of a table of collectives.
MOST = 8


def render(plan: dict[str, Any]) -> str:
  """The lines that `plan` prints, from what it writes to plan.json."""
  lines = [_head(plan), *_mesh(plan), '', *_parameters(plan), '']
  lines += [*_programs(plan), '', *_several(plan)]
  if plan['note']:
    lines.append(plan['note'])
  return '\n'.join([*lines, *_verdict(plan)])


def _head(plan: dict[str, Any]) -> str:
  f = plan['format']
  options = ''.join(f' {option}' for option in plan.get('options', ()))
  return (
    f'{plan.get("job", plan["base"])}{options} on '
    f'{plan["topology"]["title"]}: '
    f'{plan["base"]}, {f["frames"]} frames of {f["height"]}x{f["width"]}'
  )


def _mesh(plan: dict[str, Any]) -> list[str]:
  """How the chips are laid out, why, and how the job is told so."""
  if plan['topology']['chips'] == 1:
    return []
  mesh = plan['mesh']
  sizes = ' '.join(f'{axis}={n}' for axis, n in mesh['sizes'].items() if n > 1)
  lines = [f'mesh {sizes}: {mesh["why"]}']
  if mesh['options']:
    options = (f'--config.{k}={v}' for k, v in mesh['options'].items())
    lines.append(f'  {" ".join(options)}')
  return lines


def _parameters(plan: dict[str, Any]) -> list[str]:
  parts = dict(plan['parameters'])
  trained = parts.pop('trained')
  rows = [f'  {name:<14}{n:>16,}' for name, n in parts.items()]
  rows += [f'  {"in " + name:<14}{n:>16,}' for name, n in trained.items()]
  return ['parameters', *rows[: len(parts)], 'trained', *rows[len(parts) :]]


def _programs(plan: dict[str, Any]) -> list[str]:
  """A line a program: its memory, how that was found, and its time."""
  head = (
    f'{"GB":14}{"base etc.":>10}{"program":>9}{"peak":>8}  {"":9}'
    f'{"TFLOP":>9}{"s":>8}{"runs":>6}'
  )
  lines = [head]
  for row in plan['programs']:
    fixed = row['arguments'] + row['resident']
    time = (
      f'{row["model_flops"] / 1e12:9.1f}{row["seconds"]:8.2f}{row["runs"]:6}'
      if row['model_flops']
      else f'{"":9}{"":8}{row["runs"]:6}'
    )
    over = '  too large' if row['total'] > plan['device']['usable'] else ''
    lines.append(
      f'{row["name"]:14}{_gb(fixed):>10}{_gb(row["beside"]):>9}'
      f'{_gb(row["total"]):>8}  {row["how"]:9}{time}  {row["what"]}{over}'
    )
  return lines


def _several(plan: dict[str, Any]) -> list[str]:
  """Memory by part, collectives and time of programs on several chips."""
  if plan['topology']['chips'] == 1:
    return []
  rows = [row for row in plan['programs'] if row['model_flops']]
  lines = [f'{"GB of a chip":14}{"weights":>9}{"optimizer":>11}{"beside":>8}']
  lines += [
    f'{row["name"]:14}{_gb(row["parameters"]):>9}{_gb(row["optimizer"]):>11}'
    f'{_gb(row["beside"]):>8}'
    for row in rows
  ]
  for row in rows:
    lines += ['', *_collectives(row)]
  return [*lines, '', *_times(rows), '']


def _collectives(row: dict[str, Any]) -> list[str]:
  """A line a kind of collective; what is small is one line."""
  how = {'compiled': 'as compiled', 'expected': 'by arithmetic'}[row['traffic']]
  found = row['collectives']
  total = sum(x['wire'] for x in found)
  large = [x for x in found if x['wire'] >= 1e-3 * total][:MOST]
  lines = [f'{row["name"]}: {_gb3(total)} GB sent by a chip each run, {how}']
  if not found:
    return lines
  lines.append(
    f'  {"":20}{"type":>6}{"MB of one":>11}{"count":>8}{"GB sent":>10}  over'
  )
  lines += [
    f'  {x["kind"]:20}{x["dtype"]:>6}{x["bytes"] / 1e6:11.3f}{x["count"]:8}'
    f'{_gb3(x["wire"]):>10}  {"+".join(x["axes"])}'
    + (', meanwhile' if x['asynchronous'] else '')
    for x in large
  ]
  rest = [x for x in found if x not in large]
  if rest:
    wire, count = sum(x['wire'] for x in rest), sum(x['count'] for x in rest)
    lines.append(f'  {"others":20}{"":17}{count:8}{_gb3(wire):>10}')
  return lines


def _times(rows: list[dict[str, Any]]) -> list[str]:
  """Seconds of a run, by what takes them."""
  lines = [
    f'{"seconds a run":14}{"compute":>9}{"memory":>9}{"hidden":>9}'
    f'{"exposed":>9}{"in all":>9}{"efficiency":>12}'
  ]
  return lines + [
    f'{row["name"]:14}'
    + ''.join(
      f'{row["time"][key]:9.3f}'
      for key in ('compute', 'memory', 'hidden', 'exposed')
    )
    + f'{row["seconds"]:9.3f}{row["efficiency"]:12.1%}'
    for row in rows
  ]


def _verdict(plan: dict[str, Any]) -> list[str]:
  device = plan['device']
  rate = device['peak'] * device['sustained'] / 1e12
  lines = [
    f'time: {_hours(plan["hours"])} for stages and samples at {rate:.3g} '
    f'TFLOP/s a chip, {device["sustained"]:.0%} of the stated peak'
  ]
  peak = f'peak {_gb(plan["peak"])} GB of {_gb(device["usable"])} GB usable'
  if plan['fits']:
    lines.append(f'{peak}: it fits')
    if device['platform'] == 'gpu' and (
      plan['peak'] > GPU_DEFAULT * device['memory']
    ):
      lines.append('set XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 to have it all')
    return lines
  found = plan['advice']
  lines.append(f'{peak}: it does not fit')
  least = _gb(found['peak'])
  if not found['fits']:
    return [
      *lines,
      f'no setting makes it fit: at the least it takes {least} GB (an int8 '
      'base is not implemented)'
      + ('; more chips share it' if plan['topology']['chips'] == 1 else ''),
    ]
  options = ' '.join(f'--config.{k}={v}' for k, v in found['options'].items())
  return [*lines, f'with these settings it takes {least} GB:', f'  {options}']


def _gb(n: float) -> str:
  return f'{n / 1e9:.2f}'


def _gb3(n: float) -> str:
  return f'{n / 1e9:.3f}'


def _hours(hours: float) -> str:
  if hours < 0.02:
    return f'{3600 * hours:.0f} seconds'
  return f'{60 * hours:.0f} minutes' if hours < 2 else f'{hours:.1f} hours'
