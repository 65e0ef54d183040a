"""Generated files: the check sees a planted difference and a missing file."""

from pathlib import Path

import generate
import pytest

SOURCE = "docs_index:page"


def test_up_to_date_file_passes(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(generate.generated_text(SOURCE), encoding="utf-8")
    assert generate.stale(tmp_path, {"a.md": SOURCE}) == []


def test_planted_difference_is_seen(tmp_path: Path) -> None:
    text = generate.generated_text(SOURCE).replace("# Documentation", "# Documentatiom")
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    (diff,) = generate.stale(tmp_path, {"a.md": SOURCE})
    assert "-# Documentatiom\n+# Documentation\n" in diff


def test_missing_file_is_seen(tmp_path: Path) -> None:
    assert len(generate.stale(tmp_path, {"a.md": SOURCE})) == 1


def test_generator_must_return_text() -> None:
    with pytest.raises(TypeError, match="os:getpid returned int, not str"):
        generate.generated_text("os:getpid")


def test_check_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "GENERATED", {"a.md": SOURCE})
    assert generate.main(["--check"]) == 1
    assert "1 generated file(s) out of date" in capsys.readouterr().err
    assert not (tmp_path / "a.md").exists()
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
