"""A bug leaves a file, and a bug that is repeated fills no disk."""

from pipeline.console import bug_file


def test_a_process_leaves_a_bounded_number_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(bug_file, "_written", [])
    said = [
        bug_file.report_bug(RuntimeError(str(number)), ["serve"])
        for number in range(bug_file.MOST_FILES + 1)
    ]
    assert len(list(tmp_path.iterdir())) == bug_file.MOST_FILES
    assert "No more tracebacks are written" in said[-1]
    assert "RuntimeError: 20" in said[-1]
