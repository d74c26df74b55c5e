"""What is decided by the device."""

from __future__ import annotations

import pytest
import torch

from mfpyg.device import captures, fits, side_stream, waits


def test_only_a_cpu_is_not_waited_for() -> None:
    assert not waits(torch.device("cpu"))
    assert all(waits(torch.device(name)) for name in ("cuda", "cuda:1", "meta"))


def test_only_work_on_a_gpu_is_captured() -> None:
    assert captures(torch.device("cuda:1"))
    assert not captures(torch.device("cpu"))


def test_data_fit_into_half_of_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    assert fits(torch.device("cuda"), 500)
    assert not fits(torch.device("cuda"), 501)
    assert not fits(torch.device("cpu"), 1)


def test_a_side_stream_changes_nothing_on_a_cpu() -> None:
    with side_stream(torch.device("cpu")):
        assert torch.ones(2).sum() == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_work_of_a_side_stream_is_there_afterwards() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.current_stream(device)
    with side_stream(device):
        assert torch.cuda.current_stream(device) != before
        made = torch.arange(1 << 20, device=device)
    made.record_stream(before)
    assert torch.cuda.current_stream(device) == before
    assert int(made.sum()) == (1 << 19) * ((1 << 20) - 1)
