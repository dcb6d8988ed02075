"""The course: nothing leaks into student versions, every submission is graded, and each gets the points it should.

Most submissions here are of a toy assignment that needs neither PyTorch nor drawings; `make grade` runs the samples of
the real ones.
"""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="nbgrader is not installed: make grade, or pip install -e '.[assignments]'")

COURSE = Path(__file__).parents[1] / "assignments"
sys.path.insert(0, str(COURSE))

import attacks  # noqa: E402
import course  # noqa: E402
import reports  # noqa: E402
import running  # noqa: E402
import samples  # noqa: E402
import sandbox  # noqa: E402
from protection import read_state  # noqa: E402

SOLUTION = re.compile(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", re.DOTALL)
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", re.DOTALL)


def cells(path):
    """[(source, nbgrader's metadata)] of a notebook."""
    return [
        ("".join(cell["source"]), cell["metadata"].get("nbgrader", {}))
        for cell in json.loads(path.read_text())["cells"]
    ]


def source(assignment):
    return cells(COURSE / "source" / assignment / f"{assignment}.ipynb")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """{assignment: text of the student version}, built in a course of its own."""
    root = tmp_path_factory.mktemp("course")
    (root / "source").symlink_to(COURSE / "source")
    course.release(root)
    return {name: root / "release" / name / f"{name}.ipynb" for name in course.ASSIGNMENTS}


@pytest.mark.parametrize("assignment", course.ASSIGNMENTS)
def test_student_versions_hold_no_solution_and_no_hidden_test(released, assignment):
    text = "\n".join(source for source, _ in cells(released[assignment]))
    assert "YOUR CODE HERE" in text and not re.search("BEGIN|END (SOLUTION|HIDDEN|MARK)", text)
    visible = {
        line.strip() for text, _ in source(assignment) for line in HIDDEN.sub("", SOLUTION.sub("", text)).splitlines()
    }
    secrets = [
        line.strip()
        for text, _ in source(assignment)
        for pattern in (SOLUTION, HIDDEN)
        for region in pattern.findall(text)
        for line in region.splitlines()
    ]
    secrets = [line for line in secrets if len(line) > 12 and line not in visible]
    assert len(secrets) > 60
    given_away = {line.strip() for line in text.splitlines()} & set(secrets)
    assert not given_away, f"{assignment} gives away: {given_away}"
    assert not any(cell.get("outputs") for cell in json.loads(released[assignment].read_text())["cells"])


@pytest.mark.parametrize("assignment", course.ASSIGNMENTS)
def test_source_is_what_nbgrader_expects(assignment):
    names = [meta["grade_id"] for _, meta in source(assignment) if meta]
    assert len(names) == len(set(names))
    for text, meta in source(assignment):
        if meta.get("solution"):
            assert SOLUTION.search(text), f"{meta['grade_id']} has no solution"
        assert not HIDDEN.search(text) or meta.get("grade"), "a hidden test outside of a test cell"
        if meta.get("grade") and not meta["solution"]:
            shown = HIDDEN.sub("", text).strip()
            assert shown, f"{meta['grade_id']} would be an empty cell for students"


# ---- a toy course ------------------------------------------------------------------------------------------

TOY = [
    ("markdown", "# A toy\n\nWith a formula, $a < b$.\n\n## 1. Double (3 points)", None),
    (
        "set_up",
        """import json


def same(yours, right, what):
    assert yours == right, f"{what} should be {right}, not {yours}."
""",
        "locked",
    ),
    (
        "double",
        """def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION""",
        "answer",
    ),
    ("double_visible", 'same(double(1), 2, "Twice one")', 1),
    (
        "double_hidden",
        """# Hidden: other numbers.
### BEGIN HIDDEN TESTS
very_secret_number = 21
assert double(very_secret_number) == 42, f"Twice twenty-one should be 42, not {double(21)}."
### END HIDDEN TESTS""",
        2,
    ),
    ("markdown", "## 2. Count (2 points)", None),
    (
        "count",
        """def count(text):
    ### BEGIN SOLUTION
    return len(text)
    ### END SOLUTION""",
        "answer",
    ),
    (
        "count_test",
        """### BEGIN HIDDEN TESTS
earned = int(count("ab") == 2) + int(count("") == 0)
if earned < 2:
    print("Some text is not counted right.")
earned
### END HIDDEN TESTS""",
        2,
    ),
]
OWN = {"double": "def double(x):\n    return 2 * x", "count": "def count(text):\n    return len(text)"}
NOTHING = {"double": "def double(x):\n    return None", "count": "def count(text):\n    return None"}


def toy_source():
    notebook = nbformat.v4.new_notebook()
    for name, text, kind in TOY:
        if name == "markdown":
            notebook.cells.append(nbformat.v4.new_markdown_cell(text))
            continue
        points = {"points": kind} if isinstance(kind, int) else {}
        names = {
            "cell_type": "code",
            "grade": bool(points),
            "grade_id": name,
            "locked": kind != "answer",
            "schema_version": 3,
            "solution": kind == "answer",
            "task": False,
            **points,
        }
        notebook.cells.append(nbformat.v4.new_code_cell(text, metadata={"nbgrader": names}))
    return notebook


def with_first(source):
    return lambda notebook: attacks.with_cell(notebook, source, first=True)


def at_end(source):
    return lambda notebook: attacks.with_cell(notebook, source)


#: Submissions of the toy: {student: (answers, what is done to the notebook)}. One student comes behind each.
TOY_STUDENTS = {
    "a_twice": (OWN, attacks.with_copies),
    "b_metadata": (OWN, attacks.with_other_metadata),
    "c_warns": (
        OWN
        | {
            "double": "import sys, warnings\n\n\ndef double(x):\n    warnings.warn('no mistake')\n"
            "    print('nor this', file=sys.stderr)\n    return 2 * x"
        },
        None,
    ),
    "d_tags": (NOTHING, attacks.with_tags),
    "e_tree": (NOTHING, with_first(attacks.PATCHES["replaces_the_syntax_tree"])),
    "f_source": (NOTHING, with_first(attacks.PATCHES["replaces_the_source"])),
    "g_shell": (NOTHING, with_first(attacks.PATCHES["replaces_the_shell"])),
    "h_helper": (NOTHING | {"count": "def same(*_):\n    pass"}, with_first("def same(*_):\n    pass")),
    "i_exit": (OWN | {"count": "import os\n\nos._exit(1)"}, None),
    "j_script": (OWN, at_end(attacks.HARMLESS["shows_a_script"])),
    "k_flood": (OWN, at_end('for _ in range(9):\n    print("x" * 500_000)')),
    "l_leaks": (
        OWN
        | {
            "count": "def count(text):\n    import base64\n    print(base64.b64encode(In[-1].encode()))\n"
            "    raise ValueError(In[-1])"
        },
        at_end("print(''.join(In)[::-1])"),
    ),
    "m_nan": (
        OWN
        | {
            "count": "class Odd(int):\n    __eq__ = lambda *_: True\n    __int__ = lambda *_: 99\n\n\n"
            "def count(text):\n    return type('N', (), {'__eq__': lambda s, o: Odd(1)})()"
        },
        None,
    ),
    "n_right": (OWN, None),
}
TOY_FILES = (
    "not_a_notebook",
    "not_even_cells",
    "byte_order_mark",
    "link_to_the_source",
    "links_beside_the_notebook",
    "another_name",
)


def make_toy_course(root, students):
    """A course in the folder `root`, with what some of TOY_STUDENTS handed in. Returns the released notebook."""
    (root / "source" / "toy").mkdir(parents=True)
    nbformat.write(toy_source(), root / "source" / "toy" / "toy.ipynb")
    course.log_to(root / "nbgrader.log")
    assert course.run(course.GenerateAssignment, root, "toy")
    released = nbformat.read(root / "release" / "toy" / "toy.ipynb", as_version=4)
    for student in students:
        answers, change = TOY_STUDENTS[student]
        notebook = samples.answer(released, answers)
        notebook = change(notebook) if change else notebook
        (root / "submitted" / student / "toy").mkdir(parents=True)
        (root / "submitted" / student / "toy" / "toy.ipynb").write_text(json.dumps(notebook))
    return released


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A course with the toy, in which nbgrader's own command has graded all submissions, one after the other."""
    root = tmp_path_factory.mktemp("toy")
    released = make_toy_course(root, TOY_STUDENTS)
    for name in TOY_FILES:
        (root / "submitted" / name / "toy").mkdir(parents=True)
        attacks.FILES[name](root / "submitted" / name / "toy" / "toy.ipynb", samples.answer(released, OWN))
    course.run(course.Autograde, root, "toy")
    assert attacks.traces() == []
    course.run(course.GenerateFeedback, root, "toy")
    return root


def points(root, student):
    with course.gradebook(root) as book:
        return {grade.name: grade.score for grade in book.find_submission_notebook("toy", "toy", student).grades}


def page(root, student):
    return (root / "feedback" / student / "toy" / "toy.html").read_text(encoding="utf-8")


RIGHT = {"double_visible": 1, "double_hidden": 2, "count_test": 2}


@pytest.mark.parametrize(
    "student",
    [
        "a_twice",
        "b_metadata",
        "c_warns",
        "j_script",
        "k_flood",
        "n_right",
        "byte_order_mark",
        "links_beside_the_notebook",
    ],
)
def test_right_answers_get_all_points_whatever_else_is_handed_in(toy, student):
    assert read_state(toy, "toy", student) == {"state": "graded", "note": ""}
    assert points(toy, student) == RIGHT


@pytest.mark.parametrize("student", ["d_tags", "h_helper"])
def test_tests_run_as_released_whatever_the_notebook_says(toy, student):
    assert read_state(toy, "toy", student)["state"] == "graded"
    assert points(toy, student) == dict.fromkeys(RIGHT, 0)


@pytest.mark.parametrize("student", ["e_tree", "f_source", "g_shell"])
def test_a_run_without_working_tests_is_named_and_left_to_the_lecturer(toy, student):
    state = read_state(toy, "toy", student)
    assert state["state"] == "tampered" and "change what the tests lean on" in state["note"]
    assert f"TAMPERED: {student}" in (toy / "nbgrader.log").read_text()
    assert points(toy, student) == dict.fromkeys(RIGHT, 0)
    assert "change what the tests lean on" in page(toy, student)


def test_points_in_part_come_from_the_test_only(toy):
    assert points(toy, "m_nan") == {"double_visible": 1, "double_hidden": 2, "count_test": 0}


@pytest.mark.parametrize("student", ["not_a_notebook", "not_even_cells", "link_to_the_source"])
def test_what_is_no_notebook_is_named_and_not_graded(toy, student):
    state = read_state(toy, "toy", student)
    assert state["state"] == "not readable"
    assert ("is a link" if student.startswith("link") else "is not a notebook") in state["note"]
    assert state["note"] in (toy / "nbgrader.log").read_text()
    assert not (toy / "autograded" / student).exists() or not list((toy / "autograded" / student).rglob("*.ipynb"))


def test_links_beside_a_notebook_lead_nowhere(toy):
    for step in ("autograded", "feedback"):
        names = [path.name for path in (toy / step / "links_beside_the_notebook").rglob("*") if path.is_file()]
        assert len(names) == 1, names
    assert "notes.txt is a link and was left out" in (toy / "nbgrader.log").read_text()


def test_a_run_that_crashed_is_flagged_and_its_score_empty(toy):
    assert read_state(toy, "toy", "i_exit")["state"] == "crashed"
    assert "Python ended in the cell count" in page(toy, "i_exit")
    with course.gradebook(toy) as book:
        table = reports.grades(book, toy).set_index("student_id")
        assert table.loc["i_exit", "state"] == "crashed" and table.loc["e_tree", "state"] == "tampered"
        assert table.loc["not_a_notebook", "state"] == "not readable"
        assert table.loc[["i_exit", "e_tree", "not_a_notebook"], "score"].isna().all()
        assert table.loc["n_right", "score"] == 5 and table.loc["d_tags", "score"] == 0


def test_no_output_can_run_in_the_page_of_a_reader(toy):
    notebook = (toy / "autograded" / "j_script" / "toy" / "toy.ipynb").read_text()
    outputs = json.dumps([cell.get("outputs") for cell in json.loads(notebook)["cells"]])
    assert (
        "<script" not in outputs and "svg" not in outputs and "javascript" not in outputs and "image/png" not in outputs
    )
    assert not re.search(r"<script|<[^>]*onerror", page(toy, "j_script"))


def test_outputs_are_cut_by_bytes(toy):
    notebook = toy / "autograded" / "k_flood" / "toy" / "toy.ipynb"
    assert notebook.stat().st_size < 1_500_000 and "The rest of the output was cut." in notebook.read_text()


def test_feedback_carries_hidden_tests_in_no_disguise(toy):
    import base64

    shown = html.unescape(page(toy, "l_leaks"))
    for secret in ("very_secret_number", "rebmun_terces", base64.b64encode(b"secret_number").decode()[2:-4]):
        assert secret not in shown


def test_feedback_names_tasks_and_colours_them(toy):
    shown = page(toy, "l_leaks")
    text = " ".join(html.unescape(re.sub("<[^>]+>", " ", shown)).split())
    assert "1. Double 3 3" in text and "2. Count 0 2" in text and "double_hidden : other numbers. 2 2" in text
    assert 'class="task full"' in shown and 'class="none"' in shown
    assert "<math" in shown and "http" not in re.sub(
        r"http://www.w3.org/1998/Math/MathML", "", shown.split("<body>")[1]
    )
    assert "Twice one should be 2, not None." in html.unescape(page(toy, "h_helper"))


# ---- the number of a student, lists, grading again ---------------------------------------------------------


def test_the_list_decides_about_the_number(tmp_path):
    assert running.number_of(tmp_path, "ann") is None
    (tmp_path / "students.csv").write_text("id,last_name,first_name,email,number\nann,A,Ann,a@x.org,7\nbob,B,Bob,,\n")
    assert running.number_of(tmp_path, "ann") == 7 and running.number_of(tmp_path, "bob") is None
    notebook = nbformat.read(COURSE / "source" / "2_prompt_units" / "2_prompt_units.ipynb", as_version=4)
    steps = [step["source"] for step in running.plan(notebook, 7)]
    model = next(i for i, source in enumerate(steps) if source.startswith("STUDENT = globals()"))
    assert steps[model - 1].endswith("STUDENT = 7"), "what the notebook says is replaced"
    tested = next(i for i, source in enumerate(steps) if "unknown = (" in source)
    assert steps[tested - 1].endswith("STUDENT = 7"), "and again before a test that looks at it"


def test_students_get_numbers_and_wrong_lists_are_named(tmp_path):
    path = tmp_path / "students.csv"
    path.write_text("id,last_name,first_name,email,number\nann,A,Ann,a@x.org,2\nbob,B,Bob,,\ncem,C,Cem,,\n")
    with course.gradebook(tmp_path) as book:
        assert [row["number"] for row in reports.enrol(tmp_path, book)] == [2, 1, 3]
        assert {student.id for student in book.students} == {"ann", "bob", "cem"}
    assert [row["number"] for row in reports.read_students(tmp_path)] == [2, 1, 3], "the list is written again"
    path.write_text("id,number\nann,one\n")
    with pytest.raises(ValueError, match="line 2"):
        reports.read_students(tmp_path)


@pytest.mark.parametrize("hours, left", [(0.2, None), (1, 1.0), (25, 2.0), (900, 5.0)])
def test_a_late_day_costs_a_tenth(hours, left):
    assert reports.LatePenalty().late_submission_penalty("ann", 10, hours * 3600) == left


def test_grades_for_learning_platforms(toy):
    with course.gradebook(toy) as book:
        book.update_or_create_student("n_right", last_name="Right", first_name="Nora", email="n@x.org")
        table = reports.grades(book, toy)
    moodle = reports.as_form(table, "moodle").set_index("Username")
    assert moodle.loc["n_right", "toy"] == 5 and moodle.loc["n_right", "Email address"] == "n@x.org"
    assert moodle["toy"].isna()[["i_exit", "e_tree"]].all()
    canvas = reports.as_form(table, "canvas")
    assert canvas.columns[:5].tolist() == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    assert canvas.iloc[0]["toy"] == 5 and "Points Possible" in canvas.iloc[0]["Student"]
    assert "Right, Nora" in canvas["Student"].values
    gradescope = reports.as_form(table, "gradescope").set_index("SID")
    assert gradescope.loc["n_right", "toy"] == 5 and gradescope.loc["n_right", "toy - Max Points"] == 5


def test_only_what_is_new_or_changed_is_graded_again(toy):
    assert "n_right" not in course.students_to_grade(toy, "toy")
    assert "n_right" in course.students_to_grade(toy, "toy", again=True)
    assert "not_a_notebook" in course.students_to_grade(toy, "toy"), "it may have been replaced"
    (toy / "submitted" / "new" / "toy").mkdir(parents=True)
    assert "new" in course.students_to_grade(toy, "toy")
    (toy / "submitted" / "new" / "toy").rmdir()
    (toy / "submitted" / "new").rmdir()


def test_points_by_hand_survive_grading_again_and_end_a_flag(toy, tmp_path):
    import shutil

    root = tmp_path / "course"
    shutil.copytree(toy, root, symlinks=True)
    with course.gradebook(root) as book:
        for grade in book.find_submission_notebook("toy", "toy", "i_exit").grades:
            grade.manual_score, grade.needs_manual_grade = 1, False
        book.db.commit()
        table = reports.grades(book, root).set_index("student_id")
    assert table.loc["i_exit", "state"] == "graded by hand" and table.loc["i_exit", "score"] == 3
    lines = []
    course.autograde(root, "toy", ["i_exit", "n_right"], workers=2, show=lines.append)
    assert sorted(lines)[0].startswith("i_exit") and "CRASHED" in sorted(lines)[0] and "5 of 5" in sorted(lines)[1]
    with course.gradebook(root) as book:
        grades = book.find_submission_notebook("toy", "toy", "i_exit").grades
        assert [grade.manual_score for grade in grades] == [1, 1, 1] and all(
            grade.needs_manual_grade for grade in grades
        )


def test_copied_answers_are_listed_whatever_the_names_and_the_layout(tmp_path):
    released = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("# YOUR CODE HERE")])
    (tmp_path / "release" / "toy").mkdir(parents=True)
    nbformat.write(released, tmp_path / "release" / "toy" / "toy.ipynb")
    first = "def f(order, size):\n    parts = [order[i:i + size] for i in range(0, len(order), size)]\n"
    first += (
        "    longest = max(len(part) for part in parts)\n    return [part for part in parts if len(part) == longest]"
    )
    renamed = first.replace("order", "xs").replace("parts", "ys").replace("    ", "  ") + "  # my own idea"
    other = "def f(xs, n):\n    out, i = [], 0\n    while i + n <= len(xs):\n        out.append(xs[i:i + n])\n"
    other += "        i += n\n    if not out and xs:\n        out = [xs]\n    return out"
    for student, text in {"ann": first, "bob": renamed, "cem": other}.items():
        folder = tmp_path / "submitted" / student / "toy"
        folder.mkdir(parents=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text)]), folder / "toy.ipynb")
    pairs = reports.similar(tmp_path, "toy")
    assert pairs[["student", "other"]].values.tolist() == [["ann", "bob"]]


# ---- the samples -------------------------------------------------------------------------------------------


def test_table_and_samples_belong_together():
    table = samples.read_table()
    for assignment in course.ASSIGNMENTS:
        points = {meta["grade_id"]: meta["points"] for _, meta in source(assignment) if meta.get("grade")}
        rows = {row["submission"]: row for row in table if row["assignment"] == assignment}
        assert {"perfect", "empty", "loops_for_ever", "reads_the_tests"} < set(rows)
        assert set(samples.read_answers(assignment)) <= set(rows), "a sample without a row"
        wrong = set(samples.read_answers(assignment)) - {"loops_for_ever", "reads_the_tests", "kills_the_kernel"}
        assert len(wrong) >= 5
        assert rows["empty"]["loses"] == points and rows["empty"]["points"] == 0
        for row in rows.values():
            assert all(lost <= points[cell] for cell, lost in row["loses"].items()), row
            assert row["points"] is None or row["points"] == sum(points.values()) - sum(row["loses"].values()), row


def test_fence_refuses_and_allows(tmp_path):
    """In a process of its own, for the fence cannot be taken down."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    (tmp_path / "solution.txt").write_text("42")
    program = """
import os, runpy, socket, sqlite3, subprocess, sys, tempfile
own, course, script = sys.argv[1:]
runpy.run_path(script, {"CLOSED": course, "FREE": own})
import prosutils
assert open("mine.txt").read() == "mine" and os.listdir(".") == ["mine.txt"]
open("mine.txt", "w").write("changed")
with tempfile.TemporaryFile("w", dir=own) as file:
    file.write("free")
secret, udp = "../solution.txt", socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for attempt in (lambda: open(secret), lambda: os.open(secret, os.O_RDONLY), lambda: sqlite3.connect(":memory:"),
                lambda: os.rename(secret, "/solution.txt"), lambda: os.symlink(secret, "x"), lambda: os.listdir(".."),
                lambda: os.listdir(os.path.dirname(script)), lambda: open(os.path.expanduser("~/.profile")),
                lambda: open(prosutils.__file__, "a"), lambda: open(f"/proc/{os.getppid()}/environ"),
                lambda: open(f"/proc/{os.getppid()}/mem", "rb"), lambda: os.kill(os.getppid(), 0),
                lambda: subprocess.run(["cat", secret]), lambda: os.system("true"),
                lambda: udp.sendto(b"x", ("127.0.0.1", 9)), lambda: socket.create_connection(("127.0.0.1", 9))):
    try:
        attempt()
    except PermissionError as error:
        assert "While grading" in str(error), error
    else:
        raise AssertionError("not refused")
print("fenced")
"""
    result = subprocess.run(
        [sys.executable, "-c", program, own, COURSE, COURSE / "fence.py"], cwd=own, capture_output=True, text=True
    )
    assert result.stdout == "fenced\n", result.stderr


@pytest.fixture
def fake_docker(tmp_path, monkeypatch):
    """A `docker` that notes how it is called and runs what the image would, without a container; no `podman`."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f"""#!{sys.executable}
import json, subprocess, sys
with open({str(tmp_path / "calls")!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "run":
    sys.exit(subprocess.run([sys.executable, {str(COURSE / "inside.py")!r}]).returncode)
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.delenv("PROS_CONTAINER", raising=False)
    sandbox.engine.cache_clear()
    yield lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    sandbox.engine.cache_clear()


LIMITS = {"set_up": 60, "given": 60, "answer": 30, "total": 60, "output_bytes": 10_000}


def test_with_docker_answers_run_in_a_container_that_sees_the_submission_only(fake_docker, tmp_path):
    import logging

    own = tmp_path / "autograded" / "student" / "toy"
    own.mkdir(parents=True)
    (own / "mine.txt").write_text("mine")
    (own / "link.txt").symlink_to(tmp_path / "calls")
    notebook = {
        "cells": [nbformat.v4.new_code_cell("import os; print(sorted(os.listdir()), 'SECRET' in os.environ)")],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    ran, died = sandbox.run(notebook, own, LIMITS, logging.getLogger())
    assert died is None and ran["cells"][0]["outputs"][0]["text"] == "['mine.txt'] False\n"
    asked, called = fake_docker()
    assert asked == ["info"] and called[0] == "run" and called[-3:] == ["pros-grading", "--user", "1001"]
    line = " ".join(called)
    for wanted in (
        "--network none",
        "--read-only",
        "--memory ",
        "--pids-limit ",
        "--cap-drop ALL",
        "no-new-privileges",
        "--interactive",
        "--rm",
    ):
        assert wanted in line, wanted
    assert not {"--volume", "-v", "--mount", "--privileged"} & set(called)


def test_the_image_holds_the_package_and_nothing_of_the_course(fake_docker, monkeypatch):
    held = []
    monkeypatch.setattr(
        sandbox.subprocess,
        "run",
        lambda command: (
            held.extend(path.relative_to(command[-1]).as_posix() for path in Path(command[-1]).rglob("*"))
            or subprocess.CompletedProcess(command, 0)
        ),
    )
    sandbox.build_image("docker")
    assert {"Containerfile", "inside.py", "fence.py", "pyproject.toml", "prosutils/__init__.py"} <= set(held)
    assert not [path for path in held if path.endswith(".ipynb") or "gradebook" in path or "samples" in path]
    copied = re.findall(r"^COPY (.*) \S+$", (COURSE / "Containerfile").read_text(), re.MULTILINE)
    assert {name for names in copied for name in names.split()} <= set(held)


def test_without_an_engine_the_course_says_what_is_not_protected(monkeypatch, capsys):
    monkeypatch.setenv("PROS_CONTAINER", "none")
    sandbox.engine.cache_clear()
    course.use_container()
    assert "NOT protected: code in C" in capsys.readouterr().out
    monkeypatch.setenv("PROS_CONTAINER", "docker")
    monkeypatch.setenv("PATH", "")
    sandbox.engine.cache_clear()
    with pytest.raises(SystemExit, match="Start it, or choose"):
        sandbox.engine()
    sandbox.engine.cache_clear()


def test_some_samples_get_their_points_and_nothing_leaks(tmp_path):
    wanted = [
        ("1_data_and_metrics", "reads_the_tests"),
        ("1_data_and_metrics", "not_a_notebook"),
        ("3_simulator", "perfect"),
    ]
    rows = [row for row in samples.read_table() if (row["assignment"], row["submission"]) in wanted]
    graded = samples.grade_samples(rows, tmp_path, workers=2, show=lambda line: None)
    assert len(graded) == 3
    for row in graded:
        assert samples.as_expected(row), f"{row['submission']} gets {row['given']}, loses {row['lost']}"
    log = (tmp_path / "1_data_and_metrics" / "nbgrader.log").read_text()
    assert "NOT READABLE: not_a_notebook: 1_data_and_metrics.ipynb is not a notebook" in log

    folder = tmp_path / "1_data_and_metrics" / "feedback" / "reads_the_tests" / "1_data_and_metrics"
    assert [path.name for path in folder.iterdir()] == ["1_data_and_metrics.html"], "it has left a file behind"
    page = (folder / "1_data_and_metrics.html").read_text()
    assert "GOT" in page.split('id="ucdr_train"')[0] and "GOT" not in page.split('id="ucdr_train"')[1]
    page = html.unescape(re.sub("<[^>]+>", "", page))
    secrets = [text for text, meta in source("1_data_and_metrics") if meta.get("grade_id") == "ucdr_rows"]
    secrets = SOLUTION.findall(secrets[0]) + [
        region for text, _ in source("1_data_and_metrics") for region in HIDDEN.findall(text)
    ]
    for line in (line.strip() for region in secrets for line in region.splitlines()):
        if len(line) > 40 and not line.startswith(('f"', '"')):  # a line of text is a message, for the student
            assert line not in page, f"the feedback gives away: {line}"
