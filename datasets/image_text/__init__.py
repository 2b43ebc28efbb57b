"""Images with captions: pairs, shards and the retrieval sets."""
