"""The model that a proposed job starts from: looked up, or not known because the Hub is away."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pion.errors import BadInput, PionError
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job.model_section import Base
from pipeline.machine.time_limit import within
from pipeline.new.rules import BASE_BYTES_PER_TOKEN, ROW_LENGTHS, StartModel

# What `--from` says for random weights.
NONE = "none"
# The Hub may take so many seconds to answer.
SECONDS = 20.0
# The parameters of what is proposed without a look at the Hub.
PARAMETERS = {"360M": 362_000_000, "0.5B": 494_000_000, "135M": 135_000_000, "0.6B": 596_000_000}


@dataclass(frozen=True)
class LookedUp:
    """A model to start from. `base` is None if it can't be looked up now, and `why` says why."""

    source: str
    base: Base | None
    why: str = ""
    tokenizer: Path | None = None

    @property
    def has_template(self) -> bool:
        """Whether it has a chat template. What can't be looked up may have one."""
        return self.base is None or self.base.template is not None

    def start(self, texts: Sequence[str]) -> StartModel:
        """Return what the rules need to know of it; its tokenizer is tried on these texts."""
        if self.base is None or self.tokenizer is None:
            sizes = (size for name, size in PARAMETERS.items() if name in self.source)
            return StartModel(next(sizes, None), ROW_LENGTHS[0])
        from pion.data.tokens.tokenizer import Tokenizer
        from pion.model.params_and_flops import cost_of

        config = self.base.model_config
        ids = sum(map(len, Tokenizer.from_file(self.tokenizer).encode_batch(texts)))
        per_token = sum(len(text.encode()) for text in texts) / max(1, ids)
        size, context = cost_of(config).all_params, config.seq_len
        return StartModel(size, context, per_token or BASE_BYTES_PER_TOKEN)


def look_up(source: str, job_folder: Path) -> LookedUp:
    """Return the model called `source`, as a job in `job_folder` calls it.

    Raises BadInput if there is no such model, or none that Pion can train.
    """
    from pipeline.base.find import TOKENIZER, find_base
    from pipeline.state.stores.hub.errors import AGAIN

    path = Path(source).expanduser()
    name = os.path.relpath(path, job_folder) if path.exists() else source
    try:
        with saying_if_slow(f"looking up {source}"):
            model = within(SECONDS, lambda: find_base(name, job_folder))
            return LookedUp(name, model.base, tokenizer=model.bring(TOKENIZER))
    except BadInput as error:
        raise BadInput(f"--from {source}: {error}. Nothing was written.") from None
    except TimeoutError:
        return LookedUp(name, None, f"the Hub did not answer within {SECONDS:.0f} s")
    except PionError as error:
        return LookedUp(name, None, str(error).removesuffix(AGAIN))
