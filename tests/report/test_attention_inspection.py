"""The inspector on real pipelines of all three families, and the choice of what it looks at."""

import pytest
import torch
from report_samples import make_context
from tiny import FAMILIES, run, wan_inputs, wan_pipeline

from dit_sparse.api import DEFAULT_METHOD
from dit_sparse.methods import make_method
from dit_sparse.report.attention_inspection import Wanted, held_bytes, inspect_attention
from dit_sparse.report.attention_report import write_inspection
from dit_sparse.report.attention_schema import Attention
from dit_sparse.report.attention_selection import (
    method_config,
    model_size,
    parse_points,
    resolve_indices,
    resolve_steps,
    spread,
)
from dit_sparse.report.capture import capture_calls

families = pytest.mark.parametrize("family", FAMILIES)
BLOCK = 16


def call_of(inputs):
    return {key: value for key, value in inputs.items() if key != "output_type"}


def bytes_of(maps):
    tensors = (maps.raster, maps.ordered, maps.kept, maps.points)
    return sum(x.numel() * x.element_size() for x in tensors)


def wanted(method="draft", steps=(1, 3), layers=(1,), heads=(0, 1), points=2, **fields):
    config = make_method(method, density=0.4, block_size=BLOCK, **fields)
    return Wanted(steps, layers, heads, points, config)


@families
def test_real_pipelines_end_to_end(family, tmp_path):
    make, inputs = FAMILIES[family]
    pipe, call = make(), call_of(inputs())
    before = run(pipe, inputs())
    told, asked = [], wanted(points=((1, 2, 5),))
    seen = inspect_attention(pipe, call, asked, seed=0, observer=lambda *x: told.append(x))
    assert torch.equal(run(pipe, inputs()), before), "the pipeline is not as it was"
    assert told[0] == ("generate", 0, 4)
    assert told[-1] == ("generate", 4, 4)
    position = {"wan": "none", "cogvideox": "first", "hunyuan_video": "last"}[family]
    assert seen.layout.text_position == position
    assert seen.layout.grid == (3, 5, 7)
    assert seen.frames.shape == (9, 80, 112, 3)
    places = [(maps.figures.step, maps.figures.layer, maps.figures.head) for maps in seen.heads]
    assert places == [(1, 1, 0), (1, 1, 1), (3, 1, 0), (3, 1, 1)]

    calls = {c.site.step: c for c in capture_calls(pipe, call, seed=0, steps=(1, 3)) if c.site.layer == 1}
    for maps in seen.heads:
        captured, head = calls[maps.figures.step], maps.figures.head
        q, k = (x[-1, :, head].double() for x in (captured.q, captured.k))
        share = (q @ k.T * captured.scale).softmax(-1)
        expected = torch.stack(
            [
                torch.stack([part.sum(-1) for part in rows.mean(0)[None].split(BLOCK, -1)], -1)[0]
                for rows in share.split(BLOCK)
            ]
        )
        torch.testing.assert_close(maps.raster.double(), expected, rtol=1e-3, atol=1e-6)
        for index, (t, h, w) in enumerate(seen.points):
            row = share[seen.layout.video_start + (t * 5 + h) * 7 + w]
            video = row[seen.layout.video_start : seen.layout.video_start + 105].view(3, 5, 7)
            torch.testing.assert_close(maps.points[index].double(), video, rtol=1e-3, atol=1e-7)
            text = maps.figures.points[index].text
            assert text == pytest.approx(1 - video.sum().item(), abs=1e-5)
            assert (text > 0) == (position != "none")
        assert bytes_of(maps) * 4 == held_bytes(seen.layout.num_tokens, BLOCK, 4, 1) - (
            4 * 4 * seen.layout.text_tokens
        )

    written = write_inspection(tmp_path, seen, make_context(), torch.device("cpu"))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {*written.files, "attention.html", "attention.json"}
    assert len(written.files) == 2 * (1 + 1)
    assert Attention.model_validate_json((tmp_path / "attention.json").read_text()) == written
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in written.files)


def test_a_second_run_replaces_the_first(tmp_path):
    pipe = wan_pipeline()
    for steps, points in (((0,), 2), ((2,), 1)):
        seen = inspect_attention(pipe, call_of(wan_inputs()), wanted("oracle", steps, points=points), seed=0)
        written = write_inspection(tmp_path, seen, make_context(), torch.device("cpu"))
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "maps_step02_layer01.png",
        "point0_step02_layer01.png",
    }
    assert not written.reordered


def test_the_guard_of_the_method_is_named():
    seen = inspect_attention(
        wan_pipeline(),
        call_of(wan_inputs()),
        wanted("draft", steps=(0, 2), heads=(0,), dense_steps=1, min_tokens=0),
        seed=0,
    )
    assert [maps.figures.dense_reason for maps in seen.heads] == ["dense_step", None]


def test_much_memory_is_announced(monkeypatch):
    from dit_sparse.report import attention_inspection

    told = []
    arguments = (wan_pipeline(), call_of(wan_inputs()), wanted(steps=(0,), heads=(0,)))
    inspect_attention(*arguments, seed=0, warn=told.append)
    assert told == []
    monkeypatch.setattr(attention_inspection, "MUCH_BYTES", 1)
    inspect_attention(*arguments, seed=0, warn=told.append)
    assert len(told) == 1
    assert "--layers" in told[0]
    # 4,800 heads of Wan 14B at 720p: 592 x 592 blocks of 128 tokens, 4 query rows of 75,600 tokens.
    assert held_bytes(75_600, 128, 4800, 4) == 4800 * (10 * 591**2 + 16 * 75_600)


def test_what_cannot_be_seen_is_an_error():
    pipe = wan_pipeline()
    with pytest.raises(ValueError, match=r"9,0,0 is outside of the token grid"):
        inspect_attention(pipe, call_of(wan_inputs()), wanted(points=((9, 0, 0),)), seed=0)
    with pytest.raises(ValueError, match="2 of 4 heads were never seen"):
        inspect_attention(pipe, call_of(wan_inputs()), wanted(steps=(1, 7)), seed=0)
    assert not pipe.transformer._forward_pre_hooks


def test_steps():
    assert resolve_steps("20%,50%,90%", 10) == (2, 5, 9)
    assert resolve_steps("0.5, 3,100%, 0%", 4) == (0, 2, 3)
    for text, said in (("x", "'x'"), ("4", "step 4, but 4"), ("150%", "beyond"), ("", "''"), ("1.5", "1.5")):
        with pytest.raises(ValueError, match=said):
            resolve_steps(text, 4)


def test_layers_and_heads():
    assert resolve_indices(None, "--layers", 8, 4) == (0, 2, 5, 7)
    assert resolve_indices("all", "--heads", 3, 2) == (0, 1, 2)
    assert resolve_indices("5,0-2", "--heads", 8, 4) == (0, 1, 2, 5)
    assert spread(40, 4) == (0, 13, 26, 39)
    for text, said in (("8", "0 to 7"), ("a", "'a'"), ("3-1", "'3-1'"), (",", "names nothing")):
        with pytest.raises(ValueError, match=f"--layers=.*{said}"):
            resolve_indices(text, "--layers", 8, 4)


def test_points():
    assert parse_points(None) == 4
    assert parse_points(["7"]) == 7
    assert parse_points(["0,1,2", "3, 4,5", "0,1,2"]) == ((0, 1, 2), (3, 4, 5))
    for texts in (["0"], ["1,2"], ["a,b,c"], ["4", "1,2,3"], ["-1,0,0"]):
        with pytest.raises(ValueError, match="--points"):
            parse_points(texts)


def test_methods_by_options():
    config = method_config({"backend": "auto", "strict": False, "method": "draft", "density": 0.3})
    assert config == make_method("draft", density=0.3)
    assert method_config({}).name == DEFAULT_METHOD
    with pytest.raises(ValueError, match="no field 'nope'"):
        method_config({"nope": 1})


@families
def test_layers_and_heads_of_models_are_counted(family):
    assert model_size(FAMILIES[family][0]()) == (2, 2)
