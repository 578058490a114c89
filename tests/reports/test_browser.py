"""The pages in a real browser: no error, no request, outlines that can be hidden, tables that sort.

The browser is driven through the two pipes of its own protocol (--remote-debugging-pipe): JSON with a zero byte after
each message.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pvs_model.burden.measure import measure
from pvs_model.reports.case_report import CaseView, write_case_report
from pvs_model.reports.cohort_index import CaseSummary, write_index

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]

LINE = (255, 210, 63)


class Browser:
    """One tab."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        theirs, self.out = os.pipe()
        self.inward, answers = os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        script = (
            "import fcntl, os, sys\n"
            f"pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ({theirs}, {answers})]\n"
            "os.dup2(pipes[0], 3), os.dup2(pipes[1], 4)\n"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, PROGRAM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        os.close(answers)
        self.rest = b""
        self.number = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.inward, 1 << 20)
            if not part:
                pytest.fail("the browser has gone away")
            self.rest += part
        first, self.rest = self.rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(first)
        return message

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, page: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.seen("Page.loadEventFired"):
            self.events.append(self._message())

    def seen(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def ask(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    def media(self, media: str = "screen", scheme: str = "light", width: int = 1280) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[feature])

    def picture(self, selector: str) -> npt.NDArray[np.int64]:
        """What an element looks like, (row, column, 3)."""
        box = self.ask(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}; })()"
        )
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**box, "scale": 1})
        return np.array(Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")).astype(np.int64)

    def complaints(self) -> list[Any]:
        """Errors of the console, exceptions, and requests other than for the page and what lies in it."""
        asked = [event["request"]["url"] for event in self.seen("Network.requestWillBeSent")]
        return [
            *self.seen("Runtime.exceptionThrown"),
            *self.seen("Runtime.consoleAPICalled"),
            *self.seen("Log.entryAdded"),
            *(url[:100] for url in asked[1:] if not url.startswith("data:")),
        ]

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)
        os.close(self.out)
        os.close(self.inward)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey head with one marked line, nothing of it near yellow."""
    shape = (60, 70, 50)
    inside = np.zeros(shape, bool)
    inside[3:-3, 3:-3, 3:-3] = True
    mask = np.zeros(shape, bool)
    mask[30, 30:36, 25] = True
    images = {name: np.where(inside, np.where(mask, 4.0, level), 0) for name, level in (("T1w", -0.5), ("T2w", 0.5))}
    images["T2w"][:, :20], images["T1w"][:, :20] = images["T2w"][:, :20] * 2, images["T1w"][:, :20] * 2
    target = tmp_path_factory.mktemp("page") / "case.html"
    view = CaseView(
        "<b>case</b>",
        {name: image.astype(np.float32) for name, image in images.items()},
        mask,
        {"BG": inside},
        (1.0, 1.0, 1.0),
        measure(mask, {"BG": inside}, np.eye(4), inside),
        {"sequences": ["T1w", "T2w"], "reference": "T2w", "network": "3d"},
    )
    write_case_report(target, view)
    return target


def wait_until(browser: Browser, condition: str) -> None:
    loop = f"(async () => {{ while (!({condition})) await new Promise(requestAnimationFrame); }})()"
    browser.call("Runtime.evaluate", expression=loop, awaitPromise=True)


def open_case(browser: Browser, case: Path) -> None:
    """Opens the page of a case and waits until its viewer has drawn."""
    browser.open(case)
    wait_until(browser, "document.documentElement.dataset.viewer === 'ready'")


def yellow(picture: npt.NDArray[np.int64]) -> int:
    """Pixels in the colour of the outline."""
    return int((abs(picture - LINE).max(-1) < 12).sum())


MARKED = ".pair .picture:last-child svg"
ALONE = ".pair .picture:first-child svg"


def test_the_page_of_a_case_loads_without_a_complaint(browser: Browser, case: Path) -> None:
    browser.media()
    open_case(browser, case)
    assert browser.complaints() == []
    assert browser.ask("document.title") == "PVS: <b>case</b>"
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")


def test_outlines_are_hidden_and_shown(browser: Browser, case: Path) -> None:
    browser.media()
    open_case(browser, case)
    assert yellow(browser.picture(MARKED)) > 50
    assert yellow(browser.picture(ALONE)) == 0
    browser.ask("document.getElementById('outlines').click()")
    assert yellow(browser.picture(MARKED)) == 0
    np.testing.assert_array_equal(browser.picture(MARKED), browser.picture(ALONE))
    browser.press("o")
    assert yellow(browser.picture(MARKED)) > 50
    assert browser.complaints() == []


def test_the_outline_covers_no_marked_voxel(browser: Browser, case: Path) -> None:
    browser.media()
    open_case(browser, case)
    browser.ask("document.getElementById('voxels').click()")
    marked, alone = browser.picture(MARKED), browser.picture(ALONE)
    white = alone.min(-1) > 250
    assert white.sum() > 6 * 3 * 3
    changed = (abs(marked - alone).max(-1) > 12) & white
    # At most the blended pixels along the edge: 14 voxel edges long.
    scale = browser.ask("document.querySelector('.pair svg').getBoundingClientRect().width") / 60
    assert changed.sum() <= 14 * scale + 4
    assert yellow(marked) > 14 * scale


def test_sequences_change_both_pictures(browser: Browser, case: Path) -> None:
    browser.media()
    open_case(browser, case)
    before = browser.picture(MARKED), browser.picture(ALONE)
    browser.ask("document.getElementById('show1').click()")
    after = browser.picture(MARKED), browser.picture(ALONE)
    for one, other in zip(before, after, strict=True):
        assert abs(one - other).mean() > 1
    browser.ask("document.getElementById('outlines').click()")
    np.testing.assert_array_equal(browser.picture(MARKED), browser.picture(ALONE))
    assert browser.ask("getComputedStyle(document.querySelector('figcaption .s0')).display") == "none"


def test_layers_of_the_projections_are_hidden_and_shown(browser: Browser, case: Path) -> None:
    browser.media()
    open_case(browser, case)
    shown = browser.picture(".mip svg")
    browser.ask("document.querySelector('[data-layer]').click()")
    hidden = browser.picture(".mip svg")
    assert (abs(shown - hidden).max(-1) > 60).sum() >= 6
    browser.ask("document.querySelector('[data-layer]').click()")
    np.testing.assert_array_equal(browser.picture(".mip svg"), shown)


@pytest.mark.parametrize(
    ("media", "scheme", "width"), [("screen", "dark", 1280), ("screen", "light", 360), ("print", "light", 720)]
)
def test_in_the_dark_on_a_phone_and_on_paper(browser: Browser, case: Path, media: str, scheme: str, width: int) -> None:
    browser.media(media, scheme, width)
    open_case(browser, case)
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert browser.ask("getComputedStyle(document.querySelector('.pair .picture')).backgroundColor") == "rgb(0, 0, 0)"
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    tools = browser.ask("getComputedStyle(document.querySelector('.tools')).display")
    assert (tools == "none") == (media == "print")
    assert yellow(browser.picture(MARKED)) > 20


AXIAL, CORONAL, SAGITTAL = (f".panes figure:nth-child({k}) canvas" for k in (1, 2, 3))
SLICES = "[...document.querySelectorAll('.panes output')].map(o => Number(o.textContent))"


def test_a_pvs_of_the_list_is_shown_in_the_viewer(browser: Browser, case: Path) -> None:
    browser.media()
    open_case(browser, case)
    browser.ask("document.getElementById('viewer-cross').click()")
    assert browser.ask("[...document.querySelectorAll('.panes input')].forEach(i => { i.value = 5;"
                       "i.dispatchEvent(new Event('input')); })") is None  # fmt: skip
    assert browser.ask(SLICES) == [8, 8, 8]  # counted on the grid; the head begins at 3
    assert yellow(browser.picture(AXIAL)) == 0
    browser.ask("document.querySelector('[data-place] button').click()")
    assert browser.ask(SLICES) == [25, 32, 30]
    for plane in (AXIAL, CORONAL, SAGITTAL):
        assert yellow(browser.picture(plane)) > 10
    browser.ask("document.getElementById('viewer-mask').click()")
    assert yellow(browser.picture(AXIAL)) == 0
    assert browser.complaints() == []


def test_the_viewer_has_the_right_on_the_left_and_changes_sequences(browser: Browser, case: Path) -> None:
    """The back of the head is brighter: below in axial slices, on the right in sagittal ones."""
    browser.media()
    open_case(browser, case)
    for control in ("viewer-cross", "viewer-mask"):
        browser.ask(f"document.getElementById('{control}').click()")
    browser.ask("document.querySelector('.panes input').value = 10")
    browser.ask("document.querySelector('.panes input').dispatchEvent(new Event('input'))")
    axial, sagittal = browser.picture(AXIAL).mean(-1), browser.picture(SAGITTAL).mean(-1)
    height, width = axial.shape
    assert axial[height * 7 // 8, width // 2] > axial[height // 4, width // 2] + 20
    assert sagittal[height // 2, width * 7 // 8] > sagittal[height // 2, width // 4] + 20
    browser.ask("document.getElementById('viewer-sequence').selectedIndex = 1")
    browser.ask("document.getElementById('viewer-sequence').dispatchEvent(new Event('change'))")
    wait_until(browser, "document.getElementById('viewer-body').dataset.shown === 'T1w'")
    assert abs(browser.picture(AXIAL).mean(-1) - axial).mean() > 1
    assert browser.complaints() == []


def test_the_index_sorts_and_filters(browser: Browser, tmp_path: Path) -> None:
    browser.media()
    volumes = {"sub-1": 9.5, "sub-2": 100.0, "sub-10": 20.0}
    entries = [
        CaseSummary(case, f"{case}.html", counts={"BG": 1}, volumes_mm3={"BG": mm3}) for case, mm3 in volumes.items()
    ]
    write_index(
        tmp_path / "index.html", [*entries, CaseSummary("failed", problem="</script><script>alert(1)</script>")]
    )
    browser.open(tmp_path / "index.html")
    names = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    button = "[...document.querySelectorAll('thead th')].find(h => h.textContent.startsWith({!r})).firstChild.click()"
    assert browser.ask(names) == ["failed", "sub-1", "sub-2", "sub-10"]
    browser.ask(button.format("BG: mm"))
    assert browser.ask(names) == ["sub-1", "sub-10", "sub-2", "failed"]
    browser.ask(button.format("BG: mm"))
    assert browser.ask(names) == ["sub-2", "sub-10", "sub-1", "failed"], "what has no value stays last"
    assert browser.ask("document.querySelectorAll('th[aria-sort=descending]').length") == 1
    browser.ask(button.format("Case"))
    assert browser.ask(names) == ["failed", "sub-1", "sub-2", "sub-10"]
    browser.ask(
        "(() => { const i = document.querySelector('.filter input'); i.value = 'SUB-1';"
        "i.dispatchEvent(new Event('input')); })()"
    )
    assert browser.ask(names) == ["sub-1", "sub-10"]
    assert browser.ask("document.querySelector('.filter output').textContent") == "2 of 4"
    assert browser.complaints() == []
