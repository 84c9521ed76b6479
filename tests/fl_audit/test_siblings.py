"""Four top-level packages with plain names: another package of such a name must not be ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fl_audit.siblings import SIBLINGS, check_siblings

HOME = Path(__file__).resolve().parents[2]


def test_our_own_packages_pass() -> None:
    check_siblings()


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("kind", ["package", "module", "folder"])
def test_a_package_that_shadows_ours_is_named(name: str, kind: str, tmp_path: Path) -> None:
    """Loudly: an import error from the middle of somebody else's code would help nobody."""
    if kind == "module":
        (tmp_path / f"{name}.py").touch()
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / ("__init__.py" if kind == "package" else "notes.txt")).touch()
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(HOME)!r}]\n"
        "import fl_audit\n"
        "from fl_audit.errors import InputError\n"
        "try:\n    fl_audit.Estimate\n"
        "except InputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    if kind == "folder":  # Python prefers a package over a folder, wherever they stand
        assert done.stdout == ""
    else:
        assert f"package '{name}' = " in done.stdout
        assert str(tmp_path) in done.stdout
        assert "uninstall or rename it" in done.stdout
