"""Captions: a small grammar that turns one row of scene attributes into English, many ways.

A colour stands next to the noun it belongs to, objects are named largest first, and words that people leave
out (size, "plain", the background) are left out at random. `Caption.stated` says which attributes can be
read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .scenes import (
    ATTRIBUTES,
    BACKGROUND_COLORS,
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    COLUMN,
    MAX_OBJECTS,
    MOTIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    sample_scenes,
)

MAX_TOKENS = 32  # text length in training; a caption has at most 31 tokens with its end mark
NUM_HELD_OUT, NUM_SWEEP = 64, 32

_SYNONYMS = {
    "circle": ("circle", "circle", "circle", "circle", "ball"),
    "moon": ("moon", "moon", "moon", "crescent"),
}
_MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "resting": ("", "", "resting", "standing still"),
    "left": ("moving left", "moving left", "moving to the left", "moves left"),
    "right": ("moving right", "moving right", "moving to the right", "moves right"),
    "up": ("moving up", "moving up", "moving upwards", "moves up"),
    "down": ("moving down", "moving down", "moving downwards", "moves down"),
    "bouncing": ("bouncing", "bouncing", "bouncing up and down", "bounces"),
    "circling": ("circling", "circling", "orbiting", "circles around"),
    "spinning": ("spinning", "spinning", "rotating", "spins"),
    "growing": ("growing", "growing", "growing larger", "grows"),
    "shrinking": ("shrinking", "shrinking", "shrinking smaller", "shrinks"),
}
_BACKGROUND_NOUNS: dict[str, tuple[str, ...]] = {
    "plain": ("a {c} background", "a plain {c} background"),
    "gradient": ("a {c} gradient", "a {c} gradient", "a {c} gradient background"),
    "checkerboard": ("a {c} checkerboard", "a {c} checkerboard", "a {c} checkered background"),
    "stripes": ("{c} stripes", "{c} stripes", "a {c} striped background"),
    "dots": ("{c} dots", "{c} dots", "a {c} dotted background"),
    "clouds": ("{c} clouds", "{c} clouds", "a {c} cloudy background"),
}
_CAMERA_WORDS: dict[str, tuple[str, ...]] = {
    "pan left": ("the camera pans left", "the camera pans left", "camera panning left"),
    "pan right": ("the camera pans right", "the camera pans right", "camera panning right"),
    "zoom in": ("the camera zooms in", "the camera zooms in", "camera zooming in"),
    "zoom out": ("the camera zooms out", "the camera zooms out", "camera zooming out"),
}
_OPENINGS = ("", "", "", "", "a video of ", "a clip of ")
_PLACES = ("over", "over", "on", "in front of")
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Caption:
    """`text`, and for each of the 19 attributes whether the text states it."""

    text: str
    stated: tuple[bool, ...]


def split_words(text: str) -> list[str]:
    """The words and punctuation marks that the tokenizer sees."""
    return _TOKEN.findall(text.lower())


def vocabulary() -> list[str]:
    """All words of the grammar, sorted."""
    texts = [
        "a",
        "an",
        "and",
        ",",
        *COLORS,
        *BACKGROUND_COLORS,
        *SHAPES,
        *SIZES,
        *TEXTURES,
        *_OPENINGS,
        *_PLACES,
    ]
    for table in (_SYNONYMS, _MOTION_WORDS, _BACKGROUND_NOUNS, _CAMERA_WORDS):
        texts += [text.replace("{c}", "") for variants in table.values() for text in variants]
    return sorted({word for text in texts for word in split_words(text)})


def describe(row: Sequence[int], rng: random.Random, complete: bool = False) -> Caption:
    """One caption of the scene `row` (19 integers). `complete` states every attribute that has a word."""
    count = row[0] + 1
    stated = [True] * len(ATTRIBUTES)
    phrases: list[str] = []
    for i in range(1, count + 1):
        phrase, has_size = _object_phrase(row, i, rng, count, complete)
        stated[COLUMN[f"size{i}"]] = has_size
        phrases.append(phrase)
    text = ", ".join(phrases[:-1]) + " and " + phrases[-1] if count > 1 else phrases[0]
    if not complete:
        text = rng.choice(_OPENINGS) + text

    background, color = (
        BACKGROUNDS[row[COLUMN["background"]]],
        BACKGROUND_COLORS[row[COLUMN["background_color"]]],
    )
    die = 1.0 if complete else rng.random()
    if die < 0.05:
        stated[COLUMN["background"]] = stated[COLUMN["background_color"]] = False
    else:
        named = die > 0.09 or background == "plain"
        stated[COLUMN["background_color"]] = named
        nouns = _BACKGROUND_NOUNS[background]
        noun = (nouns[0] if complete else rng.choice(nouns)).replace("{c} ", f"{color} " if named else "")
        text += f" {'over' if complete else rng.choice(_PLACES)} {noun}"

    camera = CAMERAS[row[COLUMN["camera"]]]
    if camera != "still":
        words = _CAMERA_WORDS[camera]
        text += ", " + (words[0] if complete else rng.choice(words))
    return Caption(_with_articles(text), tuple(stated))


def held_out_captions(sweep: bool = False) -> list[tuple[list[int], str]]:
    """64 held-out scenes and their captions, always the same; `sweep`: 32 others, to choose settings by."""
    final = _complete_captions(NUM_HELD_OUT, seed=64)
    if not sweep:
        return final
    known = {text for _, text in final}
    others = [pair for pair in _complete_captions(NUM_HELD_OUT, seed=65) if pair[1] not in known]
    return others[:NUM_SWEEP]


def _complete_captions(count: int, seed: int) -> list[tuple[list[int], str]]:
    rng = random.Random(seed)
    rows: list[list[int]] = sample_scenes(count, seed, held_out=True).attributes.tolist()
    return [(row, describe(row, rng, complete=True).text) for row in rows]


def _object_phrase(
    row: Sequence[int], i: int, rng: random.Random, count: int, complete: bool
) -> tuple[str, bool]:
    size, color = SIZES[row[COLUMN[f"size{i}"]]], COLORS[row[COLUMN[f"color{i}"]]]
    texture, shape = TEXTURES[row[COLUMN[f"texture{i}"]]], SHAPES[row[COLUMN[f"shape{i}"]]]
    motion = _MOTION_WORDS[MOTIONS[row[COLUMN[f"motion{i}"]]]]
    says_size = size != "medium" and (complete or rng.random() < 0.65)
    words = ["a", size] if says_size else ["a"]
    adjectives = [color] if texture == "plain" else [texture, color]
    if len(adjectives) == 2 and not complete and rng.random() < 0.35:
        adjectives.reverse()
    words += adjectives
    words.append(shape if complete else rng.choice(_SYNONYMS.get(shape, (shape,))))
    # Long paraphrases only where the caption stays within MAX_TOKENS.
    phrase = motion[0] if complete else rng.choice(motion if count == 1 else motion[:2])
    if phrase:
        words.append(phrase)
    return " ".join(words), says_size


def _with_articles(text: str) -> str:
    return re.sub(r"\ba (?=orange\b)", "an ", text)


assert len(_MOTION_WORDS) == len(MOTIONS) and MAX_OBJECTS == 3
