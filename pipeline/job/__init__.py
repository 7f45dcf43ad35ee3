"""The job file: its fields, how it is read, its mistakes, its digests."""

from pipeline.job.fields import REQUIREMENT, STAGES, Budget, Checkpoint, Job, Price, Publish, Train
from pipeline.job.section import Section
from pipeline.job.sources import (
    BinShards,
    HubDataset,
    HubNpyShards,
    HubTexts,
    JsonlFiles,
    JsonlTexts,
    NpyShards,
    ParquetFiles,
    ParquetTexts,
    PythonDocs,
    PythonDocsQA,
    Source,
    TextFiles,
)

__all__ = [
    "REQUIREMENT",
    "STAGES",
    "BinShards",
    "Budget",
    "Checkpoint",
    "HubDataset",
    "HubNpyShards",
    "HubTexts",
    "Job",
    "JsonlFiles",
    "JsonlTexts",
    "NpyShards",
    "ParquetFiles",
    "ParquetTexts",
    "Price",
    "Publish",
    "PythonDocs",
    "PythonDocsQA",
    "Section",
    "Source",
    "TextFiles",
    "Train",
]
