import json
from pathlib import Path
from typing import Any

import pytest

from cluster import audit
from tests.cluster.files import ROOT

CLEAN = {"name": "torch", "version": "2.13.0", "vulns": []}
FIXED = {"id": "GHSA-f", "fix_versions": ["1.1", "2.0"]}
OPEN = {"id": "GHSA-o", "fix_versions": []}


def package(*found: dict[str, Any]) -> dict[str, Any]:
    return {"name": "left", "version": "1.0", "vulns": list(found)}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([CLEAN], 0, "audit: 1 packages checked, 0 to be replaced"),
        ([CLEAN, package(OPEN)], 0, "audit: left 1.0: GHSA-o, without a fix"),
        ([CLEAN, package(OPEN, FIXED)], 1, "audit: left 1.0: GHSA-f, fixed in 1.1, 2.0"),
        (
            [{"name": "own", "skip_reason": "not on PyPI"}],
            0,
            "audit: own: not checked, not on PyPI",
        ),
    ],
)
def test_audit_fails_where_an_advisory_has_a_fix(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    packages: list[dict[str, Any]],
    status: int,
    said: str,
) -> None:
    probe = tmp_path / "pip.json"
    probe.write_text(json.dumps({"vulnerabilities": []}))
    monkeypatch.setattr(audit, "run_pip_audit", lambda folder: {"dependencies": packages})
    assert audit.main(probe.as_uri()) == status
    assert said in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("page", [None, "not found", "{}"])
def test_audit_without_advisories_says_so_and_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, page: str | None
) -> None:
    """No network; a mirror that answers with something else, or without advisories."""
    probe = tmp_path / "pip.json"
    if page is not None:
        probe.write_text(page)
    assert audit.main(probe.as_uri()) == 0
    assert "audit: no advisories can be had, nothing was checked: " in capsys.readouterr().err


def test_audit_is_part_of_what_must_hold_before_a_change_goes_in() -> None:
    assert ".venv/bin/python cluster/audit.py" in (ROOT / ".ci/run").read_text().splitlines()
