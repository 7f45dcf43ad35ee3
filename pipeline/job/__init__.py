"""The job file: its fields, how it is read, its mistakes, its digests."""

from pipeline.job.data_section import (
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
    PythonDocsPrefer,
    PythonDocsQA,
    Source,
    TextFiles,
)
from pipeline.job.evaluate_and_publish_sections import REQUIREMENT, Publish
from pipeline.job.job import Job
from pipeline.job.runtime_sections import Budget, Checkpoint, Deadline, Price
from pipeline.job.section import Section
from pipeline.job.stages import STAGES
from pipeline.job.train_sections import Train

__all__ = [
    "REQUIREMENT",
    "STAGES",
    "BinShards",
    "Budget",
    "Checkpoint",
    "Deadline",
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
    "PythonDocsPrefer",
    "PythonDocsQA",
    "Section",
    "Source",
    "TextFiles",
    "Train",
]
