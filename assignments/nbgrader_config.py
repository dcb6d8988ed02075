"""Settings of the course: `nbgrader` reads them when it is called in this folder."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# nbgrader calls the program `alembic`, which lies beside Python: an environment need not be activated for it.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor  # noqa: E402
from nbgrader.preprocessors import (  # noqa: E402
    AssignLatePenalties,
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    GetGrades,
    IgnorePattern,
    LimitOutput,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)
from protection import ExecuteInTime, HideTests, NotebookReader, RestoreCells, TakeTestsAway  # noqa: E402

c = get_config()  # noqa: F821  (nbgrader provides it)

c.CourseDirectory.course_id = "pros"
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError('not solved yet')"}

c.Execute.timeout = 30  # seconds for a cell: none of a right solution takes ten
c.ExecuteInTime.given_timeout = 60  # seconds for a locked cell between them that embeds pictures
c.ExecuteInTime.limit = 120  # seconds for all answers, even where a loop cannot be interrupted
c.Execute.raise_on_iopub_timeout = False  # such a loop costs the cells after it, not the whole submission
c.Execute.extra_arguments = [
    "--HistoryManager.hist_file=:memory:",
    "--IPKernelApp.log_level=40",  # errors only: not a word about every kernel's transport
    "--InteractiveShell.xmode=Minimal",  # a failed test shows its message, not the lines of the test
    f"--IPKernelApp.exec_lines=__import__('runpy').run_path({str(HERE / 'fence.py')!r})",
]

# nbgrader's own steps, and between them those of protection.py.
c.Autograde.exporter_class = NotebookReader
c.Autograde.sanitize_preprocessors = [
    ClearOutput,
    DeduplicateIds,
    OverwriteKernelspec,
    RestoreCells,
    OverwriteCells,
    CheckCellMetadata,
]
c.Autograde.autograde_preprocessors = [
    TakeTestsAway,
    ExecuteInTime,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]
c.GenerateFeedback.preprocessors = [GetGrades, HideTests, CSSHTMLHeaderPreprocessor]
