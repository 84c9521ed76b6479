"""Code named in a file: our models are built, anybody else's is not even imported unasked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec, load_attribute

MLP = {"input_shape": [4], "num_classes": 3, "hidden": [5]}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module that leaves a mark when it is imported."""
    (tmp_path / "fl_audit_test_factory.py").write_text(
        "import pathlib\n"
        "pathlib.Path(__file__).with_suffix('.imported').touch()\n"
        "def build(width=1):\n"
        "    return ['built', width]\n"
    )
    (tmp_path / "fl_audit_test_broken.py").write_text("1 / 0\n")
    (tmp_path / "fl_audit_test_syntax.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fl_audit_test_factory", raising=False)
    return "fl_audit_test_factory"


def test_a_model_of_ours_is_built_for_anybody() -> None:
    built = ModelSpec(factory="simulations.models:mlp", settings=MLP).builder(trusted=False)()
    assert [tuple(p.shape) for p in built.parameters()] == [(5, 4), (5,), (3, 5), (3,)]


def test_foreign_code_is_not_imported_unasked(module: str, tmp_path: Path) -> None:
    spec = ModelSpec(factory=f"{module}:build", settings={"width": 2})
    with pytest.raises(InputError, match=f"--model {module}:build"):
        spec.builder(trusted=False)
    assert not (tmp_path / f"{module}.imported").exists()
    assert spec.builder(trusted=True)() == ["built", 2]
    assert (tmp_path / f"{module}.imported").exists()


@pytest.mark.parametrize(
    "factory", ["os:system", "simulations.run:run_scenario", "simulations.models.evil:x"]
)
def test_other_modules_are_not_ours(factory: str) -> None:
    with pytest.raises(InputError, match="not imported unasked"):
        ModelSpec(factory=factory).builder(trusted=False)


@pytest.mark.parametrize("name", ["prod", "ModelSpec", "load_dataset", "torch", "MODELS"])
def test_what_our_module_merely_imports_is_not_a_model(name: str) -> None:
    with pytest.raises(InputError, match=r"model\.factory"):
        ModelSpec(factory=f"simulations.models:{name}").builder(trusted=False)


@pytest.mark.parametrize(
    "factory",
    ["mlp", "a:b:c", "a b:c", ":x", "x:", "os:system('x')", "..a:b", "a/b:c", "a:b.c", "a:b\n"],
)
def test_a_factory_is_a_module_and_a_name(factory: str) -> None:
    with pytest.raises(ValidationError):
        ModelSpec(factory=factory)


@pytest.mark.parametrize(
    "path",
    [
        "no.such.module:x",
        "fl_audit_test_factory:nothing",
        "fl_audit_test_broken:x",
        "fl_audit_test_syntax:x",
        "fl_audit_test_factory",
        ":x",
        "..x:y",
        "",
    ],
)
def test_what_cannot_be_imported_is_an_error_of_ours(path: str, module: str) -> None:
    with pytest.raises(InputError, match=r"cannot be imported .* Write \"module:function\""):
        load_attribute(path, "model.factory")


def test_an_attribute_is_loaded(module: str) -> None:
    assert load_attribute(f"{module}:build", "model")() == ["built", 1]
