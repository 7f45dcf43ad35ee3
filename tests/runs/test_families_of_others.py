"""Models of other people's families go through every stage, and come out as they came in."""

import pytest
from transformers import AutoModelForCausalLM

from pipeline.models.find import find_model
from pipeline.models.load import load_model
from tests.runs.test_model_from import SFT, write_job
from tests.runs.test_reinforce import SIZES
from tests.support.chat_templates import CHATML, GEMMA, LLAMA3, PHI3, QWEN3
from tests.support.instruct_model import write_instruct_model
from tests.support.preference_runs import PREFER, write_pairs
from tests.support.stock_models import apart, tokens
from tests.support.whole_runs import finish, head_of

# Rows are longer than the windows of these models.
EACH = {"steps": 2, "warmup_steps": 0, "lr": 1e-2, "seq_len": 128, "lora": {"rank": 4}}
SUMS = {
    "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}],
    "rewards": [{"kind": "regex", "pattern": ".*e.*"}],
}


@pytest.mark.parametrize(
    ("name", "kind", "template"),
    [
        ("Gemma 3", "gemma", GEMMA),
        *(
            pytest.param(*family, marks=pytest.mark.soak)
            for family in (
                ("Phi-4-mini", "qwen", PHI3),
                ("SmolLM3", "qwen", QWEN3),
                ("OLMo 2", "llama3", LLAMA3),
                ("Granite", "smollm2", CHATML),
            )
        ),
    ],
)
def test_a_model_is_tuned_by_each_stage_and_published_as_its_own_class(
    name, kind, template, tmp_path
):
    write_instruct_model(tmp_path / "base", kind, template, name, vocab_size=480)
    write_pairs(tmp_path)
    stages = {"sft": SFT | EACH, "prefer": PREFER | EACH | {"seq_len": 512}}
    rewarded = SIZES | EACH | SUMS | {"max_tokens": 8, "min_signal": 0}
    job = write_job(tmp_path, **stages, reinforce=rewarded)
    finish(job, "publish.to=out", "publish.even_if_worse=true")
    assert "reinforce" in head_of(tmp_path).stages["evaluate"].result

    came, left = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("base", "out"))
    assert type(came) is type(left)
    trained, ids = load_model(find_model(f"{tmp_path}/runs/tiny")), tokens(150, 2, 360)
    assert apart(trained, left, ids) < 1e-4 < 1e-3 < apart(trained, came, ids)
