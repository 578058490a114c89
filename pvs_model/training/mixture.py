"""Samples of simulation, of labelled cases and of real scans in fixed shares."""

from __future__ import annotations

import torch

from pvs_model.training.data import Batch, PatchStream, join
from pvs_model.training.distributed import ALONE, Ranks
from pvs_model.training.labelled import LabelledCases
from pvs_model.training.real_scans import RealScans


class Mixture:
    """Samples of a stream of simulated patches and of labelled cases, interleaved evenly.

    Which visit takes which follows from its number alone: set ``visits`` to go on from anywhere.
    """

    def __init__(
        self,
        stream: PatchStream | None,
        cases: LabelledCases | None,
        case_share: float,
        device: torch.device,
        ranks: Ranks = ALONE,
        scans: RealScans | None = None,
        scan_share: float = 0.0,
    ) -> None:
        """
        Args:
            stream: of simulated patches; None for none.
            cases: None for none. One of the two must be there.
            case_share: share of the samples that come from cases when both are there.
            device: where batches are wanted.
            ranks: of the processes that share the numbers of labelled samples.
            scans: unlabelled real scans with inserted PVS; None for none.
            scan_share: share of the samples that come from them, where no labelled case is due.
        """
        self.stream, self.cases, self.scans = stream, cases, scans
        self.scan_share = scan_share if scans is not None else 0.0
        self.case_share = 0.0 if cases is None else 1.0 if stream is None else case_share
        self.device = device
        self.ranks = ranks
        self.visits = 0
        #: Samples by their visit, where they are kept for another training; and how many at most.
        self.memory: dict[int, Batch] = {}
        self.most = 0

    def _of_cases(self, visits: int) -> int:
        """How many of the first ``visits`` samples come from cases."""
        return int(visits * self.case_share + 1e-6)

    def _of_scans(self, visits: int) -> int:
        return int(visits * self.scan_share + 1e-6)

    def batch(self, size: int) -> Batch:
        """The next ``size`` samples."""
        parts = []
        for _ in range(size):
            if self.visits in self.memory:
                parts.append(self.memory[self.visits])
                self.visits += 1
                continue
            before = self._of_cases(self.visits)
            if self.cases is not None and self._of_cases(self.visits + 1) > before:
                parts.append(self.cases.sample(self.ranks.number(before)))
            elif self.scans is not None and self._of_scans(self.visits + 1) > self._of_scans(self.visits):
                parts.append(self.scans.sample(self.ranks.number(self._of_scans(self.visits))))
            elif self.stream is not None:
                self.stream.visits = self.visits - before
                parts.append(self.stream.batch(1))
            if len(self.memory) < self.most:
                self.memory[self.visits] = parts[-1]
            self.visits += 1
        return join(parts, self.device)
