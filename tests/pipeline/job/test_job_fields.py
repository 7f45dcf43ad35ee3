"""`pion schema` prints a JSON schema with which an editor accepts each job that Pion accepts."""

import json

import jsonschema
import yaml

from pipeline.job.file import JobLoader
from tests.paths import JOBS


def test_the_schema_accepts_all_jobs_and_refuses_a_misspelled_key(pion):
    code, printed, _ = pion("schema")
    assert code == 0
    schema = jsonschema.Draft202012Validator(json.loads(printed))
    for path in JOBS.glob("*.yaml"):
        job = yaml.load(path.read_text(encoding="utf-8"), JobLoader)  # noqa: S506
        schema.validate(job)
        assert not schema.is_valid(job | {"modle": "pion-nano"})
