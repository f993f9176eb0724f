"""All the random families, for tests that each of them must pass."""

import pytest

from lightning_dqnlr.tasks import (
    Autoencoders,
    CoordinateNetworks,
    DigitsCNNs,
    DigitsMLPs,
    EmbeddingClassifiers,
    FineTunedDigits,
    ImbalancedMLPs,
    MatrixFactorizations,
    NoisyLabelMLPs,
    NoisyQuadratics,
    PhotoCNNs,
    PhotoDenoisers,
    SyntheticRNNs,
    TableMLPs,
    TeacherMLPs,
    TextRNNs,
    TextTransformers,
)

BUNDLED = (NoisyQuadratics, DigitsMLPs, TeacherMLPs, DigitsCNNs)
TOKENS = (EmbeddingClassifiers, MatrixFactorizations, TextRNNs, TextTransformers)
FAMILIES = (
    *BUNDLED,
    TableMLPs,
    ImbalancedMLPs,
    NoisyLabelMLPs,
    PhotoCNNs,
    Autoencoders,
    PhotoDenoisers,
    CoordinateNetworks,
    SyntheticRNNs,
    FineTunedDigits,
    *TOKENS,
)
ORDINARY = {"initial_scales": (1.0, 1.0), "wide_probability": 0.0, "input_scales": (1.0, 1.0)}


def parametrized(families):
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


every_family = parametrized(FAMILIES)
