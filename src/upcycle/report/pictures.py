"""Figures of a study inside the page: SVG whose colours are CSS variables, so that a dark page has dark figures."""

from __future__ import annotations

import colorsys
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upcycle.errors import UserError
from upcycle.paper.ablations import Observation
from upcycle.paper.figures_decisions import UPCYCLE
from upcycle.report.background import Background
from upcycle.study import catalogue

WIDE = 300.0
"""Points of width from which a figure takes the whole page; narrower ones stand two abreast."""
_DARK = {"#ffffff": "var(--card)", UPCYCLE.lower(): "#2b6490"}
"""Colours on a dark page that the rule of `dark` would not give."""
_COLOUR = re.compile(r"(?<=[:\s])#[0-9a-f]{6}\b")
_ID = re.compile(r'\bid="|url\(#|xlink:href="#')
_WORDS = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)
_ACTIVE = re.compile(
    r'<(?:script|foreignObject|iframe|a)\b|<[^>]*\s(?:on\w+|href)\s*=|xlink:href="(?!#|data:image/png)'
)
"""What no figure of ours has, and what would act inside the page."""
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"')


@dataclass(frozen=True)
class Picture:
    """A figure of the study as the page shows it."""

    name: str
    item: catalogue.CatalogueItem
    svg: str
    """The `svg` element; empty for a figure that is words."""
    words: str
    """What a figure states that would show nothing (`upcycle.paper.style.in_words`); else empty."""
    seen: str
    """What the losses show of the claim behind it."""
    wide: bool
    size: tuple[float, float]
    """Width and height in points."""


def pictures(background: Background, seen: Mapping[str, Observation]) -> list[Picture]:
    """The study's figures in its order.

    Raises `UserError` naming a figure that is missing or is no SVG.
    """
    return [_picture(name, background.out / "figures" / f"{name}.svg", seen.get(name)) for name in background.figures]


def _picture(name: str, path: Path, seen: Observation | None) -> Picture:
    item = catalogue.find_item(name, "figure")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `snakemake {path}` makes it") from None
    except UnicodeDecodeError:
        text = ""
    size = _SIZE.search(text)
    if size is None or not text.rstrip().endswith("</svg>") or _ACTIVE.search(text):
        raise UserError(f"{path} is damaged: it is no whole SVG; delete it, and `snakemake {path}` makes it again")
    width, height = float(size[1]), float(size[2])
    words = _WORDS.search(text)
    if words:
        return Picture(name, item, "", html.unescape(words[1]), str(seen or ""), False, (width, height))
    return Picture(name, item, _inlined(name, item.title, text), "", str(seen or ""), width > WIDE, (width, height))


def _inlined(name: str, title: str, text: str) -> str:
    """An SVG file as an element of a page: ids of its own, colours by variable, no rules for the rest of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    text = _ID.sub(lambda match: f"{match[0]}{name}-", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return _COLOUR.sub(lambda match: f"var(--f{match[0][1:]}, {match[0]})", text)


def dark_colours(shown: Sequence[Picture]) -> list[tuple[str, str]]:
    """(variable, value) of every colour of these figures on a dark page."""
    found = sorted({name for each in shown for name in re.findall(r"var\(--f([0-9a-f]{6}),", each.svg)} | {"000000"})
    return [(f"--f{name}", dark(f"#{name}")) for name in found]


def dark(colour: str) -> str:
    """A colour `#rrggbb` of a figure on white, on a dark page.

    Greys and the pale colours of regions are turned from light to dark and back. Other colours are lightened, less the
    lighter they are: colours of ordered values stay in their order.
    """
    if colour in _DARK:
        return _DARK[colour]
    hue, light, saturation = colorsys.rgb_to_hls(*(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)))
    turned = saturation < 0.08 or light > 0.8
    light = 0.92 - 0.76 * light if turned else 0.46 + 0.54 * light
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, saturation))


def front(shown: Sequence[Picture]) -> Picture | None:
    """The picture of the first screen: the overview, else the study's first figure; None without any."""
    drawn = [each for each in shown if each.svg]
    return next((each for each in drawn if each.name == "overview"), drawn[0] if drawn else None)
