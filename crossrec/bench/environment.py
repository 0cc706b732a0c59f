"""The environment of the peers: their versions would not go together with crossrec's."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
"""Their scripts, and requirements.txt."""

ENVIRONMENT = Path(".peers")
"""Where they are installed: below the folder of the call."""


def ensure_peers() -> Path:
    """Return the Python of the peers' environment, made where it is missing."""
    folder = ENVIRONMENT.absolute()
    python = folder / "bin" / "python"
    stamp, wanted = folder / ".installed", PEERS / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", "-r", str(wanted)], check=True)
        stamp.write_text(wanted.read_text())
    return python


def run_peer(script: str, settings: Mapping[str, Any]) -> Any:
    """Run a script of PEERS in their environment; return what its last line says."""
    command = [str(ensure_peers()), str(PEERS / script), json.dumps(settings)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])
