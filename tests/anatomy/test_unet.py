"""The anatomy network's U-Net is MONAI's DynUNet."""

from __future__ import annotations

import torch
from monai.networks.nets import DynUNet

from pvs_model.anatomy.unet import UNet


def test_the_u_net_is_that_of_monai() -> None:
    torch.manual_seed(0)
    ours = UNet(2, 3, (4, 6, 8, 10)).eval()
    norm = ("INSTANCE", {"affine": True})
    theirs = DynUNet(3, 2, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=(4, 6, 8, 10), norm_name=norm).eval()
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in theirs.named_parameters()]
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict(), strict=False)  # it has each encoder stage twice
    image = torch.randn(1, 2, 16, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))
