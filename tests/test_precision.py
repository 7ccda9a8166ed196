"""The precision axis from the method's field to the kernel."""

import pytest
from test_adapters import ALWAYS, both, run

import dit_sparse
from dit_sparse.kernels import PRECISIONS


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "native"])
def test_low_precision_is_close_and_not_the_same(precision):
    pipe, inputs = both("wan")
    with dit_sparse.sparse_attention(pipe, "draft", density=0.5, **ALWAYS):
        native = run(pipe, inputs)
    fields = {"density": 0.5, "precision": precision, **ALWAYS}
    with dit_sparse.sparse_attention(pipe, "draft", **fields) as handle:
        quantised = run(pipe, inputs)
        assert f"precision {precision}" in handle.summary()
        assert handle.stats().density_sparse_sites == pytest.approx(0.5, rel=0.1)
    error = (quantised - native).norm() / native.norm()
    assert 0 < error < (0.1 if precision == "int4" else 0.02)


def test_an_unknown_precision_says_what_there_is():
    pipe, _ = both("wan")
    with pytest.raises(ValueError, match="precision must be one of .*int8.*got 'int3'"):
        pipe.enable_sparse_attention("draft", precision="int3")
