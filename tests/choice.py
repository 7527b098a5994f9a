"""Which of a test's cases are fast."""

import pytest


def slow_but_for(fast, cases):
    """All cases, of which those not among the fast ones are slow; a case of several arguments is a tuple."""
    return [
        case if case in fast else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
