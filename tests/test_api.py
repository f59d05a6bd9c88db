"""The public API: every name can be imported, and none of them before it is used."""

import inspect
import subprocess
import sys
from dataclasses import is_dataclass

import pytest

import sp2dpo
import sp2dpo.training


@pytest.mark.parametrize("name", sp2dpo.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    value = getattr(sp2dpo, name)
    assert name == "__version__" or value.__doc__


@pytest.mark.parametrize("name", sp2dpo.training.__all__)
def test_every_public_name_of_training_can_be_imported_and_is_documented(name):
    assert getattr(sp2dpo.training, name).__doc__


@pytest.mark.parametrize("name", sp2dpo.__all__)
def test_every_path_may_be_a_text(name):
    value = getattr(sp2dpo, name)
    if not callable(value) or is_dataclass(value):
        return
    for parameter in inspect.signature(value).parameters.values():
        annotation = str(parameter.annotation)
        assert "Path" not in annotation or "str" in annotation, parameter


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'anotate'"):
        _ = sp2dpo.anotate


def test_importing_the_package_imports_no_large_library():
    program = (
        "import sys, sp2dpo, sp2dpo.training; "
        "print(sorted({'torch', 'polars', 'aiohttp', 'datasets', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
