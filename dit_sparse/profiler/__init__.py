"""Offline profiler: record what heads do in dense runs, choose what they will do, write a pattern file."""

from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.choose import choose, make_profile
from dit_sparse.profiler.cost_table import CostTable
from dit_sparse.profiler.measure_cost import measure_cost
from dit_sparse.profiler.recipes import recipe_named, recipes
from dit_sparse.profiler.record import record
from dit_sparse.profiler.record_settings import RecordSettings, default_templates, even_groups
from dit_sparse.profiler.recording import Recording, Template
from dit_sparse.profiler.recording_file import load_recording, save_recording

__all__ = [
    "Budget",
    "CostTable",
    "RecordSettings",
    "Recording",
    "Template",
    "choose",
    "default_templates",
    "even_groups",
    "load_recording",
    "make_profile",
    "measure_cost",
    "recipe_named",
    "recipes",
    "record",
    "save_recording",
]
