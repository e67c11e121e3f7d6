"""Checks of arguments: what came, what was expected."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import checks


@pytest.mark.parametrize("value", [None, "0.1", [0.1], np.ones(2), jnp.ones(2), 1j])
def test_what_is_no_number_is_refused_by_the_name_of_its_argument(value):
    with pytest.raises(TypeError, match="tol must be a number, got "):
        checks.check_positive("tol", value)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf])
def test_numbers_that_are_not_finite_and_positive_are_refused(value):
    with pytest.raises(ValueError, match="tol must be finite and positive, got"):
        checks.check_positive("tol", value)
    if value == 0:
        assert checks.check_positive("tol", value, allow_zero=True) == 0


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2.0), jnp.float32(2.0)])
def test_numbers_pass_as_they_are(value):
    assert checks.check_positive("tol", value) is value
