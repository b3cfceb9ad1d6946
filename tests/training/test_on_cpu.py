"""The checks of ``tests/gpu``, on the CPU."""

import pytest
from device_checks import (
    CPU,
    check_agrees_with_the_cpu,
    check_bfloat16_trains,
    check_cutting_batches,
    check_per_sample_gradients,
    check_resuming,
    check_running_out_of_memory,
)


def test_float32_agrees_whatever_the_order_of_sums() -> None:
    check_agrees_with_the_cpu(CPU)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_a_batch_in_pieces_gives_the_gradient_of_the_whole(
    precision: str, tolerance: float
) -> None:
    check_cutting_batches(CPU, precision, tolerance)


def test_bfloat16_trains() -> None:
    check_bfloat16_trains(CPU)


def test_per_sample_gradients_are_those_of_each_study_alone() -> None:
    check_per_sample_gradients(CPU)


def test_running_out_of_memory_changes_no_result() -> None:
    check_running_out_of_memory(CPU)


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    check_resuming(CPU, tolerance=0.0)
