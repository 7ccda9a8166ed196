"""The processes of ``accelerate launch``: who takes which prompts, and who writes the page."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

POLL_S = 0.2
# Processes wait for one another only at the start, but one of them may load its model slowly.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Workers:
    """This process among ``count``; on a machine without ``accelerate launch`` it is the only one."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    state: Any = None

    @property
    def main(self) -> bool:
        """Whether this process prepares the folder and writes the page."""
        return self.rank == 0

    def share(self, prompts: Sequence[int]) -> list[int]:
        """The prompts of this process: with all their configurations, so that a dense clip stays in one."""
        return list(prompts[self.rank :: self.count])

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def done(self, folder: Path, tell: Callable[[], None]) -> None:
        """Say that this process has no more to do; the main one waits for the others, and tells meanwhile.

        They meet through files: what they have done may lie hours apart, more than a collective waits.
        """
        (folder / f"done-{self.rank}").touch()
        while self.main and len(list(folder.glob("done-*"))) < self.count:
            tell()
            time.sleep(POLL_S)
        tell()

    def device(self, asked: str) -> str:
        """The device of this process: one GPU each.

        Raises:
            ValueError: if one GPU was asked for by its number for several processes.
        """
        if self.count == 1 or asked == "cpu":
            return asked
        if asked not in ("auto", "cuda"):
            raise ValueError(f"--device {asked} is one device for {self.count} processes: use auto")
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"


def launched() -> Workers:
    """The processes that ``accelerate launch`` or ``torchrun`` started; one without them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Workers()
    from accelerate import PartialState

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Workers(state.process_index, state.num_processes, state.local_process_index, state)
