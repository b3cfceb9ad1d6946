"""What training must do on a GPU; the checks are those of the CPU where they can be."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_checks import (
    RandomStudies,
    assert_near,
    check_agrees_with_the_cpu,
    check_bfloat16_trains,
    check_cutting_batches,
    check_per_sample_gradients,
    check_resuming,
    check_running_out_of_memory,
    exact_arithmetic,
    flat,
    make_model,
    make_plan,
    train,
)

from medfusion.training.device import choose_device

PIXELS = 128
ROUND_COST = Path(__file__).parents[1] / "benchmarks" / "round_cost.py"


def test_auto_takes_the_gpu_and_bfloat16(cuda: torch.device) -> None:
    assert choose_device("auto") == cuda
    check_bfloat16_trains(choose_device("auto"), precision="auto")


def test_float32_agrees_with_the_cpu(cuda: torch.device) -> None:
    check_agrees_with_the_cpu(cuda)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_a_batch_in_pieces_gives_the_gradient_of_the_whole(
    cuda: torch.device, precision: str, tolerance: float
) -> None:
    check_cutting_batches(cuda, precision, tolerance)


def test_per_sample_gradients_equal_those_of_the_cpu(cuda: torch.device) -> None:
    check_per_sample_gradients(cuda)


def test_running_out_of_memory_changes_no_result(cuda: torch.device) -> None:
    check_running_out_of_memory(cuda)


def test_a_resumed_run_goes_on_as_it_would_have(cuda: torch.device) -> None:
    check_resuming(cuda, tolerance=1e-3)


def peak_bytes(cuda: torch.device, *, batch: int, physical_batch: int, private: bool) -> int:
    """Peak memory of a step on ``batch`` studies."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(
        make_model(size="small", modalities=("image",)),
        cuda,
        RandomStudies(batch, PIXELS),
        plan=make_plan(1, rate=1.0) if private else None,
        steps=1,
        physical_batch=physical_batch,
    )
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("private", [False, True])
def test_the_physical_batch_bounds_memory(cuda: torch.device, private: bool) -> None:
    few = peak_bytes(cuda, batch=4, physical_batch=4, private=private)
    pieces = peak_bytes(cuda, batch=12, physical_batch=4, private=private)
    whole = peak_bytes(cuda, batch=12, physical_batch=12, private=private)
    print(f"\nprivate {private}: {few >> 20} MiB (4), {pieces >> 20} (3 x 4), {whole >> 20} (12)")
    assert pieces < 1.25 * few + 12 * PIXELS**2 * 4
    assert pieces < 0.8 * whole


def test_a_full_gpu_halves_the_physical_batch(cuda: torch.device) -> None:
    options = {"size": "small", "modalities": ("image",)}
    studies, model, seen = RandomStudies(12, PIXELS), make_model(**options), []
    model.image.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    few = peak_bytes(cuda, batch=4, physical_batch=4, private=False)
    whole = peak_bytes(cuda, batch=12, physical_batch=12, private=False)
    with exact_arithmetic():
        expected = train(make_model(**options), cuda, studies, steps=1)
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((few + whole) / 2 / total)
        try:
            found = train(model, cuda, studies, steps=1)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert seen[0] == 12
    assert max(seen[1:]) <= 6
    assert_near(found, expected, flat(make_model(**options)), 1e-3)


@pytest.mark.parametrize("size", ["small", "121"])
def test_seconds_and_memory_of_an_epoch(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(ROUND_COST), "--device", "cuda", "--size", size]
    done = subprocess.run(
        [*command, "--precision", "float32,bfloat16", "--patients", "256", "--pixels", "224"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count(" s (") == 4
    with capsys.disabled():
        print("\n" + done.stdout)
