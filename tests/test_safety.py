"""A whole run, watched by audit hooks: no network, no other program, no pickle, nothing written outside its folders."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pvs_model.inference.graph_cache import cache_folder

ROOT = Path(__file__).parent.parent

#: Runs process.py and prints, as JSON, every forbidden event and every path that was opened for writing.
WATCHER = """
import json, os, sys, tempfile
import matplotlib.font_manager  # its first import on a machine asks fc-list for fonts
seen, written = [], []
FORBIDDEN = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen",
             "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "pickle.find_class",
             "ftplib.connect", "http.client.connect", "urllib.Request", "webbrowser.open")
def hook(event, arguments):
    if event in FORBIDDEN:
        seen.append(f"{event} {arguments!r:.120}")
    elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(os.path.realpath(arguments[0]))
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
from pvs_model.commands import segment
code = segment.main(sys.argv)
print("WATCHED " + json.dumps({"code": code, "seen": seen, "written": written}))
"""


def test_a_run_reaches_for_nothing_it_should_not(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path
) -> None:
    source, output, reports = tmp_path / "in", tmp_path / "out", tmp_path / "reports"
    write_body(source / "a" / "a_{}.nii.gz")
    write_body(source / "b" / "b_{}.mha", ("T2w",), spacing_mm=(1.0, 1.0, 5.0))
    command = [sys.executable, "-c", WATCHER, "--input", str(source), "--output", str(output)]
    command += ["--weights", str(weights), "--device", "cpu", "--report", str(reports)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    watched = json.loads(ran.stdout.split("WATCHED ")[1])
    assert watched["code"] == 0 and watched["seen"] == []
    own = [path for path in watched["written"] if not path.startswith(("/dev/", "/proc/"))]
    places = (output.resolve(), reports.resolve(), cache_folder().resolve())  # the last holds converted graphs
    strangers = [path for path in own if not any(Path(path).is_relative_to(place) for place in places)]
    assert any(path.startswith(str(output.resolve())) for path in own)
    # Python tries whether the folder for temporary files can be written, and caches what it compiles.
    temporary = Path(tempfile.gettempdir()).resolve()
    assert [path for path in strangers if "__pycache__" not in path and Path(path).parent != temporary] == []
