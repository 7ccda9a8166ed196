"""Presets: every shipped one says where its values come from, builds for its model and runs; bad ones are
refused in words."""

import re

import pytest
import yaml
from tiny import FAMILIES, run

import dit_sparse
from dit_sparse.adapters.base import supported_models
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.presets import Preset, find_profile, list_presets, load_preset

MODELS = {
    "cogvideox-2b": ModelInfo("cogvideox", 30, 64),
    "cogvideox-5b": ModelInfo("cogvideox", 42, 64),
    "cogvideox1.5-5b": ModelInfo("cogvideox", 42, 64),
    "hunyuan_video": ModelInfo("hunyuan_video", 60, 128),
    "hunyuan_video-1.5": ModelInfo("hunyuan_video-1.5", 54, 128),
    "wan2.1-1.3b": ModelInfo("wan", 30, 128),
    "wan2.1-14b": ModelInfo("wan", 40, 128),
    "wan2.2-a14b": ModelInfo("wan", 40, 128),
}
"""Transformer of every folder of presets, as its configuration has it."""
EMBEDDED = ModelInfo("wan", 8, 64)
SOURCE = re.compile(r"arXiv \d{4}\.\d{5}|the authors' public code|docs/findings\.md|this project's default")
PUBLISHED = [name for name in list_presets() if name.split("/")[0] in MODELS]
RUN = ["cogvideox-2b/rettention", "hunyuan_video/gna", "wan2.1-14b/draft"]
"""One of every family, with fields of its own; whole generations on interpreted kernels take seconds."""


def model_of(name):
    folder = name.split("/")[0]
    return EMBEDDED if folder == "tiny-wan" else MODELS[folder]


def description_of(name):
    return yaml.safe_load(find_profile(name).with_suffix(".yaml").read_text())["description"]


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_build(name):
    preset = load_preset(name)
    method = make_method(preset.method, **preset.fields).build(model_of(name))
    assert method.name == preset.method


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_balanced_and_a_fast_preset(model):
    names = {name.split("/")[1] for name in list_presets() if name.startswith(f"{model}/")}
    assert names >= {"balanced", "fast"}
    fields = {name: load_preset(f"{model}/{name}") for name in ("balanced", "fast")}
    assert fields["balanced"] != fields["fast"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_named_after_a_method_is_of_that_method(name):
    stem = name.split("/")[1]
    if stem not in ("balanced", "fast"):
        assert load_preset(name).method == stem


@pytest.mark.parametrize("name", list_presets())
def test_every_field_has_a_source_and_the_description_is_one_line(name):
    path = find_profile(name).with_suffix(".yaml")
    description, method, header, *rows = path.read_text(encoding="utf-8").splitlines()
    # Anything that YAML reads otherwise than it stands there (": ", " #") would be lost or refused.
    assert description == f"description: {description_of(name)}"
    assert (method, header) == (f"method: {load_preset(name).method}", "fields:")
    fields = [re.fullmatch(r"  (\w+): (\S.*?) +# (.+)", row) for row in rows]
    assert all(fields), f"a line of {path} is no field with a comment"
    assert [found[1] for found in fields] == list(load_preset(name).fields)
    if name in PUBLISHED:
        assert all(SOURCE.search(found[3]) for found in fields), f"{path} has a value of unknown source"


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_of_models_without_an_adapter_say_so(name):
    supported = model_of(name).family in supported_models()
    assert ("No adapter" in description_of(name)) is not supported


@pytest.mark.parametrize("name", RUN)
def test_shipped_presets_run(name):
    make, inputs = FAMILIES[model_of(name).family]
    pipe = make()
    # Four steps of a few blocks: the guard of fifty steps and the lower limit of tokens would leave nothing.
    small = {"min_tokens": 0, "block_size": 16, "dense_steps": 1, "backend": "gathered"}
    with dit_sparse.sparse_attention(pipe, profile=name, **small) as handle:
        assert run(pipe, inputs()).isfinite().all()
        stats, asked = handle.stats(), load_preset(name)
    assert handle.config.name == asked.method
    assert stats.fallbacks == []
    assert any(record.dense_reason is None for record in stats.records)
    if name == "wan2.1-14b/draft":  # no text, whose blocks are kept whole; 7x7 pairs
        assert stats.density_sparse_sites == pytest.approx(asked.fields["density"], abs=1 / 49)


def test_lists_in_presets_are_read_as_tuples(tmp_path):
    path = tmp_path / "lists.yaml"
    path.write_text("method: vmoba\nfields:\n  parts: [[1, 2, 3], [4, 5, 6]]\n  dense_layers: []")
    assert load_preset(path) == Preset("vmoba", {"parts": ((1, 2, 3), (4, 5, 6)), "dense_layers": ()})


def test_a_preset_sets_the_method_and_fields_override_it():
    make, inputs = FAMILIES["wan"]
    pipe = make()
    given = {"min_tokens": 0, "block_size": 16, "dense_steps": 0}
    with dit_sparse.sparse_attention(pipe, profile="wan2.1-14b/draft", density=0.5, **given) as handle:
        run(pipe, inputs())
        assert handle.config.name == "draft"
        assert handle.stats().density_sparse_sites == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize(
    "text",
    [
        "method: [1]",
        "method: svg2\nfields: 3",
        "- a",
        "method: svg2\nrun: rm",
        "method: 'svg2",
        "{}",
        "!!python/object:os.system {}",
    ],
)
def test_bad_files_are_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        load_preset(path)


@pytest.mark.parametrize("name", ["nothing", "../secrets", "tiny-wan/../tiny-wan/balanced", "/etc/passwd"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(ValueError, match="tiny-wan/mosaic"):
        load_preset(name)


def test_method_and_profile_exclude_one_another():
    pipe = FAMILIES["wan"][0]()
    with pytest.raises(ValueError, match="not both"):
        pipe.enable_sparse_attention("svg2", profile="tiny-wan/balanced")
