"""The volume of a case for the viewer of its page: 8-bit images and the mask, cropped to the head and compressed.

The page's own script (``templates/viewer.js``) draws three planes of it on canvases. NiiVue would add 2.9 MB to every
page and needs WebGL 2; the script is smaller than 10 kB and runs under the page's content security policy.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pvs_model.burden.records import Burden
from pvs_model.reports.html import NO_VALUE, number
from pvs_model.reports.regions import short_name_of
from pvs_model.reports.slices import Labels, box_of, grey, window
from pvs_model.types import AnyArray, BoolArray, FloatArray, Triple

#: Most voxels of the head over all sequences, a little more than a byte each in the page. Beyond it only the first
#: sequence is embedded; if that alone is too large, voxels are averaged in pairs along their finest axes.
MAX_VOXELS = 12_000_000


@dataclass(frozen=True)
class Viewer:
    """What a page embeds of a volume.

    Attributes:
        data: JSON for the script: shape, spacing in mm, place on the grid, sequences, images, mask; bytes as base64 of
            gzip, first axis fastest.
        sequences: Those embedded.
        corner: First voxel of the embedded box on the grid.
        block: Voxels of the grid per embedded voxel along each axis.
        note: A sentence on what was left out, or "".
    """

    data: Markup
    sequences: tuple[str, ...]
    corner: tuple[int, int, int]
    block: tuple[int, int, int]
    note: str

    def place(self, voxel: Sequence[float]) -> str:
        """Returns the embedded voxel that holds a voxel of the grid, as the script reads it: "x y z"."""
        index = zip(voxel, self.corner, self.block, strict=True)
        return " ".join(str(int((v - corner) // block)) for v, corner, block in index)


def viewer_of(
    images: Mapping[str, FloatArray], mask: BoolArray, head: BoolArray, spacing_mm: Triple, sequences: Sequence[str]
) -> Viewer:
    """Returns the viewer's data.

    Args:
        images: Images (x, y, z) in RAS+ order by sequence, 0 outside the head.
        mask: bool (x, y, z), the PVS.
        head: bool (x, y, z), where an image is not 0.
        spacing_mm: Voxel size.
        sequences: Names of the images in the order to be offered.
    """
    box = box_of(head | mask)
    assert box is not None  # an image has a value other than 0
    voxels, shown, note = int(np.count_nonzero(head)), tuple(sequences), ""
    if voxels * len(shown) > MAX_VOXELS and len(shown) > 1:
        note = f"To keep this file small, only {shown[0]} is embedded."
        shown = shown[:1]
    block = np.ones(3, int)
    while voxels * len(shown) > MAX_VOXELS * block.prod():
        effective = np.array(spacing_mm) * block
        block[effective <= 1.01 * effective.min()] *= 2
    if block.prod() > 1:
        note += f" Voxels are averaged to {' x '.join(f'{s:.3g}' for s in np.array(spacing_mm) * block)} mm here."
    by = (int(block[0]), int(block[1]), int(block[2]))
    greys = [_blocks(images[name][box], by, np.mean) for name in shown]
    seen = _blocks(mask[box], by, np.max)
    data = {
        "shape": list(seen.shape),
        "spacing": [float(f"{s * b:.6g}") for s, b in zip(spacing_mm, by, strict=True)],
        "corner": [part.start for part in box],
        "block": list(by),
        "sequences": list(shown),
        "images": [_packed(grey(i, window(images[name], name))) for i, name in zip(greys, shown, strict=True)],
        "mask": _packed(seen.astype(np.uint8)),
    }
    return Viewer(
        Markup(json.dumps(data).replace("<", "\\u003c")),
        shown,
        (box[0].start, box[1].start, box[2].start),
        by,
        note.strip(),
    )


def pvs_rows(burden: Burden | None, labels: Labels, viewer: Viewer) -> list[dict[str, Any]]:
    """Returns the rows of the list of PVS, by volume; none without a burden of the same clusters.

    Args:
        burden: Measurement of the mask, or None.
        labels: int32 (x, y, z), the clusters of the mask in the order of the burden's.
        viewer: Where voxels lie in the viewer.
    """
    from scipy import ndimage

    if burden is None or len(burden.pvs) != labels.max(initial=0):
        return []
    rows = []
    for pvs, part in zip(burden.pvs, ndimage.find_objects(labels), strict=True):
        voxels = np.argwhere(labels[part] == pvs.number) + [s.start for s in part]
        centre = voxels[((voxels - voxels.mean(0)) ** 2).sum(1).argmin()]
        shape, names = pvs.shape, [pvs.region, *pvs.parts]
        rows.append(
            {
                "number": pvs.number,
                "place": viewer.place(centre),
                "region": ", ".join(short_name_of(name) for name in names),
                "side": pvs.hemisphere or NO_VALUE,
                "numbers": [number(v) for v in (shape.volume_mm3, pvs.fluid_mm3, shape.length_mm, shape.width_mm)],
                "centre": ", ".join(number(mm) for mm in shape.centre_mm),
                "slice": int(centre[2]),
            }
        )
    return sorted(rows, key=lambda row: -burden.pvs[row["number"] - 1].shape.volume_mm3)


def _blocks(volume: AnyArray, by: tuple[int, int, int], reduce: Any) -> AnyArray:
    """Reduces blocks of voxels to one; the volume is extended by zeros to whole blocks."""
    if max(by) == 1:
        return volume
    padded = np.pad(volume, [(0, -n % b) for n, b in zip(volume.shape, by, strict=True)])
    x, y, z = (n // b for n, b in zip(padded.shape, by, strict=True))
    blocks: AnyArray = reduce(padded.reshape(x, by[0], y, by[1], z, by[2]), (1, 3, 5))
    return blocks


def _packed(values: AnyArray) -> str:
    """Returns bytes (x, y, z) as base64 of gzip, x fastest."""
    return base64.b64encode(gzip.compress(values.tobytes(order="F"), 6, mtime=0)).decode()
