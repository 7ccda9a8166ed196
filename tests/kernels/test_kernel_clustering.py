"""k-means: invariants of the result, agreement with a plain loop, warm start, empty clusters, chunking."""

import pytest
import torch
from kernel_oracles import random_tokens

from dit_sparse.kernels import clustering, kmeans, sort_by_label


def plain_lloyd(points, centroids, iterations):
    """One head in float64: ``points`` [N, D], ``centroids`` [C, D]."""
    points, centroids = points.double(), centroids.double().clone()
    for _ in range(iterations):
        labels = torch.cdist(points, centroids).argmin(dim=-1)
        for c in range(len(centroids)):
            if (labels == c).any():
                centroids[c] = points[labels == c].mean(dim=0)
    return torch.cdist(points, centroids).argmin(dim=-1), centroids


def blobs(seed, batch=2, heads=2, tokens=120, dim=16, clusters=5):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, 1, heads, clusters, dim, generator=g) * 6
    which = torch.randint(clusters, (batch, tokens, heads), generator=g)
    noise = torch.randn(batch, tokens, heads, dim, generator=g)
    picked = centres.expand(-1, tokens, -1, -1, -1).gather(
        3, which[..., None, None].expand(-1, -1, -1, 1, dim)
    )
    return picked[:, :, :, 0] + noise, which


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("chunk_bytes", [1, 2000, 2**27])
def test_matches_a_plain_loop(monkeypatch, iterations, chunk_bytes):
    monkeypatch.setattr(clustering, "CHUNK_BYTES", chunk_bytes)
    x, _ = blobs(0)
    result = kmeans(x, 7, iterations=iterations)
    start = clustering.seed_centroids(x, 7)
    for b in range(2):
        for h in range(2):
            labels, centroids = plain_lloyd(x[b, :, h], start[b, h], iterations)
            assert torch.equal(result.labels[b, h].long(), labels)
            torch.testing.assert_close(result.centroids[b, h].double(), centroids, atol=1e-4, rtol=1e-4)
            assert torch.equal(result.sizes[b, h].long(), labels.bincount(minlength=7))
    assert result.labels.dtype == result.sizes.dtype == torch.int32
    assert result.centroids.dtype == torch.float32


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_name_the_nearest_centroid(layout, dtype):
    x = random_tokens(torch.Generator().manual_seed(2), (1, 100, 3, 32), dtype, layout)
    result = kmeans(x, 8, iterations=3)
    distances = torch.cdist(x.transpose(1, 2).double(), result.centroids.double())
    chosen = distances.gather(-1, result.labels.long()[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.min(dim=-1).values, atol=1e-5, rtol=1e-5)
    assert torch.equal(result.sizes.sum(dim=-1), torch.full((1, 3), 100))


def test_separated_blobs_are_found():
    x, truth = blobs(1, tokens=400, clusters=3)
    labels = kmeans(x, 12, iterations=8).labels
    for b in range(2):
        for h in range(2):
            for c in range(12):
                members = truth[b, labels[b, h] == c, h]
                assert len(members.unique()) <= 1, "a cluster mixes two blobs"


def test_warm_start_continues():
    x, _ = blobs(3)
    whole = kmeans(x, 6, iterations=5)
    half = kmeans(x, 6, centroids=kmeans(x, 6, iterations=2).centroids, iterations=3)
    assert torch.equal(whole.labels, half.labels)
    torch.testing.assert_close(whole.centroids, half.centroids)


def test_empty_clusters_keep_their_centroid():
    x, _ = blobs(4)
    far = torch.full((2, 2, 1, 16), 1e4)
    start = torch.cat([clustering.seed_centroids(x, 3), far], dim=2)
    result = kmeans(x, 4, centroids=start, iterations=3)
    assert not result.sizes[..., 3].any()
    assert torch.equal(result.centroids[:, :, 3:], far)


def test_seeds_spread_over_the_sequence():
    x = torch.arange(100.0).view(1, 100, 1, 1).expand(1, 100, 2, 4).contiguous()
    assert clustering.seed_centroids(x, 4)[0, 1, :, 0].tolist() == [12, 37, 62, 87]
    assert clustering.seed_centroids(x, 100)[0, 0, :, 0].tolist() == list(range(100))


def test_sort_by_label_is_stable():
    labels = torch.tensor([[2, 0, 1, 0, 2, 1]], dtype=torch.int32)
    order = sort_by_label(labels)
    assert order.dtype == torch.int64
    assert order.tolist() == [[1, 3, 2, 5, 0, 4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clusters": 0}, "1..120, the number of tokens, got 0"),
        ({"num_clusters": 121}, "got 121"),
        ({"iterations": -1}, "at least 0, got -1"),
        ({"centroids": torch.zeros(2, 2, 4, 16)}, r"\(2, 2, 5, 16\).*got \(2, 2, 4, 16\)"),
        ({"impl": "fast"}, "unknown impl 'fast'"),
        ({"impl": "flash_kmeans"}, "needs a GPU"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        kmeans(**{"x": blobs(0)[0], "num_clusters": 5, **change})
