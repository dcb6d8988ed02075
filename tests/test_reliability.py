"""Commands that are killed, disks that are full, folders that are read-only, two processes at one file.

The figures of RELIABILITY.md come from longer runs of the same scripts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed command is a fork of the script")
def test_a_killed_command_run_again_leaves_what_it_would_have_left():
    words = [sys.executable, HERE / "kill_commands.py", "--kills", "5", "--seed", str(os.getpid())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "0 of 5 kills left something else" in done.stdout, done.stdout + done.stderr
