"""A row of refusals.yaml that is wrong fails with its line, and says why."""

from pathlib import Path

import pytest

from pion.errors import BadInput
from tests.support.refusals import require_refusal, rows_of


def read(value, mode="text"):
    """Refuse what is no number, write a file, or print."""
    if value == "writes":
        Path("new.txt").write_text("new")
    if value == "prints":
        print("a line")
    if not isinstance(value, int):
        raise BadInput(f"{value} should be a number in {mode}")
    return 0


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{read: one, says: should be a  number in text}", None),
        ("{read: one, mode: bytes, says: number in bytes, lacks: text}", None),
        ("{read: prints, says: a number, prints: a line}", None),
        ("{read: one, says: [a number, a name]}", "'a name' is not in 'one should be a number"),
        ("{read: one, says: a number, lacks: one}", "'one' is in 'one should be a number"),
        ("{read: one, says: a number, exit: 1}", "not refused: exit code 2"),
        ("{read: 1, says: a number}", "not refused: exit code 0"),
        ("{read: one}", "a row says words of the message"),
        ("{read: one, say: a number}", "a row says words of the message"),
        ("{read: one, says: a number, mood: bytes}", "unknown keys {'mood'}"),
        ("{raed: one, says: a number}", "a row has one of ['read'], not set()"),
        ("{read: prints, says: a number}", "it printed 'a line"),
        ("{read: one, says: a number, prints: a line}", "'a line' is not in ''"),
        ("{read: writes, says: a number}", "files were made, changed or removed: ['new.txt']"),
        ("{read: has 2 mistakes; nothing was started, says: a number}", "not ('1', '; nothing"),
        ("{read: has 1 mistake, says: a number}", "[('1', '')], not ('1', '; nothing was"),
    ],
)
def test_a_row_is_required_as_it_is_written(row, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("refusals.yaml").write_text(f"# a comment\n- {row}\n")
    (only,) = rows_of(Path("refusals.yaml").absolute())
    if fault is None:
        require_refusal(only, {"read": read}, capsys)
        return
    with pytest.raises(AssertionError) as failed:
        require_refusal(only, {"read": read}, capsys)
    assert f"{tmp_path.name}/refusals.yaml:2: " in str(failed.value)
    assert fault in str(failed.value)


def test_files_are_written_before_and_may_not_change(tmp_path, monkeypatch, capsys):
    def changes(name):
        assert Path("a/b.jsonl").read_text() == '{"x": 1}\n[2]\n'
        assert (Path("c").read_bytes(), Path("d").read_text()) == (b"\xff", '{"y": 1}')
        Path(name).unlink()
        raise BadInput("refused")

    monkeypatch.chdir(tmp_path)
    files = '{a/b.jsonl: [{x: 1}, [2]], c: !!binary "/w==", d: {y: 1}}'
    Path("rows.yaml").write_text(f"- {{changes: c, files: {files}, says: refused}}\n")
    (row,) = rows_of(tmp_path / "rows.yaml")
    with pytest.raises(AssertionError, match=r"removed: \['c'\]"):
        require_refusal(row, {"changes": changes}, capsys)
