"""What the model card says of the model that a run started from: its name, terms and conditions."""

from __future__ import annotations

import json
from typing import Any

from pipeline.base.licence import Terms, conditions
from pipeline.job import Job
from pipeline.report.adapter_card import base_in_words, hub_name


def base_on_hub(job: Job) -> str | None:
    """Return the Hub repository of the model that the run started from; None for any other."""
    if job.base is not None and job.base.commit is not None:
        return hub_name(job.base.source)
    if job.publish is not None and job.publish.adapter and job.sft is not None:
        return hub_name(job.sft.init_from)
    return None


def license_fields(job: Job, terms: Terms | None) -> dict[str, Any]:
    """Return the licence of the published model: the job's, or else that of its start."""
    assert job.publish is not None
    if job.publish.license is not None:
        return {"license": job.publish.license}
    return {} if terms is None else dict(terms.front_matter)


def base_conditions(job: Job, terms: Terms | None) -> list[str]:
    """Return the paragraph that the licence of the start asks for at the top of the card."""
    if terms is None:
        return []
    asked = conditions(terms, job.name)
    return [" ".join(asked)] if asked else []


def base_section(job: Job, terms: Terms | None) -> str:
    """Return the section on the model that the run started from; empty if there is none."""
    if job.base is None or terms is None:
        return ""
    name = base_in_words(job.base.source, job.base.commit)
    at = f" at commit `{job.base.commit}`" if job.base.commit else ""
    lines = [f"Trained from {name}{at}; its files have the content hash `{job.base.hash}`."]
    lines.append(_licence(terms))
    lines += _template(job)
    return "## Base model\n\n" + " ".join(lines)


def unknown_licence(job: Job) -> str:
    """Return the warning for a model that is published although nobody knows its licence."""
    assert job.base is not None
    return (
        f"nothing says under which licence {job.base.source} is, and publish.private is false. Ask "
        "its authors, and set publish.license"
    )


def _template(job: Job) -> list[str]:
    """Return sentences on the chat template that the conversations of training were written in."""
    if job.sft is None or job.base is None:
        return []
    if not job.uses_model_template:
        return ["Conversations are written in Pion's own chat template."]
    told = [] if job.sft.system is None else [f"the system message “{job.sft.system.strip()}”"]
    told += [f"`{name}: {json.dumps(value)}`" for name, value in job.sft.template_options.items()]
    settings = f", with {' and '.join(told)} unless a caller gives another" if told else ""
    day = f" In training, its date was {job.base.date}." if job.base.date else ""
    return [f"Its chat template is that of the base model{settings}.{day}"]


def _licence(terms: Terms) -> str:
    if not terms.known:
        return "Its licence is unknown."
    sentences = []
    if terms.license is not None:
        named = f" ({terms.name})" if terms.name else ""
        sentences.append(f"Its licence is {terms.license}{named}.")
    if terms.files:
        files = ", ".join(f"`{path.name}`" for path in terms.files)
        sentences.append(f"In this folder are its files {files}.")
    return " ".join(sentences)
