"""The training program of the embedded model, on a CPU and at toy sizes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import train_tiny  # noqa: E402
from diffusers import WanPipeline  # noqa: E402
from tiny_wan import captions, scenes, shapes  # noqa: E402
from tiny_wan.config import Plan, toy_plan  # noqa: E402
from tiny_wan.fused_norm import largest_error  # noqa: E402
from tiny_wan.models import build_models  # noqa: E402
from tiny_wan.muon import Muon, Optimizers, orthogonalize  # noqa: E402
from tiny_wan.render import render  # noqa: E402
from tiny_wan.replay import Replay  # noqa: E402
from tiny_wan.resume import Progress, load_bundle, newest, save_bundle, start_from  # noqa: E402
from tiny_wan.runtime import Average, Workspace, learning_rate, run_stage  # noqa: E402
from tiny_wan.text import END, PAD, AttributeHeads, build_tokenizer, caption_scenes, encode_text, tokenize  # noqa: E402
from tiny_wan.train_diffusion import draw_sigma  # noqa: E402
from tiny_wan.transformer import build_transformer, training_attention  # noqa: E402
from tiny_wan.vae import build_vae, decode_clip, encode_clip  # noqa: E402

pytestmark = pytest.mark.usefixtures("single_thread")


def scene(**attributes: str) -> scenes.Scenes:
    """One scene with a single plain, medium, resting object unless said otherwise."""
    values = {
        "shape1": "circle",
        "color1": "red",
        "size1": "medium",
        "texture1": "plain",
        "motion1": "resting",
    }
    values |= {"background": "plain", "background_color": "blue", "camera": "still"} | attributes
    row = [classes - 1 for classes in scenes.CLASSES]  # every object absent
    row[0] = 0
    for name, value in values.items():
        words = scenes.OBJECT_FIELDS.get(name.rstrip("123")) or scenes.SCENE_FIELDS[name]
        row[scenes.COLUMN[name]] = words.index(value)
    return scenes.Scenes(torch.tensor([row]), torch.full((1, scenes.JITTER), 0.4))


def red_center(clip: torch.Tensor) -> torch.Tensor:
    """Centroid (x, y) in [0, 1] and area share of the red pixels in every frame of [3, T, H, W]: [T, 3]."""
    mask = ((clip[0] > 0.5) & (clip[1] < 0.2) & (clip[2] < 0.2)).double()
    axis = (torch.arange(clip.shape[-1]) + 0.5) / clip.shape[-1]
    area = mask.sum(dim=(1, 2))
    return torch.stack(
        [(mask * axis).sum((1, 2)) / area, (mask * axis[:, None]).sum((1, 2)) / area, area], dim=1
    )


# ---------------------------------------------------------------- scenes and captions


def test_scenes_follow_the_seed_and_the_rules():
    first, again = scenes.sample_scenes(512, seed=3), scenes.sample_scenes(512, seed=3)
    assert torch.equal(first.attributes, again.attributes) and torch.equal(first.jitter, again.jitter)
    assert not torch.equal(first.attributes, scenes.sample_scenes(512, seed=4).attributes)
    assert (first.attributes < torch.tensor(scenes.CLASSES)).all()
    colors, count = first.objects("color"), first.column("count") + 1
    for i in range(3):
        present = count > i
        assert (colors[present, i] < len(scenes.COLORS)).all()
        assert (colors[~present, i] == len(scenes.COLORS)).all()
        assert (colors[present, i] != first.column("background_color")[present]).all()
    assert 0.6 < (count == 1).float().mean() < 0.8


def test_held_out_scenes_are_never_drawn_for_training():
    assert not scenes.is_held_out(scenes.sample_scenes(4096, seed=1).attributes).any()
    listed = captions.held_out_captions()
    assert len(listed) == captions.NUM_HELD_OUT and listed == captions.held_out_captions()
    assert scenes.is_held_out(torch.tensor([row for row, _ in listed])).all()
    sweep = captions.held_out_captions(sweep=True)
    assert len(sweep) == captions.NUM_SWEEP and not {t for _, t in sweep} & {t for _, t in listed}


def test_captions_say_what_they_claim_to_state():
    rng = random.Random(0)
    for row in scenes.sample_scenes(2000, seed=5).attributes.tolist():
        caption = captions.describe(row, rng)
        words = captions.split_words(caption.text)
        assert set(words) <= set(captions.vocabulary())
        assert len(words) + 1 < captions.MAX_TOKENS
        stated = dict(zip(scenes.ATTRIBUTES, caption.stated, strict=True))
        nouns = [i for i, word in enumerate(words) if word in (*scenes.SHAPES, "ball", "crescent")]
        assert len(nouns) >= row[0] + 1
        for i in range(1, row[0] + 2):
            color = scenes.COLORS[row[scenes.COLUMN[f"color{i}"]]]
            assert color in words[max(0, nouns[i - 1] - 2) : nouns[i - 1]]
            if stated[f"size{i}"]:
                assert scenes.SIZES[row[scenes.COLUMN[f"size{i}"]]] in words
        if stated["background_color"]:
            assert scenes.BACKGROUND_COLORS[row[scenes.COLUMN["background_color"]]] in words[nouns[-1] :]
        assert ("camera" in words) == (scenes.CAMERAS[row[scenes.COLUMN["camera"]]] != "still")


def test_a_complete_caption_reads_well():
    one = scene(
        size1="large", texture1="striped", motion1="bouncing", background="checkerboard", camera="pan left"
    )
    text = captions.describe(one.attributes[0].tolist(), random.Random(0), complete=True).text
    assert text == "a large striped red circle bouncing over a blue checkerboard, the camera pans left"


def test_tokenizer_and_fast_path_agree():
    tokenizer = build_tokenizer()
    texts = [text for _, text in captions.held_out_captions()] + ["", "A Red  unknownword circle."]
    expected = tokenizer(texts, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    assert torch.equal(tokenize(texts), expected.input_ids)
    assert torch.equal(tokenize([""])[0, :2], torch.tensor([END, PAD]))


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)]
)
@pytest.mark.parametrize(("frames", "size"), [(17, 64), (33, 128)])
def test_objects_move_as_told_at_the_same_speed_per_frame(motion, axis, sign, frames, size):
    center = red_center(render(scene(motion1=motion), frames, size)[0])
    steps = center[1:, axis] - center[:-1, axis]
    assert (steps * sign).min() > 0
    assert (steps * sign).mean() == pytest.approx(0.0145, rel=0.1)
    assert (center[:, 1 - axis] - center[0, 1 - axis]).abs().max() < 0.01


def test_other_motions():
    still = red_center(render(scene(), 17, 64)[0])
    assert (still - still[0]).abs().max() == 0
    bounce = red_center(render(scene(motion1="bouncing"), 33, 64)[0])[:, 1]
    steps = bounce.diff()
    assert (steps > 0.005).any() and (steps < -0.005).any() and bounce.max() - bounce.min() > 0.12
    area = red_center(render(scene(motion1="growing"), 17, 64)[0])[:, 2]
    assert area[-1] > 1.8 * area[0]
    turning = render(scene(shape1="square", motion1="spinning"), 17, 64)[0]
    assert (turning[:, 0] - turning[:, -1]).abs().max() > 1 and red_center(turning)[:, :2].std(0).max() < 0.01
    zoom = red_center(render(scene(camera="zoom in"), 17, 64)[0])[:, 2]
    assert zoom[-1] > 1.3 * zoom[0]
    background = render(scene(background="stripes", camera="pan right"), 17, 64)[0]
    assert (background[:, 0] - background[:, -1]).abs().max() > 0.2


def test_object_and_background_have_the_named_colours():
    for index, color in enumerate(scenes.COLORS):
        other = scenes.BACKGROUND_COLORS[(index + 3) % 8]
        clip = render(scene(color1=color, shape1="square", background_color=other), 5, 64)[0]
        x, y, _ = red_center(render(scene(), 5, 64)[0])[2]
        inside = clip[:, 2, int(y * 64), int(x * 64)]
        corner = clip[:, 2, 0, 0]
        assert inside.max() > corner.max() and (inside - corner).abs().max() > 0.3


def test_rendering_is_deterministic_and_crops_are_windows():
    batch = scenes.sample_scenes(6, seed=8)
    whole = render(batch, 5, 64)
    assert torch.equal(whole, render(batch, 5, 64)) and whole.abs().max() <= 1
    one = render(batch[:1], 5, 64)
    assert torch.allclose(whole[:1], one, atol=1e-6)
    left, top = ((batch.jitter[:1, 22:24] * 32).floor().long())[0].tolist()
    window = render(batch[:1], 5, 64, crop=32)
    assert torch.allclose(window, one[..., top : top + 32, left : left + 32], atol=2e-3)
    assert torch.allclose(render(batch, 5, 64, times=torch.tensor([0, 4])), whole[:, :, [0, 4]], atol=1e-6)


def test_shapes_differ_and_lie_within_the_table():
    inside = (shapes.shape_atlas("cpu") < 0).float()
    area = inside.mean(dim=(1, 2)) * (2 * shapes.EXTENT) ** 2
    assert (area > 0.8).all() and (area < 3.2).all()
    assert inside[:, 0].sum() == inside[:, -1].sum() == inside[:, :, 0].sum() == inside[:, :, -1].sum() == 0
    for i in range(len(inside)):
        for j in range(i):
            union = torch.maximum(inside[i], inside[j]).sum()
            assert torch.minimum(inside[i], inside[j]).sum() / union < 0.85


# ---------------------------------------------------------------- models


def test_whole_clip_autoencoder_is_the_chunked_one():
    torch.manual_seed(0)
    vae = build_vae(8).eval()
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        mean, log_variance = encode_clip(vae, video)
        expected = vae.encode(video).latent_dist
        torch.testing.assert_close(mean, expected.mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(log_variance, expected.logvar, atol=1e-5, rtol=1e-4)
        latents = torch.randn_like(mean)
        decoded = decode_clip(vae, latents).clamp(-1, 1)
        torch.testing.assert_close(decoded, vae.decode(latents).sample, atol=1e-5, rtol=1e-4)


def test_short_text_equals_the_padded_512_tokens_of_the_pipeline():
    torch.manual_seed(0)
    plan = toy_plan()
    models = build_models(plan, torch.device("cpu"))
    pipeline = WanPipeline(models.tokenizer, models.text_encoder, models.vae, None, models.transformer)
    prompts = ["a red circle bouncing over a blue checkerboard", ""]
    with torch.no_grad():
        padded, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=512
        )
        short = encode_text(models.text_encoder, tokenize(prompts))
        torch.testing.assert_close(padded[:, :32], short, atol=1e-5, rtol=1e-4)
        assert padded[:, 32:].abs().max() == 0
        transformer = build_transformer(heads=2, layers=2, ffn=128, text_width=plan.text_width)
        latents, time = torch.randn(2, 16, 3, 4, 4), torch.tensor([500.0, 900.0])
        expected = transformer(latents, time, padded, return_dict=False)[0]
        with training_attention(transformer, compile_blocks=False) as denoise:
            actual = denoise(latents, time, short)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(transformer(latents, time, padded, return_dict=False)[0], expected)


def test_attribute_heads_ignore_padding_and_unstated_attributes():
    heads = AttributeHeads(16)
    batch = scenes.sample_scenes(4, seed=2)
    ids, stated = (x[:, 0] for x in caption_scenes(batch, 1, seed=2))
    embeddings = torch.randn(4, 32, 16)
    loss, accuracy = heads.loss(embeddings, ids, batch.attributes, stated)
    other = torch.where((ids == PAD)[..., None], 99.0, embeddings)
    torch.testing.assert_close(heads.loss(other, ids, batch.attributes, stated)[0], loss)
    assert 0 <= accuracy <= 1
    assert heads.loss(embeddings, ids, batch.attributes, torch.zeros_like(stated))[0] == 0


def test_real_plan_and_its_bundle_fit_the_size_limits(tmp_path):
    models = build_models(Plan(), torch.device("cpu"))
    assert 10e6 < sum(models.parameter_counts().values()) < 11.75e6
    parts = save_bundle(models, Progress(["text"], "low", {}), tmp_path)
    assert len(parts) == 2 and all(path.stat().st_size <= 15 * 2**20 for path in parts)
    other = build_models(replace(Plan(), seed=1), torch.device("cpu"))
    assert load_bundle(tmp_path, other).finished == ["text"]
    assert torch.equal(other.vae.quant_conv.weight, models.vae.quant_conv.weight.bfloat16().float())


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48)])
def test_muon_orthogonalises(shape):
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)))
    assert singular.min() > 0.4 and singular.max() < 1.3


def test_muon_steps_each_matrix_alike_whatever_its_batch():
    torch.manual_seed(0)
    start = [torch.randn(8, 16), torch.randn(8, 16), torch.randn(8, 4, 2, 2)]
    gradients = [torch.randn_like(p) for p in start]

    def stepped(indices: list[int]) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(start[i].clone()) for i in indices]
        for p, i in zip(params, indices, strict=True):
            p.grad = gradients[i]
        Muon(params, lr=0.1).step()
        return [p.detach() for p in params]

    together = stepped([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(together[i], stepped([i])[0])
    rms = (together[0] - start[0] * (1 - 0.1 * 0.02)).square().mean().sqrt()
    assert rms == pytest.approx(0.1 * 0.2, rel=0.2)


def test_noise_levels_lean_to_noise_with_the_shift():
    torch.manual_seed(0)
    low, high = (draw_sigma(4000, shift, torch.device("cpu")) for shift in (1.0, 4.0))
    assert low.min() >= 0 and high.max() <= 1
    assert low.mean() == pytest.approx(0.5, abs=0.02) and high.mean() > 0.7


def test_schedule_warms_up_holds_and_decays():
    assert learning_rate(0.0, 0) == pytest.approx(0.01)
    assert learning_rate(0.4, 500) == 1.0
    assert learning_rate(1.0, 500, hold=0.5, end=0.1) == pytest.approx(0.1)


def test_a_stage_resumes_where_it_was_interrupted(tmp_path):
    work = Workspace(tmp_path, torch.device("cpu"), checkpoint_every_s=0.0)
    layer = torch.nn.Linear(2, 2)
    seen: list[int] = []

    def step(progress: float, index: int):
        seen.append(index)
        with torch.no_grad():
            layer.weight.fill_(index)
        if index == 5:
            raise KeyboardInterrupt
        return {"loss": torch.tensor(1.0)}, 1

    with pytest.raises(KeyboardInterrupt):
        run_stage(work, "stage", 1e9, step, {"layer": layer})
    fresh = torch.nn.Linear(2, 2)
    layer = fresh
    run_stage(
        work,
        "stage",
        work.load("stage")["spent_s"] + 0.01,
        step_after := _counting(fresh, seen),
        {"layer": fresh},
    )
    assert seen[6] == 5 and fresh.weight.unique().item() == seen[-1]
    before = len(seen)
    run_stage(work, "stage", 1e9, step_after, {"layer": torch.nn.Linear(2, 2)})  # done: nothing to do
    assert len(seen) == before


def _counting(layer: torch.nn.Linear, seen: list[int]):
    def step(progress: float, index: int):
        seen.append(index)
        with torch.no_grad():
            layer.weight.fill_(index)
        return {"loss": torch.tensor(1.0)}, 1

    return step


def test_fused_normalisation_and_its_gradients_agree_with_the_reference():
    pytest.importorskip("triton")
    code = (
        "import sys, types; package = types.ModuleType('tiny_wan');"
        f"package.__path__ = [{str(SCRIPTS / 'tiny_wan')!r}]; sys.modules['tiny_wan'] = package;"
        "import torch; from tiny_wan.fused_norm import largest_error as error; cpu = torch.device('cpu');"
        "assert error(cpu, torch.float32) < 1e-5 and error(cpu, torch.bfloat16) < 0.02"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


def test_the_average_follows_the_parameters():
    p = torch.nn.Parameter(torch.zeros(3))
    average = Average([p], decay=0.9)
    with torch.no_grad():
        p.fill_(1.0)
    average.set_step(10**6)
    average.update()
    assert average.shadow[0].tolist() == pytest.approx([0.1] * 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_recorded_steps_train_as_unrecorded_ones_do(tmp_path):
    assert largest_error(torch.device("cuda")) < 0.02
    weights, recorded = [], []
    for graphs in (False, True):
        torch.manual_seed(0)
        work = Workspace(tmp_path, torch.device("cuda"), graphs=graphs)
        layer = torch.nn.Linear(16, 16, device="cuda")
        optimizer = Optimizers(torch.nn.ModuleDict({"layer": layer}), 0.02, 0.02, exclude=(), fused=True)
        average = Average(layer.parameters(), decay=0.9)
        data = torch.randn(32, 16, device="cuda")

        def body(layer=layer, optimizer=optimizer, average=average, data=data):
            loss = (layer(data) - data.flip(0)).square().mean()
            optimizer.minimize(loss)
            average.update()
            return {"loss": loss.detach()}

        replay = Replay(work, "toy", body)
        losses = []
        for index in range(12):
            optimizer.scale.fill_(1 - index / 12)
            average.set_step(index)
            losses.append(replay()["loss"].item())
        assert losses[-1] < losses[0]
        weights.append((layer.weight.detach(), *average.shadow))
        recorded.append(replay.graph is not None)
    assert recorded == [False, True]

    def waits():
        return {"sum": torch.tensor(torch.randn(3, device="cuda").sum().item())}

    work = Workspace(tmp_path, torch.device("cuda"), graphs=True)
    replay = Replay(work, "waits for the device", waits)
    assert all(replay()["sum"].isfinite() for _ in range(5)) and not work.graphs
    for p, q in zip(*weights, strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=1e-2)


def test_profile_names_what_costs(tmp_path, capsys):
    arguments = ["profile", "--toy", "--device", "cpu", "--stage", "low", "--steps", "2", "--work"]
    train_tiny.main([*arguments, str(tmp_path)])
    text = capsys.readouterr().out
    assert "ms a step" in text and "top CPU operations" in text and text.count("\n") < 50


def test_all_stages_at_toy_size_then_export_load_and_go_on(tmp_path):
    work, target = tmp_path / "work", tmp_path / "export"

    def run(verb: str, *arguments: str, work: Path = work, target: Path = target) -> list[dict]:
        options = ["--toy", "--device", "cpu", "--work", str(work), "--export", str(target)]
        train_tiny.main([verb, *options, *arguments])
        return [json.loads(line) for line in (target / "train_log.jsonl").read_text().splitlines()]

    budgets = [f"{stage}=0.1" for stage in ("text", "vae", "low", "mixed", "classifier")]
    run("train", "--seconds", *budgets)
    files = {path.name for path in target.iterdir()}
    assert files == {
        "MODEL_CARD.md",
        "train_log.jsonl",
        "tiny_wan_pipeline.tar.00",
        "resume-0.safetensors",
        "contact_sheet_main.jpg",
        "contact_sheet_high.jpg",
    }
    with tarfile.open(target / "tiny_wan_pipeline.tar.00") as archive:
        archive.extractall(tmp_path, filter="data")
    metrics = json.loads((tmp_path / "tiny_wan_pipeline" / "metrics.json").read_text())
    assert set(metrics["vae_psnr_db"]) == {"5x32x32", "9x64x64"}

    (work / "mixed.pt").unlink()  # as if interrupted in the last stage: export the one before
    log = run("export")
    assert log[-1]["exported"].startswith("low") and log[-1]["stages_done"] == ["text", "vae", "low"]
    with tarfile.open(target / "tiny_wan_pipeline.tar.00") as archive:
        archive.extractall(tmp_path, filter="data")
    pipeline = WanPipeline.from_pretrained(tmp_path / "tiny_wan_pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert (tmp_path / "tiny_wan_pipeline" / "heldout_prompts.txt").read_text().count("\n") == 64
    video = pipeline(
        "a red circle", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="pt"
    ).frames
    assert video.shape == (1, 5, 3, 32, 32) and video.isfinite().all()

    elsewhere, later = tmp_path / "elsewhere", tmp_path / "later"
    log = run("train", "--init", str(target), "--stop-after", "0", work=elsewhere, target=later)
    started = next(line for line in log if "started_from" in line)
    assert started["first"] == "mixed" and started["started_from"].startswith("low")
    device = torch.device("cpu")
    old, new = (newest(Workspace(folder, device), toy_plan())[0] for folder in (work, elsewhere))
    for part in ("vae", "transformer", "text_encoder", "heads"):
        for p, q in zip(getattr(old, part).parameters(), getattr(new, part).parameters(), strict=True):
            assert torch.equal(p.bfloat16(), q.bfloat16())
    assert old.vae.config.latents_std == new.vae.config.latents_std
    with pytest.raises(ValueError, match="checkpoints already"):
        start_from(Workspace(work, device), toy_plan(), later, None)
