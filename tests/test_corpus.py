"""Bad and odd inputs, each with the outcome that is promised for it: tests/corpus has the inputs and the judge."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.__main__ import BEGIN, END, ORIENTED, stated
from tests.corpus.base import ORIENTATIONS, ROOT, dice, quick_weights, turn, turned
from tests.corpus.kinds import KINDS, WHOLE, FolderKind, Kind
from tests.corpus.runs import (
    ALL,
    Command,
    Run,
    base_mask,
    judge,
    judge_run,
    judge_shared,
    judge_whole,
    load,
    orientation_dice,
    possible,
    run_whole,
    runs_of,
    write_orientations,
    write_run,
)

GROUPS = runs_of()


def marked(kind: Kind | FolderKind) -> Any:
    marks = [pytest.mark.slow] if getattr(kind, "slow", False) else []
    if not possible(kind):
        marks.append(pytest.mark.skip(reason="root may do it"))
    elif kind.known_problem is not None:
        marks.append(pytest.mark.xfail(strict=True, reason=kind.known_problem))
    return pytest.param(kind, id=kind.name, marks=marks)


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(weights=quick_weights(tmp_path_factory.mktemp("corpus") / "weights"))


@pytest.fixture(scope="session")
def run_of(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The process that kinds share, run when the first of them asks for it."""

    @cache
    def run(name: str) -> Run:
        return command(write_run(tmp_path_factory.mktemp("corpus"), GROUPS[name]))

    return run


@pytest.fixture(scope="session")
def orientations(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return command(write_orientations(tmp_path_factory.mktemp("corpus")))


@pytest.mark.parametrize("kind", [marked(kind) for kind in KINDS])
def test_a_kind(kind: Kind, run_of: Callable[[str], Run]) -> None:
    run = run_of(kind.run)
    first = base_mask(run_of(ALL)) if kind.same is not None else None
    assert judge(kind, run, first) == []
    if len(run.kinds) == 1:
        assert judge_shared(run) == []


@pytest.mark.parametrize("name", [name for name, kinds in GROUPS.items() if len(kinds) > 1])
def test_a_run_over_many_kinds(name: str, run_of: Callable[[str], Run]) -> None:
    assert judge_shared(run_of(name)) == []


def test_the_mask_of_the_base_is_worth_comparing(run_of: Callable[[str], Run]) -> None:
    mask, _ = base_mask(run_of(ALL))
    assert 20 < mask.sum() < 0.1 * mask.size


def test_the_mask_is_the_same_in_every_orientation(orientations: Run, run_of: Callable[[str], Run]) -> None:
    assert judge_run(orientations, [f"{n:02}" for n in range(48)], fails=False) == []
    overlaps = orientation_dice(orientations)
    assert len(overlaps) == len(ORIENTATIONS) == 48
    assert min(overlaps) >= 0.999
    # And the first of them is the base's, tilted, but for rounded probabilities near the threshold: 0.994.
    first, tilted = load(orientations.mask("00")), base_mask(run_of(ALL))
    assert dice(tilted, first, turn(7.0, -5.0, 11.0)) >= 0.98


@pytest.mark.parametrize("kind", [marked(kind) for kind in WHOLE])
def test_a_folder(kind: FolderKind, command: Command, tmp_path: Path) -> None:
    run = run_whole(kind, tmp_path / "whole", command)
    assert judge_whole(kind, run, tmp_path / "whole" / kind.named) == []


# ---- the corpus itself ---------------------------------------------------------------------------------------------


def test_names_are_told_apart() -> None:
    assert len(KINDS) + len(WHOLE) >= 70
    assert len({kind.name for kind in (*KINDS, *WHOLE)}) == len(KINDS) + len(WHOLE)
    for kinds in GROUPS.values():
        assert len({kind.folder.casefold() for kind in kinds}) == len(kinds)
        assert all(kind.folder == kind.folder.strip(".") for kind in kinds)


def test_masks_are_compared_in_space(run_of: Callable[[str], Run]) -> None:
    mask, affine = base_mask(run_of(ALL))
    for way in ORIENTATIONS[::7]:
        assert dice((mask, affine), turned(mask, affine, *way)) == 1
    away = affine.copy()
    away[0, 3] += 1.0
    assert dice((mask, affine), (mask, away)) < 0.9
    assert dice((mask, affine), (mask[:, :, ::-1], affine)) < 0.9


def test_the_docs_name_every_kind_with_its_outcome() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    rows = page.split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    cells = [row.removeprefix("| ").split(" | ") for row in rows]
    assert [(row[0], row[1]) for row in cells] == stated()
    lowest = [row[2] for row in cells if row[0] == ORIENTED]
    assert len(lowest) == 1 and lowest[0].startswith("lowest Dice 1.0000")
