"""The façade: names that users rely on, imported when they are used."""

from __future__ import annotations

import pytest

import fl_audit


@pytest.mark.parametrize("name", fl_audit.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fl_audit, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'audit_mode'"):
        _ = fl_audit.audit_mode
