"""The inspector's page in a real browser: browsing, keyboard, themes, widths, text that stays text."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest
import torch
from browser import Page
from report_samples import SCRIPT_PROMPT, make_context
from tiny import cogvideox_inputs, cogvideox_pipeline

from dit_sparse.methods import make_method
from dit_sparse.report.attention_inspection import Inspection, Wanted, inspect_attention
from dit_sparse.report.attention_page import _levels, _packed, _pooled, page_data
from dit_sparse.report.attention_report import build_attention, write_inspection

SHOWN = "document.getElementById('inspector').dataset.shown"
TITLE = "document.getElementById('which').textContent"


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Inspection]:
    """Text first, two steps, layers, heads and points, and a prompt with markup."""
    folder = tmp_path_factory.mktemp("attention")
    call = {key: value for key, value in cogvideox_inputs().items() if key != "output_type"}
    config = make_method("draft", density=0.4, block_size=16, dense_steps=2, min_tokens=0)
    wanted = Wanted((1, 3), (0, 1), (0, 1), ((0, 1, 1), (2, 4, 6)), config)
    seen = inspect_attention(cogvideox_pipeline(), call, wanted, seed=0)
    write_inspection(folder, seen, make_context(), torch.device("cpu"))
    return folder, seen


@pytest.fixture
def opened(page: Page, inspected: tuple[Path, Inspection]) -> Page:
    page.goto(inspected[0] / "attention.html")
    wait_for(page, 0, 0)
    return page


def wait_for(page: Page, head: int, point: int) -> None:
    """Wait until the page shows the head with this index and a point."""
    page.evaluate(
        f"new Promise((done) => {{ const look = () => {SHOWN} === '{head}.{point}' ? done() : "
        "setTimeout(look, 10); look(); })"
    )


def press(page: Page, key: str, on: str = "#grid button[tabindex='0']") -> None:
    page.evaluate(
        f"(() => {{ const e = document.querySelector({json.dumps(on)}); e.focus(); e.dispatchEvent("
        f"new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true, cancelable: true}})); }})()"
    )


def pixels(page: Page, selector: str) -> list[int]:
    return page.evaluate(
        f"(() => {{ const c = document.querySelector({json.dumps(selector)});"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
    )


def test_browsing_by_click_and_keyboard(opened: Page):
    assert opened.evaluate(TITLE) == "Step 1, layer 0, head 0"
    opened.evaluate('document.querySelector(\'#grid [data-layer="1"][data-head="0"]\').click()')
    wait_for(opened, 2, 0)
    assert opened.evaluate(TITLE) == "Step 1, layer 1, head 0"
    for key, head, point in (
        ("ArrowRight", 3, 0),
        ("ArrowRight", 3, 0),
        ("ArrowUp", 1, 0),
        ("]", 5, 0),
        (".", 5, 1),
        ("Home", 4, 1),
        ("ArrowDown", 6, 1),
        ("[", 2, 1),
        (",", 2, 0),
    ):
        press(opened, key)
        wait_for(opened, head, point)
    opened.evaluate("document.querySelector('[data-step=\"3\"]').click()")
    wait_for(opened, 6, 0)
    assert opened.evaluate("document.querySelector('[data-step=\"3\"]').ariaPressed") == "true"
    chosen = opened.evaluate("[...document.querySelectorAll('[aria-selected=true]')].length")
    assert chosen == 1
    assert opened.evaluate("document.activeElement.dataset.layer") == "1"
    assert opened.evaluate("location.hash") == "#s3l1h0p0"


def test_the_page_shows_the_numbers_of_the_file(opened: Page, inspected: tuple[Path, Inspection]):
    file = json.loads((inspected[0] / "attention.json").read_text())
    figures = file["figures"][0]
    first = opened.evaluate("document.querySelector('#numbers dd').textContent")
    assert first == f"{100 * figures['recall']:.1f} %"
    assert opened.evaluate("document.querySelector('#grid button span').textContent") == first
    assert opened.evaluate("document.getElementById('dense').hidden") is False  # step 1 is in the guard
    row = figures["points"][0]
    said = opened.evaluate("document.getElementById('row').textContent")
    assert f"t {row['peak'][0]}, h {row['peak'][1]}, w {row['peak'][2]}" in said
    assert "text holds" in said
    opened.evaluate(
        "(() => { const s = document.getElementById('number'); s.value = 'effective_keys';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    number = opened.evaluate("document.querySelector('#grid button span').textContent")
    assert float(number) == pytest.approx(figures["pattern"]["effective_keys"], abs=0.51)
    press(opened, "]")
    wait_for(opened, 4, 0)
    assert opened.evaluate("document.getElementById('dense').hidden") is True


def test_kept_blocks_stand_out(opened: Page, inspected: tuple[Path, Inspection]):
    maps, chosen = inspected[1].heads[0], "[data-map=ordered] canvas"

    def grey() -> list[bool]:
        data = pixels(opened, chosen)
        return [
            abs(data[i] - data[i + 1]) < 25 and abs(data[i] - data[i + 2]) < 25
            for i in range(0, len(data), 4)
        ]

    skipped = (maps.kept.flatten() == 0).tolist()
    coloured = [not g for g in grey()]
    wrong = sum(c == s for c, s in zip(coloured, skipped, strict=True))
    assert wrong <= 0.03 * len(skipped)  # the palest colours are nearly grey themselves
    before = pixels(opened, chosen)
    opened.evaluate("document.getElementById('kept').click()")
    opened.evaluate("new Promise((done) => setTimeout(done, 100))")
    after = pixels(opened, chosen)
    assert [after[i] for i in range(0, 40, 4) if not skipped[i // 4]] == [
        before[i] for i in range(0, 40, 4) if not skipped[i // 4]
    ]
    assert after != before


def test_text_is_marked_in_both_maps(opened: Page):
    starts = opened.evaluate(
        "[...document.querySelectorAll('[data-map]')].map((f) => "
        "[...f.querySelectorAll('.text')].map((t) => parseFloat(t.style.left || t.style.top)))"
    )
    assert starts[0] == [0, 0]  # text first in the model's order
    assert starts[1] == [75, 75]  # last in the method's: token 105 is in block 6 of 8


def test_frames_show_the_asking_token(opened: Page):
    asks = "[...document.querySelectorAll('#film figure')].map((f) => f.className)"
    assert opened.evaluate(asks) == ["asks", "", ""]
    opened.evaluate("document.querySelector('[data-point=\"1\"]').click()")
    wait_for(opened, 0, 1)
    assert opened.evaluate(asks) == ["", "", "asks"]
    captions = opened.evaluate("[...document.querySelectorAll('#film figcaption')].map((c) => c.textContent)")
    assert [text.split(":")[0] for text in captions] == ["t 0, frame 0", "t 1, frame 4", "t 2, frame 8"]


def test_what_lies_under_the_pointer_is_said(opened: Page, inspected: tuple[Path, Inspection]):
    opened.evaluate(
        "(() => { const s = document.querySelector('[data-map=raster] .square'),"
        "b = s.getBoundingClientRect();"
        "s.dispatchEvent(new PointerEvent('pointermove', {clientX: b.right - 2, clientY: b.top + 2})); })()"
    )
    opened.evaluate("new Promise((done) => setTimeout(done, 100))")
    said = opened.evaluate("document.querySelector('[data-map=raster] output').textContent")
    blocks = len(inspected[1].heads[0].raster)
    assert said.startswith(f"query block 0, key block {blocks - 1}: about ")
    share = float(said.split("about ")[1].split(" %")[0]) / 100
    assert share == pytest.approx(float(inspected[1].heads[0].raster[0, -1]), rel=0.06)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes(opened: Page, scheme: str):
    opened.media(scheme=scheme)
    opened.evaluate("new Promise((done) => setTimeout(done, 150))")
    brightness = opened.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    )
    assert (brightness > 200) == (scheme == "light")
    ramp = opened.evaluate("getComputedStyle(document.getElementById('ramp')).backgroundImage")
    low = int(ramp.split("rgb(")[1].split(",")[0])
    assert (low > 200) == (scheme == "light")  # little mass is near the page's ground


@pytest.mark.parametrize("width", [320, 360, 768, 1440, 3840])
def test_nothing_sticks_out_at_any_width(opened: Page, width: int):
    opened.resize(width, 900)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_markup_stays_text_and_nothing_is_asked_for(opened: Page, inspected: tuple[Path, Inspection]):
    assert opened.evaluate("document.querySelector('h1').textContent") == SCRIPT_PROMPT
    assert opened.evaluate("document.title").startswith(SCRIPT_PROMPT)
    assert "alert" in opened.evaluate("document.getElementById('command').textContent")
    assert opened.evaluate("[...document.querySelectorAll('b')].every((b) => b.textContent !== 'bold')")
    for key in ("ArrowRight", "]", ".", "k"):
        press(opened, key)
    assert opened.complaints() == []
    assert [url for url in opened.requests() if not url.endswith("attention.html")] == []


def test_controls_have_names(opened: Page):
    nameless = opened.evaluate(
        "[...document.querySelectorAll('button, select, [role=img], [role=group], [role=grid]')]"
        ".filter((e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert opened.evaluate(
        "[...document.querySelectorAll('section')].every((s) => s.hasAttribute('aria-labelledby'))"
    )


def test_bytes_of_the_page_are_the_maps(inspected: tuple[Path, Inspection]):
    _, seen = inspected
    attention = build_attention(seen, make_context(), torch.device("cpu"), [])
    data = page_data(attention, seen)
    content = torch.tensor(list(zlib.decompress(base64.b64decode(data["maps"][5]))))
    maps, blocks = seen.heads[5], data["blocks"]
    scale = data["mass"]
    level = content[: blocks * blocks].view(blocks, blocks).double()
    mass = 10 ** (scale["low"] + level / 255 * (scale["high"] - scale["low"]))
    floor = 10 ** scale["low"]
    torch.testing.assert_close(mass, maps.raster.double().clamp(min=floor), rtol=0.03, atol=0)
    kept = content[2 * blocks**2 : 3 * blocks**2].view(blocks, blocks) / 255
    assert torch.equal(kept, maps.kept.float())
    assert len(content) == 3 * blocks**2 + 2 * 3 * 5 * 7
    assert data["frames"] == [0, 4, 8]
    assert _packed(maps, scale, data["numbers"][5]["heat"]) == data["maps"][5]


def test_fine_maps_are_averaged():
    x = torch.arange(35.0).view(1, 5, 7)
    found = _pooled(x, 2)
    assert found.shape == (1, 3, 4)
    assert found[0, 0, 0] == x[0, :2, :2].mean()
    assert found[0, 2, 3] == x[0, 4, 6]
    assert _levels(torch.tensor([0.0, 1e-3, 1.0]), {"low": -3.0, "high": 0.0}).tolist() == [0, 0, 255]
