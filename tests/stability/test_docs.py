"""The examples in the docstrings print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import jaxstab.stability as package

MODULES = [module.name for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(f"{package.__name__}.{name}")
    assert doctest.testmod(module).failed == 0
