"""Is anything known against what cluster/constraints.txt pins? Asked in .ci/run.

    python cluster/audit.py     # 1: some advisory has a fix; 0: none has, or none can be had

pip-audit asks the package index for the advisories of every version that is pinned, and of nothing
else. It gets an environment of its own for that, so that no night has it.
"""

import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import Any

PIP_AUDIT = "pip-audit==2.10.1"

CONSTRAINTS = Path(__file__).with_name("constraints.txt")

PROBE = "https://pypi.org/pypi/pip/24.0/json"
"""One version's page, as pip-audit reads them: mirrors often have none."""

PROBE_S, INSTALL_S, AUDIT_S = 15, 180, 300


def main(probe: str = PROBE) -> int:
    """Audit the pinned packages and say what was found; return the exit status."""
    try:
        with urllib.request.urlopen(probe, timeout=PROBE_S) as page:
            if "vulnerabilities" not in json.load(page):
                raise ValueError("its pages of versions tell of no advisories")
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            report = run_pip_audit(Path(folder))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"audit: no advisories can be had, nothing was checked: {error}", file=sys.stderr)
        return 0
    fixable, others = judge(report)
    for line in others + fixable:
        print(f"audit: {line}", file=sys.stderr)
    checked = sum("vulns" in package for package in report["dependencies"])
    print(f"audit: {checked} packages checked, {len(fixable)} to be replaced", file=sys.stderr)
    return 1 if fixable else 0


def run_pip_audit(folder: Path) -> dict[str, Any]:
    """Install pip-audit into an empty folder and return its report.

    Raises:
        SubprocessError: it cannot be installed, or takes too long.
        ValueError: it ended without a report.
    """
    venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    install = [python, "-m", "pip", "install", "-qq", PIP_AUDIT]
    subprocess.run(install, check=True, timeout=INSTALL_S, stdin=subprocess.DEVNULL)
    # What is pinned is all there is: nothing to resolve, and nothing is installed.
    command = [python, "-m", "pip_audit", "-r", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    ended = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off", "--timeout", str(PROBE_S)],
        capture_output=True,
        text=True,
        timeout=AUDIT_S,
        check=False,
    )
    try:
        report: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        said = ended.stderr.strip().rpartition("\n")[2] or f"status {ended.returncode}"
        raise ValueError(f"pip-audit: {said}") from None
    return report


def judge(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return a line for each advisory that has a fix, and for all else that was found.

    >>> fix = {"id": "GHSA-1", "fix_versions": ["1.1"]}
    >>> judge({"dependencies": [{"name": "a", "version": "1.0", "vulns": [fix]}]})
    (['a 1.0: GHSA-1, fixed in 1.1'], [])
    """
    fixable, others = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            others.append(f"{package['name']}: not checked, {package['skip_reason']}")
        for found in package.get("vulns", []):
            said = f"{package['name']} {package['version']}: {found['id']}"
            if found["fix_versions"]:
                fixable.append(f"{said}, fixed in {', '.join(found['fix_versions'])}")
            else:
                others.append(f"{said}, without a fix")
    return fixable, others


if __name__ == "__main__":
    sys.exit(main())
