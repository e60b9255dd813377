from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from syncbn_convert.cli.main import main
from syncbn_convert.files.model_file import load_model
from syncbn_convert.page.document import write_page
from syncbn_convert.page.model_facts import facts_of
from syncbn_convert.reports import ERROR_BOUNDS, VerifyReport
from syncbn_convert.verification.differences import compare_values, summarize
from tests.models import DIGITS

Shoot = Callable[[Path, int, bool], npt.NDArray[np.uint8]]

COMMANDS = ("convert", "calibrate", "fold", "fuse", "unfuse", "verify")
PICTURES = {"convert": 3, "calibrate": 4, "fold": 3, "fuse": 3, "unfuse": 3, "verify": 5}
PHONE, DESKTOP, HEIGHT = 390, 1280, 3_000
NEAR = 24
"""Levels of 256 by which thin lines may be off, as their edges are smoothed."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run every command that has the flag; return the pages."""
    folder = tmp_path_factory.mktemp("pages")
    data = folder / "data.npz"
    np.savez(data, image=np.random.default_rng(0).random((16, 8, 8, 1), np.float32))
    names = ("form", "trained", "folded", "fused", "unfused")
    form, trained, folded, fused, unfused = (folder / f"{name}.onnx" for name in names)
    arguments: dict[str, list[object]] = {
        "convert": [DIGITS, "-o", form],
        "calibrate": [form, "--data", data, "--replicas", 2, "-o", trained],
        "fold": [trained, "-o", folded],
        "fuse": [folded, "-o", fused],
        "unfuse": [fused, "--data", data, "--exclude", "logits", "-o", unfused],
        "verify": [DIGITS, folded],
    }
    found = {command: folder / f"{command}.html" for command in COMMANDS}
    for command, given in arguments.items():
        code = main(
            [command, *(str(word) for word in given), "--quiet", "--report", str(found[command])]
        )
        assert code == (1 if command == "verify" else 0)
    return found


class _Reader(html.parser.HTMLParser):
    """Collects tags, and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.references += re.findall(r"url\(([^)]*)\)|@import", text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [
            value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")
        ]


@pytest.mark.parametrize("command", COMMANDS)
def test_page_is_whole_and_loads_nothing(pages: dict[str, Path], command: str) -> None:
    text = pages[command].read_text(encoding="utf-8")
    read = _Reader(text)
    assert read.tags.count("svg") == PICTURES[command]
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert read.references
    assert all(reference.startswith("#") for reference in read.references)
    assert f"syncbn-convert {command}" in text
    assert text.endswith("</html>\n")


def test_pages_say_what_was_done(pages: dict[str, Path]) -> None:
    text = {command: path.read_text(encoding="utf-8") for command, path in pages.items()}
    assert "<b>5</b> converted" in text["convert"]
    assert "<b>5</b> fused" in text["fuse"]
    assert "No moving statistics are left" in text["fuse"]
    assert "<b>16</b> samples" in text["calibrate"]
    assert "Moved most: " in text["calibrate"]
    assert "Moved most: " not in text["convert"]
    assert "different: " in text["verify"]
    assert "Moved most: " in text["verify"]
    assert "Errors of the outputs" in text["fold"]


def test_a_page_again_is_the_same(pages: dict[str, Path], tmp_path: Path) -> None:
    facts = facts_of(load_model(DIGITS), DIGITS)
    report = VerifyReport(
        equal=True, max_relative_error=0.0, tolerance=0.0, outputs=[], first_difference=None
    )
    contents = []
    for name in ("first.html", "second.html"):
        write_page(tmp_path / name, report, before=facts, after=facts)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert str(pages["convert"].parent).encode() not in contents[0]


def test_names_are_not_markup(tmp_path: Path) -> None:
    proto = onnx.load(DIGITS)
    evil = '<script>alert("x")</script>&amp;'
    node = next(node for node in proto.graph.node if node.op_type == "BatchNormalization")
    node.name = proto.graph.doc_string = evil
    model = tmp_path / "<b>.onnx"
    onnx.save(proto, model)
    target = tmp_path / "page.html"
    output = str(tmp_path / "out.onnx")
    command = ["convert", str(model), "--no-verify", "--quiet", "-o", output]
    assert main([*command, "--report", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;amp;" in text


def test_a_page_that_cannot_be_written_stops_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.onnx"
    target = tmp_path / "missing" / "page.html"
    assert main(["convert", str(DIGITS), "-o", str(output), "--report", str(target)]) == 2
    assert "page.html: cannot be written: No such file" in capsys.readouterr().err
    assert not output.exists()


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "out.onnx"
    target = tmp_path / "page.html"
    assert main(["convert", str(DIGITS), "-o", str(output), "--report", str(target)]) == 2
    assert capsys.readouterr().err == (
        "error: --report needs matplotlib; install it with: pip install 'syncbn-convert[report]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_histogram_counts_every_element() -> None:
    errors = np.array([0.0, 0.0, 1e-13, 2e-7, 2e-7, 0.5], np.float64)
    reference = np.ones(6)
    output = summarize("y", [compare_values(reference, reference + errors, 1.0)] * 2)
    assert len(output.histogram) == len(ERROR_BOUNDS) + 2
    assert sum(output.histogram) == 12
    assert output.histogram[0] == 4
    for value, count in ((1e-13, 2), (2e-7, 4), (0.5, 2)):
        place = sum(bound <= value for bound in ERROR_BOUNDS)
        assert output.histogram[1 + place] == count


@pytest.fixture(scope="module")
def shoot(tmp_path_factory: pytest.TempPathFactory) -> Shoot:
    """Return a function that takes a picture of a page in a browser, of some width, maybe dark."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    folder = tmp_path_factory.mktemp("shots")

    def take(target: Path, width: int, dark: bool) -> npt.NDArray[np.uint8]:
        from matplotlib.image import imread

        frame, picture = folder / "frame.html", folder / "shot.png"
        style = f"width:{width}px;height:{HEIGHT}px;border:0;position:absolute;top:0;left:0"
        frame.write_text(f'<iframe style="{style}" src="{target.as_uri()}"></iframe>')
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}", f"--window-size={max(width, 600)},{HEIGHT}"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        command += [f"--screenshot={picture}", frame.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        pixels = np.asarray(imread(picture))[:, :width, :3]
        levels: npt.NDArray[np.uint8] = np.rint(pixels * 255).astype(np.uint8)
        return levels

    return take


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("command", ["calibrate", "fuse"])
def test_in_a_browser(
    pages: dict[str, Path],
    shoot: Shoot,
    command: str,
    width: int,
    dark: bool,
) -> None:
    """Colours are those asked for, both series are drawn, nothing runs over the side."""
    shot = shoot(pages[command], width, dark)
    palette = {
        False: {"paper": (253, 253, 252), "before": (138, 109, 0), "after": (31, 95, 191)},
        True: {"paper": (20, 23, 26), "before": (224, 184, 74), "after": (127, 178, 255)},
    }[dark]

    def count(name: str) -> int:
        distance = np.abs(shot.astype(int) - palette[name]).max(axis=2)
        return int((distance <= NEAR).sum())

    assert count("paper") > 0.5 * shot.shape[0] * shot.shape[1]
    assert count("before") > 20
    assert count("after") > (20 if command == "calibrate" else 0)
    margin = shot[:, -8:]
    assert (margin == np.array(palette["paper"], np.uint8)).all()
    lightness = shot.astype(np.float64).mean(axis=2)
    contrast = lightness.max() - lightness.min()
    assert contrast > 150
