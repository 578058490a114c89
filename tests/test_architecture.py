"""The rules of the architecture (which package may import which), checked in the source with ``ast``.

Each rule is a function from the sources to a list of complaints. Every rule is run twice: on this
repository, where it must find nothing, and on a small made-up tree that breaks it, where it must.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "pvs_model"

#: Layers from bottom to top. A package may import from itself, its layer and the layers below.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({PACKAGE, "types", "errors"}),
    frozenset({"config", "files"}),
    frozenset({"volume", "nets", "simulation", "evaluation.metrics"}),
    frozenset(
        {"layouts", "anatomy", "inference", "preprocessing", "datasets", "training", "burden", "evaluation", "dicom"}
    ),
    frozenset({"reports"}),
    frozenset({"pipeline"}),
    frozenset({"batch"}),
    frozenset({"cli", "commands", "api", "__main__", "process"}),
)
#: The package offers the functions of ``api``, which it imports on first use.
LAZY = (PACKAGE, "api")
#: The layer whose packages never import each other.
SIBLINGS = LAYERS[2]

#: Where a run of the container can come by, and what it must never reach.
RUN_TIME = (
    *("process", "api", "batch", "pipeline", "preprocessing", "layouts", "volume"),
    *("nets", "inference", "anatomy", "burden", "evaluation", "reports"),
)
NOT_AT_RUN_TIME = frozenset({"datasets", "training", "simulation"})

#: Modules on the run-time path that may import an extra, which the container does without -> the packages, and where
#: they are pinned. They import them when they are needed, never when they are loaded themselves.
EXTRAS: Mapping[str, tuple[frozenset[str], str]] = {
    "batch.scheduling": (frozenset({"distributed"}), "requirements-cluster.txt"),
    "batch.dask_clusters": (frozenset({"dask", "dask_jobqueue", "distributed"}), "requirements-cluster.txt"),
    "batch.worker": (frozenset({"distributed"}), "requirements-cluster.txt"),
    "inference.openvino": (frozenset({"openvino"}), "requirements-openvino.txt"),
    "inference.graph_cache": (frozenset({"openvino"}), "requirements-openvino.txt"),
    "dicom.codes": (frozenset({"highdicom", "pydicom"}), "requirements-dicom.txt"),
    "dicom.convert": (frozenset({"dcm2niix"}), "requirements-dicom.txt"),
    "dicom.headers": (frozenset({"dcm2niix", "highdicom", "pydicom"}), "requirements-dicom.txt"),
    "dicom.report": (frozenset({"highdicom", "pydicom"}), "requirements-dicom.txt"),
    "dicom.segmentation": (frozenset({"highdicom", "pydicom"}), "requirements-dicom.txt"),
}

LONGEST_PROCESS = 10
JUNK_NAMES = frozenset({"utils", "util", "helpers", "misc"})

#: Modules that import each other -> the reason. An entry without such a cycle is a failure, too.
KNOWN_CYCLES: Mapping[frozenset[str], str] = {}

#: Modules that unpickle, or that are built on it. A pickle from elsewhere can run any code.
PICKLERS = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
PICKLING_CALLS = frozenset({"torch.load", "torch.hub.load_state_dict_from_url", "pandas.read_pickle"})
#: "module: what" -> why it is allowed. An entry that nothing needs any more is a failure, too.
PICKLE_EXCEPTIONS: Mapping[str, str] = {
    "training.workers: pickle": "a training hands its data to its own processes in a private temporary folder",
}


@dataclass(frozen=True)
class Module:
    """A source file. ``name`` is dotted, without the package's own name: ``nets.text``, ``process``."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        if self.name == "evaluation.metrics" or self.name.startswith("evaluation.metrics."):
            return "evaluation.metrics"
        return self.name.split(".")[0]


Sources = Mapping[str, Module]
Rule = Callable[[Sources], list[str]]


def load(root: Path) -> dict[str, Module]:
    """All modules of the package under ``root``, and ``process``; by name."""
    modules = {}
    for path in [root / "process.py", *sorted((root / PACKAGE).rglob("*.py"))]:
        parts = path.relative_to(root).with_suffix("").parts
        inner = parts[1:] if parts[0] == PACKAGE else parts
        name = ".".join(part for part in inner if part != "__init__") or PACKAGE
        modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return modules


def full_name(module: Module) -> str:
    """The name by which Python knows a module."""
    return module.name if module.name in (PACKAGE, "process") else f"{PACKAGE}.{module.name}"


def imported_names(module: Module) -> Iterator[tuple[str, int]]:
    """Every dotted name that a module imports, wherever in it, with its line; relative names made absolute.

    ``from a import b`` gives ``a`` and ``a.b``, since b can be a module.
    """
    is_package = module.path.name == "__init__.py"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = full_name(module).split(".")
                here = here[: len(here) - node.level + is_package]
                base = ".".join([*here, base] if base else here)
            yield base, node.lineno
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def internal_imports(module: Module, sources: Sources) -> Iterator[tuple[str, int]]:
    """The modules of this package that a module imports, by name, with the line."""
    for dotted, line in imported_names(module):
        first, _, rest = dotted.partition(".")
        if first == PACKAGE:
            target = rest or PACKAGE
        elif first == "process":
            target = "process"
        else:
            continue
        if target in sources and target != module.name:
            yield target, line


def layer_of(package: str) -> int | None:
    return next((level for level, packages in enumerate(LAYERS) if package in packages), None)


def where(module: Module, line: int) -> str:
    return f"{module.name}:{line}"


# ---- the rules: each returns its complaints -------------------------------------------------------------------


def unknown_packages(sources: Sources) -> list[str]:
    return [f"{m.name}: belongs to no known layer" for m in sources.values() if layer_of(m.package) is None]


def wrong_directions(sources: Sources) -> list[str]:
    """Imports from a higher layer, and between siblings of the third."""
    complaints = []
    for module in sources.values():
        mine = layer_of(module.package)
        for target, line in internal_imports(module, sources):
            other = sources[target].package
            theirs = layer_of(other)
            if mine is None or theirs is None or other == module.package or (module.name, target) == LAZY:
                continue
            if theirs > mine:
                complaints.append(f"{where(module, line)} imports upwards: {target}")
            elif module.package in SIBLINGS and other in SIBLINGS:
                complaints.append(f"{where(module, line)} imports its sibling {target}")
    return complaints


def cycles(sources: Sources) -> list[str]:
    """Packages that import each other in a cycle; packages of one layer may import each other in one direction."""
    below: dict[str, set[str]] = {module.package: set() for module in sources.values()}
    for module in sources.values():
        targets = {target for target, _ in internal_imports(module, sources) if (module.name, target) != LAZY}
        below[module.package] |= {sources[target].package for target in targets} - {module.package}
    while free := {package for package, targets in below.items() if not targets & set(below)}:
        for package in free:
            del below[package]
    # What is left leads into a cycle; packages that nothing left imports are only above it.
    while above := set(below) - set().union(*below.values()):
        for package in above:
            del below[package]
    return [f"packages import each other in a cycle: {', '.join(sorted(below))}"] if below else []


def module_cycles(sources: Sources) -> set[frozenset[str]]:
    """Finds sets of modules that import each other, within packages as well, and in functions as well.

    ``from package import module`` imports the module, not what the package's ``__init__`` defines.
    """
    imports: dict[str, set[str]] = {}
    for module in sources.values():
        lines: dict[int, set[str]] = {}
        for target, line in internal_imports(module, sources):
            lines.setdefault(line, set()).add(target)
        imports[module.name] = {
            target
            for targets in lines.values()
            for target in targets
            if target != PACKAGE and not any(other.startswith(f"{target}.") for other in targets)
        }
    reached = {name: set(targets) for name, targets in imports.items()}
    for middle in reached:  # Warshall's algorithm
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    mutual = {name: frozenset(n for n in targets if name in reached[n]) for name, targets in reached.items()}
    return {names for name, names in mutual.items() if name in names}


def unknown_cycles(sources: Sources) -> list[str]:
    return [
        f"modules import each other in a cycle: {', '.join(sorted(names))}"
        for names in module_cycles(sources) - set(KNOWN_CYCLES)
    ]


def reachable(sources: Sources) -> dict[str, str]:
    """Modules that a run can come to load -> the module that imports them (itself for those it starts from)."""
    reached = {name: name for name, module in sources.items() if module.package in RUN_TIME}
    todo = list(reached)
    while todo:
        name = todo.pop()
        targets = {target for target, _ in internal_imports(sources[name], sources)}
        # Importing a.b.c runs the __init__ of a and of a.b as well.
        targets |= {PACKAGE} | {t.rsplit(".", k)[0] for t in targets for k in range(1, t.count(".") + 1)}
        for target in sorted((targets & set(sources)) - set(reached)):
            reached[target] = name
            todo.append(target)
    return reached


def run_time_reaches_too_far(sources: Sources) -> list[str]:
    return [
        f"{by} brings {name} onto the run-time path"
        for name, by in reachable(sources).items()
        if sources[name].package in NOT_AT_RUN_TIME
    ]


def junk_names(sources: Sources) -> list[str]:
    return [f"{name}: a helper lives with its caller" for name in sources if JUNK_NAMES & set(name.split("."))]


def too_long(sources: Sources) -> list[str]:
    lines = len(sources["process"].path.read_text(encoding="utf-8").splitlines())
    return [f"process.py has {lines} lines, at most {LONGEST_PROCESS} are allowed"] if lines > LONGEST_PROCESS else []


def pickles(sources: Sources) -> list[str]:
    """Uses of pickle as "module: what", followed through ``import torch as t`` and ``from torch import load``."""
    complaints = set()
    for module in sources.values():
        known: dict[str, str] = {}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.name if alias.asname else alias.name.split(".")[0]
                    known[alias.asname or bound] = bound
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for dotted, _ in imported_names(module):
            if dotted.split(".")[0] in PICKLERS:
                complaints.add(f"{module.name}: {dotted.split('.')[0]}")
            elif dotted in PICKLING_CALLS:
                complaints.add(f"{module.name}: {dotted}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute):
                first, _, rest = ast.unparse(node).partition(".")
                if f"{known.get(first, first)}.{rest}" in PICKLING_CALLS:
                    complaints.add(f"{module.name}: {known.get(first, first)}.{rest}")
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                complaints.add(f"{module.name}: allow_pickle")
    return sorted(complaints)


def third_party(sources: Sources) -> set[str]:
    """Top-level names of the packages that the run-time path imports from outside the repository, without extras."""
    return {
        dotted.split(".")[0]
        for name in reachable(sources)
        for dotted, _ in imported_names(sources[name])
        if dotted.split(".")[0] not in {PACKAGE, "process", "__future__", *sys.stdlib_module_names, *extras_of(name)}
    }


def extras_of(name: str) -> frozenset[str]:
    return EXTRAS[name][0] if name in EXTRAS else frozenset()


def eager_extras(sources: Sources) -> list[str]:
    """Extras that are imported when their module is: without them, it could not even say what is missing."""
    complaints = []
    for name in EXTRAS.keys() & sources.keys():
        module = sources[name]
        inside = {
            id(node)
            for block in ast.walk(module.tree)
            if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))
            or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
            for node in ast.walk(block)
        }
        eager = [node for node in ast.walk(module.tree) if id(node) not in inside]
        imports = [node for node in eager if isinstance(node, (ast.Import, ast.ImportFrom))]
        outside = Module(module.name, module.path, ast.Module([*imports], []))
        complaints += [
            f"{where(module, line)} imports the extra {dotted} when it is loaded"
            for dotted, line in imported_names(outside)
            if dotted.split(".")[0] in extras_of(name)
        ]
    return complaints


# ---- this repository keeps them ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository() -> Sources:
    return load(ROOT)


@pytest.mark.parametrize(
    "rule",
    [
        unknown_packages,
        wrong_directions,
        cycles,
        unknown_cycles,
        run_time_reaches_too_far,
        junk_names,
        too_long,
        eager_extras,
    ],
)
def test_this_repository_keeps_the_rule(rule: Rule, repository: Sources) -> None:
    assert rule(repository) == []


def test_known_cycles_exist(repository: Sources) -> None:
    assert set(KNOWN_CYCLES) <= module_cycles(repository)
    assert all(KNOWN_CYCLES.values()), "an exception needs a reason"


def test_nothing_is_unpickled(repository: Sources) -> None:
    assert set(pickles(repository)) == set(PICKLE_EXCEPTIONS)
    assert all(PICKLE_EXCEPTIONS.values()), "an exception needs a reason"


def test_the_run_time_path_is_what_we_think(repository: Sources) -> None:
    reached = {repository[name].package for name in reachable(repository)}
    assert set(RUN_TIME) <= reached, "a package of the run-time path is missing: has it moved?"


def test_run_time_imports_are_required(repository: Sources) -> None:
    required = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    providers = importlib.metadata.packages_distributions()
    for package in sorted(third_party(repository)):
        names = {re.sub(r"[-_.]+", "-", name).lower() for name in providers.get(package, [package])}
        assert names & required, f"{package} is imported on the run-time path, and not in requirements.txt"


def test_extras_are_pinned_and_used(repository: Sources) -> None:
    providers = importlib.metadata.packages_distributions()
    for module, (packages, file) in EXTRAS.items():
        used = {dotted.split(".")[0] for dotted, _ in imported_names(repository[module])}
        assert packages <= used, f"{module} needs no {', '.join(packages - used)} any more"
        pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / file).read_text(), re.MULTILINE))
        for package in packages:
            names = {re.sub(r"[-_.]+", "-", name).lower() for name in providers.get(package, [package])}
            assert names & pinned, f"{module} imports {package}, which is not in {file}"


# ---- and each rule can fail -------------------------------------------------------------------------------------

SOUND = {
    "process.py": "from pvs_model.pipeline import run\n",
    "pvs_model/__init__.py": "",
    "pvs_model/types.py": "",
    "pvs_model/errors.py": "",
    "pvs_model/config.py": "from .errors import PVSError\nimport json\n",
    "pvs_model/volume/__init__.py": "",
    "pvs_model/volume/io.py": "import numpy as np\nfrom pvs_model.types import Case\nfrom . import geometry\n",
    "pvs_model/volume/geometry.py": "from ..types import Grid\n",
    "pvs_model/nets/__init__.py": "",
    "pvs_model/nets/model.py": "from pvs_model.config import NetworkConfig\n",
    "pvs_model/simulation/__init__.py": "",
    "pvs_model/simulation/render.py": "import torch\n",
    "pvs_model/evaluation/__init__.py": "",
    "pvs_model/evaluation/metrics.py": "",
    "pvs_model/evaluation/report.py": "from pvs_model.evaluation import metrics\nfrom pvs_model.volume import io\n",
    "pvs_model/layouts/__init__.py": "",
    "pvs_model/inference/__init__.py": "from pvs_model.nets import model\n",
    "pvs_model/training/__init__.py": "from pvs_model.simulation import render\nfrom pvs_model.inference import x\n",
    "pvs_model/pipeline.py": "def run():\n    from pvs_model import inference\n    from .volume.io import read\n",
    "pvs_model/commands/__init__.py": "",
    "pvs_model/cli.py": "def main():\n    import pvs_model.training\n    from pvs_model import pipeline\n",
    "pvs_model/__main__.py": "from pvs_model.cli import main\n",
}

BROKEN = [
    pytest.param(unknown_packages, {"pvs_model/attic.py": ""}, "attic", id="unknown package"),
    pytest.param(wrong_directions, {"pvs_model/errors.py": "from pvs_model import config"}, "config", id="upwards"),
    pytest.param(
        wrong_directions,
        {"pvs_model/nets/model.py": "def f():\n    import pvs_model.pipeline"},
        "nets.model:2",
        id="inside",
    ),
    pytest.param(
        wrong_directions, {"pvs_model/nets/model.py": "def f():\n    from ..layouts import x"}, "layouts", id="relative"
    ),
    pytest.param(wrong_directions, {"pvs_model/nets/__init__.py": "from ..layouts import x"}, "layouts", id="__init__"),
    pytest.param(
        wrong_directions,
        {"pvs_model/config.py": "import importlib as i\ni.import_module('pvs_model.nets.model')"},
        "nets.model",
        id="by name",
    ),
    pytest.param(
        wrong_directions, {"pvs_model/nets/model.py": "import pvs_model.volume.io as i"}, "sibling", id="siblings"
    ),
    pytest.param(
        wrong_directions,
        {"pvs_model/simulation/render.py": "from pvs_model.evaluation.metrics import dice"},
        "sibling evaluation.metrics",
        id="simulation and metrics",
    ),
    pytest.param(
        wrong_directions,
        {"pvs_model/evaluation/metrics.py": "from pvs_model.evaluation import report"},
        "evaluation.report",
        id="metrics and the rest of evaluation",
    ),
    pytest.param(wrong_directions, {"pvs_model/pipeline.py": "import process"}, "process", id="to process.py"),
    pytest.param(
        wrong_directions, {"pvs_model/pipeline.py": "import pvs_model.commands"}, "commands", id="to a command"
    ),
    pytest.param(
        cycles, {"pvs_model/inference/__init__.py": "import pvs_model.training"}, "inference, training", id="cycle"
    ),
    pytest.param(
        unknown_cycles,
        {
            "pvs_model/nets/model.py": "def f():\n    from pvs_model.nets.zoo import x",
            "pvs_model/nets/zoo.py": "from . import base",
            "pvs_model/nets/base.py": "from .model import build",
        },
        "nets.base, nets.model, nets.zoo",
        id="cycle in a package",
    ),
    pytest.param(
        unknown_cycles,
        {
            "pvs_model/nets/__init__.py": "from .model import f",
            "pvs_model/nets/model.py": "from pvs_model.nets import f",
        },
        "nets, nets.model",
        id="cycle with __init__",
    ),
    pytest.param(
        run_time_reaches_too_far,
        {"process.py": "def f():\n    from pvs_model.training import x"},
        "process",
        id="process.py",
    ),
    pytest.param(
        run_time_reaches_too_far,
        {"process.py": "from pvs_model.cli import main"},
        "cli brings training",
        id="by a middleman",
    ),
    pytest.param(
        run_time_reaches_too_far,
        {"pvs_model/__init__.py": "from pvs_model.simulation import render"},
        "simulation",
        id="by __init__",
    ),
    pytest.param(junk_names, {"pvs_model/utils.py": ""}, "utils", id="utils.py"),
    pytest.param(junk_names, {"pvs_model/nets/utils.py": ""}, "nets.utils", id="nets/utils.py"),
    pytest.param(too_long, {"process.py": "\n" * 11}, "11 lines", id="11 lines"),
    pytest.param(
        eager_extras,
        {"pvs_model/batch/scheduling.py": "try:\n    import distributed.client\nexcept ImportError:\n    pass"},
        "batch.scheduling:2",
        id="extra at once",
    ),
    pytest.param(pickles, {"pvs_model/nets/model.py": "import pickle"}, "nets.model: pickle", id="pickle"),
    pytest.param(pickles, {"pvs_model/nets/model.py": "def f():\n    from joblib import load"}, "joblib", id="joblib"),
    pytest.param(pickles, {"process.py": "import torch\ntorch.load('x')"}, "process: torch.load", id="torch.load"),
    pytest.param(pickles, {"process.py": "import torch as t\nf = t.load"}, "torch.load", id="torch as t"),
    pytest.param(pickles, {"process.py": "from torch import load as f"}, "torch.load", id="from torch"),
    pytest.param(
        pickles, {"process.py": "import numpy\nnumpy.load('x', allow_pickle=True)"}, "allow_pickle", id="numpy"
    ),
]


def build(folder: Path, files: Mapping[str, str]) -> dict[str, Module]:
    for name, text in {**SOUND, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return load(folder)


@pytest.mark.parametrize(
    "rule",
    [
        unknown_packages,
        wrong_directions,
        cycles,
        unknown_cycles,
        run_time_reaches_too_far,
        junk_names,
        too_long,
        pickles,
        eager_extras,
    ],
)
def test_a_sound_tree_passes(rule: Rule, tmp_path: Path) -> None:
    assert rule(build(tmp_path, {})) == []


@pytest.mark.parametrize(("rule", "files", "message"), BROKEN)
def test_a_broken_tree_fails(rule: Rule, files: Mapping[str, str], message: str, tmp_path: Path) -> None:
    complaints = rule(build(tmp_path, files))
    assert len(complaints) >= 1
    assert any(message in complaint for complaint in complaints), complaints


def test_third_party_imports_are_seen_everywhere_on_the_path_and_nowhere_else(tmp_path: Path) -> None:
    assert third_party(build(tmp_path, {"pvs_model/layouts/__init__.py": "def f():\n    import nibabel.nifti1"})) == {
        "numpy",
        "nibabel",
    }


def test_a_missing_process_is_an_error(tmp_path: Path) -> None:
    build(tmp_path, {})
    (tmp_path / "process.py").unlink()
    with pytest.raises(FileNotFoundError):
        load(tmp_path)
