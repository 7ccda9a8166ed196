"""A training step recorded once as a CUDA graph and replayed: the GPU no longer waits for Python.

These models are so small that launching the kernels of a step takes longer than running them. A recorded
step must do the same work on the same memory every time: what varies (learning rate, data) is written into
tensors that it reads, and random numbers advance by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .runtime import Workspace

Body = Callable[[], dict[str, Tensor]]
WARM_CALLS = 2  # they compile, and create the optimizer's state
FIRST_CALLS = WARM_CALLS + 1


class Replay:
    """Calls `body` as it is at first, then records it and replays the recording; returns copies of its
    output.

    Without graphs, or where recording fails, `body` runs as it is every time.
    """

    def __init__(self, work: Workspace, name: str, body: Body) -> None:
        self.work, self.name, self.body = work, name, body
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.output: dict[str, Tensor] = {}
        self.stream = torch.cuda.Stream() if work.device.type == "cuda" else None

    def __call__(self) -> dict[str, Tensor]:
        if self.graph is None and self.work.graphs and self.calls >= WARM_CALLS:
            self._record()
        self.calls += 1
        if self.graph is not None:
            self.graph.replay()
            return {key: value.clone() for key, value in self.output.items()}
        if self.stream is None or not self.work.graphs:
            return self.body()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            output = self.body()
        torch.cuda.current_stream().wait_stream(self.stream)
        return output

    def _record(self) -> None:
        begin, outside = time.monotonic(), torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.output = self.body()
        except Exception as error:  # whatever it is, the step runs without a recording
            self.work.graphs = False
            torch.cuda.set_stream(outside)
            _fresh_random_state()
            self.work.log(not_recorded=self.name, reason=str(error)[:400])
            return
        self.graph = graph
        self.work.log(recorded=self.name, seconds=round(time.monotonic() - begin, 1))


def _fresh_random_state() -> None:
    """Give the GPU's generator a new state: a recording that failed leaves it unusable outside of one."""
    generator: Any = torch.cuda.default_generators[torch.cuda.current_device()]
    fresh: Any = torch.Generator(generator.device)
    fresh.manual_seed(torch.initial_seed() + 1)
    generator.graphsafe_set_state(fresh.graphsafe_get_state())
