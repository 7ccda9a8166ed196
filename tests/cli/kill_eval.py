"""Run ``dit-sparse eval`` again and again and kill it; says as JSON what was seen. Started by test_eval.py.

The first run is done in this process, which imports everything; every attempt is a fork of it, so that its
time goes into the work that is to be interrupted. Attempts are killed by the processor time they used, which
does not depend on what else the machine does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

from dit_sparse.cli.main import app
from dit_sparse.report.evaluation_schema import ClipScores, Evaluation
from dit_sparse.report.schema import Report

SHARE = 0.5  # an attempt is killed before it did this share of the whole work


def start(arguments: list[str], output: Path) -> int:
    """Run the command in a fork; its process id."""
    if pid := os.fork():
        return pid
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    os._exit(run(arguments, output))


def run(arguments: list[str], output: Path) -> int:
    """Run the command here; its exit code."""
    try:
        app([*arguments, "--output", str(output)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def used_s(pid: int) -> float | None:
    """Processor time so far; None once it has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return None
    return times.user + times.system


def attempt(arguments: list[str], output: Path, limit_s: float) -> bool:
    """Run until ``limit_s`` of processor time, then kill; whether it was killed before it was done."""
    pid = start(arguments, output)
    while (used := used_s(pid)) is not None and used < limit_s:
        time.sleep(0.002)
    if used is not None:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, f"eval ended with {os.WEXITSTATUS(status)}"
    return False


def units(output: Path) -> dict[str, int]:
    """Everything at its place: path -> inode, after a look whether it is whole."""
    found = {}
    for place in sorted([*output.glob("dense/*"), *output.glob("clips/*/*")]):
        if place.parent.parent.name == "clips":
            Report.model_validate_json((place / "report.json").read_text())
            ClipScores.model_validate_json((place / "scores.json").read_text())
            assert (place / "report.html").read_text().rstrip().endswith("</html>")
        else:
            assert (place / "frames.npz").stat().st_size > 0
            json.loads((place / "run.json").read_text())
        assert (place / "thumbnail.webp").stat().st_size > 0
        found[str(place.relative_to(output))] = place.stat().st_ino
    return found


def main(folder: Path, kills: int, arguments: list[str]) -> None:
    """An uninterrupted run, then attempts in a second folder until ``kills`` of them were killed."""
    chance = random.Random(0)
    assert run(arguments, folder / "whole") == 0
    expected = (folder / "whole" / "evaluation.json").read_bytes()
    before = sum(os.times()[2:4])
    assert not attempt(arguments, folder / "forked", float("inf"))
    work_s = sum(os.times()[2:4]) - before
    same = (folder / "forked" / "evaluation.json").read_bytes() == expected
    seen: dict[str, list] = {"finished": [], "redone": [], "same": [same], "partial": []}
    output, done = folder / "killed", {}
    while len(seen["finished"]) < kills:
        killed = attempt(arguments, output, chance.uniform(0.02, SHARE) * work_s)
        now = units(output)
        seen["redone"] += [place for place, inode in done.items() if now.get(place) != inode]
        done = now
        if (output / "evaluation.json").exists():
            Evaluation.model_validate_json((output / "evaluation.json").read_text())
        if killed:
            seen["finished"].append(len(now))
            work = output / ".work"
            seen["partial"].append(
                sum(1 for entry in work.iterdir() if entry.is_dir()) if work.is_dir() else 0
            )
        else:
            seen["same"].append((output / "evaluation.json").read_bytes() == expected)
            shutil.rmtree(output)
            done = {}
    assert not attempt(arguments, output, float("inf"))
    seen["redone"] += [place for place, inode in done.items() if units(output).get(place) != inode]
    seen["same"].append((output / "evaluation.json").read_bytes() == expected)
    left = [path.name for path in output.iterdir() if ".partial" in path.name]
    print(json.dumps({**seen, "left": left, "work_s": work_s, "units": len(units(output))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
