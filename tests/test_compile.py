"""torch.compile of whole transformers with sparse attention: one graph, the same result, steps still
followed."""

import pytest
import torch
from test_adapters import ALWAYS, both, run

import dit_sparse

LAYERS = {"wan": "layers", "cogvideox": "num_layers", "hunyuan_video": "layers"}


def compiled_run(pipe, inputs):
    """Latents with the whole transformer compiled, and the number of graphs that took."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipe.transformer.compile(fullgraph=True, backend="aot_eager")
    try:
        return run(pipe, inputs), torch._dynamo.utils.counters["stats"]["unique_graphs"]
    finally:
        pipe.transformer._compiled_call_impl = None


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_twelve_layers_are_one_graph(family):
    pipe, inputs = both(family, **{LAYERS[family]: 12})
    _, dense_graphs = compiled_run(pipe, inputs)
    with dit_sparse.sparse_attention(pipe, "svg2", density=0.4, **ALWAYS) as handle:
        expected = run(pipe, inputs)
        eager = handle.stats()
        latents, graphs = compiled_run(pipe, inputs)
        stats = handle.stats()
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
    assert dense_graphs == 1 and graphs == 2  # all layers in one; the forward's announcement is the other
    assert [r.site for r in stats.records] == [r.site for r in eager.records]
    assert (
        stats.density_sparse_sites == pytest.approx(eager.density_sparse_sites, rel=1e-3)
        and stats.density_sparse_sites < 0.6
    )


def test_generations_and_dense_guard_are_followed_when_compiled():
    pipe, inputs = both("wan")
    fields = {**ALWAYS, "dense_steps": 2}
    with dit_sparse.sparse_attention(pipe, "draft", density=0.4, **fields) as handle:
        expected = run(pipe, inputs)
        for _ in range(2):  # the second generation starts afresh
            latents, _ = compiled_run(pipe, inputs)
            torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
            dense = {r.site.step for r in handle.stats().records if r.dense_reason == "dense_step"}
            assert dense == {0, 1}
