"""The precision that a device gets; training in bfloat16 on a CPU: gradients where the input is shallow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pvs_model.nets import precision
from pvs_model.nets.precision import autocast, cpu_has_bfloat16, make_safe_in_bfloat16

#: (kernel, depth) for which oneDNN's gradient of the kernel read memory that is not the input's.
SHALLOW = [(3, 2), (3, 1), (5, 1), (5, 3), (5, 4), (7, 2), (7, 4), (7, 6)]


def soil() -> None:
    """Leave NaN in the memory that the next tensors are made of."""
    junk = [torch.full((n,), float("nan")) for n in (50, 400, 1000, 5000, 20000, 60000) * 4]
    del junk


@pytest.mark.parametrize(("kernel", "depth"), SHALLOW)
def test_shallow_kernels_have_float32_gradients(kernel: int, depth: int) -> None:
    torch.manual_seed(0)
    exact = nn.Conv3d(16, 16, kernel, padding=kernel // 2)
    mixed = nn.Sequential(nn.Conv3d(16, 16, kernel, padding=kernel // 2))
    mixed[0].load_state_dict(exact.state_dict())
    make_safe_in_bfloat16(mixed)
    image = torch.randn(2, 16, depth, 4, 4)
    exact(image).square().mean().backward()
    for _ in range(5):
        mixed.zero_grad()
        soil()
        with torch.autocast("cpu", torch.bfloat16):
            output = mixed(image)
        soil()
        output.float().square().mean().backward()
        assert exact.weight.grad is not None
        torch.testing.assert_close(mixed[0].weight.grad, exact.weight.grad)


def test_deep_inputs_and_inference_stay_in_bfloat16() -> None:
    net = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1))
    names = list(net.state_dict())
    make_safe_in_bfloat16(net)
    assert list(net.state_dict()) == names
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.randn(1, 2, 4, 4, 4)).dtype == torch.bfloat16
        assert net(torch.randn(1, 2, 2, 4, 4)).dtype == torch.float32
        with torch.no_grad():
            assert net(torch.randn(1, 2, 2, 4, 4)).dtype == torch.bfloat16


def test_precision_is_chosen_or_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "cpu_has_bfloat16", cpu_has_bfloat16)  # conftest.py replaces it

    def dtype(wanted: str) -> torch.dtype:
        with autocast(cpu, wanted):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert dtype("float32") == torch.float32 and dtype("bfloat16") == torch.bfloat16
    for there, expected in ((lambda: True, torch.bfloat16), (lambda: False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", there, raising=False)
        assert dtype("auto") == expected
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # private: another torch may not have it
    assert dtype("auto") == torch.float32
    with pytest.raises(ValueError, match="float16"):
        autocast(cpu, "float16")


def test_gpus_without_bfloat16_use_float16_where_there_are_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    for major, without_gradients in ((7, torch.float16), (8, torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        with torch.no_grad():
            assert autocast(torch.device("cuda")).fast_dtype == without_gradients
            assert autocast(torch.device("cuda"), "bfloat16").fast_dtype == torch.bfloat16
        assert autocast(torch.device("cuda")).fast_dtype == torch.bfloat16
