"""Step and branch of every forward, with real schedulers."""

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from dit_sparse.adapters.steps import StepTracker, branch_of


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def drive(tracker, scheduler, steps, calls=2, begin=0):
    """Run a denoising loop and collect the moments."""
    scheduler.set_timesteps(steps)
    if begin:
        scheduler.set_begin_index(begin)
    sample, moments = torch.zeros(1, 4), []
    for t in scheduler.timesteps[begin:]:
        moments += [tracker.advance(t.expand(2)) for _ in range(calls)]
        sample = scheduler.step(torch.zeros_like(sample), t, sample, return_dict=False)[0]
    return moments


@pytest.mark.parametrize("make", [unipc, FlowMatchEulerDiscreteScheduler, CogVideoXDDIMScheduler])
def test_steps_and_branches_follow_the_scheduler(make):
    scheduler = make()
    tracker = StepTracker(lambda: scheduler)
    for _ in range(2):  # the second generation looks like the first
        moments = drive(tracker, scheduler, 5)
        assert [m.step for m in moments] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert [branch_of(m, "separate") for m in moments] == ["conditional", "unconditional"] * 5
        assert {m.num_steps for m in moments} == {5}
        assert [m.new_generation for m in moments] == [True] + [False] * 9


def test_batched_guidance_is_one_branch():
    scheduler = unipc()
    moments = drive(StepTracker(scheduler), scheduler, 3, calls=1)
    assert [branch_of(m, "batched") for m in moments] == ["batched"] * 3


def test_video_to_video_counts_from_its_first_step():
    scheduler = unipc()
    moments = drive(StepTracker(scheduler), scheduler, 6, calls=1, begin=2)
    assert [(m.step, m.num_steps) for m in moments] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    ddim = CogVideoXDDIMScheduler()
    ddim.set_timesteps(6)
    tracker = StepTracker(ddim)
    assert [(m.step, m.num_steps) for m in map(tracker.advance, ddim.timesteps[2:])] == [
        (i, 4) for i in range(4)
    ]


def test_second_order_scheduler_counts_evaluations():
    scheduler = HeunDiscreteScheduler()
    moments = drive(StepTracker(scheduler), scheduler, 3)
    assert [m.step for m in moments] == [i for i in range(5) for _ in range(2)]
    assert [branch_of(m, "separate") for m in moments] == ["conditional", "unconditional"] * 5


def test_one_step_generations_are_told_apart():
    scheduler = unipc()
    tracker = StepTracker(scheduler)
    for _ in range(3):
        assert [(m.step, m.call, m.new_generation) for m in drive(tracker, scheduler, 1)] == [
            (0, 0, True),
            (0, 1, False),
        ]


def test_a_bare_transformer_counts_timesteps():
    tracker = StepTracker()
    seen = [tracker.advance(torch.tensor([t])) for t in (900, 900, 500, 500, 100, 100, 900, 900)]
    assert [m.step for m in seen] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert [m.call for m in seen] == [0, 1] * 4
    assert [m.new_generation for m in seen] == [True, False, False, False, False, False, True, False]
    assert {m.num_steps for m in seen} == {None}


class Expert:
    def __init__(self):
        self.told = []

    def start(self):
        self.told.append("start")

    def rest(self):
        self.told.append("rest")


def test_transformers_are_told_of_each_other():
    """All of a generation's start, the others of a transformer's first forward in it: once, however often
    they take turns."""
    tracker, first, second = StepTracker(), Expert(), Expert()
    tracker.followers.update((first, second))
    for timestep, runs in ((900, first), (700, first), (500, second), (300, first), (100, second)):
        tracker.advance(timestep, runs)
    assert first.told == ["start", "rest"]
    assert second.told == ["start", "rest"]  # it rested when the first one began
    tracker.advance(900, second)
    assert first.told == ["start", "rest", "start", "rest"]
    assert second.told == ["start", "rest", "start"]
