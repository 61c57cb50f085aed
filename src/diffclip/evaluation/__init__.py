"""What a model can do: zero-shot classification, retrieval and fine-grained pairs, on any source of data."""
