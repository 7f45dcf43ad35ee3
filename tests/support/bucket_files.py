"""A bucket with the files of a folder, and jobs that read them there."""

from pathlib import Path

import yaml


class BucketFiles:
    """Puts files of a folder into a bucket of its own, by their names below the folder."""

    def __init__(self, s3, folder):
        self._client, self.folder = s3.client(), folder
        self.url = f"s3://{s3.bucket()}"

    def put(self, name, content):
        """Store an object; None: delete it."""
        if content is None:
            self._client.delete_object(Bucket=self.url[5:], Key=name)
        else:
            self._client.put_object(Bucket=self.url[5:], Key=name, Body=content)

    def put_all(self):
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                self.put(path.relative_to(self.folder).as_posix(), path.read_bytes())

    def let_read(self, job: Path):
        """Put all files there, and let all sources of a job file be of the bucket."""
        self.put_all()
        fields = yaml.safe_load(job.read_text())
        for section in ("data", "sft", "prefer", "reinforce"):
            for source in (fields.get(section) or {}).get("sources", ()):
                path = (job.parent / source["path"]).relative_to(self.folder)
                source["path"] = f"{self.url}/{path}"
        job.write_text(yaml.safe_dump(fields))
