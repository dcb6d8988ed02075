"""One ranking, other libraries: each agrees with one of this project's rules of average precision, and with no other."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

import metric_libraries
from metric_libraries import LIBRARIES, ours, random_case


@pytest.fixture(scope="module")
def case():
    """More than k relevant images for some queries, and fewer for others: the three rules differ."""
    return random_case(queries=20, gallery=240, classes=6, width=8)


@pytest.mark.parametrize("k", [10, 60, 200])
@pytest.mark.parametrize("name", LIBRARIES)
def test_each_library_follows_one_rule(name, k, case):
    module, rule, function = LIBRARIES[name]
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'prosutils[metrics]'")
    value, rules = function(*case, k), ours(*case, k)
    assert value == pytest.approx(rules[rule], abs=1e-5)
    if k == 10:
        assert all(abs(value - other) > 0.01 for name, other in rules.items() if name != rule)


def test_negative_distances_count_as_no_hits_in_torchmetrics(case):
    torchmetrics = pytest.importorskip("torchmetrics")
    if tuple(map(int, torchmetrics.__version__.split(".")[:3])) < (1, 7, 4):
        pytest.skip("torchmetrics before 1.7.4 counts them")
    assert metric_libraries.torchmetrics_on_distances(*case, 60) == 0
    assert metric_libraries.torchmetrics_map(*case, 60) > 0.1


def test_the_study_leaves_out_by_name_what_is_not_installed(case, monkeypatch, capsys):
    function = LIBRARIES["faiss and a cumulative sum"][2]
    monkeypatch.setattr(metric_libraries, "LIBRARIES", {"Some metric": ("no_such_package", "hits", function)})
    table = metric_libraries.compare(case, 10)
    assert "Some metric is left out: no_such_package is not installed." in capsys.readouterr().out
    assert table.call.tolist() == [f"prosutils by {rule}" for rule in ("hits", "min(k, R)", "R")]
