"""The status table says what the tests showed, and nothing else."""

from pathlib import Path

import pytest
import status

FEATURE, PATTERNS = next(iter(status.FEATURES.items()))
NAME = PATTERNS[0].replace("*", "test_x")
README = f"before\n{status.BEGIN}\n{status.END}\nafter\n"


def junit(folder: Path, child: str) -> Path:
    file = folder / "junit.xml"
    classname, _, name = NAME.rpartition(".")
    case = f'<testcase classname="{classname}" name="{name}">{child}</testcase>'
    file.write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("child", "expected"),
    [("", "works"), ("<failure/>", "fails"), ("<error/>", "fails"), ("<skipped/>", "not run")],
)
def test_state_of_one_test(tmp_path: Path, child: str, expected: str) -> None:
    assert status.state(PATTERNS, status.outcomes([junit(tmp_path, child)])) == expected


def test_feature_without_tests_is_planned() -> None:
    assert status.state(PATTERNS, {"tests.elsewhere.test_x": "passed"}) == "planned"


def test_each_pattern_needs_a_test() -> None:
    patterns = ("tests.a.*", "tests.b.*")
    assert status.state(patterns, {"tests.a.x": "passed"}) == "partly"
    assert status.state(patterns, {"tests.a.x": "passed", "tests.b.x": "passed"}) == "works"
    assert status.state(patterns, {"tests.a.x": "passed", "tests.b.x": "skipped"}) == "not run"
    assert status.state(patterns, {"tests.a.x": "failed"}) == "fails"


def test_one_failure_among_passes_shows() -> None:
    results = {NAME + "1": "passed", NAME + "2": "failed", NAME + "3": "skipped"}
    assert status.state(PATTERNS, results) == "fails"


def test_table_is_read_back() -> None:
    text = status.with_table(README, {NAME: "passed"})
    assert text.startswith("before\n") and text.endswith("after\n")
    assert status.rows(text)[FEATURE] == "works"
    assert set(status.rows(text)) == set(status.FEATURES)
    assert status.with_table(text, {NAME: "passed"}) == text


def test_skipped_tests_keep_the_row() -> None:
    text = status.with_table(README, {NAME: "passed"})
    assert status.with_table(text, {NAME: "skipped"}) == text


def test_check_fails_on_a_false_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(status.with_table(README, {NAME: "passed"}), encoding="utf-8")
    monkeypatch.setattr(status, "README", readme)
    assert status.main(["--check", str(junit(tmp_path, ""))]) == 0
    assert status.main(["--check", str(junit(tmp_path, "<failure/>"))]) == 1
    assert f"README.md says 'works' of \"{FEATURE}\"" in capsys.readouterr().err
    assert status.main([str(tmp_path / "junit.xml")]) == 0
    assert status.rows(readme.read_text(encoding="utf-8"))[FEATURE] == "fails"


def test_missing_markers_are_named() -> None:
    with pytest.raises(ValueError, match="README.md must hold"):
        status.rows("no markers")
