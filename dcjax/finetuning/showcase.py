"""What training on a folder shows: previews while it runs, and its report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import gallery, report
from dcjax import material as material_lib
from dcjax.concept import Concept
from dcjax.data import windows
from dcjax.data.buckets import Bucket
from dcjax.data.cache import content_hash
from dcjax.finetuning.survey import Entry
from dcjax.weights.base import Base

SHOWN = 3  # files of the data in the report


class Showcase:
  """Samples of one run, in its folder.

  Args:
    base: the base.
    options: `sample` of the config: seed, steps, guidance and sampler.
    workdir: of the run.
    prompts: what is sampled.
    shape: frames and size of the samples.
  """

  def __init__(
    self,
    base: Base,
    options: ConfigDict,
    workdir: Path,
    *,
    prompts: Sequence[str],
    shape: Bucket,
  ):
    self.base, self.options, self.workdir = base, options, workdir
    self.prompts, self.shape = list(prompts), shape

  def preview(self, stage: str, step: int, concept: Concept) -> None:
    """What has been learnt so far."""
    for prompt, video in zip(
      self.prompts, self._sample([concept]), strict=True
    ):
      self._keep(f'{stage}_{step:05}_{_name(prompt)}', video)

  def panels(
    self, concept: Concept, entries: Sequence[Entry], fps: float
  ) -> list[report.Panel]:
    """Some of the data; then every prompt with what was learnt, and without.

    The same noise makes both, so that the difference is the training.
    """
    panels = []
    clips_first = sorted(entries, key=lambda entry: entry.probe.is_still)
    for entry in clips_first[:SHOWN]:
      video = next(windows.windows(entry.item.path, entry.place, fps))
      kind = 'picture' if entry.probe.is_still else 'clip'
      panels.append(
        report.Panel(
          kind,
          entry.item.caption,
          video,
          fps,
          'training data',
          {'file': entry.item.name},
        )
      )
    own = gallery.settings(self.base, self.options)
    for group, concepts in (('after', [concept]), ('before', [])):
      samples = self._sample(concepts)
      for i, (prompt, video) in enumerate(
        zip(self.prompts, samples, strict=True)
      ):
        self._keep(f'{group}_{i}', video)
        rate = self.base.format.fps
        panels.append(
          report.Panel(f'{group} training', prompt, video, rate, group, own)
        )
    return panels

  def write_report(
    self,
    title: str,
    panels: list[report.Panel],
    stage: str,
    *,
    prompts: Mapping[str, str],
    notes: Sequence[str],
    timings: Mapping[str, Any],
  ) -> Path:
    """Writes report.html from the panels and the files of the run."""
    return gallery.write_report(
      self.workdir,
      self.prompts[0],
      title=title,
      videos=panels + self._saved_previews(stage),
      timings=timings,
      prompts=prompts,
      notes=notes,
    )

  def _sample(self, concepts: Sequence[Concept]) -> np.ndarray:
    f, h, w = self.shape
    return material_lib.sample_many(
      self.base,
      self.prompts,
      seed=self.options.seed,
      frames=f,
      height=h,
      width=w,
      concepts=concepts,
      **gallery.sample_options(self.options),
    )

  def _keep(self, name: str, video: np.ndarray) -> None:
    gallery.keep(self.workdir, name, video, self.base.format.fps)

  def _saved_previews(self, stage: str) -> list[report.Panel]:
    """The previews of the whole run, also those from before it was resumed."""
    panels = []
    for prompt in self.prompts:
      panels += gallery.saved_previews(
        self.workdir,
        stage,
        self.shape.height,
        prompt=prompt,
        name=_name(prompt),
      )
    return panels


def _name(prompt: str) -> str:
  """Of its previews: other prompts of a run that goes on have others."""
  return f'preview-{content_hash(prompt)[:8]}'
