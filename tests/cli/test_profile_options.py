"""``--profile`` and ``--allow-resample``: one profile, or one for every transformer."""

import pytest

from dit_sparse.cli.options import GenerateOptions, parse_profiles


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (["tiny-wan/balanced"], "tiny-wan/balanced"),
        (["a=b.safetensors"], "a=b.safetensors"),
        (["transformer=a.safetensors"], {"transformer": "a.safetensors"}),
        (
            ["transformer=a=1.safetensors", "transformer_2=b.safetensors"],
            {"transformer": "a=1.safetensors", "transformer_2": "b.safetensors"},
        ),
    ],
)
def test_profiles_by_transformer(given, value):
    assert parse_profiles(given) == value


@pytest.mark.parametrize(
    "given",
    [["a.safetensors", "b.safetensors"], ["transformer=a", "b"], ["transformer=a", "transformer=b"]],
)
def test_several_profiles_must_say_for_what(given):
    with pytest.raises(
        ValueError, match=f"transformer=FILE and transformer_2=FILE.* {given[0]} and {given[1]}"
    ):
        parse_profiles(given)


def test_both_reach_enable_sparse_attention():
    given = GenerateOptions(prompt="p", profile={"transformer": "a.safetensors"}, allow_resample=True)
    assert given.sparse_call() == {
        "backend": "auto",
        "strict": False,
        "profile": {"transformer": "a.safetensors"},
        "allow_resample": True,
    }
    assert "allow_resample" not in GenerateOptions(prompt="p", profile="x").sparse_call()
