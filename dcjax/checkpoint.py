"""Checkpoints of a stage through Orbax.

A checkpoint holds the trainable leaves, the optimizer, the step and the
position in the data: never the frozen base. Orbax writes to a temporary folder
and renames it when it is complete, so a process that is killed at any moment
leaves the last complete checkpoint standing.
"""

from collections.abc import Mapping
import os
import shutil
from typing import Any

import jax

from dcjax.errors import DcjaxError


class Checkpoints:
  """The checkpoints of one stage, in one folder.

  Args:
    folder: created if missing.
    identity: what a run must share to go on from here (stage, base, config);
      resuming under another identity is an error.
    keep: how many to keep.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    identity: Mapping[str, Any],
    *,
    keep: int = 2,
  ):
    import orbax.checkpoint as ocp

    self._ocp = ocp
    self._identity = dict(identity)
    self._folder = os.path.abspath(folder)
    self._manager = ocp.CheckpointManager(
      self._folder,
      item_names=('state', 'meta'),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    )

  @property
  def step(self) -> int | None:
    """Step of the last complete checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, data: Mapping[str, Any] | None) -> None:
    """Saves asynchronously; the arrays are copied before this returns.

    Raises:
      DcjaxError: if the disk has no room for it.
    """
    if step == self.step:
      return
    # Orbax would find out in its threads, each of which says so at length.
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self._folder).free
    if free < needed:
      raise DcjaxError(
        f'the disk of {self._folder} is full: the checkpoint of step {step} '
        f'needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; make room '
        'and give the same command again: it goes on from step '
        f'{self.step or 0}'
      )
    args = self._ocp.args
    self._manager.save(
      step,
      args=args.Composite(
        state=args.StandardSave(state),
        meta=args.JsonSave({'identity': self._identity, 'data': data}),
      ),
    )

  def restore(self, like: Any) -> tuple[Any, Any]:
    """The last checkpoint as (state, position in the data).

    Args:
      like: a state whose structure, shapes and shardings the result takes.

    Raises:
      DcjaxError: if the checkpoint belongs to another run.
    """
    args, meta = self._ocp.args, self._meta()
    target = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
    state = self._manager.restore(
      self.step, args=args.Composite(state=args.StandardRestore(target))
    )['state']
    return state, meta['data']

  def check(self) -> None:
    """Raises DcjaxError if the last checkpoint belongs to another run."""
    if self.step is not None:
      self._meta()

  def wait(self) -> None:
    """Returns when the last save is on disk; raises what went wrong in it."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  def _meta(self) -> dict[str, Any]:
    args = self._ocp.args
    meta = self._manager.restore(
      self.step, args=args.Composite(meta=args.JsonRestore())
    )['meta']
    self._check(meta['identity'])
    return meta

  def _check(self, identity: Mapping[str, Any]) -> None:
    differ = [
      f'{key} is {self._identity.get(key)!r} now and was {identity.get(key)!r}'
      for key in sorted({*identity, *self._identity})
      if identity.get(key) != self._identity.get(key)
    ]
    if differ:
      raise DcjaxError(
        f'{self._folder} holds checkpoints of another run '
        f'({"; ".join(differ)}); use another --workdir, or remove that folder'
      )
