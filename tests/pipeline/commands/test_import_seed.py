"""`pion import-seed`: a seed's checkpoint becomes a folder that Pion loads."""

import os
from pathlib import Path

from pion.data.tokens.tokenizer import train_bpe
from pipeline.commands import import_seed
from tests.paths import SEEDS
from tests.support.finished_run import tiny_tokenizer
from tests.support.seed_files import read_seed, tensors_of, write_seed


def test_a_seeds_checkpoint_becomes_a_folder_that_pion_loads(here, pion):
    tiny_tokenizer().save("tokenizer.json")
    seed = str(SEEDS / "pion_nocap_ckpt.pt")
    before = os.umask(0o002)
    code, out, _ = pion("import-seed", seed, "imported")
    os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in Path("imported").iterdir()} == {0o664}
    assert code == 0
    assert "without a tokenizer" in out
    code, _, err = pion("import-seed", seed, "imported")
    assert code == 2
    assert "imported exists and is not empty" in err
    code, _, err = pion("import-seed", seed, "other", "--tokenizer", "tokenizer.json")
    assert (code, Path("other").exists()) in {(0, True), (2, False)}


def test_what_another_process_wrote_to_the_folder_meanwhile_stays(here, pion, monkeypatch):
    write = import_seed._write

    def slow_write(*arguments, **settings):
        write(*arguments, **settings)
        Path("imported").mkdir()
        Path("imported/theirs").write_text("precious")

    monkeypatch.setattr(import_seed, "_write", slow_write)
    code, _, err = pion("import-seed", str(SEEDS / "pion_nocap_ckpt.pt"), "imported")
    assert code == 2
    assert "can't write imported (Directory not empty)" in err
    assert [path.name for path in here.glob("*imported*/*")] == ["theirs"]


def test_an_empty_folder_is_filled(here, pion):
    Path("imported").mkdir()
    assert pion("import-seed", str(SEEDS / "pion_nocap_ckpt.pt"), "imported")[0] == 0
    assert Path("imported/config.json").is_file()


def test_a_grown_vocabulary_needs_the_tokenizer_that_was_saved_with_it(here, pion):
    train_bpe(["some words"], 262).save("base.json")
    content = read_seed(SEEDS / "pilon_sft_ckpt.pt")
    tensors = tensors_of(content)
    for name in ("token_embedding.weight", "lm_head.weight"):
        tensors[name] = tensors[name].repeat(3, 1)[:264]
    write_seed(content, Path("sft.pt"))
    code, _, err = pion("import-seed", "sft.pt", "out", "--tokenizer", "base.json")
    assert code == 2
    assert "base.json has 262 ids, but sft.pt has learned 264" in err
    assert not Path("out").exists()
    train_bpe(["some words"], 264).save("grown.json")
    assert pion("import-seed", "sft.pt", "out", "--tokenizer", "grown.json")[0] == 0


def test_importing_what_is_no_seeds_checkpoint_is_refused(here, pion):
    Path("x.pt").write_bytes(b"not a checkpoint")
    code, _, err = pion("import-seed", "x.pt", "out")
    assert code == 2
    assert "x.pt" in err
    assert not Path("out").exists()
