"""Every option of ``generate`` in one checked model: command line over config file over defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dit_sparse.embedded import NAME as EMBEDDED_MODEL

OWN_OPTIONS = frozenset({"method", "profile", "backend", "strict", "allow_resample"})
"""What has an option of its own and is no field of a method."""
NUMBERS = (
    *("height", "width", "num_frames", "steps", "guidance", "seed", "fps"),
    *("density", "dense_steps", "dense_layers", "min_tokens"),
)
_COMPONENT = re.compile(r"(transformer(?:_\d+)?)=(.+)")


class GenerateOptions(BaseModel):
    """Options by the names they have in a config file; None leaves it to the pipeline or the method."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    prompt: str = Field(min_length=1)
    negative_prompt: str | None = None
    model: str = EMBEDDED_MODEL
    image: Path | None = None
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    num_frames: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**63)
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    method: str | None = None
    density: float | None = None
    dense_steps: int | float | list[int] | None = None
    dense_layers: float | list[int] | str | None = None
    min_tokens: int | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    profile: str | dict[str, str] | None = None
    allow_resample: bool = False
    backend: str = "auto"
    strict: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    offload: Literal["none", "model", "sequential"] = "none"
    compile: bool = False
    warmup: bool | None = None
    compare: bool = False
    floor: bool | None = None
    recall: bool | None = None
    lpips_weights: Path | None = None
    output: Path = Path("dit-sparse-out")

    @field_validator(*NUMBERS, mode="before")
    @classmethod
    def _no_flag(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("input should be a number")
        return value

    @field_validator("output")
    @classmethod
    def _a_folder(cls, value: Path) -> Path:
        for place in (value, *value.parents):
            if place.exists() and not place.is_dir():
                raise ValueError(f"{place} is a file, give a folder")
        return value

    def sparse_call(self) -> dict[str, Any]:
        """Keyword arguments of ``enable_sparse_attention``; what is not given is left out."""
        given = {
            "density": self.density,
            "dense_steps": self.dense_steps,
            "dense_layers": self.dense_layers,
            "min_tokens": self.min_tokens,
            "profile": self.profile,
        }
        fields = {key: value for key, value in given.items() if value is not None}
        if twice := sorted(fields.keys() & self.set.keys()):
            raise ValueError(f"{twice[0]} is given twice: by its own option and by --set")
        check_fields(self.set, "--set")
        if self.method is not None:
            fields["method"] = self.method
        if self.allow_resample:
            fields["allow_resample"] = True
        return {"backend": self.backend, "strict": self.strict, **fields, **self.set}

    def pipeline_call(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the pipeline; ``defaults`` fill sizes, steps and guidance."""
        given = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "height": self.height or defaults.get("height"),
            "width": self.width or defaults.get("width"),
            "num_frames": self.num_frames or defaults.get("num_frames"),
            "num_inference_steps": self.steps or defaults.get("steps"),
            "guidance_scale": defaults.get("guidance") if self.guidance is None else self.guidance,
        }
        return {key: value for key, value in given.items() if value is not None}


def parse_scalar(text: str) -> Any:
    """A YAML value: "0.2" is a number, "true" a flag, "1,5,9" a list of numbers, anything else a string."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read the value {text!r} as YAML") from error
    if isinstance(value, str) and "," in value:
        try:
            parts = [yaml.safe_load(part) for part in value.split(",")]
        except yaml.YAMLError:
            return value
        if all(isinstance(part, (int, float)) for part in parts):
            return parts
    return value


def parse_layers(text: str) -> float | str:
    """``--dense-layers``: a fraction such as "0.1" as a number, "0-1,47" as it stands."""
    return float(text) if text.replace(".", "", 1).isdigit() and "." in text else text


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``--set key=value`` pairs as typed method fields.

    Raises:
        ValueError: on a pair without "=" or a key given twice.
    """
    fields: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise ValueError(f"--set takes key=value, got {setting!r}")
        if key in fields:
            raise ValueError(f"--set gives {key} twice")
        fields[key] = parse_scalar(value)
    return fields


def check_fields(fields: Iterable[str], where: str) -> None:
    """Raise ValueError where a name among a method's fields has an option of its own."""
    for name in sorted(OWN_OPTIONS.intersection(fields)):
        option = "--" + name.replace("_", "-")
        raise ValueError(f"{where} gives {name}, which is no field of a method: use {option}")


def parse_profiles(given: Sequence[str]) -> str | dict[str, str]:
    """``--profile``: one, or ``transformer=FILE`` once for every transformer.

    Raises:
        ValueError: for several that are not of this form, or two for one transformer.
    """
    pairs = [_COMPONENT.fullmatch(one) for one in given]
    named = {pair[1]: pair[2] for pair in pairs if pair is not None}
    if len(given) == 1 and not named:
        return given[0]
    if len(named) != len(given):
        raise ValueError(
            "--profile takes one profile, or transformer=FILE and transformer_2=FILE, each once, got "
            f"{' and '.join(given)}"
        )
    return named


def read_config(path: Path) -> dict[str, Any]:
    """A YAML mapping of options; dashes and underscores in names are the same.

    Raises:
        ValueError: if the file is not there or does not hold a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {path} is not UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold option: value lines")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def from_command_line(parameters: Mapping[str, Any]) -> GenerateOptions:
    """Options from the raw parameters of the ``generate`` command, whose texts are still to be typed.

    Raises:
        ValueError: as :func:`parse_settings` and :func:`resolve_options`.
    """
    given = dict(parameters)
    config = given.pop("config")
    given["compile"] = given.pop("compile_")
    given["set"] = parse_settings(given.pop("settings") or ()) or None
    given["profile"] = parse_profiles(given["profile"]) if given["profile"] else None
    if given["dense_layers"] is not None:
        given["dense_layers"] = parse_layers(given["dense_layers"])
    return resolve_options(given, None if config is None else Path(config))


def resolve_options(command_line: Mapping[str, Any], config: Path | None = None) -> GenerateOptions:
    """Merge and check: a command-line value that is not None wins over the config file.

    Raises:
        ValueError: naming the first option that is wrong, with its value.
    """
    merged = read_config(config) if config is not None else {}
    given = {key: value for key, value in command_line.items() if value is not None}
    settings = merged.get("set") or {}
    if not isinstance(settings, dict):
        raise ValueError(f"the config file's set must hold field: value lines, got {settings!r}")
    if given.get("set"):
        given["set"] = {**settings, **given["set"]}
    for one, other in (("method", "profile"), ("profile", "method")):
        if one in given and other not in given:  # the command line wins over the file's either
            merged.pop(other, None)
    merged.update(given)
    if isinstance(merged.get("dense_steps"), str):
        merged["dense_steps"] = parse_scalar(merged["dense_steps"])
    if merged.get("prompt") is None:
        raise ValueError('a prompt is missing: dit-sparse generate "a red circle bouncing"')
    try:
        return GenerateOptions(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            raise ValueError(
                f"the config file sets {option[2:]!r}, which is no option of generate"
            ) from error
        said = first["msg"].removeprefix("Value error, ")
        given_value = str(first["input"]) if isinstance(first["input"], Path) else first["input"]
        raise ValueError(f"{option}: {said[0].lower()}{said[1:]}, got {given_value!r}") from error
