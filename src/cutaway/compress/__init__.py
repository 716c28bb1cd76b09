"""Making models smaller: numbers in fewer bits, and what that does to a model."""
