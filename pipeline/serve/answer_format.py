"""What an answer must be: any text, a JSON object, or JSON that fits a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.serve.body import Fields, refused


class TextFormat(Fields):
    """`text.format` of a response. The answer always fits the schema, `strict` or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    given_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _check(self) -> TextFormat:
        if (self.given_schema is None) == (self.type == "json_schema"):
            missing = "schema is missing, which the type json_schema needs"
            words = f"the type is {self.type}; a schema needs json_schema"
            raise refused("schema", missing if self.given_schema is None else words)
        return self


def schema_of(asked: TextFormat | None) -> dict[str, Any] | None:
    """Return the schema that an answer must fit; None: it may be any text."""
    if asked is None or asked.type == "text":
        return None
    return {"type": "object"} if asked.type == "json_object" else asked.given_schema


def _flat(value: Any) -> Any:
    """Return `response_format` with the fields of its `json_schema`, as `text.format` has them."""
    if not isinstance(value, dict) or not isinstance(value.get("json_schema"), dict):
        return value
    return value["json_schema"] | {n: field for n, field in value.items() if n != "json_schema"}


# `response_format` of a chat.
AnswerFormat = Annotated[TextFormat, BeforeValidator(_flat)]
