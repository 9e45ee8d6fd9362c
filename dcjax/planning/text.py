"""A plan as text."""

from typing import Any

# The part of its memory that JAX takes of a GPU unless it is told otherwise.
GPU_DEFAULT = 0.75


def render(plan: dict[str, Any]) -> str:
  """The lines that `plan` prints, from what it writes to plan.json."""
  lines = [_head(plan), '', *_parameters(plan), '', *_programs(plan), '']
  if plan['note']:
    lines.append(plan['note'])
  return '\n'.join([*lines, *_verdict(plan)])


def _head(plan: dict[str, Any]) -> str:
  device, f = plan['device'], plan['format']
  options = ''.join(f' {option}' for option in plan.get('options', ()))
  return (
    f'{plan.get("job", plan["base"])}{options} on {device["title"]}: '
    f'{plan["base"]}, {f["frames"]} frames of {f["height"]}x{f["width"]}'
  )


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


def _verdict(plan: dict[str, Any]) -> list[str]:
  device = plan['device']
  rate = device['peak'] * device['sustained'] / 1e12
  lines = [
    f'time: {_hours(plan["hours"])} for stages and samples at {rate:.3g} '
    f'TFLOP/s, {device["sustained"]:.0%} of the stated peak'
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
      'base is not implemented, nor is sharing a base among chips)',
    ]
  options = ' '.join(f'--config.{k}={v}' for k, v in found['options'].items())
  return [*lines, f'with these settings it takes {least} GB:', f'  {options}']


def _gb(n: float) -> str:
  return f'{n / 1e9:.2f}'


def _hours(hours: float) -> str:
  if hours < 0.02:
    return f'{3600 * hours:.0f} seconds'
  return f'{60 * hours:.0f} minutes' if hours < 2 else f'{hours:.1f} hours'
