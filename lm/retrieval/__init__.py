"""Search in a corpus: by words (BM25), by vectors, and by both."""
