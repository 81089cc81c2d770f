"""The `tla` command, and what runs it: the pipeline, its job server, notebooks."""
