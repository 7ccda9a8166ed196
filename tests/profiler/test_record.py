"""Recordings of real pipelines: the families, resuming, refusals, sensitivity, the file."""

from dataclasses import fields, replace

import pytest
import torch
from recorded_runs import random, settings
from tiny import FAMILIES, hunyuan_video_inputs, hunyuan_video_pipeline, run, wan_inputs, wan_pipeline

from dit_sparse.corrections import CorrectionInput
from dit_sparse.kernels import block_sparse_attention, dense_attention
from dit_sparse.kernels.peak_memory import PeakMemory
from dit_sparse.layout import BlockMap
from dit_sparse.profiler import tensor_file
from dit_sparse.profiler.record import record
from dit_sparse.profiler.record_sensitivity import InputKeeper, TowardsSparse, layer_sensitivity
from dit_sparse.profiler.record_settings import RecordSettings, default_templates, even_groups
from dit_sparse.profiler.record_sums import FILE
from dit_sparse.profiler.recording import Template
from dit_sparse.profiler.recording_file import load_recording, save_recording

GROUPS = ((1, 2), (2, 4))
FEW = default_templates((0.3,), ((1.0, 1.0, 1.0),), observed=False)
CHOSEN = settings(GROUPS, templates=FEW)
TIMED = ("seconds", "peak_bytes")


class Counter:
    """Counts what it is told, and may interrupt."""

    def __init__(self, until=None):
        self.total = self.done = self.count = 0
        self.until = until

    def start(self, total, done=0):
        self.total, self.done = total, done

    def advance(self):
        self.count += 1
        if self.count == self.until:
            raise KeyboardInterrupt


def calls(family="wan", prompts=2):
    made = []
    for i in range(prompts):
        call = FAMILIES[family][1]()
        call["prompt_embeds"] = call["prompt_embeds"] + 0.5 * i
        made.append(call)
    return made


def recorded(work_dir, *, family="wan", prompts=2, pipe=None, chosen=CHOSEN, progress=None, **options):
    pipe = pipe or FAMILIES[family][0]()
    given = calls(family, prompts)
    return record(
        pipe, given, seeds=range(prompts), work_dir=work_dir, settings=chosen, progress=progress, **options
    )


def assert_same(one, other):
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), field.name
        elif field.name == "mass":
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
        elif field.name not in TIMED:
            assert a == b, field.name


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_recorded_and_left_as_they_were(family, tmp_path):
    pipe, progress = FAMILIES[family][0](), Counter()
    before = run(pipe, FAMILIES[family][1]())
    found = recorded(tmp_path, family=family, pipe=pipe, progress=progress)
    assert torch.equal(run(pipe, FAMILIES[family][1]()), before), "the pipeline is not as it was"
    assert not pipe.transformer._forward_pre_hooks
    assert progress.count == progress.total == 2 * 2 * 3 + 2 * 2
    assert found.model.family == family
    assert (found.grid.frames, found.grid.height, found.grid.width) == (3, 5, 7)
    text = {"wan": ("none", 0), "cogvideox": ("first", 16), "hunyuan_video": ("last", 7)}[family]
    assert (found.grid.text_position, found.grid.text_tokens) == text
    assert found.schedule.groups == GROUPS
    assert found.schedule.num_steps == 4
    assert found.calibration.seeds == (0, 1)
    assert found.calibration.pixels == (9, 80, 112)
    assert found.error.shape == (2, 2, 2, len(FEW))
    assert found.error[..., 0].eq(0).all() and (found.error[..., 1:] > 0).all()
    assert set(found.mass) == {(g, layer) for g in range(2) for layer in range(2)}
    for mass in found.mass.values():
        torch.testing.assert_close(mass.float().sum(-1), torch.ones(mass.shape[:2]), rtol=0, atol=2e-3)
    assert (found.sensitivity > 0).all() and found.sensitivity.isfinite().all()
    assert found.stability[0, ..., 1].isnan().all(), "the first group has one step"
    assert found.stability[1].isfinite().all() and (found.stability[1] <= 1).all()
    assert found.seconds > 0


def test_samples_of_different_lengths_of_text_are_recorded_one_by_one(tmp_path):
    chosen = settings(((2, 4),), sensitivity=False, templates=FEW)
    call = hunyuan_video_inputs(2, (11, 4))
    found = record(hunyuan_video_pipeline(), [call], seeds=[0], work_dir=tmp_path, settings=chosen)
    assert found.grid.text_tokens == 11
    assert found.mass[0, 1].shape == (2, 8, 8)
    torch.testing.assert_close(found.mass[0, 1].float().sum(-1), torch.ones(2, 8), rtol=0, atol=2e-3)
    assert found.error.isfinite().all() and (found.recall <= 1.001).all()


@pytest.mark.parametrize("until", [3, 11, 14])
def test_stopped_and_started_again_it_ends_with_the_same(until, tmp_path):
    """Within the first prompt, at the first unit of the second, within the second."""
    whole = recorded(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path / "parts", progress=Counter(until))
    again = Counter()
    assert_same(recorded(tmp_path / "parts", progress=again), whole)
    assert again.total == 16
    assert again.done == (0 if until < 11 else 10)
    assert again.count == again.total - again.done
    third = Counter()
    assert_same(recorded(tmp_path / "parts", progress=third), whole)
    assert third.count == 0, "all was recorded before"


def test_an_interrupted_write_leaves_the_prompts_before(tmp_path, monkeypatch):
    whole = recorded(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path / "parts", progress=Counter(12))

    def torn(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "save_file", torn)
        with pytest.raises(OSError, match="disk full"):
            recorded(tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [FILE]
    assert_same(recorded(tmp_path / "parts"), whole)


def test_another_recording_in_the_folder_is_refused(tmp_path):
    quick = replace(CHOSEN, sensitivity=False)
    first = recorded(tmp_path, prompts=1, chosen=replace(quick, groups=((2, 4),)))
    assert first.sensitivity.eq(1).all()
    with pytest.raises(ValueError, match=r"recorded with other groups: give another work_dir"):
        recorded(tmp_path, prompts=1, chosen=replace(quick, groups=((1, 4),)))
    other = wan_pipeline()
    with torch.no_grad():
        other.transformer.blocks[0].attn1.to_q.weight += 1.0
    with pytest.raises(ValueError, match="recorded with other weights"):
        recorded(tmp_path, prompts=1, chosen=replace(quick, groups=((2, 4),)), pipe=other)
    with pytest.raises(ValueError, match="recorded with other calls, seeds"):
        recorded(tmp_path, prompts=2, chosen=replace(quick, groups=((2, 4),)))
    again = Counter()
    unimportant = replace(quick, groups=((2, 4),), head_chunk=1)
    recorded(tmp_path, prompts=1, chosen=unimportant, progress=again)
    assert again.count == 0, "how it is made is of no importance"
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read as an unfinished recording"):
        recorded(tmp_path, prompts=1, chosen=unimportant)


def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path):
    pipe = wan_pipeline()

    def refused(match, given, seeds=(0,), chosen=CHOSEN, **options):
        with pytest.raises(ValueError, match=match):
            record(pipe, given, seeds=seeds, work_dir=tmp_path, settings=chosen, **options)

    refused("got 1 calls, 2 seeds", calls(prompts=1), (0, 1))
    refused("at least one, got 0 calls", [], ())
    refused("groups end at step 4, so every call must have num_inference_steps=4, got .6.",
            [wan_inputs() | {"num_inference_steps": 6}])  # fmt: skip
    refused("needs num_inference_steps", [{"prompt": "x"}])
    refused("must not hold a generator", [wan_inputs() | {"generator": 1}])
    refused(r"step groups \[\(1, 2\)\] have one observed step only", calls(prompts=1))
    refused("has no 'transformer_2' to record", calls(prompts=2), (0, 1), component="transformer_2")
    refused(r"calls\[0\].cross.x is a object", [wan_inputs() | {"cross": {"x": object()}}],
            chosen=settings(((2, 4),)))  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_settings_are_checked():
    for match, fields_ in (
        ("groups must be", {"groups": ((0, 2), (3, 4))}),
        ("groups must be", {"groups": ()}),
        ("observed must be at least 1, got 0", {"observed": 0}),
        ("density must be in .0, 1., got 1", {"density": 1.0}),
        ("head_chunk must be at least 1, got 0", {"head_chunk": 0}),
        ("unknown template kind 'band'", {"templates": (Template("band", 0.1),)}),
        ("density of a 'mask' template", {"templates": (Template("mask", 0.0),)}),
        ("density of a 'skip' template must be 0.0", {"templates": (Template("skip", 0.1),)}),
        ("shape of a window", {"templates": (Template("window", 0.1),)}),
        ("at least one", {"templates": ()}),
    ):
        with pytest.raises(ValueError, match=match):
            RecordSettings(**{"groups": ((0, 2),)} | fields_)
    chosen = RecordSettings(((0, 1), (1, 3), (3, 9)), observed=3, templates=FEW)
    assert chosen.observed_steps == ((0,), (1, 2), (3, 5, 8))
    assert even_groups(10, 4, 2) == ((2, 4), (4, 6), (6, 8), (8, 10))
    with pytest.raises(ValueError, match="4 groups do not fit 5 steps of which 2"):
        even_groups(5, 4, 2)


def test_the_second_expert_is_recorded_at_its_own_steps(tmp_path):
    pipe = wan_pipeline(experts=2)
    quick = settings(((3, 4),), sensitivity=False)
    found = recorded(tmp_path, pipe=pipe, chosen=quick, component="transformer_2")
    assert found.model.component == "transformer_2"
    assert found.error.isfinite().all()
    early = settings(((0, 4),), sensitivity=False)
    with pytest.raises(ValueError, match="2 of 2 layers of 'transformer_2' could not be observed at step 0"):
        recorded(tmp_path / "early", pipe=pipe, chosen=early, component="transformer_2")


def test_sensitivity_of_a_layer_is_what_its_error_does_to_the_output(tmp_path):
    """A layer that nothing listens to has none; small errors count in proportion."""
    pipe, keeper = wan_pipeline(), InputKeeper()
    with keeper.watching(pipe.transformer):
        run(pipe, wan_inputs())
        inputs = keeper.copy()
    assert not pipe.transformer._forward_pre_hooks

    def found(error):
        return layer_sensitivity(pipe.transformer, inputs, 2, 0.2, lambda: None, error)

    plain = found(0.05)
    assert (plain > 0).all()
    torch.testing.assert_close(found(0.02), plain, rtol=0.05, atol=0)
    with torch.no_grad():
        pipe.transformer.blocks[1].attn1.to_out[0].weight *= 2
        louder = found(0.02)
        pipe.transformer.blocks[1].attn1.to_out[0].weight.zero_()
    assert louder[1] > 2 * plain[1]
    deaf = found(0.05)
    assert deaf[1] == 0
    assert deaf[0] > 0


def test_a_perturbation_has_the_size_and_direction_it_should():
    q, k, v = random(64, heads=2, batch=2, sharp=3.0)
    mask = torch.eye(4, dtype=torch.bool).expand(2, 2, 4, 4)
    block_map = BlockMap.from_mask(mask, 64, 64, (16, 16))
    sparse, lse = block_sparse_attention(q, k, v, block_map, return_lse=True)
    exact, _ = dense_attention(q, k, v)
    given = CorrectionInput(q, k, v, sparse, lse, block_map, 0.25, None, None)
    moved = TowardsSparse(0.05).apply(given) - exact
    for b in range(2):
        assert (moved[b].norm() / exact[b].norm()).item() == pytest.approx(0.05, rel=1e-4)
        error = (sparse - exact)[b].flatten()
        assert torch.cosine_similarity(moved[b].flatten(), error, dim=0).item() == pytest.approx(1, abs=1e-4)


def test_a_file_gives_the_recording_back(tmp_path):
    found = recorded(tmp_path, prompts=2)
    path = tmp_path / "r.safetensors"
    save_recording(path, found)
    back = load_recording(path)
    assert_same(back, found)
    assert back.seconds == found.seconds and back.peak_bytes == found.peak_bytes
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read as a recording"):
        load_recording(path)
    with pytest.raises(ValueError, match="cannot be read as a recording"):
        load_recording(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="cannot be read as a recording"):
        load_recording(tmp_path / FILE)


def test_peak_memory_sees_what_comes_and_goes():
    memory = PeakMemory(torch.device("cpu"))
    if memory.extra_bytes() is None:
        pytest.skip("this system does not tell")
    torch.ones(32 * 2**20).sum()  # 128 MiB, gone at once
    assert 120 * 2**20 < memory.extra_bytes() < 300 * 2**20
