"""Training of `tiny-wan`, the embedded text-to-video model: data, models, stages, evaluation, export."""
