import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dqnlr.control.probe import Probe, norm


def test_a_small_model_is_read_whole_and_unweighted():
    probe = Probe([(3,), (2,)], max_coordinates=100)
    read = probe.read([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0])])
    assert read.tolist() == [1, 2, 3, 4, 5]


def test_squared_norm_of_a_constant_vector_is_exact_for_a_large_model():
    probe = Probe([(10_000,), (300,), (7,)], max_coordinates=500)
    tensors = [torch.full((n,), 2.0) for n in (10_000, 300, 7)]
    assert len(probe) < 700
    assert probe.read(tensors).square().sum().item() == pytest.approx(4.0 * 10_307, rel=1e-4)


def test_missing_gradient_reads_as_zero_not_as_an_error():
    probe = Probe([(2,), (2,)])
    assert probe.read([None, torch.ones(2)]).tolist() == [0, 0, 1, 1]


def test_a_model_with_many_tensors_costs_no_more_pieces():
    probe = Probe([(50,)] * 1000)
    assert len((probe.columns // 50).unique()) == 64
    assert probe.read([torch.ones(50)] * 1000).square().sum().item() == pytest.approx(50_000)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=80), st.integers(8, 400))
def test_slices_and_flat_columns_read_the_same_coordinates(sizes, coordinates):
    probe = Probe([(size,) for size in sizes], coordinates)
    tensors = [torch.randn(n) for n in sizes]
    stacked = torch.cat(tensors).expand(3, -1)
    expected = probe.read(tensors)
    assert torch.equal(probe.read_flat(stacked)[1], expected)


def test_the_usual_norm_counts_a_row_of_a_matrix_or_kernel_as_one():
    # By LeCun, 100 x 30 numbers of variance 1/30 have the squared norm 100. Kernels of 8 x 4 x 3
    # x 3 of variance 1/36 have 8. A bias of 100 and a number of no dimension count as one each.
    probe = Probe([(100, 30), (8, 4, 3, 3), (100,), ()], max_coordinates=100)
    assert probe.lecun_norm == pytest.approx(math.sqrt(110))
    assert probe.weight_floor == pytest.approx(0.1 * math.sqrt(110))
    weights = torch.nn.init.kaiming_normal_(torch.empty(400, 300), nonlinearity="linear")
    assert Probe([weights.shape]).lecun_norm == pytest.approx(weights.norm().item(), rel=0.02)


def test_the_norm_counts_missing_sparse_half_and_complex_gradients():
    indices, values = torch.tensor([[1, 1, 4]]), torch.tensor([[1.0], [1.0], [2.0]])
    # Row 1 is there twice: 2, not sqrt(2).
    sparse = torch.sparse_coo_tensor(
        indices, values, (9, 1), check_invariants=True
    )  # row 1 twice: 2, not sqrt(2)
    parts = [None, sparse, torch.tensor([3.0], dtype=torch.float16), torch.tensor([3 + 4j])]
    assert norm(parts).item() == pytest.approx(math.sqrt(4 + 4 + 9 + 25))
    assert norm([None]).item() == 0.0


def test_the_norm_of_double_precision_is_no_error():
    parts = [torch.tensor([3.0], dtype=torch.float64), torch.tensor([4j], dtype=torch.complex128)]
    assert norm(parts).item() == pytest.approx(5.0)
    assert norm(parts).dtype == torch.float32


def test_the_norm_of_half_precision_does_not_overflow():
    assert norm([torch.full((4,), 6e4, dtype=torch.float16)]).item() == pytest.approx(1.2e5, 1e-2)
