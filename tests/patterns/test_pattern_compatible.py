"""Whether a profile serves a model and a run: every difference is named, with both values and the way out."""

import pytest
from made_profiles import make_header

from dit_sparse.layout import TokenLayout
from dit_sparse.patterns import ProfileError, check_model, check_run

MODEL = {
    "transformer": "WanTransformer3DModel",
    "config_sha256": "ab" * 32,
    "layers": 2,
    "heads": 3,
    "head_dim": 64,
    "component": "transformer",
}
RUN = {
    "layout": TokenLayout(3, 4, 5),
    "block_size": (8, 8),
    "scheduler": "UniPCMultistepScheduler",
    "num_steps": 10,
}


def test_the_own_model_and_run_are_served():
    check_model(make_header(), **MODEL)
    check_model(make_header(), **{**MODEL, "component": None})
    check_run(make_header(), **RUN)
    check_run(make_header(), **{**RUN, "block_size": [8, 8]})
    check_run(make_header(), **{**RUN, "scheduler": None, "num_steps": None})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("transformer", "HunyuanVideoTransformer3DModel", "'WanTransformer3DModel'"),
        ("config_sha256", "cd" * 32, f"'{'ab' * 32}'"),
        ("layers", 30, "2"),
        ("heads", 12, "3"),
        ("head_dim", 128, "64"),
        ("component", "transformer_2", "'transformer'"),
    ],
)
def test_another_model_is_refused(name, value, expected):
    with pytest.raises(ProfileError) as caught:
        check_model(make_header(), **{**MODEL, name: value})
    text = str(caught.value)
    assert f"{name}: received {value!r}, expected {expected}" in text
    assert "the profile 'balanced' of 'tiny-wan' is for another model" in text
    assert text.endswith("Make a profile of this model with `dit-sparse profile`")
    assert text.count("received") == 1
    assert "resample" not in text  # nothing helps


def test_another_checkpoint_of_the_same_sizes_is_refused():
    with pytest.raises(ProfileError, match="the sizes agree: it is the config of another checkpoint"):
        check_model(make_header(), **{**MODEL, "config_sha256": "cd" * 32})
    with pytest.raises(ProfileError) as caught:
        check_model(make_header(), **{**MODEL, "config_sha256": "cd" * 32, "layers": 3})
    assert "sizes agree" not in str(caught.value)


def test_all_differences_of_a_model_stand_in_one_message():
    other = {
        "transformer": "X",
        "config_sha256": "0",
        "layers": 9,
        "heads": 9,
        "head_dim": 9,
        "component": "y",
    }
    with pytest.raises(ProfileError) as caught:
        check_model(make_header(), **other)
    assert all(f"{name}: received" in str(caught.value) for name in other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": TokenLayout(3, 4, 6)}, "grid (T, H, W): received (3, 4, 6), expected (3, 4, 5)"),
        ({"layout": TokenLayout(3, 4, 5, 7, "last")}, "text_tokens: received 7, expected 0"),
        ({"layout": TokenLayout(3, 4, 5, 7, "last")}, "text_position: received 'last', expected 'none'"),
        ({"block_size": (16, 8)}, "block_size: received (16, 8), expected (8, 8)"),
        ({"scheduler": "Euler"}, "scheduler: received 'Euler', expected 'UniPCMultistepScheduler'"),
        ({"num_steps": 50}, "num_steps: received 50, expected 10"),
    ],
)
def test_another_run_needs_leave_to_resample(change, message):
    with pytest.raises(ProfileError) as caught:
        check_run(make_header(), **{**RUN, **change})
    assert message in str(caught.value)
    assert "Pass allow_resample=True (--allow-resample)" in str(caught.value)
    check_run(make_header(), **{**RUN, **change}, allow_resample=True)


def test_all_differences_of_a_run_stand_in_one_message():
    other = {
        "layout": TokenLayout(1, 1, 1, 1, "first"),
        "block_size": (1, 1),
        "scheduler": "E",
        "num_steps": 1,
    }
    with pytest.raises(ProfileError) as caught:
        check_run(make_header(), **other)
    names = ("grid", "text_tokens", "text_position", "block_size", "scheduler", "num_steps")
    assert all(f"{name}" in str(caught.value) for name in names)
    assert str(caught.value).count("received") == len(names)
