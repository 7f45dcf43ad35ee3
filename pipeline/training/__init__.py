"""The two training stages inside a worker: start, loop, save, rewind, record."""
