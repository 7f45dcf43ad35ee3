"""Show records as the model will see them, with what it learns between ⟦ and ⟧."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import marked_text
from pion.data.chat.messages import Conversation, Message, answers_in, turns_of
from pion.data.preference.layouts import Preference
from pion.data.records.layouts import read_conversation
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pipeline.base.keep import tokenizer_of_base
from pipeline.console.masking import masked
from pipeline.data.conversations_to_rows import learned_from, total_counts
from pipeline.data.remarks import Remarks
from pipeline.data.sources import Talk
from pipeline.job import Job
from pipeline.new.look import Look, answer_of
from pipeline.rehearsal.rehearse import rehearse

# Of each example, so many characters are shown; of a conversation, so many tokens.
SHOWN_CHARACTERS, SHOWN_TOKENS = 400, 300
# A vocabulary that is only there to show conversations before the run's is trained.
ENTRIES = 2048


def examples_of(look: Look, job: Job | None) -> list[str]:
    """Return the first records of a look. All of a document is learned.

    Raises BadInput for what the data can't be used for. `job` is None if the model to start from
    can't be looked up.
    """
    if look.stage == "sft":
        return _of_chats(look, job)
    if job is not None and look.stage != "pretrain" and look.all_kept and look.reading.direct:
        failed = rehearse(job, [look.stage]).failed.get(look.stage)
        if failed is not None:  # as `pion check` would; a copy is not yet there
            raise failed
    if look.first is not None:
        return _of_preferences(look, look.first)
    if look.stage == "reinforce":
        return [
            f"{one.where}\n" + _cut("\n".join([*one.texts, f"right answer: {one.answer}"]))
            for one in look.shown
        ]
    return [f"{one.where}\n{_cut('⟦' + one.texts[0].strip() + '⟧')}" for one in look.shown]


def _of_preferences(look: Look, first: Preference) -> list[str]:
    """Return the first preference in plain words: its place, the prompt, and each answer."""
    better, worse = ("chosen", "rejected") if look.paired else ("desired", "undesired")
    side = first.conversations[0]
    prompt = "\n".join(f"{m['role']}: {m['content'] or ''}" for m in side.messages[: side.context])
    answers = [
        f"{better if preferred else worse}: ⟦{answer_of(one)}⟧"
        for one, preferred in zip(first.conversations, first.preferred, strict=True)
    ]
    texts = [masked(text) for text in (prompt, *answers)]
    return [
        side.where,
        *(t if len(t) <= SHOWN_CHARACTERS else f"{t[:SHOWN_CHARACTERS]} …" for t in texts),
    ]


def _of_chats(look: Look, job: Job | None) -> list[str]:
    """Return the first conversations as the template of `job` writes them. It writes all that were
    kept, as a run does before it trains.

    Without a job, because the model to start from can't be looked up, they are in plain words.
    Raises BadInput if the template refuses one of them.
    """
    if job is None:
        talks = [one.conversation for one in look.shown if one.conversation is not None]
        return [f"{talk.where}\n{_cut(_plain(talk))}" for talk in talks]
    with tempfile.TemporaryDirectory(prefix="pion-new-") as place:
        path = tokenizer_of_base(job, Path(place, "base"))
        if path is None:
            path = Path(place, "tokenizer.json")
            train_bpe(look.kept, ENTRIES).save(path)
        tokenizer = Tokenizer.from_file(path)
        with closing(ChatFormat(path, tokenizer)) as written:
            talks = [read_conversation(one.record, one.where, own=written.own) for one in look.few]
            found = learned_from(written, [Talk(talk, required=True) for talk in talks])
        look.tokens = [sum(len(one.ids) for one in example.tokenized) for example in found]
        lost = Remarks(ReplacedCharacters(None), counts=total_counts(found))
        return [
            *(
                f"{said.where}: {int(one.learned.sum()):,} of {len(one.ids):,} tokens are learned\n"
                f"{_cut(marked_text(tokenizer, one, SHOWN_TOKENS))}"
                for said, example in zip(look.shown, found)
                for one in example.tokenized[-1:]  # of a split one, that with all turns
            ),
            *(f"warning, of the first {len(found):,}: {words}" for words in lost.warnings()),
            *(
                [f"the template wrote the first {len(found):,}: `pion check` tries the others, too"]
                if not look.all_kept
                else []
            ),
        ]


def _plain(conversation: Conversation) -> str:
    def text(message: Message) -> str:
        calls = f" (calls {len(message['tool_calls'])})" if message.get("tool_calls") else ""
        content = f"{message['content'] or ''}{calls}"
        return f"⟦{content}⟧" if message in learned else content

    learned = [conversation.messages[answer] for answer in answers_in(conversation)]
    return "\n".join(f"{message['role']}: {text(message)}" for message in conversation.messages)


def _cut(text: str) -> str:
    """Return a text without secrets, cut if it is long."""
    text = masked(text)
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]}… ({more:,} more characters)"


def prompt_from(looks: Sequence[Look]) -> str | None:
    """Return a text to ask during training: a question of the data, or the beginning of a text."""
    for look in sorted(looks, key=lambda look: look.stage == "pretrain"):
        for one in look.shown:
            if look.first is not None:
                line = _last_question(look.first)
            elif one.conversation is not None:
                asked = (turn.text for turn in turns_of(one.conversation) if turn.role == "user")
                line = " ".join(next(asked, "").split()[:40])
            else:
                line = " ".join(one.texts[0].split()[:8])
            if line and len(line) <= 200 and line.isprintable() and masked(line) == line:
                return line
    return None


def _last_question(first: Preference) -> str:
    side = first.conversations[0]
    asked = [m["content"] for m in side.messages[: side.context] if m["role"] == "user"]
    return (asked[-1] or "").strip() if asked else ""
