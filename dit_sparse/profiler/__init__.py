"""Offline profiler: record what heads do in dense runs, choose what they will do, write a pattern file."""
