"""The document names every field of the schema in its place, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from report_samples import make_pair

from dit_sparse.report import schema
from dit_sparse.report.schema import Report

DOCUMENT = Path(__file__).parents[2] / "docs" / "report-json.md"
SECTIONS = {
    "Top level": schema.Report,
    "model": schema.ModelInfo,
    "video": schema.VideoInfo,
    "files": schema.Files,
    "metrics": schema.Metrics,
    "metrics.per_frame": schema.PerFrame,
    "metrics.floor": schema.Floor,
    "density": schema.Density,
    "density.dense_calls": schema.DenseCalls,
    "density.heat_maps": schema.HeatMap,
    "density.head_maps": schema.HeadMap,
    "density.choices": schema.HeadChoices,
    "density.recall": schema.Recall,
    "density.recall.maps": schema.RecallMap,
    "density.recall.worst_layers": schema.WorstRecall,
    "time": schema.Time,
    "time.forecast": schema.Forecast,
    "time.sparse": schema.RunTime,
    "time.sparse.stages": schema.Stage,
    "memory": schema.Memory,
    "device": schema.Device,
}


def documented() -> dict[str, list[str]]:
    """Section of the document -> the fields in the first column of its table."""
    sections: dict[str, list[str]] = {}
    for part in DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        rows = re.findall(r"^\| (`.*?) \|", body, re.MULTILINE)
        sections[title.strip("`")] = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    return sections


def test_every_model_has_its_section():
    models = {m for m in vars(schema).values() if isinstance(m, type) and issubclass(m, BaseModel)}
    assert models - {BaseModel, schema._Model} == set(SECTIONS.values())
    assert set(documented()) == set(SECTIONS)


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_fields_and_document_agree(section):
    assert sorted(documented()[section]) == sorted(SECTIONS[section].model_fields)


def test_what_is_written_holds_nothing_else(written):
    folder, report = written
    text = (folder / "report.json").read_text(encoding="utf-8")
    assert Report.model_validate_json(text) == report
    with pytest.raises(ValidationError, match="surplus"):
        Report.model_validate_json(text.replace('"seed"', '"surplus": 1, "seed"', 1))
    assert f'"{schema.SCHEMA_VERSION}"' in text
    assert make_pair().floor is not None
    assert report.metrics.floor is not None  # so that its fields were checked too
