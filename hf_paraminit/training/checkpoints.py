"""Checkpoints of a run that appear complete or not at all, and what a run must have in common with its own."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from hf_paraminit.errors import CheckpointError, OutputError, TrainingConfigError
from hf_paraminit.io.atomic import atomic_write

logger = logging.getLogger("hf_paraminit")


class CheckpointFolder:
    """Step-numbered checkpoints; a folder appears under its final name only when it is complete."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep

    def steps(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.path.glob("step_*") if re.fullmatch(r"step_\d+", path.name))

    def restore(self, accelerator: Accelerator) -> None:
        """Load the newest checkpoint, if any.

        Raises:
            CheckpointError: It is damaged, or of another model.
        """
        if not (found := self.steps()):
            return
        try:
            accelerator.load_state(str(found[-1]))
        except Exception as error:  # of torch, safetensors, pickle or the model itself, as its damage has it
            raise CheckpointError(
                f"Cannot go on from {found[-1]}: {error} The checkpoint is damaged or of another model. Delete this "
                "folder to go on from the one before it, or use another output folder."
            ) from error
        logger.info("Resumed from %s.", found[-1])

    def save(self, accelerator: Accelerator, step: int) -> None:
        """Write a checkpoint under a temporary name, rename it, delete the oldest.

        Raises:
            OutputError: It could not be written, for instance on a full disk; those before are as they were.
        """
        final = self.path / f"step_{step:08d}"
        unfinished = final.with_suffix(".unfinished")
        with self._cleared_on_failure(unfinished):
            if accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                shutil.rmtree(final, ignore_errors=True)
                unfinished.rename(final)
        if accelerator.is_main_process:
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    @contextmanager
    def _cleared_on_failure(self, unfinished: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors report a failed write as a RuntimeError or in an error of their own.
            if not isinstance(error, OSError) and not re.search(r"writ|I/O|space", str(error)):
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            found = self.steps()
            raise OutputError(
                f"Could not write the checkpoint {unfinished.stem} in {self.path}: {error}. "
                f"{f'The one before, {found[-1].name}, is intact' if found else 'There is none before it'}. "
                "Free some space and give the same command again: it goes on from there."
            ) from error


def require_same_run(
    output: Path, accelerator: Accelerator, settings: Mapping[str, Any], checkpoints: CheckpointFolder
) -> None:
    """Refuse to resume under other settings: the schedule, the batches or the model would silently be wrong.

    Args:
        output: Folder of the run, which keeps its settings in `settings.json`.
        accelerator: Of this run.
        settings: JSON values.
        checkpoints: Of this run; without any, all settings are new.

    Raises:
        TrainingConfigError: Settings differ; the message says which, before and now.
    """
    path = output / "settings.json"
    now = json.loads(json.dumps(settings))  # as it will be read: tuples become lists
    if checkpoints.steps() and path.exists():
        former = json.loads(path.read_text())
        names = dict.fromkeys([*former, *now])
        if changed := {name: (former.get(name), now.get(name)) for name in names if former.get(name) != now.get(name)}:
            raise TrainingConfigError(
                f"Cannot resume the run in {output}: settings (before, now) differ: {changed}. Use the former "
                "settings, or another output folder."
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(now, indent=2) + "\n")
