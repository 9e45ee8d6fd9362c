"""The report of a run: `write` makes one HTML file of clips and curves."""

from dcjax.report.clips import Panel
from dcjax.report.page import write

__all__ = ['Panel', 'write']
