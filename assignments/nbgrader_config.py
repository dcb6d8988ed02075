"""Settings of the course: `nbgrader` reads them when it is called in this folder, and so does course.py."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from feedback import FormulasOffline, TaskNames, TellTests  # noqa: E402
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor  # noqa: E402
from nbgrader.preprocessors import (  # noqa: E402
    AssignLatePenalties,
    CheckCellMetadata,
    ClearOutput,
    GetGrades,
    IgnorePattern,
    LimitOutput,
    OverwriteKernelspec,
)
from protection import (  # noqa: E402
    CountFairly,
    NotebookReader,
    RestoreCells,
    SafeOutputs,
    SaveGrades,
    find_alembic,
)
from reports import GradesExport, LatePenalty  # noqa: E402
from running import ExecuteInTime  # noqa: E402

find_alembic()
c = get_config()  # noqa: F821  (nbgrader provides it)

c.CourseDirectory.course_id = "pros"
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError('not solved yet')"}

# nbgrader's own steps, and between them those of protection.py, running.py and feedback.py.
c.Autograde.exporter_class = NotebookReader
c.Autograde.sanitize_preprocessors = [ClearOutput, RestoreCells, OverwriteKernelspec, CheckCellMetadata]
c.Autograde.autograde_preprocessors = [
    ExecuteInTime,
    IgnorePattern,
    LimitOutput,
    CountFairly,
    SaveGrades,
    SafeOutputs,
    AssignLatePenalties,
    CheckCellMetadata,
]
c.GenerateFeedback.preprocessors = [
    GetGrades,
    TellTests,
    SafeOutputs,
    TaskNames,
    FormulasOffline,
    CSSHTMLHeaderPreprocessor,
]
c.HTMLExporter.template_name = "pros_feedback"
c.HTMLExporter.extra_template_basedirs = [str(HERE / "templates")]
c.HTMLExporter.mathjax_url = ""  # formulas are drawn without it

# Late submissions: `timestamp.txt` beside the notebook against the due date (README.md, "A term").
c.AssignLatePenalties.plugin_class = LatePenalty
c.ExportApp.plugin_class = GradesExport
