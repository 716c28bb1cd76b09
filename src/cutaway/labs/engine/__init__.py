"""Running a model: caches and sampling."""
