"""Context parallelism on two processes: attention runs dense, says so, and the result is the dense one."""

import torch
import torch.multiprocessing as mp
from tiny import embeddings, wan_transformer

import dit_sparse


def run_rank(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
    from diffusers import ContextParallelConfig
    from diffusers.hooks import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    transformer = wan_transformer()
    given = {
        "hidden_states": embeddings(1, 16, 2, 8, 8),
        "encoder_hidden_states": embeddings(1, 12, 32, seed=1),
        "timestep": torch.tensor([500]),
        "return_dict": False,
    }
    with torch.no_grad():
        dense = transformer(**given)[0]
        # enable_parallelism divides by the number of GPUs: without one its pieces are put together by hand.
        config = ContextParallelConfig(ulysses_degree=2)
        parallel = ParallelConfig(context_parallel_config=config)
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
        parallel.setup(rank, 2, torch.device("cpu"), mesh=mesh)
        fields = {"density": 0.5, "dense_steps": 0, "min_tokens": 0, "block_size": 16}
        handle = dit_sparse.enable_sparse_attention(transformer, "svg2", **fields)
        for processor in transformer.attn_processors.values():
            processor._parallel_config = parallel
        apply_context_parallel(transformer, config, transformer._cp_plan)
        parallel_out = transformer(**given)[0]
    torch.save(
        {"difference": float((parallel_out - dense).abs().max()), "fallbacks": handle.stats().fallbacks},
        f"{results}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def test_context_parallelism_runs_dense_and_says_so(tmp_path):
    mp.start_processes(run_rank, args=(tmp_path / "store", tmp_path), nprocs=2, start_method="spawn")
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result["difference"] < 1e-5
        assert len(result["fallbacks"]) == 1
        assert "context parallelism" in result["fallbacks"][0]
