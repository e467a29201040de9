"""The worker: read → decode → plan → apply → emit. See `worker/pipeline.py` for the path of a batch."""
