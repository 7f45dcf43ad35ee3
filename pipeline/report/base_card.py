"""What the model card says of the model that a run started from: its name, terms and conditions."""

from __future__ import annotations

from typing import Any

from pipeline.base.terms import Terms, conditions
from pipeline.job import Job
from pipeline.report.adapter_card import hub_name


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
    repo = base_on_hub(job)
    name = f"[{repo}](https://huggingface.co/{repo})" if repo else f"`{job.base.source}`"
    at = f" at commit `{job.base.commit}`" if job.base.commit else ""
    lines = [f"Trained from {name}{at}; its files have the content hash `{job.base.hash}`."]
    lines.append(_licence(terms))
    return "## Base model\n\n" + " ".join(lines)


def unknown_licence(job: Job) -> str:
    """Return the warning for a model that is published although nobody knows its licence."""
    assert job.base is not None
    return (
        f"nothing says under which licence {job.base.source} is, and publish.private is false. Ask "
        "its authors, and set publish.license"
    )


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
