"""The curves of a run, drawn as SVG: one figure a stage.

Drawn by hand because a report must open without a network and weigh little.
Colours come from the page's style sheet, so that one drawing serves light and
dark. Every number that reaches the markup is finite.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import html
import itertools
import math

import numpy as np

WIDTH, HEIGHT, LOW = 360, 200, 110
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 24
# More points than this are narrower than a pixel.
MAX_POINTS = 240
QUARTERS = ('0–¼', '¼–½', '½–¾', '¾–1')

_TRAIN = tuple(f'loss/t{q}' for q in range(4))
_HELD_OUT = tuple(f'held_out/t{q}' for q in range(4))
_NAMES = {'grad_norm': 'Gradient norm', 'lr': 'Learning rate'}


@dataclasses.dataclass(frozen=True)
class Series:
  """A line of a chart.

  Attributes:
    label: in the legend; '' if the chart's title says it.
    style: class of the style sheet; 'raw' is left out of the legend.
    x: [n] steps, ascending.
    y: [n] finite values.
  """

  label: str
  style: str
  x: np.ndarray
  y: np.ndarray


def by_stage(metrics: Iterable[Mapping]) -> dict[str, list[Mapping]]:
  """Records by stage, in the order in which the stages appear."""
  stages: dict[str, list[Mapping]] = {}
  for record in metrics:
    stages.setdefault(str(record.get('stage', '')), []).append(record)
  return stages


def charts(records: Sequence[Mapping]) -> str:
  """The charts of one stage: losses large, everything else small.

  The loss (raw, and smoothed over it, with the prior loss if there is one); the
  loss by quarter of flow time; the same on held-out data, on the same scale.
  """
  read = lambda key: series(records, key)
  loss, prior = read('loss'), read('prior')
  main = [
    Series('', 'raw', *_envelope(*loss)),
    Series('loss', 'main', *_thin(*_smooth(*loss))),
    Series('prior', 'prior', *_thin(*_smooth(*prior))),
  ]
  quarters = _quarters(records, _TRAIN, smooth=True)
  held_out = _quarters(records, _HELD_OUT, smooth=False)
  limits = _limits([*quarters, *held_out])
  known = {'stage', 'step', 'loss', 'prior', *_TRAIN, *_HELD_OUT}
  rest = {
    key: [Series('', 'plain', *_thin(*read(key)))]
    for key in dict.fromkeys(k for r in records for k in r)
    if key not in known
  }
  # All charts of a stage share their steps.
  lines = itertools.chain(main, quarters, held_out, *rest.values())
  ends = [s.x[[0, -1]] for s in lines if len(s.x)]
  if not ends:
    return ''
  first, last = min(e[0] for e in ends), max(e[1] for e in ends)
  alone = 0.5 if first == last else 0.0
  steps = _Scale(first - alone, last + alone, False)
  large = (
    _chart('Loss', main, steps, _limits(main))
    + _chart('Loss by flow time t', quarters, steps, limits)
    + _chart('Held-out loss by flow time t', held_out, steps, limits)
  )
  small = ''.join(
    _chart(
      _NAMES.get(key, key), lines, steps, _limits(lines, log=key != 'lr'), LOW
    )
    for key, lines in rest.items()
  )
  return (
    f'<div class="charts">{large}</div><div class="charts small">{small}</div>'
  )


def series(
  records: Iterable[Mapping], key: str
) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values [n] of a metric, without those not finite or not there.

  A step that was logged twice, by a run that was resumed, counts once.
  """
  points = {}
  for record in records:
    value, step = record.get(key), record.get('step')
    if _finite(value) and _finite(step):
      points[float(step)] = float(value)
  x = np.asarray(sorted(points), float)
  return x, np.asarray([points[step] for step in x], float)


def number(value: float) -> str:
  """Three digits, and no more characters than they need."""
  text = f'{value:.3g}'
  if 'e' in text:
    digits, power = text.split('e')
    text = f'{digits}e{int(power)}'
  return text.replace('-', '−')


def _finite(value: object) -> bool:
  kinds = (int, float, np.integer, np.floating)
  return isinstance(value, kinds) and math.isfinite(value)


def _quarters(
  records: Sequence[Mapping], keys: Sequence[str], *, smooth: bool
) -> list[Series]:
  lines = []
  for q, key in enumerate(keys):
    x, y = series(records, key)
    x, y = _smooth(x, y) if smooth else (x, y)
    lines.append(Series(QUARTERS[q], f'q{q}', *_thin(x, y)))
  return lines


def _smooth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Centred triangular mean over about a tenth of the points.

  At the ends the window holds fewer points, rather than invented ones.
  """
  half = len(y) // 20
  if half == 0:
    return x, y
  window = np.bartlett(2 * half + 3)
  mean = lambda a: np.convolve(a, window)[half + 1 : half + 1 + len(a)]
  return x, mean(y) / mean(np.ones_like(y))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """At most `MAX_POINTS` points, evenly chosen, with the first and the last."""
  if len(x) <= MAX_POINTS:
    return x, y
  index = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
  return x[index], y[index]


def _envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Least and greatest of each of `MAX_POINTS` groups: keeps every spike."""
  if len(x) <= 2 * MAX_POINTS:
    return x, y
  index = []
  for group in np.array_split(np.arange(len(x)), MAX_POINTS):
    ends = {group[y[group].argmin()], group[y[group].argmax()]}
    index += sorted(ends)
  return x[index], y[index]


@dataclasses.dataclass(frozen=True)
class _Scale:
  """Values to positions along an axis; logarithmic if they span much."""

  low: float
  high: float
  log: bool

  def __call__(self, value: np.ndarray) -> np.ndarray:
    low, high = self.low, self.high
    if self.log:
      value = np.log(np.maximum(value, low))
      low, high = math.log(low), math.log(high)
    return np.clip((value - low) / (high - low), 0.0, 1.0)

  def ticks(self, count: int) -> list[float]:
    if not self.log:
      return _round_steps(self.low, self.high, count)
    powers = range(
      math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
    )
    for digits in ((1, 2, 5), (1,)):
      ticks = [d * 10.0**p for p in powers for d in digits]
      ticks = [t for t in ticks if self.low <= t <= self.high]
      if len(ticks) <= count + 2:
        return ticks
    return ticks[:: math.ceil(len(ticks) / count)]


def _round_steps(low: float, high: float, count: int) -> list[float]:
  """About `count` multiples of 1, 2 or 5 times a power of ten."""
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(d * power for d in (1, 2, 5, 10) if d * power >= rough * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  # Multiples of an integer do not pile up rounding errors.
  return [i * step for i in range(first, last + 1)]


def _limits(lines: Sequence[Series], *, log: bool = True) -> _Scale:
  """A scale that shows all lines, and of a raw one all but its worst spikes."""
  ends = [
    np.percentile(s.y, (1, 99)) if s.style == 'raw' else (s.y.min(), s.y.max())
    for s in lines
    if len(s.y)
  ]
  if not ends:
    return _Scale(0.0, 1.0, False)
  low = float(min(e[0] for e in ends))
  high = float(max(e[1] for e in ends))
  if log and low > 0 and high / low > 20:
    return _Scale(low / 1.15, high * 1.15, True)
  # Zero is worth showing where it is near.
  pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
  bottom = 0.0 if 0 <= low <= 0.4 * high else low - pad
  return _Scale(bottom, high + pad, False)


def _chart(
  title: str,
  lines: Sequence[Series],
  steps: _Scale,
  limits: _Scale,
  height: int = HEIGHT,
) -> str:
  """A figure with a legend, or '' if there is nothing to draw.

  The attributes `data-*` let the page read a value back from a position.
  """
  lines = [s for s in lines if len(s.x)]
  if not lines:
    return ''
  right, floor = WIDTH - RIGHT, height - BOTTOM
  across = lambda x: LEFT + (right - LEFT) * steps(np.asarray(x))
  down = lambda y: floor - (floor - TOP) * limits(np.asarray(y))
  marks = _grid(steps, limits, across, down, height)
  marks += ''.join(_line(s, across(s.x), down(s.y)) for s in lines)
  legend = ''.join(map(_entry, lines))
  title = html.escape(title)
  scale = f' data-x="{steps.low:.10g} {steps.high:.10g} {LEFT} {right}"'
  scale += f' data-y="{limits.low:.6g} {limits.high:.6g} {floor} {TOP}"'
  scale += ' data-log="1"' if limits.log else ''
  return (
    f'<figure class="chart"><figcaption>{title}<ul>{legend}</ul></figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}"'
    f'{scale}>{marks}</svg></figure>'
  )


def _entry(line: Series) -> str:
  """Of the legend: colour, name and last value."""
  if line.style == 'raw':
    return ''
  label = html.escape(line.label)
  name = f'<span><i></i>{label}</span> ' if label else ''
  last = number(line.y[-1])
  return f'<li class="{line.style}">{name}<output>{last}</output></li>'


def _grid(steps, limits, across, down, height: int) -> str:
  marks = ''
  for value in limits.ticks(4 if height == HEIGHT else 2):
    y = float(down(value))
    marks += (
      f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
      f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" class="end">'
      f'{number(value)}</text>'
    )
  for value in steps.ticks(4):
    if value != int(value):
      continue
    text = f'{value / 1000:g}k' if value >= 10_000 else f'{value:.0f}'
    marks += (
      f'<text x="{float(across(value)):.1f}" y="{height - 6}" class="middle">'
      f'{text}</text>'
    )
  return marks + '<path class="cursor" d=""/>'


def _line(line: Series, x: np.ndarray, y: np.ndarray) -> str:
  points = ' '.join(f'{a:.2f},{b:.2f}' for a, b in zip(x, y, strict=True))
  if len(x) == 1:
    # A line of no length with round ends is a dot.
    return f'<polyline class="{line.style} dot" points="{points} {points}"/>'
  return f'<polyline class="{line.style}" points="{points}"/>'
