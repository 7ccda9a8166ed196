"""Options: typing, merging, and one clear message for what is wrong."""

from __future__ import annotations

import pytest

from dit_sparse.cli.options import (
    GenerateOptions,
    from_command_line,
    parse_layers,
    parse_scalar,
    parse_settings,
    resolve_options,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.2", 0.2),
        ("10", 10),
        ("true", True),
        ("0,1,5", [0, 1, 5]),
        ("[1, 2]", [1, 2]),
        ("0-1,47", "0-1,47"),
        ("a", "a"),
    ],
)
def test_scalars_are_typed(text, value):
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


def test_layers_are_text_unless_a_fraction():
    assert parse_layers("0-1,47") == "0-1,47"
    assert parse_layers("0.1") == 0.1
    assert parse_layers("3") == "3"


def test_settings():
    assert parse_settings(["top-p=0.9", "tiers=true", "name=x=y"]) == {
        "top_p": 0.9,
        "tiers": True,
        "name": "x=y",
    }
    with pytest.raises(ValueError, match="key=value, got 'oops'"):
        parse_settings(["oops"])
    with pytest.raises(ValueError, match="top_p twice"):
        parse_settings(["top_p=1", "top_p=2"])


def test_command_line_wins_over_the_config_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("prompt: from file\nnum-frames: 9\nsteps: 4\nset: {top_p: 0.8, other: 1}\n")
    options = resolve_options({"steps": 6, "seed": None, "set": {"top_p": 0.9}}, config)
    assert (options.prompt, options.num_frames, options.steps, options.seed) == ("from file", 9, 6, 0)
    assert options.set == {"top_p": 0.9, "other": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a list", "must hold option: value lines"),
        ("bogus: 1", "'bogus', which is no option"),
        ("{", "is not YAML"),
        ("offload: cloud", "--offload: input should be"),
        ("height: tall", "--height: .* got 'tall'"),
    ],
)
def test_bad_config_files(tmp_path, content, message):
    config = tmp_path / "run.yaml"
    config.write_text(content)
    with pytest.raises(ValueError, match=message):
        resolve_options({"prompt": "x"}, config)


def test_missing_config_and_prompt(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        resolve_options({"prompt": "x"}, tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="prompt is missing"):
        resolve_options({})


def test_only_what_was_given_reaches_the_method_and_the_pipeline():
    options = GenerateOptions(prompt="p", density=0.25, set={"top_p": 0.9}, width=64)
    assert options.sparse_call() == {
        "backend": "auto", "strict": False, "density": 0.25, "top_p": 0.9,
    }  # fmt: skip
    assert options.pipeline_call({}) == {"prompt": "p", "width": 64}
    assert options.pipeline_call({"width": 1, "height": 2, "guidance": 4.0}) == {
        "prompt": "p", "width": 64, "height": 2, "guidance_scale": 4.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="density is given twice"):
        GenerateOptions(prompt="p", density=0.25, set={"density": 0.5}).sparse_call()


def test_raw_parameters_of_the_command():
    raw = {name: None for name in GenerateOptions.model_fields if name not in ("set", "compile")}
    raw |= {
        "config": None,
        "compile_": True,
        "settings": ["a=1"],
        "prompt": "p",
        "dense_steps": "0.2",
        "dense_layers": "0-1",
    }
    options = from_command_line(raw)
    assert options.compile
    assert options.set == {"a": 1}
    assert (options.dense_steps, options.dense_layers) == (0.2, "0-1")


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        ("density: true", {}, "--density: input should be a number, got True"),
        ("seed: true", {}, "--seed: input should be a number"),
        ("seed: 99999999999999999999999", {}, "--seed: input should be less than"),
        ("guidance: .inf", {}, "--guidance: input should be a finite number"),
        ("set: [1]", {"set": {"top_p": 0.9}}, "the config file's set must hold field: value lines"),
        ("set: {method: svg2}", {"method": "draft"}, "--set gives method.*use --method"),
        ("set: {allow_resample: true}", {}, "--set gives allow_resample.*use --allow-resample"),
    ],
)
def test_what_a_config_file_may_not_say(tmp_path, content, given, message):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        resolve_options({"prompt": "x", **given}, path).sparse_call()


def test_a_config_file_takes_what_the_command_line_takes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text('dense-steps: "0,1"\nmethod: svg2')
    options = resolve_options({"prompt": "x", "profile": "tiny-wan/fast"}, path)
    assert options.dense_steps == [0, 1]
    assert (options.method, options.profile) == (None, "tiny-wan/fast")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"--output: .*file is a file, give a folder"):
            resolve_options({"prompt": "x", "output": output})


def test_text_that_is_no_list_stays_text():
    assert parse_scalar("b,{") == "b,{"
