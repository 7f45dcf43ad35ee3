"""prepare in pieces: the rows are those of one process, whatever is cut where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pion.data.documents import file_to_documents
from pipeline.stages.prepare import InPieces, prepare_pretrain
from tests.support.piece_corpora import KINDS, PART_BYTES, PIECES, corpus_job, result_of

GOLDEN = json.loads((PIECES / "golden.json").read_text())


@pytest.mark.parametrize("piece_bytes", [1, 5000, 30_000, 10**9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_are_those_of_the_code_before_there_were_pieces(
    kind: str, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_to_documents, "PART_BYTES", PART_BYTES)
    job = corpus_job(kind, tmp_path)
    in_pieces = InPieces(least=0, piece_bytes=piece_bytes)
    prepare_pretrain(job, tmp_path / "data", lambda message: None, in_pieces=in_pieces)
    assert result_of(job, tmp_path / "data") == GOLDEN[kind]
    assert not list((tmp_path / "data").rglob("pieces"))
