"""The page around the player in a real browser: themes, widths, contrast, names, text that stays text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Page
from report_samples import SCRIPT_PROMPT, make_context, make_pair

from dit_sparse.report.compare import write_comparison
from dit_sparse.report.schema import Report

READABLE = 4.5  # contrast of text, WCAG 2.2 AA
VISIBLE = 3.0  # contrast of lines, marks and borders of controls
TEXT_ON = {
    "--text": ("--page", "--panel"),
    "--soft": ("--page", "--panel"),
    "--accent": ("--page", "--panel"),
    "--warn": ("--warn-back",),
    "--on-accent": ("--accent",),
}
MARKS = (
    *("--second", "--edge", "--attention", "--linear", "--rest", "--between", "--around"),
    *("--attend", "--dense-calls", "--order", "--permute", "--select", "--correct", "--restore", "--other"),
)
MARKS_ON = dict.fromkeys(MARKS, ("--panel",))
COLOURS = """Object.fromEntries(%s.map((name) => {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return [name, rgb];
}))"""


@pytest.fixture
def opened(page: Page, written: tuple[Path, Report]) -> Page:
    page.goto(written[0] / "report.html")
    page.wait("document.getElementById('player').dataset.frame === '0'")
    return page


def contrast(a: list[float], b: list[float]) -> float:
    """Ratio of relative luminances, WCAG 2.2."""

    def luminance(rgb: list[float]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(opened: Page, scheme: str):
    opened.media(scheme=scheme)
    names = sorted(
        {*TEXT_ON, *MARKS_ON, *(ground for on in (*TEXT_ON.values(), *MARKS_ON.values()) for ground in on)}
    )
    colours = opened.evaluate(COLOURS % json.dumps(names))
    for wanted, pairs in ((READABLE, TEXT_ON), (VISIBLE, MARKS_ON)):
        for name, grounds in pairs.items():
            for ground in grounds:
                ratio = contrast(colours[name], colours[ground])
                assert ratio >= wanted, f"{name} on {ground}, {scheme}: {ratio:.2f}"


def test_theme_follows_the_system_until_it_is_chosen(opened: Page):
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert opened.evaluate(brightness) > 200
    opened.media(scheme="dark")
    assert opened.evaluate(brightness) < 60
    click, label = "document.getElementById('theme').click()", "document.getElementById('theme').textContent"
    opened.evaluate(click)
    assert opened.evaluate(label) == "Theme: light"
    assert opened.evaluate(brightness) > 200
    opened.evaluate(click)
    opened.media(scheme="light")
    assert opened.evaluate(label) == "Theme: dark"
    assert opened.evaluate(brightness) < 60
    opened.evaluate(click)
    assert opened.evaluate(brightness) > 200


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 1920, 3840])
def test_nothing_sticks_out_at_any_width(opened: Page, width: int):
    opened.resize(width, 900)
    for view in ("side", "wipe"):
        opened.evaluate(f"document.querySelector('button[data-view={view}]').click()")
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    text = opened.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert text >= max(16, width / 160)  # on a 4K screen letters grow with the page
    panels = opened.evaluate(
        "[...document.querySelectorAll('.cards > *')].map((c) => c.getBoundingClientRect().width)"
    )
    assert min(panels) >= 130


def test_a_prompt_with_markup_stays_text(opened: Page, written: tuple[Path, Report]):
    assert opened.evaluate("document.querySelector('h1').textContent") == SCRIPT_PROMPT
    assert opened.evaluate("document.title").startswith(SCRIPT_PROMPT)
    assert opened.evaluate("document.getElementById('command').textContent") == written[1].command
    assert (
        opened.evaluate("[...document.querySelectorAll('b')].some((b) => b.textContent === 'bold')") is False
    )
    assert opened.evaluate("document.querySelector('.chips li').textContent") == "models/<b>bold</b>"
    assert opened.complaints() == []


def test_controls_have_names_and_the_page_an_outline(opened: Page):
    nameless = opened.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas, [role=img], [role=group]')]"
        ".filter((e) => !(e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    levels = opened.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert opened.evaluate(
        "[...document.querySelectorAll('section')]"
        ".every((s) => s.ariaLabel || s.hasAttribute('aria-labelledby'))"
    )


@pytest.mark.parametrize("reduced", [True, False])
def test_motion_starts_by_itself_only_where_it_is_welcome(
    page: Page, written: tuple[Path, Report], reduced: bool
):
    page.media(reduced_motion=reduced)
    page.goto(written[0] / "report.html")
    page.wait("document.getElementById('player').dataset.frame !== undefined")
    frame = "document.getElementById('player').dataset.frame"
    if reduced:
        later = page.evaluate(f"new Promise((done) => setTimeout(() => done({frame}), 600))")
        assert later == "0"
    else:
        page.wait(f"{frame} === '2'")


def test_keys_belong_to_the_player_only_while_it_has_the_focus(opened: Page):
    opened.press("ArrowRight")
    assert opened.evaluate("document.getElementById('player').dataset.frame") == "0"
    opened.evaluate("document.getElementById('player').focus()")
    opened.press("ArrowRight")
    opened.wait("document.getElementById('player').dataset.frame === '1'")


def test_heat_map_with_and_without_the_guard(opened: Page):
    cell = "getComputedStyle(document.querySelectorAll('.cells i')[{}]).backgroundColor"
    sparse = opened.evaluate(cell.format(1))
    opened.evaluate("document.querySelector('[data-guard=with]').click()")
    guarded, shown = opened.evaluate(cell.format(0)), opened.evaluate(cell.format(1))
    assert guarded != shown  # the guard at 100 %, the call beside it at a quarter
    assert sparse != shown  # on the scale up to 100 % it is paler
    hover(opened, ".cells i:nth-child(2)")
    assert opened.evaluate("document.getElementById('cell').textContent") == "layer 0, step 2: 30.0 %"


def hover(page: Page, selector: str) -> None:
    box = page.box(selector)
    page.mouse("mouseMoved", box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_heads_and_recall_have_maps_of_their_own(opened: Page):
    hover(opened, "[aria-label='Density of transformer by layer and head'] i:nth-child(2)")
    words = "document.getElementById('cell').textContent"
    # Layer 0 ran 2 of its 8 calls dense in step 0, and 2 in step 3; head 1 keeps 30 and 40 % of the others.
    assert opened.evaluate(words) == "layer 0, head 1: 35.0 %, with dense guard 67.5 %"
    hover(opened, "[aria-label='Recall of transformer by layer and head'] i:nth-child(3)")
    recall = "document.querySelectorAll('.heats')[1].querySelector('output')"
    assert opened.evaluate(f"{recall}.textContent") == "layer 2, head 0: 80.0 %"
    assert opened.evaluate(words).startswith("layer 0, head 1")  # each speaks for itself
    hover(opened, "[aria-label='Recall of transformer by layer and step'] i:nth-child(2)")
    assert opened.evaluate(f"{recall}.textContent") == "layer 1, step 4: no sparse call"


def test_columns_of_the_steps_are_as_high_as_their_seconds(opened: Page):
    heights = opened.evaluate(
        "[...document.querySelectorAll('.stack')].map((s) => [...s.children].map((c) =>"
        "[...c.children].reduce((sum, i) => sum + i.getBoundingClientRect().height, 0) / s.clientHeight))"
    )
    assert heights == [[pytest.approx(5 / 6, abs=0.01)] * 4] * 2  # steps of 0.5 s on an axis up to 0.6
    first = opened.evaluate(
        "[...document.querySelectorAll('.stack')[1].children[0].children].map((i) => i.className)"
    )
    assert first == ["at-dense", "linear", "rest", "between"]


def test_labels_of_layers_stand_at_their_rows(opened: Page):
    centres = opened.evaluate(
        "['.rows span', '.cells i:nth-child(4n + 1)'].map((s) =>"
        "[...document.querySelector('.heat').querySelectorAll(s)].map((e) => {"
        "const b = e.getBoundingClientRect(); return b.y + b.height / 2; }))"
    )
    assert len(centres[0]) == 3
    assert centres[0] == pytest.approx(centres[1], abs=1.5)


def test_a_page_without_a_dense_run(page: Page, tmp_path: Path):
    write_comparison(tmp_path, make_pair(compare=False), make_context("plain"), fps=8)
    page.goto(tmp_path / "report.html")
    page.wait("document.getElementById('player').dataset.frame === '0'")
    assert page.evaluate("document.querySelectorAll('canvas').length") == 1
    assert page.evaluate("document.getElementById('closeness')") is None
    page.evaluate("document.getElementById('player').focus()")
    page.press("w")
    page.press("ArrowRight")
    page.wait("document.getElementById('player').dataset.frame === '1'")
    assert page.complaints() == []
