"""What a personalisation shows: previews while it runs, and its report.

The functions below the class serve every run that shows samples.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from dcjax import material as material_lib
from dcjax import recipes, report, tracking
from dcjax.concept import Concept
from dcjax.data import prompts as prompts_lib
from dcjax.data import video as video_lib
from dcjax.errors import DcjaxError
from dcjax.stage import Stage
from dcjax.weights.base import Base

# Stills in a preview of a stage that learns from stills.
STILLS = 4


class Gallery:
  """Samples of one run, in its folder.

  Args:
    base: the base.
    config: of the run; `sample` holds seed, steps, guidance and sampler.
    workdir: of the run.
    appearance: the prompt of stage *set*.
    full: the prompt of stage *sequence*.
  """

  def __init__(
    self,
    base: Base,
    config: ConfigDict,
    workdir: Path,
    *,
    appearance: str,
    full: str,
  ):
    self.base, self.options, self.workdir = base, config.sample, workdir
    self.appearance, self.full = appearance, full

  def sample_options(self) -> dict[str, Any]:
    """Options of `sampling.sample`; None is the base's own value."""
    return sample_options(self.options)

  def preview(self, stage: Stage, step: int, concept: Concept) -> None:
    """What the stage has learnt so far: some stills, or the clip."""
    if stage.data == 'frames':
      stills = self._sample(concept, [self.appearance] * STILLS, frames=1)
      video = np.concatenate(list(stills), axis=2)
    else:
      video = self._sample(concept, [self.full])[0]
    self._keep(f'{stage.name}_{step:05}_preview', video)

  def show(
    self, concept: Concept, clip: video_lib.Video, scenes: Mapping[str, str]
  ) -> list[report.Panel]:
    """Samples the scenes and keeps them beside the input.

    Args:
      concept: what was learnt.
      clip: what it was learnt from.
      scenes: {label: prompt}; the first is the reconstruction.

    Returns:
      Panels for the report.
    """
    videos = self._sample(concept, list(scenes.values()))
    fps = self.base.format.fps
    self._keep('input', clip.frames)
    panels = [report.Panel('input', self.full, clip.frames, fps, 'input')]
    for i, (label, prompt) in enumerate(scenes.items()):
      self._keep(f'final_{label.replace(" ", "_")}', videos[i])
      group = 'new scenes' if i else 'input'
      panels.append(
        report.Panel(label, prompt, videos[i], fps, group, self._settings())
      )
    return panels

  def write_report(
    self,
    title: str,
    panels: list[report.Panel],
    stages: Sequence[Stage],
    *,
    prompts: Mapping[str, str],
    timings: Mapping[str, Any],
  ) -> Path:
    """Writes report.html from the panels and the files of the run."""
    return write_report(
      self.workdir,
      self.full,
      title=title,
      videos=panels + self._saved_previews(stages),
      timings=timings,
      prompts=prompts,
    )

  def _sample(
    self, concept: Concept, prompts: Sequence[str], frames: int | None = None
  ) -> np.ndarray:
    return material_lib.sample_many(
      self.base,
      prompts,
      seed=self.options.seed,
      frames=frames,
      concepts=[concept],
      **self.sample_options(),
    )

  def _keep(self, name: str, video: np.ndarray) -> None:
    keep(self.workdir, name, video, self.base.format.fps)

  def _settings(self) -> dict[str, Any]:
    return settings(self.base, self.options)

  def _saved_previews(self, stages: Sequence[Stage]) -> list[report.Panel]:
    """The previews of all stages, also those of a run that was resumed."""
    panels = []
    for stage in stages:
      prompt = self.appearance if stage.data == 'frames' else self.full
      panels += saved_previews(
        self.workdir, stage.name, self.base.format.height, prompt=prompt
      )
    return panels


def scenes(
  base: Base,
  edits: Sequence[str],
  words: Mapping[str, int],
  *,
  appearance: str,
  full: str,
) -> dict[str, str]:
  """{label: prompt} of what the report shows, checked.

  Args:
    base: whose words the prompts are in.
    edits: 'label: prompt' of new scenes; none: some in the base's own words.
    words: vectors of each learned word.
    appearance: the prompt of stage *set*.
    full: the prompt of the reconstruction, which comes first.

  Raises:
    DcjaxError: an edit has no label, no prompt or the label of another scene,
      or its prompt cannot be encoded.
  """
  found = {'reconstruction': full}
  if not edits:
    own = recipes.edits(base.name, appearance, tokens=bool(words))
    return found | own
  for edit in edits:
    label, _, prompt = (x.strip() for x in edit.partition(':'))
    if not (label and prompt):
      raise DcjaxError(f'config.edits holds {edit!r}; expected "label: prompt"')
    if label in found:
      raise DcjaxError(
        f'config.edits calls two scenes {label!r}; expected labels of their '
        'own, none of which is reconstruction'
      )
    found[label] = prompt
  prompts_lib.encode(
    base.tokenizer, list(found.values()), base.format.text_length, words
  )
  return found


def sample_options(options: ConfigDict) -> dict[str, Any]:
  """Options of `sampling.sample`; None is the base's own value."""
  given = {'steps': options.steps or None, 'guidance': options.guidance or None}
  # Left out, prior videos that were drawn without one are found again.
  return given | ({'sampler': options.sampler} if options.sampler else {})


def settings(base: Base, options: ConfigDict) -> dict[str, Any]:
  """How a sample was made, for the report."""
  return {
    'seed': options.seed,
    'steps': options.steps or base.format.steps,
    'guidance': options.guidance or base.format.guidance,
    'sampler': options.sampler or 'unipc',
  }


def keep(workdir: Path, name: str, video: np.ndarray, fps: float) -> None:
  """Writes workdir/samples/NAME.mp4, or .png for one frame."""
  suffix = 'mp4' if len(video) > 1 else 'png'
  path = workdir / 'samples' / f'{name}.{suffix}'
  path.parent.mkdir(parents=True, exist_ok=True)
  # Small videos are enlarged to be seen in any player.
  scale = max(1, 256 // video.shape[1])
  video_lib.write_video(path, video, fps, scale=scale)


def read_kept(path: Path, height: int) -> video_lib.Video:
  """A kept sample of `height` pixels as it was before it was enlarged."""
  clip = video_lib.read_video(path)
  # The page enlarges small clips itself.
  scale = max(1, clip.frames.shape[1] // height)
  small = clip.frames[:, scale // 2 :: scale, scale // 2 :: scale]
  return video_lib.Video(small, clip.fps)


def saved_previews(
  workdir: Path, stage: str, height: int, *, prompt: str, name: str = 'preview'
) -> list[report.Panel]:
  """Panels of kept previews, also those from before a run was resumed.

  Args:
    workdir: of the run.
    stage: in which they were made.
    height: of the samples, in pixels.
    prompt: that they show.
    name: of the files STAGE_STEP_NAME.
  """
  panels = []
  for path, step in tracking.previews(workdir, stage).items():
    if not path.stem.endswith(f'_{name}'):
      continue
    clip = read_kept(path, height)
    panels.append(
      report.Panel(
        f'step {step}', prompt, clip.frames, clip.fps, stage, step=step
      )
    )
  return panels


def write_report(workdir: Path, prompt: str, **given: Any) -> Path:
  """Writes report.html from the files of the run and what is given.

  Args:
    workdir: of the run.
    prompt: of the command that samples the concept.
    **given: the other arguments of `report.write`.
  """
  concept = workdir / 'concept.safetensors'
  return report.write(
    workdir / 'report.html',
    metrics=tracking.read(workdir / 'metrics.jsonl'),
    settings=json.loads((workdir / 'config.json').read_text()),
    commands={
      'Sample it with another prompt': 'python -m dcjax.main '
      f'--config=configs/sample.py --config.concepts={concept} '
      f'--config.prompt="{prompt}"'
    },
    **given,
  )
