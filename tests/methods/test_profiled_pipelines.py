"""Profiles on real diffusers classes: attached, followed, refused, let go of bit by bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from profile_samples import TINY_GRIDS, profile_for, profile_of, random_profile, with_facts
from tiny import FAMILIES, run, wan_transformer

import dit_sparse
from dit_sparse import presets
from dit_sparse.patterns import (
    DENSE,
    MASK,
    OBSERVED,
    SKIP,
    ProfileError,
    load_profile,
    resample,
    save_profile,
)
from dit_sparse.report.pair import generate_pair

families = pytest.mark.parametrize("family", FAMILIES)
HALF = [("window", "WHT", 0.5, (0.5, 0.5, 0.5)), ("dynamic", "THW", 0.5)]


def both(family, *arguments, **config):
    make, inputs = FAMILIES[family]
    return make(**config), inputs(*arguments)


def saved(path, profile):
    save_profile(path, profile.header, profile.table)
    return path


@families
def test_a_file_is_followed_and_let_go_of(family, tmp_path):
    pipe, inputs = both(family)
    dense = run(pipe, inputs)
    profile = random_profile(pipe, family)
    path = saved(tmp_path / "made.safetensors", profile)
    with dit_sparse.sparse_attention(pipe, profile=path, strict=True) as handle:
        first = run(pipe, inputs)
        assert torch.isfinite(first).all()
        assert not torch.equal(first, dense)
        assert torch.equal(run(pipe, inputs), first), "state leaked from one generation to the next"
        stats = handle.stats()
        assert {r.site.step for r in stats.records if r.dense_reason == "dense_step"} == {0}
        assert {r.site.step for r in stats.records if r.dense_reason is None} == {1, 2, 3}
        assert stats.fallbacks == []
        assert stats.state_bytes > 0
        summary = handle.summary()
        assert f"{path}: recipe balanced for tiny {family}, 3x5x7 tokens, 4 steps" in summary
        heads = [line for line in summary.splitlines() if "heads     2 in 2 layers and 2 step groups" in line]
        assert (
            heads
            and sum(int(word) for word in heads[0].partition("groups: ")[2].split() if word.isdigit()) == 8
        )
    assert torch.equal(run(pipe, inputs), dense)
    with dit_sparse.sparse_attention(pipe, profile=profile):
        assert torch.equal(run(pipe, inputs), first), "in memory and from a file"


@families
def test_dense_heads_at_density_one_equal_dense(family):
    pipe, inputs = both(family)
    dense = run(pipe, inputs)
    layout = TINY_GRIDS[family]
    full = [("window", "HWT", 1.0, (1.0, 1.0, 1.0)), ("dynamic", "WTH", 1.0)]
    alone = [("dense", "WHT", 1.0)] * 2
    for rows, reason in (([[full, full]], None), ([[alone, alone]], "dense_layer")):
        profile = profile_for(pipe, family, profile_of(rows, layout))
        with dit_sparse.sparse_attention(pipe, profile=profile) as handle:
            torch.testing.assert_close(run(pipe, inputs), dense, rtol=1e-3, atol=1e-3)
            assert {record.dense_reason for record in handle.stats().records} == {reason}
            assert handle.stats().density_total == 1.0


@families
def test_observed_heads_alone_are_mosaic(family):
    pipe, inputs = both(family)
    rows = [[[("observed", "THW", 0.3)] * 2] * 2] * 2
    made = profile_of(rows, TINY_GRIDS[family], groups=((1, 2), (2, 4)), correction="residual")
    with dit_sparse.sparse_attention(pipe, "mosaic", density=0.3, dense_steps=1, min_tokens=0, block_size=16):
        expected = run(pipe, inputs)
    with dit_sparse.sparse_attention(pipe, profile=profile_for(pipe, family, made), strict=True) as handle:
        assert torch.equal(run(pipe, inputs), expected)
        assert {r.site.step for r in handle.stats().records if r.dense_reason == "observed"} == {2}
        assert "8 observed; correction residual" in handle.summary()


@families
def test_observed_heads_among_others_learn_anew_in_every_generation(family, tmp_path):
    pipe, inputs = both(family)
    stock = run(pipe, inputs)
    profile = random_profile(pipe, family, kinds=(MASK, OBSERVED, SKIP, DENSE), precisions=False)
    profile = replace(profile, header=profile.header.model_copy(update={"correction": "residual"}))
    path = saved(tmp_path / "made.safetensors", profile)
    other = inputs | {"prompt_embeds": inputs["prompt_embeds"] + 0.5}
    with dit_sparse.sparse_attention(pipe, profile=path, strict=True):
        first = run(pipe, inputs)
        assert torch.isfinite(first).all() and not torch.equal(first, stock)
        run(pipe, other)
        assert torch.equal(run(pipe, inputs), first), "what was learnt leaked into the next generation"
    with dit_sparse.sparse_attention(pipe, profile=path, correction="none"):
        assert not torch.equal(run(pipe, inputs), first), "what the user gives counts"
    assert torch.equal(run(pipe, inputs), stock)


@families
def test_a_batch_equals_its_samples(family):
    pipe, inputs = both(family, 2)
    profile = random_profile(pipe, family, groups=((0, 4),), precisions=False)
    latents = torch.randn(run(pipe, inputs).shape, generator=torch.Generator().manual_seed(3))
    with dit_sparse.sparse_attention(pipe, profile=profile):
        together = run(pipe, inputs | {"latents": latents})
        for i in range(2):
            one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            alone = run(pipe, one | {"latents": latents[i : i + 1]})
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-3)


def test_density_and_steps_are_those_of_the_table():
    pipe, inputs = both("wan")
    rows = [[HALF, [("dense", "THW", 1.0)] * 2], [[("window", "THW", 0.25, (1.0, 0.5, 0.5))] * 2, HALF]]
    profile = profile_for(pipe, "wan", profile_of(rows, TINY_GRIDS["wan"], groups=((1, 2), (2, 4))))
    with dit_sparse.sparse_attention(pipe, profile=profile, correction="pooled") as handle:
        run(pipe, inputs)
        seen = {(r.site.step, r.site.layer): float(r.density) for r in handle.stats().records}
    pairs = 49  # 105 tokens in blocks of 16
    for step in range(4):
        expected = (1.0, 1.0) if step == 0 else (0.5, 1.0) if step == 1 else (0.25, 0.5)
        for layer in range(2):
            assert seen[step, layer] == pytest.approx(expected[layer], abs=1 / pairs), (step, layer)


def test_precision_by_layer_reaches_the_kernels_and_the_summary():
    pipe, inputs = both("wan")
    native = profile_for(pipe, "wan", profile_of([[HALF, HALF]], TINY_GRIDS["wan"]))
    mixed = profile_for(
        pipe, "wan", profile_of([[HALF, HALF]], TINY_GRIDS["wan"], precision=[["native", "int8"]])
    )
    with dit_sparse.sparse_attention(pipe, profile=native) as handle:
        expected = run(pipe, inputs)
        assert "precision native" in handle.summary()
    with dit_sparse.sparse_attention(pipe, profile=mixed) as handle:
        latents = run(pipe, inputs)
        assert "precision int8, native" in handle.summary()
        assert "auto: gathered (" in handle.summary()
    assert 0 < (latents - expected).norm() / expected.norm() < 0.02


@families
def test_another_grid_and_number_of_steps_with_leave(family):
    pipe, inputs = both(family)
    profile = random_profile(pipe, family, precisions=False)
    other = inputs | {"height": 96, "width": 80, "num_inference_steps": 8}
    with dit_sparse.sparse_attention(pipe, profile=profile):
        with pytest.raises(
            ProfileError, match=r"grid.*received \(3, 6, 5\).*num_steps: received 8.*allow_resample"
        ):
            run(pipe, other)
    with dit_sparse.sparse_attention(pipe, profile=profile, allow_resample=True) as handle:
        latents = run(pipe, other)
        steps = {r.site.step for r in handle.stats().records if r.dense_reason == "dense_step"}
        assert steps == {0, 1}
    layout = TINY_GRIDS[family]
    grid = type(layout)(3, 6, 5, layout.text_tokens, layout.text_position)
    with dit_sparse.sparse_attention(pipe, profile=resample(profile, grid, (16, 16), 8)):
        assert torch.equal(run(pipe, other), latents)


def test_what_does_not_fit_is_refused_in_words(tmp_path):
    pipe, inputs = both("wan")
    profile = random_profile(pipe, "wan")
    for parts, hint in (
        (
            {"transformer": "CogVideoXTransformer3DModel"},
            "received 'WanTransformer3DModel'.*dit-sparse profile",
        ),
        ({"component": "transformer_2"}, "component: received 'transformer'"),
        ({"config_sha256": "0" * 64}, "config_sha256"),
        ({"heads": 3}, "heads: received 2, expected 3"),
    ):
        with pytest.raises(ProfileError, match=hint):
            pipe.enable_sparse_attention(profile=with_facts(profile, model=parts))
    with dit_sparse.sparse_attention(
        pipe, profile=with_facts(profile, schedule={"scheduler": "DDIMScheduler"})
    ):
        with pytest.raises(ProfileError, match="received 'UniPC.*expected 'DDIM.*allow_resample"):
            run(pipe, inputs)
    for call, hint in (
        ({"profile": profile, "density": 0.5}, "takes no field 'density'.*dense_steps.*correction"),
        ({"profile": profile, "method": "svg2"}, "not both"),
        ({"profile": profile, "correction": "magic"}, "'magic'"),
        ({"profile": {"transformer_2": profile}}, r"for transformer_2.*profile=\{'transformer': ...\}"),
        ({"profile": {"transformer": "tiny-wan/balanced.yaml"}}, "preset.*alone"),
        ({"profile": "nothing"}, "no profile 'nothing'.*tiny-wan/balanced"),
        ({"profile": tmp_path / "none.safetensors"}, "none.safetensors"),
        ({"method": "svg2", "allow_resample": True}, "allow_resample.*profile="),
    ):
        with pytest.raises(ValueError, match=hint):
            pipe.enable_sparse_attention(**call)
    assert not pipe.transformer._forward_pre_hooks, "what was refused changed the model"


def test_two_experts_take_a_profile_each(tmp_path):
    pipe, inputs = both("wan", experts=2)
    dense = run(pipe, inputs)
    names = ("transformer", "transformer_2")
    profiles = {name: random_profile(pipe, "wan", seed, ((0, 4),), name) for seed, name in enumerate(names)}
    with pytest.raises(
        ValueError, match=r"transformer, transformer_2.*\{'transformer': ..., 'transformer_2'"
    ):
        pipe.enable_sparse_attention(profile=profiles["transformer"])
    with pytest.raises(ProfileError, match="component: received 'transformer'.*expected 'transformer_2'"):
        pipe.enable_sparse_attention(profile=dict(zip(names, reversed(profiles.values()))))
    paths = {name: saved(tmp_path / f"{name}.safetensors", one) for name, one in profiles.items()}
    with dit_sparse.sparse_attention(pipe, profile=paths) as handle:
        assert not torch.equal(run(pipe, inputs), dense)
        assert {r.site.transformer for r in handle.stats().records if r.dense_reason is None} == set(names)
        assert all(str(path) in handle.summary() for path in paths.values())
    assert torch.equal(run(pipe, inputs), dense)


def test_a_bare_transformer_is_asked_for_nothing_that_it_cannot_tell():
    transformer = wan_transformer()
    pipe, _ = both("wan")
    profile = with_facts(random_profile(pipe, "wan"), model={"component": "transformer_2"})
    given = {
        "hidden_states": torch.randn(1, 16, 3, 10, 14),
        "encoder_hidden_states": torch.randn(1, 12, 32),
        "return_dict": False,
    }
    with torch.no_grad(), dit_sparse.sparse_attention(transformer, profile=profile) as handle:
        for t in (900, 600, 300, 100):
            transformer(timestep=torch.tensor([t]), **given)
        assert {r.site.step for r in handle.stats().records if r.dense_reason == "dense_step"} == {0}
        with pytest.raises(ProfileError, match="this is step 4"):
            transformer(timestep=torch.tensor([50]), **given)


def test_shipped_pattern_files_go_by_name(tmp_path, monkeypatch):
    pipe, inputs = both("wan")
    (tmp_path / "tiny-wan").mkdir()
    profile = random_profile(pipe, "wan")
    path = saved(tmp_path / "tiny-wan" / "balanced.safetensors", profile)
    (tmp_path / "tiny-wan" / "balanced.yaml").write_text("method: svg2")
    (tmp_path / "tiny-wan" / "other.yaml").write_text("method: svg2")
    monkeypatch.setattr(presets, "preset_folders", lambda: [Path(tmp_path)])
    assert presets.list_presets() == ["tiny-wan/balanced", "tiny-wan/other"]
    assert presets.shipped_profiles() == {
        "tiny-wan/balanced": path,
        "tiny-wan/other": path.with_name("other.yaml"),
    }
    with dit_sparse.sparse_attention(pipe, profile="tiny-wan/balanced") as handle:
        run(pipe, inputs)
        assert handle.config.name == "profile"
        assert str(path) in handle.summary()
    with dit_sparse.sparse_attention(pipe, profile="tiny-wan/other") as handle:
        assert handle.config.name == "svg2"
    assert load_profile(path).header == profile.header


def test_reports_name_the_profile_and_warm_up_with_fewer_steps(tmp_path):
    pipe, inputs = both("wan")
    profile = random_profile(pipe, "wan")
    path = saved(tmp_path / "made.safetensors", profile)
    call = {key: value for key, value in inputs.items() if key != "output_type"}
    sparse = {"profile": path, "dense_layers": [0]}
    pair = generate_pair(pipe, call, sparse, seed=0, compare=False, warmup=True)
    assert {record.site.num_steps for record in pair.sparse.stats.records} == {4}
    assert pair.method["method"] == "profile"
    assert pair.method["profile"] == str(path)
    assert pair.method["dense_layers"] == [0]
    assert pair.method.keys().isdisjoint({"profiles", "scheduler"})


def test_whole_transformers_compile():
    pipe, inputs = both("wan")
    profile = profile_for(pipe, "wan", profile_of([[HALF, HALF]], TINY_GRIDS["wan"]))
    with dit_sparse.sparse_attention(pipe, profile=profile):
        expected = run(pipe, inputs)
        torch._dynamo.reset()
        pipe.transformer.compile(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(pipe, inputs), expected, rtol=1e-3, atol=1e-3)
