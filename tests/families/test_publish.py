"""An export computes what the trained model computes."""

import pytest

from pion.data.tokens.tokenizer import train_bpe
from pion.errors import PionError
from pion.formats.export import export_model
from pion.formats.load import load_decoder
from pion.formats.verify import verify_export
from tests.families.families import a_few_families

TEXTS = ["Return a new header with the string.\n\n    >>> os.path.join('a', 'b')"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(TEXTS * 3, 300).save(path)
    return path


@a_few_families
def test_transformers_computes_the_logits_of_the_trained_model(family, tokenizer, tmp_path):
    model, out = family.decoder(), tmp_path / "model"
    export_model(model, tokenizer, out)
    assert verify_export(out, model, tokenizer, TEXTS) < 1e-4
    assert verify_export(out, load_decoder(out), tokenizer, TEXTS) < 1e-4
    other = family.decoder(seed=1)
    with pytest.raises(PionError, match="different logits"):
        verify_export(out, other, tokenizer, TEXTS)
