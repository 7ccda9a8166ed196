"""The player in a real browser: frames exact and together, from a sheet, a video inside and one beside."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from browser import Page
from coded_video import coded_pair, read_code
from PIL import Image
from report_samples import make_context

from dit_sparse.report import html, player
from dit_sparse.report.compare import write_comparison

FRAMES = 19
KINDS = ("sheet", "video inside", "video beside")
SHOWN = "document.getElementById('player').dataset.frame"
# While a video plays: the frame that the page names and what both canvases show, at every repaint.
WATCH = """new Promise((resolve) => {
  const seen = [], pens = [...document.querySelectorAll("canvas")].slice(0, 2).map((c) => c.getContext("2d"));
  const code = (pen) => [0, 1, 2, 3, 4, 5].reduce((sum, bit) => {
    const [r, g, b] = pen.getImageData(Math.floor((bit + 0.5) * pen.canvas.width / 6), 20, 1, 1).data;
    return sum + (Math.max(r, g, b) > 100 ? 1 << bit : 0); }, 0);
  const look = () => {
    seen.push([Number(document.getElementById("player").dataset.frame), ...pens.map(code)]);
    if (seen.length < 90) requestAnimationFrame(look); else resolve(seen);
  };
  look();
})"""


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    """A report whose videos count their frames, in a folder that was moved since."""
    made = tmp_path_factory.mktemp("player") / "first"
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "sheet":
            patch.setattr(player, "SHEET_LIMIT_PIXELS", 0)
        if request.param == "video beside":
            patch.setattr(html, "EMBED_LIMIT_BYTES", 0)
        report = write_comparison(made, coded_pair(FRAMES), make_context(), fps=10)
    assert report.files.player == ("player.webp" if request.param == "sheet" else "player.mp4")
    return made.rename(made.with_name("moved & renamed"))


@pytest.fixture
def opened(page: Page, folder: Path) -> Page:
    page.goto(folder / "report.html")
    page.wait(f"{SHOWN} === '0'")
    return page


def panels(page: Page) -> list[int]:
    """The frames that dense and sparse show on the screen."""
    return [
        read_code(page.screenshot(clip=page.box(f"[data-role={role}] canvas")))
        for role in ("dense", "sparse")
    ]


def choose(page: Page, control: str, value: str, event: str = "input") -> None:
    """Set a slider or list as a user would."""
    element = f"document.getElementById('{control}')"
    page.evaluate(f"{element}.value = '{value}'")
    assert page.evaluate(f"{element}.value") == value
    page.evaluate(f"{element}.dispatchEvent(new Event('{event}', {{bubbles: true}}))")


def expect(page: Page, frame: int) -> None:
    """Wait for a frame; both panels, the slider, the label and the curves show it."""
    page.wait(f"{SHOWN} === '{frame}'")
    assert panels(page) == [frame, frame]
    assert page.evaluate("document.getElementById('scrub').value") == str(frame)
    assert page.evaluate("document.getElementById('frame').textContent") == f"frame {frame + 1} / {FRAMES}"


def test_every_frame_is_reached_by_steps_jumps_and_keys(opened: Page, folder: Path):
    expect(opened, 0)
    for frame in range(1, FRAMES):
        opened.evaluate("document.getElementById('forward').click()")
        if frame % 3 == 0:
            expect(opened, frame)
    expect(opened, FRAMES - 1)
    opened.evaluate("document.getElementById('forward').click()")
    expect(opened, FRAMES - 1)
    for frame in (3, 17, 8, 9, 0, 12):
        choose(opened, "scrub", str(frame))
        expect(opened, frame)
    opened.evaluate("document.getElementById('player').focus()")
    for key, frame in (("ArrowLeft", 11), ("ArrowLeft", 10), ("ArrowRight", 11), ("End", 18), ("Home", 0)):
        opened.press(key)
        expect(opened, frame)
    assert opened.complaints() == []
    beside = {(folder / name).resolve().as_uri() for name in ("report.html", "player.mp4")}
    assert set(opened.requests()) <= beside


def test_panels_stay_together_while_playing(opened: Page):
    opened.evaluate("document.getElementById('play').click()")
    assert opened.evaluate("document.getElementById('play').textContent") == "Pause"
    media = json.loads(opened.evaluate("document.getElementById('media').textContent"))
    if media["source"] == "player.mp4":  # a browser lets no page read pixels that came from a file
        for _ in range(3):
            dense, sparse = panels(opened)
            assert abs(dense - sparse) <= 3  # two pictures, taken one after the other
    else:
        seen = opened.evaluate(WATCH)
        assert all(named == dense == sparse for named, dense, sparse in seen), seen
        assert len({named for named, _, _ in seen}) >= 5
    opened.evaluate("document.getElementById('play').click()")
    opened.wait("document.getElementById('play').textContent === 'Play'")
    frame = int(opened.evaluate(SHOWN))
    expect(opened, frame)


def test_speed_and_looping(opened: Page):
    choose(opened, "speed", "0.25", "change")
    choose(opened, "scrub", "16")
    opened.wait(f"{SHOWN} === '16'")
    opened.evaluate("document.getElementById('play').click()")
    opened.wait(f"{SHOWN} === '17'")
    choose(opened, "speed", "2", "change")
    opened.wait(f"Number({SHOWN}) < 10", timeout_s=10)  # past the end, from the beginning


def test_wipe_shows_dense_left_and_sparse_right(opened: Page):
    opened.evaluate("document.querySelector('button[data-view=wipe]').click()")
    opened.evaluate("document.getElementById('player').focus()")
    opened.press("End")
    opened.wait(f"{SHOWN} === '{FRAMES - 1}'")  # 18: bits 1 and 4 are lit, left and right of the middle
    box = opened.box("#screens")
    x, y = box["x"] + 0.45 * box["width"], box["y"] + box["height"] / 2
    opened.mouse("mousePressed", box["x"] + 0.9 * box["width"], y)
    opened.mouse("mouseMoved", x, y, down=True)
    opened.mouse("mouseReleased", x, y)
    assert float(opened.evaluate("document.getElementById('wipe').value")) == pytest.approx(45, abs=0.6)

    def hue(at: float) -> str:
        spot = {
            "x": box["x"] + at * box["width"],
            "y": box["y"] + 0.7 * box["height"],
            "width": 4,
            "height": 4,
        }
        red, _, blue = Image.open(io.BytesIO(opened.screenshot(clip=spot))).convert("RGB").getpixel((1, 1))
        return "dense" if red > blue + 60 else "sparse" if blue > red + 60 else "dark"

    assert (hue(0.25), hue(0.75)) == ("dense", "sparse")
    opened.press("x")
    assert (hue(0.25), hue(0.75)) == ("sparse", "sparse")
    opened.press("x")
    assert (hue(0.25), hue(0.75)) == ("dense", "dense")
    opened.evaluate("document.getElementById('wipe').focus()")
    opened.press("ArrowLeft")
    assert float(opened.evaluate("document.getElementById('wipe').value")) == pytest.approx(99.5)
    opened.press("w")
    assert opened.evaluate("document.getElementById('screens').dataset.view") == "side"


def test_curves_follow_and_lead(opened: Page, folder: Path):
    report = json.loads((folder / "report.json").read_text())
    flicker = report["metrics"]["per_frame"]["flicker_sparse"]
    last = (
        "document.querySelectorAll('[data-follows]')[document.querySelectorAll('[data-follows]').length - 1]"
    )
    opened.evaluate(f"{last}.querySelector('.area').id = 'flicker-area'")
    box = opened.box("#flicker-area")
    x, y = box["x"] + (6 + 0.5) / FRAMES * box["width"], box["y"] + box["height"] / 2
    opened.mouse("mouseMoved", x, y)
    tip = opened.evaluate(f"{last}.querySelector('.tip').textContent")
    assert tip.startswith("frame 7: dense ")
    assert float(tip.rpartition("sparse ")[2]) == pytest.approx(flicker[6], rel=1e-3)
    assert opened.evaluate(SHOWN) == "0"  # hovering only reads
    opened.click(x, y)
    expect(opened, 6)
    now = opened.evaluate(f"[...{last}.querySelectorAll('.now')].map((e) => Number(e.textContent))")
    assert now[1] == pytest.approx(flicker[6], rel=1e-3)
    cursor = opened.evaluate(f"Number({last}.querySelector('.cursor').getAttribute('x1'))")
    assert cursor == pytest.approx(100 * 6.5 / FRAMES, abs=0.1)
    box = opened.box("#flicker-area")
    y = box["y"] + box["height"] / 2
    opened.mouse("mousePressed", x, y)
    opened.mouse("mouseMoved", box["x"] + (11 + 0.5) / FRAMES * box["width"], y, down=True)
    opened.mouse("mouseReleased", box["x"] + (11 + 0.5) / FRAMES * box["width"], y)
    expect(opened, 11)
    opened.mouse("mouseMoved", 5, 5)
    assert opened.evaluate(f"{last}.querySelector('.tip').hidden")


def test_a_missing_neighbour_is_named(page: Page, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(player, "SHEET_LIMIT_PIXELS", 0)
    monkeypatch.setattr(html, "EMBED_LIMIT_BYTES", 0)
    write_comparison(tmp_path, coded_pair(4), make_context("plain"), fps=8)
    (tmp_path / "player.mp4").unlink()
    page.goto(tmp_path / "report.html")
    page.wait("!document.getElementById('trouble').hidden")
    assert "player.mp4" in page.evaluate("document.getElementById('trouble').textContent")
