"""Ensembles: groups of networks whose probabilities are combined, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pvs_model.config import NetworkConfig
from pvs_model.errors import VolumeError
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.nets.base import SegmentationNet
from pvs_model.types import SEQUENCES


@dataclass(frozen=True)
class Group:
    """Networks of one form whose probabilities are averaged.

    Attributes:
        networks: Networks of the group, such as one per fold.
        name: Name in the manifest.
    """

    networks: tuple[SegmentationNet, ...]
    name: str = ""

    @property
    def config(self) -> NetworkConfig:
        """Configuration of the first network, whose inputs and outputs all share."""
        return self.networks[0].config

    @property
    def dimensions(self) -> int:
        """Spatial dimensions, 2 or 3."""
        return self.config.dimensions

    @property
    def view(self) -> str:
        """Plane of 2D networks for thin-sliced volumes; "" for slices as acquired and for 3D networks."""
        return self.config.view

    @property
    def regions(self) -> bool:
        """Whether the networks take a channel of basal ganglia and centrum semiovale after the sequences."""
        return self.config.regions

    @property
    def inputs(self) -> tuple[str, ...]:
        """Sequences that at least one network uses."""
        used = {name.lstrip("-") for network in self.networks for name in network.config.inputs}
        return tuple(name for name in SEQUENCES if name in used)


@dataclass(frozen=True)
class Ensemble:
    """Groups of networks for one configuration, and the settings with which they are run.

    Attributes:
        configuration: "3d" (slices thinner than 2.5 mm) or "2d".
        groups: Groups, weighted equally for any number of networks.
        settings: Thresholds, windows, trained spacings and combination of the groups.
    """

    configuration: str
    groups: tuple[Group, ...]
    settings: EnsembleSettings

    @property
    def dimensions(self) -> int:
        """Spatial dimensions of the configuration; those of a group may differ."""
        return 3 if self.configuration == "3d" else 2

    @property
    def networks(self) -> tuple[SegmentationNet, ...]:
        """Networks of all groups."""
        return tuple(network for group in self.groups for network in group.networks)

    def fast(self) -> Ensemble:
        """The first network of each group, with windows that overlap no more than they must: for a quick look."""
        groups = tuple(replace(group, networks=group.networks[:1]) for group in self.groups)
        return replace(self, groups=groups).with_settings(overlap=0.0)

    def with_settings(self, **changes: Any) -> Ensemble:
        """The same networks with other settings."""
        return replace(self, settings=replace(self.settings, **changes))

    def with_available_inputs(self, available: Sequence[str]) -> Ensemble:
        """Keeps the groups that use at least one available sequence.

        Args:
            available: Names of the sequences of a case.

        Raises:
            VolumeError: No group is left.
        """
        groups = tuple(group for group in self.groups if set(group.inputs) & set(available))
        if len(groups) == len(self.groups):
            return self
        if not groups:
            usable = " or ".join(name for name in SEQUENCES if any(name in group.inputs for group in self.groups))
            raise VolumeError(
                f"expected {usable}, which the {self.configuration} networks use, got "
                f"{', '.join(available) or 'none of them'}"
            )
        return replace(self, groups=groups)
