"""Presets: every shipped one builds and runs; bad ones are refused in words."""

import pytest
from tiny import FAMILIES, run

import dit_sparse
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.presets import list_presets, load_preset


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_build(name):
    preset = load_preset(name)
    method = make_method(preset.method, **preset.fields).build(ModelInfo("wan", 30, 128))
    assert method.name == preset.method


def test_a_preset_sets_the_method_and_fields_override_it():
    make, inputs = FAMILIES["wan"]
    pipe = make()
    given = {"min_tokens": 0, "block_size": 16, "dense_steps": 0}
    with dit_sparse.sparse_attention(pipe, profile="tiny-wan/balanced", density=0.5, **given) as handle:
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
    with pytest.raises(ValueError, match="tiny-wan/balanced"):
        load_preset(name)


def test_method_and_profile_exclude_one_another():
    pipe = FAMILIES["wan"][0]()
    with pytest.raises(ValueError, match="not both"):
        pipe.enable_sparse_attention("svg2", profile="tiny-wan/balanced")
