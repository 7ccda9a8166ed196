"""The page over all clips in a real browser: sorting, scores, themes, widths, text that stays text, speed."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Page
from evaluation_samples import LABELS, make_configurations, make_evaluation, make_setup, make_thumbnails
from report_samples import SCRIPT_PROMPT

from dit_sparse.report.evaluation_folder import EvaluationFolder
from dit_sparse.report.evaluation_page import write_pages
from dit_sparse.report.evaluation_schema import Evaluation

RANKING = "document.querySelector('#ranking').closest('section').querySelector('table')"
PROMPTS = "document.querySelector('.prompts table')"


def make_folder(path: Path, prompts: int, labels: tuple[str, ...] = LABELS, **options) -> Evaluation:
    """A page with its thumbnails."""
    setup = make_setup(prompts)
    evaluation, times = make_evaluation(setup, labels, **options)
    folder = EvaluationFolder(path, setup, make_configurations(labels))
    make_thumbnails(folder, evaluation)
    write_pages(folder, evaluation, times, labels[0])
    return evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Evaluation]:
    path = tmp_path_factory.mktemp("evaluation")
    return path, make_folder(path, 10)


@pytest.fixture
def opened(page: Page, made: tuple[Path, Evaluation]) -> Page:
    page.goto(made[0] / "index.html")
    return page


def column(opened: Page, table: str, index: int) -> list[str]:
    """Text of a column, from the top."""
    return opened.evaluate(f"[...{table}.tBodies[0].rows].map((r) => r.cells[{index}].textContent.trim())")


def click(opened: Page, expression: str) -> None:
    opened.evaluate(f"{expression}.click()")


def heading(table: str, index: int) -> str:
    return f"{table}.tHead.rows[0].cells[{index}].querySelector('button')"


def test_sorting_by_number_and_by_name(opened: Page):
    def numbers() -> list[float]:
        return [float(text.split()[0]) for text in column(opened, RANKING, 2)]

    assert numbers() == sorted(numbers(), reverse=True)  # the best first, before any click
    click(opened, heading(RANKING, 2))
    assert numbers() == sorted(numbers())
    assert opened.evaluate(f"{heading(RANKING, 2)}.closest('th').getAttribute('aria-sort')") == "ascending"
    click(opened, heading(RANKING, 6))
    density = [float(text) for text in column(opened, RANKING, 6)]
    assert density == sorted(density)
    assert opened.evaluate(f"{RANKING}.querySelectorAll('[aria-sort]').length") == 1
    click(opened, heading(RANKING, 0))
    assert "<i>paro</i> at 0.1" in column(opened, RANKING, 0)[0]
    opened.evaluate(f"{heading(RANKING, 8)}.focus()")
    opened.press(" ")
    seconds = [float(text) for text in column(opened, RANKING, 8)]
    assert seconds == sorted(seconds)


def test_what_failed_stays_last_and_is_explained(opened: Page, made: tuple[Path, Evaluation]):
    draft = 3  # prompt, dense, svg2, draft
    for _ in range(2):
        click(opened, heading(PROMPTS, draft))
        cells = column(opened, PROMPTS, draft)
        assert cells[-2:] == ["failed", "failed"]
        values = [float(text.split()[0]) for text in cells[:-2]]
        assert values in (sorted(values), sorted(values, reverse=True))
    errors = opened.evaluate("[...document.querySelectorAll('.mono')].map((e) => e.textContent)")
    assert errors == [failure.error for failure in made[1].failures]
    assert opened.evaluate("document.querySelector('.warn').textContent").startswith("7 of the clips")


def test_the_score_and_the_cost_change_everything_that_shows_them(opened: Page):
    def visible() -> list[list[str]]:
        return opened.evaluate(
            "[...document.querySelectorAll('.scatter')].filter((f) => !f.hidden)"
            ".map((f) => [f.dataset.score, f.dataset.cost])"
        )

    assert visible() == [["psnr", "density"]]
    click(opened, "document.querySelector('[data-cost-button=time]')")
    assert visible() == [["psnr", "time"]]
    opened.evaluate(
        "(() => { const s = document.getElementById('score'); s.value = 'lpips';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert visible() == [["lpips", "time"]]
    shown = opened.evaluate("[...document.querySelectorAll('.v')].filter((e) => e.checkVisibility()).length")
    assert shown == 44
    assert set(
        opened.evaluate("[...document.querySelectorAll('[data-score-title]')].map((e) => e.textContent)")
    ) == {"LPIPS"}
    lpips = [float(text.split()[0]) for text in column(opened, RANKING, 4)]
    assert lpips == sorted(lpips)  # ranked anew, lowest first


def test_points_lead_to_the_ranking_by_keyboard(opened: Page):
    opened.evaluate("document.querySelector('.scatter:not([hidden]) .point').focus()")
    point = "document.activeElement"
    assert opened.evaluate(f"{point}.ariaLabel").startswith(f"{LABELS[0]}: PSNR ")
    assert opened.evaluate(f"getComputedStyle({point}.querySelector('.tip')).display") == "block"
    opened.press("Enter")
    opened.wait("location.hash === '#configuration-1'")
    assert LABELS[0] in opened.evaluate("document.querySelector(location.hash).textContent")


def test_every_clip_leads_to_its_report_and_pictures_wait(opened: Page, made: tuple[Path, Evaluation]):
    links = opened.evaluate(
        "[...document.querySelectorAll('.clip a[href$=\"report.html\"]')].map((a) => a.getAttribute('href'))"
    )
    folders = {clip.folder for configuration in made[1].configurations for clip in configuration.clips}
    assert {link.removesuffix("/report.html") for link in links} == folders
    assert all((made[0] / folder).is_dir() for folder in folders)
    pictures = opened.evaluate("[...document.images].map((i) => [i.loading, i.width > 0, i.height > 0])")
    assert pictures == [["lazy", True, True]] * (44 + 9)
    assert len(opened.requests()) < 44  # nothing below the fold was asked for
    opened.evaluate("document.images[0].scrollIntoView()")
    opened.wait("document.images[0].complete && document.images[0].naturalWidth === 160")


def test_markup_stays_text(opened: Page):
    assert SCRIPT_PROMPT in column(opened, PROMPTS, 0)[0]
    assert (
        opened.evaluate("document.querySelectorAll('main b:not(.strip-axis b), main i:not([class])').length")
        == 0
    )
    assert opened.evaluate("document.getElementById('command').textContent").endswith(f"'{SCRIPT_PROMPT}'")
    assert opened.evaluate("document.querySelector('.chips li').textContent") == "models/<b>bold</b>"
    assert opened.complaints() == []
    assert all(url.startswith("file:") for url in opened.requests())


@pytest.mark.parametrize("width", [360, 768, 1440, 3840])
def test_nothing_sticks_out_at_any_width(opened: Page, width: int):
    opened.resize(width, 900)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    boxes = opened.evaluate(
        "[...document.querySelectorAll('.card, .scatter:not([hidden]), .wide')].map((e) => {"
        " const b = e.getBoundingClientRect(); return [b.left, b.right]; })"
    )
    assert all(0 <= left < right <= width for left, right in boxes)
    assert opened.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= max(16, width / 160)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes(opened: Page, scheme: str):
    opened.media(scheme=scheme)
    brightness = opened.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    )
    assert (brightness > 200) == (scheme == "light")


def test_controls_have_names_and_the_page_an_outline(opened: Page):
    nameless = opened.evaluate(
        "[...document.querySelectorAll('button, select, a, [role=img], [role=region]')]"
        ".filter((e) => !(e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert opened.evaluate("document.querySelector('label').htmlFor") == "score"
    levels = opened.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_fifty_clips_load_within_two_seconds(page: Page, tmp_path: Path):
    make_folder(tmp_path, 50, LABELS[:1], failing=False)
    start = time.perf_counter()
    page.goto(tmp_path / "index.html")
    seconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    assert seconds < 2, f"{time.perf_counter() - start:.1f} s with the driver"
    assert page.evaluate("document.querySelectorAll('.clip a[href$=\"report.html\"]').length") == 50
    assert page.evaluate("document.getElementById('differences')") is None  # nothing to compare with
    assert page.complaints() == []


def test_an_evaluation_where_everything_failed(page: Page, tmp_path: Path):
    setup = make_setup(1)
    evaluation, times = make_evaluation(setup, LABELS[:2])
    assert evaluation.finished == 0
    write_pages(
        EvaluationFolder(tmp_path, setup, make_configurations(LABELS[:2])), evaluation, times, LABELS[0]
    )
    page.goto(tmp_path / "index.html")
    assert page.evaluate("document.querySelectorAll('.scatter').length") == 0
    assert page.evaluate("document.querySelector('.value').textContent") == "0of 2"
    assert page.complaints() == []
