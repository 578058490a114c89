"""Facts of the packaging that a challenge or a user's machine relies on, read from the files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import numpy as np
import pytest

import pvs_model
from pvs_model.cli import build_parser
from pvs_model.types import SEQUENCES
from pvs_model.volume.io import write_volume

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*==[0-9][A-Za-z0-9.!]*")
BOSH = shutil.which("bosh") or shutil.which("bosh", path=str(Path(sys.executable).parent))
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile as (INSTRUCTION, arguments), comments left out and continued lines joined."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(kept))
    return [
        (word.upper(), " ".join(rest.split())) for word, _, rest in (x.partition(" ") for x in joined.splitlines() if x)
    ]


def requirements(name: str) -> list[str]:
    """The lines of a requirements file without comments."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    return instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def last_stage(dockerfile: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What makes the image: the instructions from the last FROM on."""
    start = max(i for i, (word, _) in enumerate(dockerfile) if word == "FROM")
    return dockerfile[start:]


def only(stage: list[tuple[str, str]], word: str) -> str:
    (value,) = [rest for name, rest in stage if name == word]
    return value


# ---- Dockerfile ---------------------------------------------------------------------------------------------------


def test_every_stage_starts_from_the_pinned_base(dockerfile: list[tuple[str, str]]) -> None:
    bases = {rest.split()[0] for word, rest in dockerfile if word == "FROM"}
    assert bases == {"python:3.11-slim-bookworm"}


def test_the_user_is_a_number_and_not_root(last_stage: list[tuple[str, str]]) -> None:
    user, group = only(last_stage, "USER").split(":")  # a name could not be checked by runAsNonRoot
    assert int(user) > 0
    assert int(group) > 0
    assert last_stage.index(("USER", f"{user}:{group}")) > max(
        i for i, (word, _) in enumerate(last_stage) if word == "RUN"
    )


def test_the_entry_point_is_in_exec_form(last_stage: list[tuple[str, str]]) -> None:
    assert json.loads(only(last_stage, "ENTRYPOINT")) == ["python", "/opt/app/process.py"]
    assert not [word for word, _ in last_stage if word == "CMD"]


def test_nothing_is_fetched_at_run_time(last_stage: list[tuple[str, str]]) -> None:
    settings = dict(pair.split("=", 1) for pair in only(last_stage, "ENV").split())
    assert settings["HF_HUB_OFFLINE"] == settings["TRANSFORMERS_OFFLINE"] == "1"
    assert settings["PYTHONDONTWRITEBYTECODE"] == "1"
    assert settings["HOME"] == "/tmp"


def test_packages_come_from_the_pinned_requirements_only(last_stage: list[tuple[str, str]]) -> None:
    runs = " && ".join(rest for word, rest in last_stage if word == "RUN")
    commands = [command for command in re.split(r"&&|;", runs) if "install" in command]
    assert commands, "the Dockerfile installs nothing?"
    for command in commands:
        assert re.search(r"/opt/requirements(-openvino)?\.txt", command), command
        assert "--no-cache-dir" in command, command
    assert not re.search(r"\bapt(-get)?\b|\bgcc\b|build-essential", runs)


def test_only_the_program_is_copied(dockerfile: list[tuple[str, str]]) -> None:
    copied = {
        source for word, rest in dockerfile if word == "COPY" for source in rest.split()[:-1] if "--from=" not in source
    }
    files = ("requirements.txt", "requirements-openvino.txt")
    assert copied == {"LICENSE", "process.py", "pvs_model/", "weights/", *files, "/opt/app"}
    assert not [rest for word, rest in dockerfile if word == "ADD"]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(kept) == copied - {"/opt/app"}, ".dockerignore must let in what is copied, and nothing else"
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_labels(last_stage: list[tuple[str, str]]) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', only(last_stage, "LABEL")))
    assert set(labels) == {"title", "description", "licenses", "version"}
    assert labels["version"] == pvs_model.__version__
    assert labels["licenses"] == "Apache-2.0"


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_is_content(tmp_path: Path) -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN pip install torch\n")
    assert subprocess.run([HADOLINT, str(bad)], capture_output=True, check=False).returncode != 0


# ---- requirements -------------------------------------------------------------------------------------------------


#: Files of requirements, and those that each is installed together with.
TOGETHER = {
    "requirements.txt": [],
    "requirements-nodeps.txt": [],
    "requirements-openvino.txt": [],
    "requirements-cluster.txt": ["requirements.txt"],
    "requirements-dicom.txt": ["requirements.txt"],
    "requirements-dev.txt": ["requirements.txt", "requirements-cluster.txt", "requirements-dicom.txt"],
}


@pytest.mark.parametrize("name", TOGETHER)
def test_every_package_is_pinned_once(name: str) -> None:
    lines = requirements(name)
    if name == "requirements-dev.txt":
        assert [lines.pop(0) for _ in TOGETHER[name]] == [f"-r {other}" for other in TOGETHER[name]]
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    packages = [line.split("==")[0].lower() for line in sum(map(requirements, TOGETHER[name]), lines)]
    assert len(packages) == len(set(packages)) > 0


def test_the_extras_are_files_of_requirements() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = settings["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    assert extras == {name: {"file": [f"requirements-{name}.txt"]} for name in ("cluster", "dicom")}
    assert "optional-dependencies" in settings["project"]["dynamic"]


@pytest.mark.parametrize(
    ("file", "used"),
    [
        ("requirements-cluster.txt", ("dask", "dask-jobqueue", "distributed")),
        ("requirements-dicom.txt", ("dcm2niix", "highdicom", "pydicom")),
    ],
)
def test_what_an_extra_needs_is_pinned_as_it_is_installed(file: str, used: tuple[str, ...]) -> None:
    """Every package that those used by name come to need is in one of the two files, in the version installed here."""
    if missing := [name for name in used if importlib.util.find_spec(name.replace("-", "_")) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} ({file})")
    lines = [*requirements("requirements.txt"), *requirements(file)]
    pins = dict(line.split("==") for line in lines)
    todo, seen = [*used], set()
    while todo:
        package = todo.pop()
        if package in seen:
            continue
        seen.add(package)
        assert pins[package] == importlib.metadata.version(package)
        for need in importlib.metadata.requires(package) or []:
            name, _, marker = need.partition(";")
            old_python = re.fullmatch(r"""python_version < ['"]3\.(\d+)['"]""", marker.strip())
            if marker and not (old_python and sys.version_info < (3, int(old_python[1]))):
                continue
            if "extra ==" in marker:
                continue
            match = re.match(r"[A-Za-z0-9._-]+", name)
            assert match is not None
            todo.append(re.sub(r"[-_.]+", "-", match[0]).lower())
    assert {line.split("==")[0] for line in requirements(file)} <= seen


@pytest.mark.parametrize(
    "line", ["torch", "torch>=2", "torch==2.*", "torch==2.13.0 ; python_version > '3'", "-e .", "torch==2,<3"]
)
def test_the_pin_pattern_can_fail(line: str) -> None:
    assert not PIN.fullmatch(line)


# ---- pyproject, licence, changelog --------------------------------------------------------------------------------


def test_the_version_has_one_source() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pvs_model.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", pvs_model.__version__)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changes
    assert pvs_model.__version__ in changes


@pytest.mark.slow
def test_an_installed_wheel_is_enough(tmp_path: Path) -> None:
    """A new virtual environment with the wheel, far from the checkout: its command, its weights and the example."""
    tree = tmp_path / "tree"
    for name in ("pvs_model", "weights"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("requirements*.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        for path in ROOT.glob(pattern):
            shutil.copyfile(path, tree / path.name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = sum(path.stat().st_size for path in ROOT.glob("weights/*.safetensors"))
    assert wheel.stat().st_size < shipped + 2e6  # nothing else that is large
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"])
    kinds = (".html", ".css", ".js")
    expected = {p.relative_to(ROOT) for p in (ROOT / "pvs_model").rglob("*") if p.suffix in (".py", *kinds)}
    assert {p.relative_to(site) for p in (site / "pvs_model").rglob("*") if p.suffix in (".py", *kinds)} == expected

    def output_of(*command: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = (str(tmp_path / "venv" / "bin" / command[0]), *command[1:])
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert output_of("pvs-model", "--version") == f"pvs-model {pvs_model.__version__}\n"
    info = json.loads(output_of("pvs-model", "info", "--json"))
    assert info["weights"]["folder"] == str(site / "pvs_model" / "weights")
    assert set(info["weights"]["ensembles"]) == {"2d", "3d"}
    make_phantom_case(tmp_path / "demo_output" / "input")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = output_of("python", "-c", example).splitlines()
    assert printed[0].startswith("T2w (24, 24, 24) ")
    assert printed[1] == "{'phantom': '3d'}"
    assert (tmp_path / "mask.nii.gz").is_file()


def make_phantom_case(folder: Path) -> None:
    """A case with the names of the demo's, small enough to be segmented in seconds."""
    image = np.random.default_rng(0).uniform(100, 200, (24, 24, 24)).astype(np.float32)
    for sequence in SEQUENCES:
        write_volume(folder / "phantom" / f"phantom_{sequence}.nii.gz", image, np.eye(4))


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["license"] == "Apache-2.0"


def test_ci_is_an_executable_script_that_stops_at_errors() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 == 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()


# ---- BIDS App: Apptainer and Boutiques ----------------------------------------------------------------------------


def test_apptainer_builds_what_the_dockerfile_builds(dockerfile: list[tuple[str, str]]) -> None:
    text = (ROOT / "Apptainer.def").read_text(encoding="utf-8")
    header, *parts = re.split(r"^%(\w+(?: \w+)?)\n", text, flags=re.MULTILINE)
    sections = {name: " ".join(body.split()) for name, body in zip(parts[::2], parts[1::2], strict=True)}
    assert f"From: {next(rest.split()[0] for word, rest in dockerfile if word == 'FROM')}\n" in header
    copied = [
        source for word, rest in dockerfile if word == "COPY" for source in rest.split()[:-1] if "=" not in source
    ]
    files = sections["files"].split()
    assert sorted(files[::2]) == sorted(source.rstrip("/") for source in copied if source != "/opt/app")
    assert all(target.endswith(f"/{source}") for source, target in zip(files[::2], files[1::2], strict=True))
    settings = dict(pair.split("=", 1) for pair in only(dockerfile, "ENV").split())
    for pair in sections["environment"].replace("export ", "").split():
        name, value = pair.split("=")
        assert name == "PYTHONNOUSERSITE" or settings[name] == value
    assert sections["runscript"] == f'exec {" ".join(json.loads(only(dockerfile, "ENTRYPOINT")))} "$@"'
    assert sections["apprun bids"] == 'exec python -m pvs_model bids "$@"'
    assert f"org.opencontainers.image.version {pvs_model.__version__}" in sections["labels"]
    runs = " ".join(rest for word, rest in dockerfile if word == "RUN")
    for command in re.findall(r"python -m pip install.*?(?= python | fi )", sections["post"]):
        assert command.replace(" \\", "") in runs.replace("$TORCH_INDEX", "$index").replace(" && ", " ")


def test_boutiques_describes_the_command_line() -> None:
    """Whatever the descriptor lets a user set, the command accepts."""
    descriptor = json.loads((ROOT / "boutiques.json").read_text(encoding="utf-8"))
    assert descriptor["tool-version"] == pvs_model.__version__
    assert descriptor["container-image"]["image"] == f"pvs-model:{pvs_model.__version__}"
    line: list[str] = descriptor["command-line"].split()
    assert line[:4] == ["python", "-m", "pvs_model", "bids"]
    assert line[4:] == [entry["value-key"] for entry in descriptor["inputs"]]
    for level in next(entry for entry in descriptor["inputs"] if entry["id"] == "analysis_level")["value-choices"]:
        words = ["bids", "in", "out", level]
        for entry in descriptor["inputs"][3:]:
            words += [entry["command-line-flag"]] + ["cpu"] * (entry["type"] != "Flag")
        assert build_parser().parse_args(words).analysis_level == level


@pytest.mark.skipif(BOSH is None, reason="boutiques is not installed")
def test_boutiques_accepts_its_descriptor() -> None:
    assert BOSH is not None
    done = subprocess.run([BOSH, "validate", str(ROOT / "boutiques.json")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "OK\n")
