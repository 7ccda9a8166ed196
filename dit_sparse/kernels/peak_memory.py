"""Peak memory of a piece of work: the GPU allocator's on CUDA, the process's resident set on a Linux CPU."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # proc(5): writing it to clear_refs sets VmHWM back to the present resident set
KIBIBYTE = 1024


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far. On systems that cannot, :func:`peak_bytes` gives None."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text(RESET_PEAK)


def peak_bytes(device: torch.device) -> int | None:
    """Peak since :func:`reset_peak`; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM:")


class PeakMemory:
    """Peak above what was held when this was made. Making it resets the device's own peak statistics.

    Args:
        device: whose memory to watch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        reset_peak(device)
        on_gpu = device.type == "cuda"
        self._before = torch.cuda.memory_allocated(device) if on_gpu else _status("VmRSS:")

    def extra_bytes(self) -> int | None:
        """Largest so far; None where the system does not tell."""
        peak = peak_bytes(self._device)
        return None if peak is None or self._before is None else max(0, peak - self._before)


def _status(name: str) -> int | None:
    """A size of this process by its name in proc(5)."""
    try:
        status = (PROCESS / "status").read_text()
    except OSError:
        return None
    lines = (line.split() for line in status.splitlines())
    return next((int(line[1]) * KIBIBYTE for line in lines if line and line[0] == name), None)
