"""What an answer must be: any text, a JSON object, or JSON that fits a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.serve.body import Fields, refused

Kind = Literal["text", "json_object", "json_schema"]
Schema = dict[str, Any]


class AnswerFormat(Fields):
    """`response_format` of a chat."""

    type: Kind
    json_schema: dict[str, Any] | None = None  # `schema`, and what does not change the answer

    @model_validator(mode="after")
    def _check(self) -> AnswerFormat:
        if self.type == "json_schema" and not isinstance(
            (self.json_schema or {}).get("schema"), dict
        ):
            words = "json_schema must be an object with the JSON schema in its field schema"
            raise refused("json_schema", words)
        return self

    @property
    def schema_of_answer(self) -> Schema | None:
        """The schema that the answer must fit; None: it may be any text."""
        return _schema_of(self.type, (self.json_schema or {}).get("schema"))


class TextFormat(Fields):
    """`text.format` of a response. The answer always fits the schema, `strict` or not."""

    type: Kind
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    strict: bool | None = None
    given_schema: Annotated[Schema | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _check(self) -> TextFormat:
        for name, value in (("schema", self.given_schema), ("name", self.name)):
            if value is None and self.type == "json_schema":
                raise refused(name, f"{name} is missing, which the type json_schema needs")
        if self.given_schema is not None and self.type != "json_schema":
            raise refused("schema", f"the type is {self.type}; a schema needs json_schema")
        return self

    @property
    def schema_of_answer(self) -> Schema | None:
        """The schema that the answer must fit; None: it may be any text."""
        return _schema_of(self.type, self.given_schema)

    def as_asked(self) -> dict[str, Any]:
        """Return the fields that the request gave."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def _schema_of(kind: Kind, given: Schema | None) -> Schema | None:
    if kind == "json_object":
        return {"type": "object"}
    return given if kind == "json_schema" else None
